"""A real SuperLink and real SuperNodes: what a run leaves behind, how it ends, and who misbehaves in it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from test_processes import in_time, runs

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")

from flwr.app import Context, RecordDict

from fedsiege import cli
from fedsiege.errors import FedSiegeError, InputError
from fedsiege.experiment import load, run
from fedsiege.experiment.prepare import prepare
from fedsiege.federation.local import LocalEngine
from fedsiege.flower import SILENT, app, loopback
from fedsiege.flower.certificates import write_node_key
from fedsiege.flower.deployment import (
    Deployment,
    Outcome,
    Value,
    answers_in,
    check_keys,
    said_last,
    surroundings,
    toml,
)
from fedsiege.flower.processes import marked
from fedsiege.flower.seat import COALITION, DATA, dealt, digest, write_sites

pytestmark = [
    pytest.mark.flower,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
]

BESIDE = Path(__file__).resolve().parents[2] / "deploy" / "app" / "pyproject.toml"

LASTS = 600.0
"""Seconds after which a run has hung."""

TINY: dict[str, Any] = {
    "data": {"name": "digits", "holdout": 0.5},
    "model": {"name": "mlp", "hidden": [8]},
    "clients": 4,
    "rounds": 3,
    "examples_per_client": 20,
    "validation": 40,
    "training": {"epochs": 1, "batch": 10, "lr": 0.1, "momentum": 0.0},
    "candidates": {"ifl": 20, "ofl": 20},
    "attacks": ["avg_cosine"],
    "record_every": 1,
    "threads": 1,
    "device": "cpu",
}

CASES: dict[str, dict[str, Any]] = {
    "passive": {"participation": 0.75, "delay": 1, "attacks": ["loss_series"]},
    "a rule with history": {"aggregator": "foolsgold", "server_defences": [{"name": "fldetector", "window": 1}]},
    "cofedmid with compensation": {"coalition": {"name": "cofedmid", "members": [0, 2]}},
    "fedpoisonmia": {
        "adversary": {"name": "fedpoisonmia", "knowledge": "full"},
        "compromised": {"clients": [1, 3]},
        "aggregator": "median",
    },
    "model replacement": {
        "adversary": {"name": "model_replacement", "gamma": "estimated", "poisoned": 5},
        "compromised": {"clients": [3], "first": 2},
        "backdoor": {"trigger": {"name": "pixel", "row": 0, "column": 0}, "target": 3},
    },
}

TOY = """\
[project]
name = "toy"
version = "1.0.0"
description = "An app of this test's"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
{config}
"""

FAILING = """
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    raise ValueError(context.run_config["message"])
"""

MISBEHAVING = """
import io, json, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

def ours(message, context):
    from fedsiege.flower.app import client
    return client(message, context)

def reply(message, about, arrays):
    content = RecordDict({"about": ConfigRecord({"json": json.dumps(about)}), "arrays": ArrayRecord(arrays)})
    return Message(content, reply_to=message)

def waited(context, sign):
    while sign and not (Path(context.node_config["signs"]) / sign).exists():
        time.sleep(0.1)

@app.query()
def join(message, context):
    how = context.node_config["misbehave"]
    if how == "not":
        return ours(message, context)
    about = {
        "client": context.node_config["partition-id"],
        "experiment": context.run_config["experiment"],
        "data": context.node_config["dealt"],
    }
    return reply(message, about, {})

@app.train()
def train(message, context):
    how = context.node_config["misbehave"]
    if how == "not":
        return ours(message, context)
    number = json.loads(message.content["about"]["json"])["round"]
    update = np.full(message.content["arrays"]["start"].numpy().size, 1e-3, dtype=np.float32)
    if how == "nan":
        update[1] = np.nan
    elif how == "shapes":
        update = update[1:]
    elif how == "empty":
        waited(context, number == 3 and "back")
        return Message(RecordDict(), reply_to=message)
    elif how == "late":
        waited(context, number == 2 and "round_3")
        if number == 3:
            raise RuntimeError("the disk is full")
    elif how == "dies":
        waited(context, number == 2 and "never")
    about = {"client": context.node_config["partition-id"], "weight": 20, "counters": {}, "answered": number}
    return reply(message, about, {"update": Array(update)})
