"""A whole run through the command line: what it leaves, and that stopping it anywhere changes nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import RUN_FILES, TINY, deterministic, files, written

import fedsiege
from fedsiege.cli import execute
from fedsiege.experiment import run
from fedsiege.federation import rounds as protocol
from fedsiege.report.schema import CurvesFile, ResultFile
from fedsiege.trace import Trace

LATE = {
    "delay": 2,
    "participation": 0.6,
    "rounds": 7,
    "record_every": 1,
    "checkpoint_every": 2,
    "attacks": ["fedmia_ii"],
}
"""Clients are sampled and answer late: whatever a checkpoint forgets shows."""

DIGITS = {
    "data": "digits",
    "model": {"name": "mlp", "hidden": [16]},
    "clients": 4,
    "examples_per_client": 20,
    "rounds": 6,
    "training": {"epochs": 2, "batch": 10},
    "record_every": 2,
    "checkpoint_every": 2,
    "candidates": {"ifl": 40, "ofl": 60},
    "attacks": ["fedmia_i", "fedmia_ii"],
    "threads": 1,
}


def cli(*arguments: str | Path) -> int:
    return execute([str(one) for one in arguments])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    place = tmp_path_factory.mktemp("run")
    assert cli("run", written(place / "tiny.yaml"), "--out", place / "out", "-q") == 0
    return place / "out"


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("late")
    assert cli("run", written(place / "tiny.yaml", **LATE), "--out", place / "out", "-q") == 0
    return place / "out"


def test_a_run_leaves_its_files_and_no_others(done: Path) -> None:
    assert {path.name for path in done.iterdir()} - {".lock"} == RUN_FILES
    assert {path.name for path in (done / "figures").iterdir()} == {"roc.pdf", "rounds.pdf"}
    assert [path.name for path in sorted((done / "trace").iterdir())] == [
        "round_000002.safetensors",
        "round_000004.safetensors",
        "round_000006.safetensors",
        "trace.json",
    ]


def no_nan(constant: str) -> None:
    raise AssertionError(f"{constant} in JSON")


def test_the_result_has_the_shape_of_the_contract(done: Path) -> None:
    data = json.loads((done / "result.json").read_text(), parse_constant=no_nan)
    result = ResultFile.model_validate(data)
    CurvesFile.model_validate(json.loads((done / "curves.json").read_text(), parse_constant=no_nan))
    assert list(data) == [
        "schema",
        "experiment",
        "task",
        "threat_model",
        "data",
        "attacks",
        "null_test",
        "components",
        "privacy",
        "coalitions",
        "poisoning",
        "paper",
        "warnings",
        "cost",
        "provenance",
    ]
    assert [moment.round for moment in result.task.history] == [1, 2, 3, 4, 5, 6]
    assert result.task.accuracy == result.task.history[-1].accuracy
    assert result.task.parameters == 13 * 8 + 8 + 8 * 3 + 3
    assert sum(client.examples for client in result.task.clients) == result.data.train
    assert {(row.attack, row.target, row.against) for row in result.attacks} == {
        (attack, target, against)
        for attack in TINY["attacks"]
        for target in (0, 1, 2, 3, 4, "pooled", "worst")
        for against in ("all", "ifl", "ofl")
    }
    assert {row.rounds_used for row in result.attacks if row.attack == "blackbox_loss"} == {1}
    assert {row.rounds_used for row in result.attacks if row.attack == "fedmia_ii"} == {3}
    assert all(set(row.tpr_at_fpr) == {"0.1", "0.01", "0.001", "0.0001"} for row in result.attacks)
    assert data["experiment"]["config"] == result.experiment.config
    assert all(component.acted for component in result.components)
    assert set(data["cost"]) == {
        "wall_seconds",
        "train_seconds",
        "crafting_seconds",
        "combining_seconds",
        "evidence_seconds",
        "attack_seconds",
        "peak_memory_bytes",
        "trace_bytes",
    }
    assert data["cost"]["trace_bytes"] == sum(path.stat().st_size for path in (done / "trace").glob("round_*"))
    assert result.provenance.seed == 0
    assert result.provenance.fedsiege == fedsiege.__version__


def test_scores_say_nothing_of_time_or_place_and_are_sorted(done: Path) -> None:
    table = pq.read_table(done / "scores.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("target", "int32"),
        ("draw", "int32"),
        ("candidate", "string"),
        ("group", "string"),
        ("attack", "string"),
        ("score", "double"),
    ]
    rows = table.to_pylist()
    keys = [(row["target"], row["draw"], row["candidate"], row["attack"]) for row in rows]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert {row["group"] for row in rows} == {"member", "ifl", "ofl"}
    assert np.isfinite([row["score"] for row in rows]).all()


def test_equal_runs_give_equal_bytes(done: Path, tmp_path: Path) -> None:
    result = run({**TINY, "name": "tiny"}, tmp_path / "again", progress=False)
    assert result.folder == tmp_path / "again"
    assert deterministic(tmp_path / "again") == deterministic(done)
    assert cli("run", written(tmp_path / "tiny.yaml"), "--out", tmp_path / "other", "-q", "--set", "seed=1") == 0
    other = deterministic(tmp_path / "other")
    assert other["scores.parquet"] != deterministic(done)["scores.parquet"]


def test_rows_in_a_file_change_nothing(late: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SPILL", 0)
    run({**TINY, **LATE, "name": "tiny"}, tmp_path / "out", progress=False)
    assert deterministic(tmp_path / "out") == deterministic(late)


def at_fsync(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
    """Do something at the n-th time that a file or folder is flushed."""
    calls, sync = [0], os.fsync

    def counted(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == number:
            action()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("number", "action", "code", "said"),
    [
        (1, interrupt, 130, "interrupted; go on with --resume"),
        (7, fill_the_disk, 1, "the disk is full; free some space and go on with --resume"),
        (12, interrupt, 130, "interrupted"),
        (15, fill_the_disk, 1, "the disk is full"),
        (20, interrupt, 130, "interrupted"),
        (31, fill_the_disk, 1, "the disk is full"),
        (38, interrupt, 130, "interrupted"),
    ],
)
def test_stopped_anywhere_a_run_goes_on_to_the_same_bytes(
    late: Path, tmp_path: Path, number: int, action: Callable[[], None], code: int, said: str, capsys: Any
) -> None:
    config, out = written(tmp_path / "tiny.yaml", **LATE), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        at_fsync(patch, number, action)
        assert cli("run", config, "--out", out, "-q") == code
    assert said in capsys.readouterr().err
    if number > 1:
        assert cli("run", config, "--out", out, "-q") == 2, "nothing is overwritten"
    assert cli("run", config, "--out", out, "-q", "--resume") == 0
    assert deterministic(out) == deterministic(late)
    assert {path.name for path in out.iterdir()} - {".lock"} == RUN_FILES


SIGNALLED = """
import os, signal, sys
from fedsiege.cli import execute
calls, sync = [0], os.fsync
def counted(descriptor):
    calls[0] += 1
    if calls[0] == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))
    sync(descriptor)
