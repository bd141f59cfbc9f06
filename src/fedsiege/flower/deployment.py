"""A real Flower deployment on this machine: a SuperLink and SuperNodes with TLS and node authentication.

Everything listens on 127.0.0.1 at ports that the operating system chose, and nothing calls anybody: the switches of
`fedsiege.flower` stand in every process's environment. Flower is driven by its own commands, as anywhere else.
"""

import contextlib
import json
import math
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from fedsiege.errors import FedSiegeError, InputError
from fedsiege.flower import SILENT
from fedsiege.flower.certificates import CA, SERVER, SERVER_KEY, write_node_key, write_server
from fedsiege.flower.processes import Processes, killed
from fedsiege.registry import nearest

HERE = "127.0.0.1"
SUPERLINK = "deployment"
"""The name of the SuperLink's connection in Flower's own configuration."""

START = 60.0
"""Seconds in which a SuperLink must answer, and a SuperNode be known to it."""

REJOIN = 90.0
"""Seconds after which a SuperLink must know that a node was killed: two of Flower's heartbeats, and more."""

PAUSE = 0.2
"""Seconds between two looks at a log or a process."""

TRIES = 3
"""How often a port is chosen: somebody else may take it before Flower does."""

POLL = "0.25"
"""Seconds between two looks of Flower's SuperExec for work; its own default of 1 s would rule small rounds."""