"""


def written(folder: Path, server: str, client: str, config: str = "", **modules: str) -> Path:
    """An app folder of this test's."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(TOY.format(server=server, client=client, config=config))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def experiment_file(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


def asked(path: Path, out: Path) -> dict[str, Value]:
    """The run-config of a run."""
    return {"config": json.dumps(app.on_flower(load(path)).model_dump(mode="json")), "out": str(out)}


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def counters(out: Path, label: str) -> Mapping[str, float]:
    (found,) = (one["counters"] for one in result(out)["components"] if one["label"] == label)
    return dict(found)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Path]]:
    """Four nodes that can take part in each of CASES, and a fifth that waits; the folder beside them."""
    folder = tmp_path_factory.mktemp("four")
    shared = experiment_file(folder / "shared.yaml", **CASES["cofedmid with compensation"])
    nodes = [loopback.numbered(node) for node in write_sites(load(shared), folder / "sites")]
    for client in (1, 3):  # compromised in some cases: the adversary that plays them reads the experiment's data
        del nodes[client][DATA]
    assert COALITION in nodes[0]
    assert COALITION in nodes[2]
    with Deployment(folder / "deployment", [*nodes, {"partition-id": 4}], waiting=[4]) as deployment:
        write_app(folder / "app")
        yield deployment, folder


def write_app(folder: Path) -> None:
    folder.mkdir()
    (folder / "pyproject.toml").write_text(loopback.APP)


@pytest.mark.parametrize(
    "name", [*list(CASES)[:1], *(pytest.param(one, marks=pytest.mark.slow) for one in list(CASES)[1:])]
)
def test_a_deployed_run_leaves_the_bytes_of_a_local_one(
    four: tuple[Deployment, Path], name: str, tmp_path: Path
) -> None:
    deployment, folder = four
    config = experiment_file(tmp_path / "tiny.yaml", **CASES[name])
    lines = list[str]()
    outcome = deployment.run(folder / "app", asked(config, tmp_path / "flower"), lines.append, LASTS)
    assert outcome.status == "completed", "\n".join(lines)
    assert outcome.exit_code == 0
    assert [f"fedsiege: round {number} of 3" for number in (1, 2, 3)] == [line for line in lines if "round" in line]
    run(config, tmp_path / "local", progress=False)
    for path in sorted((tmp_path / "local" / "trace").iterdir()):
        assert (tmp_path / "flower" / "trace" / path.name).read_bytes() == path.read_bytes(), path.name
    for file in ("scores.parquet", "candidates.parquet"):
        assert (tmp_path / "flower" / file).read_bytes() == (tmp_path / "local" / file).read_bytes()
    for part in ("attacks", "components", "task", "poisoning", "coalitions"):
        assert result(tmp_path / "flower")[part] == result(tmp_path / "local")[part], part


def test_an_experiment_that_is_refused_fails_with_its_one_message(
    four: tuple[Deployment, Path], tmp_path: Path
) -> None:
    deployment, folder = four
    (tmp_path / "notes.txt").touch()
    lines = list[str]()
    config = asked(experiment_file(tmp_path / "tiny.yaml"), tmp_path)
    outcome = deployment.run(folder / "app", config, lines.append, LASTS)
    assert (outcome.status, outcome.exit_code) == ("failed", 2)
    assert (
        outcome.message
        == f"{tmp_path}: exists and is not empty; choose another --out, or --resume to go on with it"
    )
    assert [line for line in lines if "fedsiege: error" in line] == [
        f"fedsiege: error: {outcome.message} (exit code 2)"
    ]