os.fsync = counted
sys.exit(execute(["run", sys.argv[3], "--out", sys.argv[4]]))
"""


def signalled(number: int, what: signal.Signals, config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own that gets a real signal."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fedsiege.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SIGNALLED, str(number), str(int(what)), str(config), str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("digits")
    run({**DIGITS, "name": "tiny"}, place / "out", progress=False)
    return place / "out"


@pytest.mark.parametrize("number", [9, 12, 20])
def test_killed_anywhere_a_run_goes_on_to_the_same_bytes(digits: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(DIGITS))
    out = tmp_path / "out"
    done = signalled(number, signal.SIGKILL, tmp_path / "tiny.yaml", out)
    assert done.returncode == -signal.SIGKILL
    assert not (out / "report.html").exists()
    assert cli("run", tmp_path / "tiny.yaml", "--out", out, "-q", "--resume") == 0
    assert deterministic(out) == deterministic(digits)
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == RUN_FILES


def test_ctrl_c_is_130_and_can_be_resumed(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(DIGITS))
    done = signalled(10, signal.SIGINT, tmp_path / "tiny.yaml", tmp_path / "out")
    assert done.returncode == 130
    assert done.stderr.strip().endswith("fedsiege: error: interrupted; go on with --resume")
    assert "Traceback" not in done.stderr
    assert cli("run", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "-q", "--resume") == 0
    assert deterministic(tmp_path / "out") == deterministic(digits)


def test_a_finished_run_is_left_as_it_is(done: Path, capsys: Any) -> None:
    before = files(done)
    assert cli("run", done.parent / "tiny.yaml", "--out", done, "--resume") == 0
    assert "FedMIA-II" in capsys.readouterr().out, "but it is shown again"
    assert files(done) == before
    assert cli("run", done.parent / "tiny.yaml", "--out", done) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert cli("run", done.parent / "tiny.yaml", "--out", done, "--resume", "--set", "training.lr=0.3") == 2
    assert "cannot resume with a changed config: training.lr was 0.1 and is now 0.3" in capsys.readouterr().err
    assert files(done) == before


def test_a_missing_report_is_written_again_and_nothing_else(done: Path, tmp_path: Path) -> None:
    config, out = written(tmp_path / "tiny.yaml"), tmp_path / "out"
    assert cli("run", config, "--out", out, "-q") == 0
    (out / "table.tex").unlink()
    before = files(out)
    assert cli("run", config, "--out", out, "-q", "--resume") == 0
    after = files(out)
    assert str(out / "table.tex") in after
    assert all(
        after[name] == before[name] for name in before if name.endswith((".safetensors", ".json", ".parquet"))
    )


def test_data_that_changed_on_the_way_are_not_mixed(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 6)).astype(np.float32), np.arange(120) % 3
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    config = written(
        tmp_path / "tiny.yaml", data={"name": "npz", "path": str(tmp_path / "mine.npz"), "x": "x", "y": "y"}
    )
    with pytest.MonkeyPatch.context() as patch:
        at_fsync(patch, 16, interrupt)
        assert cli("run", config, "--out", tmp_path / "out", "-q") == 130
    x[5, 3] += 1
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    capsys.readouterr()
    assert cli("run", config, "--out", tmp_path / "out", "-q", "--resume") == 2
    assert "the data is not what it was when the run began" in capsys.readouterr().err


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Path, Path]:
    """A run that was stopped after its last round: checkpoint and trace are there, scores are not."""
    config, out = written(tmp_path / "tiny.yaml"), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        at_fsync(patch, 19, interrupt)
        assert cli("run", config, "--out", out, "-q") == 130
    assert (out / "checkpoint.safetensors").is_file()
    assert len(list((out / "trace").glob("round_*"))) == 3
    assert not (out / "result.json").exists()
    return config, out


def test_a_round_that_went_missing_is_named(stopped: tuple[Path, Path], capsys: Any, done: Path) -> None:
    config, out = stopped
    (out / "trace" / "round_000004.safetensors").unlink()
    capsys.readouterr()
    assert cli("run", config, "--out", out, "-q", "--resume") == 2
    message = capsys.readouterr().err
    assert "round_000004.safetensors is missing" in message
    assert "delete checkpoint.safetensors to train again" in message
    (out / "checkpoint.safetensors").unlink()
    assert cli("run", config, "--out", out, "-q", "--resume") == 0
    assert deterministic(out) == deterministic(done)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "trace/round_000004.safetensors"])
def test_a_spoilt_file_is_named(stopped: tuple[Path, Path], name: str, capsys: Any) -> None:
    config, out = stopped
    content = bytearray((out / name).read_bytes())
    content[-3] ^= 5
    (out / name).write_bytes(bytes(content))
    capsys.readouterr()
    assert cli("run", config, "--out", out, "-q", "--resume") == 2
    assert f"{name}: the checksum does not match the content; the file was altered" in capsys.readouterr().err


def test_a_header_that_was_spoilt_is_written_again(stopped: tuple[Path, Path], done: Path) -> None:
    config, out = stopped
    (out / "trace" / "trace.json").write_text("{")
    assert cli("run", config, "--out", out, "-q", "--resume") == 0
    assert deterministic(out) == deterministic(done)


def test_divergence_keeps_the_last_good_round(tmp_path: Path, capsys: Any) -> None:
    """The rate rises to madness in round 4, between two checkpoints."""
    config = written(tmp_path / "tiny.yaml", checkpoint_every=100)
    from fedsiege.training import Training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "rate", lambda self, number, rounds: 1e38 if number == 4 else 0.1)
        assert cli("run", config, "--out", tmp_path / "out", "-q") == 1
        message = capsys.readouterr().err
        assert message.startswith(
            "fedsiege: error: round 4, client 0: training gave non-finite weights; lower training.lr"
        )
        assert len(message.strip().splitlines()) == 1
        assert (tmp_path / "out" / "checkpoint.safetensors").is_file()
        assert cli("run", config, "--out", tmp_path / "out", "-q", "--resume") == 1, "it happens again"
    trained: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        rate = Training.rate

        def watched(self: Training, number: int, rounds: int) -> float:
            trained.append(number)
            return rate(self, number, rounds)

        patch.setattr(Training, "rate", watched)
        assert cli("run", config, "--out", tmp_path / "out", "-q", "--resume") == 0
    assert sorted(set(trained)) == [4, 5, 6], "rounds 1 to 3 are not trained again"
    history = json.loads((tmp_path / "out" / "result.json").read_text())["task"]["history"]
    assert [moment["round"] for moment in history] == [1, 2, 3, 4, 5, 6]


def test_weights_that_are_finite_but_useless_are_a_divergence_too(tmp_path: Path, capsys: Any) -> None:
    config = written(tmp_path / "tiny.yaml", record_every=1)
    options = [
        "--set",
        "training.lr=1e25",
        "--set",
        "training.momentum=0",
        "--set",
        "training.epochs=1",
        "--set",
        "training.batch=100",
    ]
    assert cli("run", config, "--out", tmp_path / "out", "-q", *options) == 1
    message = capsys.readouterr().err
    assert "round 1" in message or "round 2" in message
    assert "lower training.lr" in message


def test_the_null_test_has_a_verdict_for_every_attack(tmp_path: Path) -> None:
    overrides = [
        "rounds=4",
        "training.epochs=1",
        "record_every=2",
        "candidates={null: true, ifl: 180, ofl: 820}",
        "attacks=[fedmia_ii, loss_series]",
    ]
    result = run("quickstart", tmp_path / "out", overrides=overrides, progress=False)
    rows = result.data["null_test"]
    assert {(row["attack"], row["against"]) for row in rows} == {("fedmia_ii", "all"), ("loss_series", "all")}
    assert all(row["nulls"] >= 20 and 0.4 < row["mean_auc"]["value"] < 0.6 for row in rows)
    groups = set(pq.read_table(tmp_path / "out" / "scores.parquet")["group"].to_pylist())
    assert groups == {"pseudo_ifl", "pseudo_ofl", "ifl", "ofl"}


OWN = '''
from dataclasses import dataclass
import numpy as np
from torch import nn
from fedsiege.attacks.membership.base import MembershipAttack, series
from fedsiege.aggregators.base import Aggregator, Treatment
from fedsiege.registry import register

def network(input_shape, classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, classes))

def narrow(input_shape, classes):
    return nn.Linear(input_shape[0], classes - 1)

def picky(input_shape, classes):
    return nn.Linear(input_shape[0] + 1, classes)

@register("gap")
class Gap(MembershipAttack):
    """Loss gap."""

    title = "Gap"
    needs = frozenset({"loss"})
    multi_round = True
    needs_others = True
    min_clients = 2

    vantage: str = "server"
    power: float = 1.0

    def score(self, view, target):
        used = series(self, view, target)
        gaps = [view.others("loss", target, t).mean(0) - view.own("loss", target, t) for t in used]
        return self.power * np.mean(gaps, axis=0)

@register("lone")
class Lone(MembershipAttack):
    """One round, and not one that can be chosen."""

    title = "Lone"
    needs = frozenset({"loss"})

    vantage: str = "server"

    def score(self, view, target):
        return -view.own("loss", target, view.rounds(target)[0])

@register("broken")
class Broken(Gap):
    power: float = 1.0

    def score(self, view, target):
        return np.full(3, np.nan)

@register("middle")
class Middle(Aggregator):
    """A rule that reads single rows."""

    def __call__(self, cohort, server):
        n = len(cohort.updates)
        return cohort.updates.median(0).values, Treatment.plain(n, {"rows": n})

@register("stranger")
class Stranger:
    """No attack at all."""
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's own, beside the config."""
    name = "own_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def test_a_users_own_model_and_attack(own: str, tmp_path: Path) -> None:
    attacks = ["fedmia_ii", f"{own}:Gap", {"name": f"{own}:Gap", "power": 2.0}, f"{own}:Lone"]
    config = written(tmp_path / "tiny.yaml", model={"name": f"{own}:network", "width": 5}, attacks=attacks)
    assert cli("run", config, "--out", tmp_path / "out", "-q") == 0
    data = json.loads((tmp_path / "out" / "result.json").read_text())
    assert data["task"]["parameters"] == 13 * 5 + 5 + 5 * 3 + 3
    pooled = {
        row["attack"]: row for row in data["attacks"] if row["target"] == "pooled" and row["against"] == "all"
    }
    assert set(pooled) == {"fedmia_ii", "gap", "gap(power=2.0)", "lone"}
    assert pooled["gap"]["auc"] == pooled["gap(power=2.0)"]["auc"]
    table = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    gap = [row["score"] for row in table if row["attack"] == "gap"]
    assert gap == pytest.approx([row["score"] / 2 for row in table if row["attack"] == "gap(power=2.0)"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "{own}:narrow"},
            "makes outputs of shape (1, 2) for one example; expected (1, 3), one for each class",
        ),
        ({"model": "{own}:picky"}, "cannot take inputs of shape (13,)"),
        ({"model": "{own}:nothing"}, "cannot import"),
        (
            {"attacks": ["{own}:Stranger"]},
            "attacks.0: '{own}:Stranger' is a Stranger; expected a subclass of MembershipAttack",
        ),
        (
            {"aggregator": "{own}:Stranger"},
            "aggregator: '{own}:Stranger' is a Stranger; expected a subclass of Aggregator",
        ),
        ({"attacks": ["{own}:network"]}, "is not a component; expected a class made with @register"),
    ],
)
def test_what_is_wrong_with_a_users_own_part_is_said_before_training(
    own: str, tmp_path: Path, changes: dict[str, Any], message: str, capsys: Any
) -> None:
    filled = json.loads(json.dumps(changes).replace("{own}", own))
    assert cli("run", written(tmp_path / "tiny.yaml", **filled), "--out", tmp_path / "out", "-q") == 2
    assert message.replace("{own}", own) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scores_that_are_none_are_said_with_the_attacks_name(own: str, tmp_path: Path, capsys: Any) -> None:
    config = written(tmp_path / "tiny.yaml", attacks=[f"{own}:Broken"])
    assert cli("run", config, "--out", tmp_path / "out", "-q") == 2
    assert "attack broken: made scores of shape (3,), 3 of them not finite; expected" in capsys.readouterr().err