COMMANDS = """
import json, sys
from flwr.cli.app import app
for command in json.load(sys.stdin):
    app(command, standalone_mode=False)
"""
"""Several of Flower's commands in one process: starting Python takes longer than most of them."""

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run really ended; `flwr run` returns 0 whatever happens.

    `said` is what the server's app said when it failed; `run` is Flower's number of the run.
    """

    run: int
    status: Literal["completed", "failed", "stopped"]
    said: str = ""

    @property
    def exit_code(self) -> int:
        """What a command returns: 0 where the run was completed, 2 where it was refused as bad input, else 1."""
        if self.status == "completed":
            return 0
        coded = re.search(r"\(exit code ([1-9])\)$", self.said)
        return int(coded[1]) if coded else FedSiegeError.exit_code

    @property
    def message(self) -> str:
        """What went wrong, in the words of the app."""
        said = self.said.removeprefix("ServerApp failed with exception: ")
        return re.sub(r" \(exit code \d\)$", "", said)


class Deployment:
    """A SuperLink and a SuperNode for each of `nodes`; leaving the context stops them all, and so does our own end.

    Args:
        folder: where certificates, keys, configurations and logs are written; must be absent or empty.
        nodes: each node's own configuration, such as `{"partition-id": 0, "data": "/data/site_0.safetensors"}`.
        waiting: nodes, by their place in `nodes`, that are registered but not started: `start` does it later.
        environment: variables beside those of this process, for all processes.

    """

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[Mapping[str, Value]],
        waiting: Collection[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if os.name == "nt":
            raise InputError("deployment: Windows is not supported; expected Linux or macOS")
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; expected a new folder for the deployment")
        self.folder = folder.absolute()
        self.nodes = [toml(node, f"node {number}") for number, node in enumerate(nodes)]
        self._waiting = set(waiting)
        self._environment = {**surroundings(), **(environment or {})}
        self._processes: Processes | None = None
        self._port = 0
        self._superlink: subprocess.Popen[bytes] | None = None
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._killed: dict[int, float] = {}
        self._ids: list[str] = []

    def __enter__(self) -> "Deployment":
        self._processes = Processes()
        try:
            self._prepare()
            self._start_superlink()
            registered = ["supernode", "register", "{}", SUPERLINK, "--format", "json"]
            keys = [str(self.key(node)) + ".pub" for node in range(len(self.nodes))]
            answers = self._flower(*([key if part == "{}" else part for part in registered] for key in keys))
            self._ids = [str(answer["node-id"]) for answer in answers]
            for node in range(len(self.nodes)):
                if node not in self._waiting:
                    self._launch(node)
            self._await(set(self._running))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop every process, and theirs; a deployment that is stopped already is left alone."""
        processes, self._processes = self._processes, None
        if processes is not None:
            processes.end()
        self._running, self._superlink = {}, None

    def key(self, node: int) -> Path:
        """A node's private key."""
        return self.folder / f"node_{node}" / "key"

    def log(self, node: int | None = None) -> Path:
        """What a node and its apps said, one start after the other; None: the SuperLink's."""
        return self.folder / ("superlink.log" if node is None else f"node_{node}.log")

    def start(self, node: int) -> None:
        """Start a node that does not run, and wait until it is online; FedSiegeError where it is refused.

        The SuperLink does not let a node in that it believes to be there: one that was killed is let in again when
        its heartbeats have been missed for a minute. Until then this tries.
        """
        if node in self._running and self._running[node].poll() is None:
            raise InputError(f"node {node}: runs already")
        while True:
            self._launch(node)
            try:
                self._await({node})
            except FedSiegeError:
                if time.monotonic() - self._killed.get(node, -math.inf) > REJOIN:
                    raise
                time.sleep(1.0)
            else:
                return

    restart = start

    def kill(self, node: int) -> None:
        """Kill a node and its apps, as a machine that loses power does."""
        process = self._running.pop(node)
        killed(process.pid)
        process.wait()
        self._killed[node] = time.monotonic()

    def run(
        self,
        app: Path,
        config: Mapping[str, Value] | None = None,
        follow: Callable[[str], None] = lambda _: None,
        timeout: float | None = None,
    ) -> Outcome:
        """Run the Flower app in a folder with this run-config, and wait for its end.

        `follow` is called with every line of the run's log as it comes, and where a node ends by itself.
        FedSiegeError where Flower refuses the app, the SuperLink ends, or the run takes over `timeout` seconds.
        """
        path = self.folder / "run.toml"
        path.write_text(toml(config or {}, "run-config"), encoding="utf-8")
        check_keys(app, config or {})
        begun = self._flower(["run", str(app), SUPERLINK, "--run-config", str(path), "--format", "json"])[0]
        number = int(begun["run-id"])
        deadline = None if timeout is None else time.monotonic() + timeout
        for line in self._followed(number, deadline):
            follow(line)
        while True:
            outcome = self._outcome(number)
            if outcome is not None:
                return outcome
            self._check(deadline)
            time.sleep(1.0)

    def _outcome(self, number: int) -> Outcome | None:
        """How a run ended; None while it has not."""
        found = self._flower(["list", SUPERLINK, "--run-id", str(number), "--format", "json"])[0]["runs"][0]
        state, _, ending = str(found["status"]).partition(":")
        if state != "finished":
            return None
        said = "" if found["status-details"] == "N/A" else str(found["status-details"])
        match ending:
            case "completed" | "failed" | "stopped":
                return Outcome(number, ending, said)
        raise FedSiegeError(f"run {number}: ended as {ending!r}; expected completed, failed or stopped")

    def _followed(self, number: int, deadline: float | None) -> Iterator[str]:
        """The lines of a run's log, until the stream ends."""
        path = self.folder / f"run_{secrets.token_hex(4)}.log"
        stream = self._started(["log", str(number), SUPERLINK], path)
        gone, rest = set[int](), ""
        with path.open(encoding="utf-8", errors="replace") as log:
            while True:
                over = stream.poll() is not None
                *lines, rest = (rest + log.read()).split("\n")
                yield from lines
                if over:
                    break
                self._check(deadline)
                for node, process in self._running.items():
                    if process.poll() is not None and node not in gone:
                        gone.add(node)
                        yield f"node {node} ended: {said_last(self.log(node))}"
                time.sleep(PAUSE)
        if rest:
            yield rest

    def _check(self, deadline: float | None) -> None:
        """FedSiegeError where the SuperLink ended, or the time is up."""
        if self._superlink is None or self._superlink.poll() is not None:
            raise FedSiegeError(f"the SuperLink ended: {said_last(self.log())}")
        if deadline is not None and time.monotonic() > deadline:
            raise FedSiegeError("run: has not ended in its time")

    def _prepare(self) -> None:
        """Certificates, keys and configurations."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        write_server(self.folder)
        for node, text in enumerate(self.nodes):
            write_node_key(self.key(node))
            place = self.folder / f"node_{node}" / "node.toml"
            place.touch(mode=0o600)  # by way of a file, as the words of a command are for everybody to see
            place.write_text(text, encoding="utf-8")

    def _start_superlink(self) -> None:
        """Start the SuperLink, at another port where one is taken, and tell Flower's commands where it is."""
        certificates = (("certfile", SERVER), ("keyfile", SERVER_KEY), ("ca-certfile", CA))
        files = [word for name, file in certificates for word in (f"--ssl-{name}", str(self.folder / file))]
        for _ in range(TRIES):
            self._port = free_port()
            command = ["flower-superlink", "--host", HERE, "--port", str(self._port), *files]
            command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
            self._superlink = self._process(command, self.log(), "superlink_home")
            if listening(self._superlink, self._port):
                break
        else:
            raise FedSiegeError(f"the SuperLink does not start: {said_last(self.log())}")
        home = self.folder / "flower_home"
        home.mkdir(exist_ok=True)
        connection = {"address": f"{HERE}:{self._port}", "root-certificates": str(self.folder / CA)}
        (home / "config.toml").write_text(f"[superlink.{SUPERLINK}]\n{toml(connection, 'connection')}")

    def _launch(self, node: int) -> None:
        """Start a node's processes and wait until it listens."""
        for _ in range(TRIES):
            port = free_port()
            command = ["flower-supernode", "--superlink", f"{HERE}:{self._port}", "--host", HERE]
            command += ["--port", str(port), "--root-certificates", str(self.folder / CA)]
            command += ["--auth-supernode-private-key", str(self.key(node))]
            command += ["--node-config", str(self.folder / f"node_{node}" / "node.toml")]
            process = self._process(command, self.log(node), f"node_{node}/home")
            if listening(process, port):
                self._running[node] = process
                return
        raise FedSiegeError(f"node {node} does not start: {said_last(self.log(node))}")

    def _await(self, nodes: Collection[int]) -> None:
        """Wait until the SuperLink knows these nodes; FedSiegeError for one that ends before, or does not come."""
        deadline = time.monotonic() + START
        while True:
            listed = self._flower(["supernode", "list", SUPERLINK, "--format", "json"])[0]["nodes"]
            online = {str(one["node-id"]) for one in listed if one["status"] == "online"}
            left = [node for node in nodes if self._ids[node] not in online]
            if not left:
                return
            for node in left:
                if self._running[node].poll() is not None:
                    del self._running[node]
                    raise FedSiegeError(f"node {node} was refused: {said_last(self.log(node))}")
            if time.monotonic() > deadline:
                raise FedSiegeError(f"nodes {left} are not known to the SuperLink after {START:g} s")
            time.sleep(PAUSE)

    def _flower(self, *commands: Sequence[str]) -> list[dict[str, Any]]:
        """The JSON answers of Flower's own commands; FedSiegeError with what Flower says where one is refused."""
        if not commands:
            return []
        path = self.folder / f"command_{secrets.token_hex(4)}.log"
        self._started(commands, path).wait()
        text = path.read_text(encoding="utf-8", errors="replace")
        answers = answers_in(text)
        failed = next((answer for answer in answers if not answer.get("success")), None)
        if failed is not None or len(answers) != len(commands):
            said = last_line(text) if failed is None else " ".join(str(failed.get("error-message", failed)).split())
            words = " ".join(word for word in commands[0][:2] if word.isalpha())
            raise FedSiegeError(f"flwr {words}: {said}")
        path.unlink()
        return answers

    def _started(self, commands: Sequence[str] | Sequence[Sequence[str]], log: Path) -> subprocess.Popen[bytes]:
        """Start one of Flower's commands, or several in a row."""
        several = [commands] if isinstance(commands[0], str) else commands
        given = json.dumps([list(command) for command in several]).encode()
        return self._process([sys.executable, "-c", COMMANDS], log, "flower_home", given)

    def _process(
        self, command: Sequence[str], log: Path, home: str, given: bytes | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process whose Flower keeps its own things in a folder of the deployment's."""
        if self._processes is None:
            raise FedSiegeError("deployment: was stopped")
        place = {"FLWR_HOME": str(self.folder / home)}
        return self._processes.start(command, log, {**self._environment, **place}, given)


def surroundings() -> dict[str, str]:
    """The environment of all processes: this one's, with the switches off, and Python's path as it is here."""
    commands = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    # The working directory comes last: a user's own `module:Class` lies where the command was typed.
    modules = [os.environ.get("PYTHONPATH", ""), str(Path.cwd())]
    return {
        **SILENT,
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL,
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "TERM": "dumb",
        **os.environ,
        "PATH": os.pathsep.join(commands),
        "PYTHONPATH": os.pathsep.join(path for path in modules if path),
    }


def toml(values: Mapping[str, Value], what: str) -> str:
    """Flat values as TOML; InputError for one that Flower takes none of."""
    lines = []
    for key, value in values.items():
        known = math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int)
        if not known or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
            raise InputError(
                f"{what}: {key}: got {value!r}; expected text, a number or true or false, by a plain name"
            )
        # JSON's texts, numbers and truths are TOML's, but for one character that TOML does not take as it is.
        lines.append(
            f"{key} = {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n".replace("\x7f", "\\u007f")
        )
    return "".join(lines)