def test_a_server_app_that_raises_is_a_failed_run(four: tuple[Deployment, Path], tmp_path: Path) -> None:
    broken = written(
        tmp_path / "app",
        "serving:app",
        "fedsiege.flower.app:client",
        'message = "?"',
        serving=FAILING,
    )
    message = 'it\'s "broken": 100% {of} \\ it'
    outcome = four[0].run(broken, {"message": message}, timeout=LASTS)
    assert (outcome.status, outcome.exit_code, outcome.message) == ("failed", 1, message)


def test_an_app_that_flower_does_not_take_is_refused_with_flower_s_words(
    four: tuple[Deployment, Path], tmp_path: Path
) -> None:
    nothing = written(tmp_path / "app", "nowhere:app", "fedsiege.flower.app:client")
    with pytest.raises(FedSiegeError, match=r"^flwr run: .*nowhere"):
        four[0].run(nothing, timeout=LASTS)


def test_a_node_with_another_key_is_refused_and_one_that_runs_is_not_started_twice(
    four: tuple[Deployment, Path],
) -> None:
    deployment, _ = four
    key = deployment.key(4)
    key.unlink()
    key.with_name("key.pub").unlink()
    write_node_key(key)
    with pytest.raises(FedSiegeError, match=r"^node 4 was refused: .*Failed to (initialize|activate)"):
        deployment.start(4)
    with pytest.raises(InputError, match="node 0: runs already"):
        deployment.start(0)


def test_all_of_it_ends_on_the_way_out(tmp_path: Path) -> None:
    """Also the ports are free, and what is secret was never readable by others."""
    with Deployment(tmp_path / "deployment", [{"partition-id": 0, "secret": "s3cret"}]) as deployment:
        assert deployment._processes is not None
        mark = deployment._processes._mark
        members = marked(mark)
        assert len(members) >= 4, "a SuperLink and a SuperNode, each with its SuperExec"
        for pid in members:
            told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert {f"{name}={os.environ.get(name, value)}".encode() for name, value in SILENT.items()} <= set(told)
            assert b"s3cret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        port = deployment._port
        assert (tmp_path / "deployment").stat().st_mode & 0o077 == 0
        assert (tmp_path / "deployment" / "node_0" / "node.toml").stat().st_mode & 0o077 == 0
    assert marked(mark) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with pytest.raises(FedSiegeError, match="was stopped"):
        deployment.start(0)