def test_a_users_own_rule_runs_and_is_refused_under_secure_aggregation(
    own: str, tmp_path: Path, capsys: Any
) -> None:
    config = written(tmp_path / "tiny.yaml", aggregator=f"{own}:Middle", attacks=["loss_series"])
    assert cli("run", config, "--out", tmp_path / "out", "-q", "--set", "rounds=4") == 0
    rules = [
        c for c in json.loads((tmp_path / "out" / "result.json").read_text())["components"] if c["name"] == "middle"
    ]
    assert [(rule["acted"], rule["counters"]) for rule in rules] == [(True, {"rows": 20})]
    assert cli("run", config, "--out", tmp_path / "closed", "-q", "--set", "secure_aggregation=true") == 2
    assert (
        "aggregator middle: needs single clients' updates, which secure_aggregation: true"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("attack", ["fedmia_i", "fedmia_ii", "label_only", "grad_cosine"])
def test_secure_aggregation_refuses_attacks_by_name_before_training(
    attack: str, tmp_path: Path, capsys: Any
) -> None:
    config = written(tmp_path / "tiny.yaml", secure_aggregation=True, attacks=["blackbox_loss", attack])
    assert cli("run", config, "--out", tmp_path / "out", "-q") == 2
    assert (
        f"attack {attack}: needs single clients' updates, which secure_aggregation: true hides"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_attacks_on_the_global_model_run_under_secure_aggregation(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("single rows are held")

    monkeypatch.setattr(protocol, "collected", refuse)
    attacks = ["blackbox_loss", "loss_series", {"name": "grad_cosine", "vantage": "server_aggregate_only"}]
    config = written(tmp_path / "tiny.yaml", secure_aggregation=True, attacks=attacks)
    assert cli("run", config, "--out", tmp_path / "out", "-q") == 0
    data = json.loads((tmp_path / "out" / "result.json").read_text())
    ResultFile.model_validate(data)
    assert data["threat_model"]["secure_aggregation"]
    assert "secure aggregation" in data["threat_model"]["adversary"]
    assert {row["vantage"] for row in data["attacks"]} == {"server_aggregate_only"}
    for attack in ("blackbox_loss", "loss_series"):
        (anyone,) = [row for row in data["attacks"] if row["target"] == "any" and row["attack"] == attack]
        members = {
            row["n_members"] for row in data["attacks"] if row["attack"] == attack and row["target"] == "pooled"
        }
        assert anyone["against"] == "ofl"
        assert anyone["n_nonmembers"] == 30
        assert anyone["n_members"] <= max(members)
    trace = Trace(tmp_path / "out" / "trace")
    assert torch.isfinite(torch.from_numpy(trace.aggregate_cosine(0))).all()


def test_evidence_is_the_same_for_the_global_model_with_and_without_secure_aggregation(
    done: Path, tmp_path: Path
) -> None:
    config = written(tmp_path / "tiny.yaml", secure_aggregation=True, attacks=["blackbox_loss"])
    assert cli("run", config, "--out", tmp_path / "out", "-q") == 0
    closed, open_ = Trace(tmp_path / "out" / "trace"), Trace(done / "trace")
    for t in range(3):
        np.testing.assert_array_equal(closed.global_loss(t), open_.global_loss(t))
        np.testing.assert_allclose(closed.aggregate_cosine(t), open_.aggregate_cosine(t), atol=1e-6)


SAMPLED = {
    "clients": 6,
    "participation": 0.5,
    "rounds": 4,
    "record_every": 1,
    "seed": 1,
    "attacks": ["fedmia_ii", "blackbox_loss"],
}


def test_targets_that_took_part_too_seldom_are_left_out_with_a_warning(tmp_path: Path) -> None:
    assert cli("run", written(tmp_path / "tiny.yaml", **SAMPLED), "--out", tmp_path / "out", "-q") == 0
    data = json.loads((tmp_path / "out" / "result.json").read_text())
    trace = Trace(tmp_path / "out" / "trace")
    times = np.sum([trace.present(t) for t in range(4)], axis=0)
    scored = {
        attack: {
            row["target"] for row in data["attacks"] if row["attack"] == attack and isinstance(row["target"], int)
        }
        for attack in ("fedmia_ii", "blackbox_loss")
    }
    assert scored == {
        "fedmia_ii": set(np.flatnonzero(times >= 2).tolist()),
        "blackbox_loss": set(np.flatnonzero(times >= 1).tolist()),
    }
    missing = ", ".join(str(target) for target in range(6) if times[target] < 2)
    assert missing
    assert (
        f"FedMIA-II (fedmia_ii) has no figures for targets {missing}: they took part in too few"
        in data["warnings"][0]
    )
    used = {row["target"]: row["rounds_used"] for row in data["attacks"] if row["attack"] == "fedmia_ii"}
    assert all(used[target] == times[target] for target in scored["fedmia_ii"])
    assert used["pooled"] == times.max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": "absent"},
            "attack fedmia_ii: with participation 0.5, client {absent} of the targets will be in too few",
        ),
        ({"participation": 0.2}, "attack fedmia_ii: with participation 0.2, client 0 and 5 more of the targets"),
        (
            {"rounds": 2, "attacks": [{"name": "grad_norm", "round": 2}], "targets": "out of 2"},
            "attack grad_norm(round=2)",
        ),
    ],
)
def test_targets_that_were_named_and_will_be_absent_are_refused_before_training(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: Any
) -> None:
    invited = [protocol.invited_to(number, 6, 0.5, 1) for number in range(1, 5)]
    absent = next(client for client in range(6) if sum(client in one for one in invited) < 2)
    named = {"absent": [absent], "out of 2": [c for c in range(6) if c not in invited[1]]}
    filled = {**SAMPLED, **changes, **({"targets": named[changes["targets"]]} if "targets" in changes else {})}
    assert cli("run", written(tmp_path / "tiny.yaml", **filled), "--out", tmp_path / "out", "-q") == 2
    assert message.format(absent=absent) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_published_figures_are_compared(tmp_path: Path) -> None:
    figures = [
        {"attack": "avg_cosine", "metric": "auc", "value": 0.999, "spread": 0.0},
        {"attack": "fedmia_i", "metric": "tpr@0.001", "value": 0.5},
    ]
    paper = {"claim": "c", "source": "s", "table": "t", "link": "l", "figures": figures}
    result = run({**TINY, "paper": paper}, tmp_path / "out", progress=False)
    ours, absent = result.data["paper"]["figures"]
    assert ours["ours"]["value"] == result.table().loc[lambda t: t["attack"] == "avg_cosine", "auc"].item()
    assert ours["verdict"] in ("agrees", "ours is lower")
    assert (absent["ours"], absent["verdict"]) == (None, "not measured")
