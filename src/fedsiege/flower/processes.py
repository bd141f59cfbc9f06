"""Processes that do not outlive the one that started them, nor do their children, whatever becomes of it.

Everybody started here carries one mark in the environment, which children inherit, into sessions of their own too.
Two look for it: the owner, when it is done, and a watcher, which waits for the owner's end of a pipe to close. That
happens however the owner ends, by SIGKILL too. The watcher runs this file alone, with nothing to import before.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "FEDSIEGE_PROCESSES"
"""The environment variable that says whose processes these are."""

GRACE = 3.0
"""Seconds in which processes may end by themselves before they are killed."""

SETTLED = 0.5
"""Seconds without a process of the mark after which there is none: one that is being started has no mark yet."""


class Processes:
    """Processes of one owner; leaving the context ends them all, and so does the owner's own end.

    Ctrl-C in a terminal reaches the owner alone, who decides what is stopped and in which order.
    """

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)
        self._started: list[subprocess.Popen[bytes]] = []
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        given: bytes | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own; what it and its children say is added to the file `log`.

        `given` is what it reads from its standard input.
        """
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, MARK: self._mark},
                start_new_session=True,
            )
        self._started.append(process)
        if given is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(given)
        return process

    def marked(self) -> list[int]:
        """The processes that were started here and run, and their children."""
        return marked(self._mark)

    def end(self, grace: float = GRACE) -> None:
        """Stop them all: asked to, then killed; the watcher last, and with it the chance to start another."""
        try:
            swept(self._mark, grace)
        finally:
            for process in self._started:
                process.poll()  # a child that is gone stays in the table until its parent has looked
            if self._watcher.stdin is not None:
                self._watcher.stdin.close()
            self._watcher.wait()


def descendants(process: int) -> list[int]:
    """The children of a process and theirs, as far as they are not orphans."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [(int(child), int(parent)) for child, parent in (line.split() for line in listed.stdout.splitlines())]
    found, generation = list[int](), {process}
    while generation:
        generation = {child for child, parent in pairs if parent in generation}
        found.extend(generation)
    return found


def killed(process: int) -> None:
    """Kill a process and its descendants, without a chance to say goodbye."""
    for one in (process, *descendants(process)):
        signalled(one, signal.SIGKILL)


def signalled(process: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone by now."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def marked(mark: str) -> list[int]:
    """The running processes, this one excepted, whose environment holds the mark."""
    text = f"{MARK}={mark}".encode()
    if not sys.platform.startswith("linux"):
        command = ["ps", "-axwwE", "-o", "pid=,command="]  # macOS shows the environment behind the command
        lines = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
        return [int(line.split()[0]) for line in lines if text in line.split()]
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
    return found


def swept(mark: str, grace: float) -> None:
    """End every process of the mark: by SIGTERM, and after `grace` seconds by SIGKILL, until there is none."""
    asked, began, alone = set[int](), time.monotonic(), None
    while alone is None or time.monotonic() - alone < SETTLED:
        found = marked(mark)
        if found:
            alone = None
        elif alone is None:
            alone = time.monotonic()
        for process in found:
            if time.monotonic() - began > grace:
                signalled(process, signal.SIGKILL)
            elif process not in asked:
                signalled(process, signal.SIGTERM)
                asked.add(process)
        time.sleep(0.05)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()  # nothing is ever written: this ends with the owner
    swept(sys.argv[1], grace=1.0)