@pytest.mark.slow
def test_nodes_that_misbehave_do_not_stop_the_run_and_stand_in_the_report(tmp_path: Path) -> None:
    """One is honest; others send no numbers, other shapes or nothing, come late, die and return, never come."""
    ways = ["not", "nan", "shapes", "empty", "late", "never comes", "dies"]
    dying = ways.index("dies")
    engine = {"name": "flower", "patience": 30.0, "timeout": 60.0, "staleness": 2}
    config = experiment_file(tmp_path / "tiny.yaml", clients=len(ways), rounds=4, engine=engine)
    settings = asked(config, tmp_path / "out")
    experiment = digest(app.experiment_of(settings))
    keys = f'config = ""\nset = ""\nout = ""\nresume = false\nexperiment = "{experiment}"'
    folder = written(tmp_path / "app", "fedsiege.flower.app:server", "answering:app", keys, answering=MISBEHAVING)
    shards = prepare(load(config)).federation().shards
    nodes: list[dict[str, Value]] = [
        {"partition-id": number, "misbehave": way, "signs": str(tmp_path), "dealt": dealt(shards[number])}
        for number, way in enumerate(ways)
    ]
    nodes[0][DATA] = write_sites(load(config), tmp_path / "sites")[0][DATA]
    with Deployment(tmp_path / "deployment", nodes, waiting=[ways.index("never comes")]) as deployment:

        def follow(line: str) -> None:
            if line.startswith("fedsiege: round "):
                number = int(line.split()[2])
                (tmp_path / f"round_{number}").touch()
                if number == 2:
                    assert in_time(lambda: "ROUND 2]" in deployment.log(dying).read_text())
                    deployment.kill(dying)
                elif number == 3:
                    deployment.restart(dying)
                    (tmp_path / "back").touch()

        outcome = deployment.run(folder, settings, follow, LASTS)
    assert outcome == Outcome(outcome.run, "completed")
    server = counters(tmp_path / "out", "server")
    assert (server["dropped_nonfinite"], server["dropped_misshapen"]) == (4, 4)
    assert server["taken_late"] == 1
    # Who died is absent in round 2, and perhaps in 3, however Flower finds out; the others for one reason each.
    more = {why: server.get(why, 0) - others for why, others in (("failed", 4), ("missing", 4), ("late", 1))}
    assert all(count >= 0 for count in more.values())
    assert sum(more.values()) in (1, 2)
    assert server["answers"] == 4 * len(ways) - (4 + 4 + 1) - sum(more.values())
    assert re.search(r"ROUND 4\].*ROUND 4\]\n.*Sending: train", deployment.log(dying).read_text(), re.DOTALL)
    said = " ".join(result(tmp_path / "out")["warnings"])
    for what in (
        "Answers that were not there: ",
        "round 1, client 3: failed (the reply",
        "round 1, client 5: missing (its node is not there)",
        "round 2, client 4: late (no answer in 60 s)",
    ):
        assert what in said, said