def check_keys(app: Path, config: Mapping[str, Value]) -> None:
    """InputError for a key of a run-config that the app has not: Flower refuses it without saying which."""
    file = app / "pyproject.toml"
    if not file.is_file():
        raise InputError(f"{app}: has no pyproject.toml; expected the folder of a Flower app")
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is not a Flower app's ({error!r}); expected [tool.flwr.app]") from None
    known = flattened(found.get("config", {}))
    for key in config:
        if key not in known:
            raise InputError(f"run-config: {key}: {file} has no such key{nearest(key, known)}; it has {known}")


def flattened(values: Mapping[str, Any]) -> list[str]:
    """The keys of nested values, with dots between their parts."""
    return [
        f"{key}.{inner}" if inner else key
        for key, value in values.items()
        for inner in (flattened(value) if isinstance(value, dict) else [""])
    ]


def free_port() -> int:
    """A port on this machine that nobody uses at the moment."""
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        port: int = taken.getsockname()[1]
    return port


def listening(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a process listens; False where it ends before, FedSiegeError where it takes too long."""
    deadline = time.monotonic() + START
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HERE, port), timeout=1.0):
            # Somebody else may have taken the port: then the process is about to say so and end.
            time.sleep(PAUSE)
            return process.poll() is None
        if time.monotonic() > deadline:
            raise FedSiegeError(f"{process.args!r} does not listen at port {port} after {START:g} s")
        time.sleep(PAUSE)
    return False


def answers_in(text: str) -> list[dict[str, Any]]:
    """The JSON objects in what a command wrote, whatever stands between them."""
    found, place, decoder = list[dict[str, Any]](), text.find("{"), json.JSONDecoder()
    while place >= 0:
        try:
            answer, end = decoder.raw_decode(text, place)
        except ValueError:
            answer, end = None, place + 1
        if isinstance(answer, dict):
            found.append(answer)
        place = text.find("{", end)
    return found


def said_last(log: Path) -> str:
    """The line of a log that says why it ends: the one after Flower's last `Exit Code`, else the last one."""
    if not log.exists():
        return "nothing was said"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    coded = [place for place, line in enumerate(lines) if "Exit Code:" in line]
    reasons = [line for line in lines[coded[-1] + 1 :] if line] if coded else []
    return " ".join(reasons[:2]) if reasons else last_line("\n".join(lines))


def last_line(text: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"