def command(folder: Path, token: str, *words: str) -> subprocess.Popen[str]:
    """`fedsiege deploy` as a process of its own, whose descendants can be told by a token."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedsiege", "deploy", *words],
        cwd=folder,
        env={**os.environ, "FEDSIEGE_TEST": token, "TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )


def family(token: str) -> list[int]:
    """The running processes of a token, this one apart."""
    text, found = f"FEDSIEGE_TEST={token}".encode(), list[int]()
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                if text in (place / "environ").read_bytes().split(b"\0") and runs(int(place.name)):
                    found.append(int(place.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_deployment_that_is_interrupted_or_killed(
    tmp_path: Path, number: signal.Signals
) -> None:
    experiment_file(tmp_path / "tiny.yaml", clients=2, rounds=200)
    process = command(tmp_path, str(tmp_path), "tiny.yaml", "--out", "out")
    assert process.stderr is not None
    with process.stderr as said:
        for line in said:
            if line.startswith("round 2 of 200"):
                break
        assert process.poll() is None
        assert len(family(str(tmp_path))) >= 8, "SuperLink, 2 SuperNodes, 3 SuperExecs, ServerApp, watcher"
        process.send_signal(number)
        rest = said.read()
    process.wait()
    assert in_time(lambda: not family(str(tmp_path)))
    if number == signal.SIGINT:
        assert (process.returncode, rest.splitlines()[-1]) == (
            130,
            "fedsiege: error: interrupted; go on with --resume",
        )
        assert (tmp_path / "out" / "config.yaml").is_file()


class Staged:
    """A deployment that starts nothing, and ends as it is told."""

    outcome = Outcome(1, "completed")
    nodes: ClassVar[list[Mapping[str, Value]]] = []

    def __init__(self, folder: Path, nodes: list[Mapping[str, Value]]) -> None:
        folder.mkdir()
        (folder / "superlink.log").write_text("said")
        Staged.nodes = nodes

    def __enter__(self) -> "Staged":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, folder: Path, config: Mapping[str, Value], follow: Any) -> Outcome:
        assert (folder / "pyproject.toml").read_text() == BESIDE.read_text()
        for line in (
            "INFO: of no interest",
            "fedsiege: round 1 of 3",
            "node 3 ended: killed",
            "fedsiege: error: no",
        ):
            follow(line)
        if self.outcome.status == "completed":
            experiment = app.experiment_of(config)
            assert experiment.engine.name == "flower"
            run(experiment.model_dump(mode="json"), str(config["out"]), progress=False, engine=LocalEngine())
        return self.outcome


@pytest.mark.parametrize(
    ("status", "said", "code", "message"),
    [
        ("failed", "ServerApp failed with exception: no data (exit code 2)", 2, "no data"),
        ("failed", "ServerApp failed with exception: it diverged (exit code 1)", 1, "it diverged"),
        ("failed", "ServerApp failed with exception: 'key'", 1, "'key'"),
        ("stopped", "", 1, "the run was stopped"),
    ],
)
def test_the_command_ends_as_the_run_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: Any,
    said: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(loopback, "Deployment", Staged)
    monkeypatch.setattr(Staged, "outcome", Outcome(1, status, said))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the logs stay, where there is no run folder
    config = experiment_file(tmp_path / "tiny.yaml")
    assert cli.execute(["deploy", str(config), "--out", str(tmp_path / "out")]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"fedsiege: error: {message} (logs: ")
    logs = Path(last.rpartition("logs: ")[2].removesuffix(")"))
    assert (logs / "superlink.log").read_text() == "said"
    assert not (tmp_path / "out").exists()


def test_the_command_presents_the_run_and_keeps_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loopback, "Deployment", Staged)
    config, out = experiment_file(tmp_path / "tiny.yaml"), tmp_path / "out"
    assert cli.execute(["deploy", str(config), "--out", str(out), "--set", "rounds=2"]) == 0
    shown = capsys.readouterr()
    assert str(out / "report.html") in shown.out
    assert shown.err.splitlines() == [
        "writing each client's own data",
        "starting a SuperLink and 4 SuperNodes",
        "round 1 of 3",
        "node 3 ended: killed",
    ]
    assert (out / "flower" / "superlink.log").read_text() == "said"
    assert yaml.safe_load((out / "config.yaml").read_text())["rounds"] == 2
    assert [node["partition-id"] for node in Staged.nodes] == [0, 1, 2, 3]
    # A finished run is only shown again.
    monkeypatch.setattr(loopback, "Deployment", None)
    again = ["deploy", str(config), "--out", str(out), "--set", "rounds=2", "--resume", "--quiet"]
    assert cli.execute(again) == 0


def test_bad_input_is_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loopback, "Deployment", None)
    config = experiment_file(tmp_path / "tiny.yaml")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    for words, what in (
        (["--set", "rounds=-1"], "rounds"),
        (["--out", str(tmp_path / "out")], "exists and is not empty"),
        (["--out", str(tmp_path / "new"), "--set", "data={name: npz, path: nowhere.npz}"], "nowhere.npz"),
    ):
        assert cli.execute(["deploy", str(config), *words]) == 2
        assert what in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def context(**config: Value) -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config=config)


def test_a_run_config_names_an_experiment_in_any_of_three_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = experiment_file(tmp_path / "in_the_app.yaml", engine={"name": "flower", "timeout": 9.0})
    monkeypatch.syspath_prepend(tmp_path)
    for config in ("in_the_app.yaml", str(path), json.dumps(yaml.safe_load(path.read_text()))):
        found = app.experiment_of({"config": config, "set": " rounds=2 ; attacks=[avg_cosine, blackbox_loss];; "})
        assert (found.rounds, len(found.attacks)) == (2, 2)
        assert (found.engine.name, found.engine.timeout) == ("flower", 9.0)
        # A client finds the same, with the defaults.
        assert json.loads(app.configured(context(config=config, set="rounds=2")))["rounds"] == 2
    assert app.experiment_of({"config": "quickstart"}).engine.name == "flower"


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({}, "run-config: config: got ''; expected a shipped name"),
        ({"config": 3}, "run-config: config: got 3"),
        ({"config": "{"}, "run-config: config: is no JSON"),
        ({"config": "quickstrat"}, "quickstart"),
        ({"config": "quickstart", "set": 3}, "run-config: set: got 3"),
        ({"config": "quickstart", "set": "rounds"}, "rounds"),
        ({"config": "quickstart", "resume": "yes"}, "run-config: resume: got 'yes'; expected true or false"),
    ],
)
def test_a_run_config_that_asks_for_nothing_fails_with_one_message(
    config: dict[str, Value], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(app.RunFailedError, match=r"\(exit code 2\)$") as caught:
        app.serve(None, context(**config))  # type: ignore[arg-type]
    assert what in str(caught.value)
    assert capsys.readouterr().err == f"fedsiege: error: {caught.value}\n"


@pytest.mark.parametrize(
    "text", ["", "a b", 'it\'s "quoted"', "back\\slash\nline\ttab\x00\x1f\x7f", "ö é 漢 😀", "{}"]
)
def test_texts_are_the_same_in_toml(text: str) -> None:
    values: dict[str, Value] = {"text": text, "whole": 3, "share": 1e-07, "on": True}
    assert tomllib.loads(toml(values, "node 0")) == values


@pytest.mark.parametrize(
    "values", [{"a": None}, {"a": [1]}, {"a b": 1}, {"a..b": 1}, {"": 1}, {"a": float("nan")}, {"a": float("inf")}]
)
def test_what_flower_takes_none_of_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^node 1: .*expected text, a number or true or false"):
        Deployment(tmp_path / "deployment", [{}, values])


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not empty; expected a new folder"):
        Deployment(tmp_path, [])


def test_keys_that_an_app_has_not_are_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "app", "a:b", "c:d", "rounds = 3\n[tool.flwr.app.config.deep]\ner = {x = 1, y = 2}")
    check_keys(folder, {"rounds": 4, "deep.er.x": 5, "deep.er.y": 6})
    with pytest.raises(
        InputError, match=r"^run-config: round: .*rounds.*\['rounds', 'deep\.er\.x', 'deep\.er\.y'\]$"
    ):
        check_keys(folder, {"round": 4})
    with pytest.raises(InputError, match=r"has no pyproject\.toml"):
        check_keys(tmp_path, {})
    (tmp_path / "pyproject.toml").write_text("[tool]\n")
    with pytest.raises(InputError, match=r"expected \[tool\.flwr\.app\]"):
        check_keys(tmp_path, {})


def test_answers_are_found_between_what_else_is_said() -> None:
    text = 'Warning: {not json}\n{"success": true, "runs": [{"a": 1}]}\nnoise {\n{"success": false}\n'
    assert answers_in(text) == [{"success": True, "runs": [{"a": 1}]}, {"success": False}]
    assert answers_in("") == []


def test_a_log_says_why_its_process_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert said_last(log) == "nothing was said"
    log.write_text("one\n two \n\n")
    assert said_last(log) == "two"
    log.write_text(
        "Exit Code: 1\nold\nERROR: Exit Code: 305\n\nNo way in.\nReally not.\nFor more, see there\nShutting down\n"
    )
    assert said_last(log) == "No way in. Really not."


def test_outcomes_have_the_exit_code_of_the_run() -> None:
    assert Outcome(1, "completed").exit_code == 0
    assert Outcome(1, "failed", "ServerApp failed with exception: a (exit code 2)").exit_code == 2
    assert Outcome(1, "failed", "a (exit code 2) b").exit_code == 1
    assert Outcome(1, "failed", "ServerApp failed with exception: a (exit code 0)").exit_code == 1
    assert Outcome(1, "stopped").exit_code == 1


def test_switches_are_off_unless_somebody_turned_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SILENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    found = surroundings()
    assert {name: found[name] for name in SILENT} == {**SILENT, "HF_HUB_OFFLINE": "0"}
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert found["PYTHONPATH"].split(os.pathsep) == ["somewhere", str(Path.cwd())]
