"""What a user can get wrong: one line on stderr that names it, exit code 2, and nothing written."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, written

import fedsiege
from fedsiege.cli import execute
from fedsiege.errors import InputError
from fedsiege.experiment.config import load
from fedsiege.experiment.prepare import prepare


def refused(config: Path, capsys: Any, *options: str) -> str:
    """The message with which a run is refused; the folder does not appear."""
    out = config.parent / "out"
    assert execute(["run", str(config), "--out", str(out), "--quiet", *options]) == 2
    assert not out.exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("fedsiege: error: ")
    return str(lines[0].removeprefix("fedsiege: error: "))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attacks": ["fedmia_iii"]},
            r"attacks\.0: unknown membership attack 'fedmia_iii' \(did you mean 'fedmia_ii'\?\); known: ",
        ),
        (
            {"attacks": [{"name": "fedmia_ii", "combin": 1}]},
            r"attacks\.0\.combin: fedmia_ii has no such field \(did you mean 'combine'\?\)",
        ),
        (
            {"attacks": [{"name": "fedmia_ii", "combine": "max"}]},
            r"attacks\.0\.combine: got 'max'; Input should be",
        ),
        ({"attacks": ["fedmia_ii", "fedmia_ii"]}, r"attacks\.1: fedmia_ii is listed twice"),
        ({"model": "alexnett"}, r"model: unknown model 'alexnett' \(did you mean 'alexnet'\?\)"),
        ({"model": "alexnet"}, r"model alexnet: got inputs of shape \(13,\); expected images"),
        ({"model": "here_is:nothing"}, r"model: cannot import 'here_is:nothing'"),
        ({"aggregator": "fedavgg"}, r"aggregator: unknown aggregator 'fedavgg' \(did you mean 'fedavg'\?\)"),
        ({"aggregator": {"name": "fedavg", "weighted": 7}}, r"aggregator\.weighted: got 7"),
        ({"partition": "dirichlett"}, r"partition: unknown partition 'dirichlett' \(did you mean 'dirichlet'\?\)"),
        ({"data": "wien"}, r"data: unknown data 'wien' \(did you mean 'wine'\?\)"),
        ({"data": {"name": "imagefolder", "path": "/nowhere"}}, r"data.*: .*/nowhere"),
        ({"data": {"name": "npz", "path": "/nowhere.npz"}}, r"data.*: .*/nowhere\.npz"),
        ({"data": "/nowhere/at/all"}, r"data.*/nowhere/at/all"),
        ({"clients": 2}, r"attack fedmia_ii: got 2 clients; expected at least 3"),
        (
            {"rounds": 3, "record_every": 5},
            r"attack avg_cosine: got 1 recorded round\(s\); expected at least 2: lower record_every",
        ),
        (
            {"attacks": [{"name": "grad_norm", "round": 3}]},
            r"attack grad_norm: got round 3; expected a recorded one: 2, 4, 6",
        ),
        ({"clients": 200}, r"clients: got 200; the training data has 125 examples"),
        ({"targets": [9]}, r"targets: got 9; expected all or client numbers from 0 to 4"),
        ({"targets": []}, r"targets: got an empty list"),
        ({"targets": [1, 1]}, r"targets: got \[1, 1\]; a client is named twice"),
        (
            {"candidates": {"ifl": 5000}},
            r"candidates\.ifl: got 5000; clients other than 0 have 100 examples together",
        ),
        ({"candidates": {"ifl": 1, "ofl": 5000}}, r"candidates\.ofl: got 5000; there are 53 held-out examples"),
        (
            {"candidates": {"ifl": 1, "ofl": 1, "members": 90}},
            r"candidates\.members: got 90; client 0 has 25 examples",
        ),
        ({"candidates": {"ifl": 0, "ofl": 0}}, r"candidates: ifl and ofl are both 0"),
        (
            {"candidates": {"ifl": 20, "ofl": 20, "null": True}},
            r"candidates: a null test halves ifl \+ ofl and needs 500",
        ),
        (
            {
                "partition": {"name": "pathological", "classes": 1},
                "clients": 3,
                "attacks": ["fedmia_ii"],
                "examples_per_client": 1,
                "seed": 0,
            },
            r"partition|candidates",
        ),
        ({"rounds": "many"}, r"tiny\.yaml: rounds: got 'many'; Input should be a valid integer"),
        ({"training": {"lr": -1}}, r"tiny\.yaml: training\.lr: got -1; Input should be greater than 0"),
        ({"training": {"learning_rate": 1}}, r"tiny\.yaml: training\.learning_rate: unknown field"),
        ({"device": "cuda:7"}, r"device: got 'cuda:7', and torch finds 0 GPUs here"),
        (
            {"defences": ["pertub"]},
            r"tiny\.yaml: defences\.0: unknown client defence 'pertub' \(did you mean 'perturb'\?\)",
        ),
        (
            {"defences": [{"name": "perturb", "sigma": -0.1}]},
            r"tiny\.yaml: defences\.0\.sigma: got -0\.1; Input should be greater than or equal to 0",
        ),
        (
            {"defences": [{"name": "perturb", "clients": [0, 7]}]},
            r"defences\.0\.clients: got client 7; expected clients from 0 to 4",
        ),
        ({"defences": [{"name": "perturb", "clients": []}]}, r"defences\.0\.clients"),
        (
            {"defences": [{"name": "sparsify", "share": 1}]},
            r"defences\.0\.share: got 1; Input should be less than 1",
        ),
        (
            {"defences": [{"name": "mixup", "alpha": -1}]},
            r"defences\.0\.alpha: got -1; Input should be greater than 0",
        ),
        (
            {"defences": [{"name": "sample", "share": 0.1}]},
            r"tiny\.yaml: defences\.0\.share: got 0\.1, which leaves client 0 none of the 4 steps of an epoch",
        ),
        (
            {"defences": ["dp_sgd", "dp_fedavg"]},
            r"defences\.1: dp_fedavg and dp_sgd each give a client differential privacy",
        ),
        (
            {"defences": ["dp_sgd"], "data": "digits", "model": {"name": "resnet20", "norm": "batch"}},
            r"tiny\.yaml: defences\.0\.name: got dp_sgd with a model that has batch statistics in stem\.0\.1",
        ),
        ({"defences": ["perturb", "perturb"]}, r"defences\.1: perturb is listed twice"),
        ({"defences": ["perturb", "cofedmid:x"]}, r"defences\.1: cannot import 'cofedmid:x'"),
        ({"server_defences": ["clip"]}, r"server_defences.*: .*'clip'"),
        ({"coalition": "cofedmit"}, r"coalition: .*'cofedmit' \(did you mean 'cofedmid'\?\)"),
        ({"adversary": "sign_flop"}, r"adversary.*: .*'sign_flop' .did you mean 'sign_flip'"),
    ],
)
def test_configs(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused(written(tmp_path / "tiny.yaml", **changes), capsys)
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("rounds", "--set rounds: expected field=value"),
        ("training.lrr=1", "tiny.yaml (or --set): training.lrr: unknown field (did you mean 'lr'?)"),
        ("trainning.lr=0.1", "tiny.yaml (or --set): trainning: unknown field (did you mean 'training'?)"),
        ("training=3", "tiny.yaml (or --set): training: got 3; expected a mapping"),
        ("attacks.7.combine=x", "--set attacks.7.combine: '7' is not a position in a list of 4"),
        ("profile=small", "profile: unknown 'small'; known: none"),
    ],
)
def test_overrides(option: str, message: str, tmp_path: Path, capsys: Any) -> None:
    assert message in refused(written(tmp_path / "tiny.yaml"), capsys, "--set", option)


@pytest.mark.parametrize("text", ["rounds: [1", "\x00", "- 1", "!!python/name:os.system"])
def test_files_that_are_no_config(text: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert f"{tmp_path}/mine.yaml: " in refused(tmp_path / "mine.yaml", capsys)


def npz(tmp_path: Path, capsys: Any, **changes: Any) -> str:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(90, 6)).astype(np.float32), "y": np.arange(90) % 3, **changes}
    np.savez(tmp_path / "mine.npz", **arrays)
    source = {"name": "npz", "path": str(tmp_path / "mine.npz")}
    return refused(written(tmp_path / "tiny.yaml", data=source, clients=4), capsys)


def test_labels_out_of_range_and_values_that_are_not_finite(tmp_path: Path, capsys: Any) -> None:
    y = np.arange(90) % 3
    y[17] = -2
    assert re.search(r"row 17 has label -2; expected 0", npz(tmp_path, capsys, y=y))
    x = np.ones((90, 6), dtype=np.float32)
    x[4, 3] = np.nan
    assert re.search(r"row 4, feature 3 is nan; expected a finite number", npz(tmp_path, capsys, x=x))


def test_pickled_arrays_are_not_opened(tmp_path: Path, capsys: Any) -> None:
    assert "mine.npz" in npz(tmp_path, capsys, x=np.array([{"a": 1}] * 90, dtype=object))


def test_a_class_folder_without_images(tmp_path: Path, capsys: Any) -> None:
    for name, count in (("cat", 12), ("dog", 12), ("eel", 0)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(tmp_path / "pictures" / name / f"{number}.png")
    config = written(tmp_path / "tiny.yaml", data=str(tmp_path / "pictures"))
    assert re.search(r"eel.*(no image|without image|expected)", refused(config, capsys))


def test_a_class_that_nobody_holds_after_the_partition(tmp_path: Path, capsys: Any) -> None:
    """Three clients with one wine each rarely hold all three kinds."""
    few = {"clients": 3, "examples_per_client": 1, "candidates": {"ifl": 1, "ofl": 1}}
    config = written(
        tmp_path / "tiny.yaml", **few, seed=next(seed for seed in range(20) if lacks_a_class(few, seed))
    )
    assert re.search(r"after iid, no client has an example of class 'class_\d'", refused(config, capsys))


def lacks_a_class(changes: dict[str, Any], seed: int) -> bool:
    try:
        prepare(load({**TINY, **changes, "seed": seed}))
    except InputError:
        return True
    return False


def test_batch_norm_and_a_batch_of_one(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_norm.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Linear(shape[0], 4), nn.BatchNorm1d(4), nn.Linear(4, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = written(tmp_path / "tiny.yaml", model="own_norm:make", training={"batch": 8})
    assert execute(["run", str(config), "--out", str(tmp_path / "out"), "-q"]) == 2
    assert (
        "training.batch: it leaves a client a batch of 1, which BatchNorm cannot train on"
        in capsys.readouterr().err
    )


def test_a_real_process_says_one_line_and_exits_2(tmp_path: Path) -> None:
    config = written(tmp_path / "tiny.yaml", attacks=["fedmia_iii"])
    environment = {**os.environ, "PYTHONPATH": str(Path(fedsiege.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedsiege", "run", str(config), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        r"fedsiege: error: .*/tiny\.yaml: attacks\.0: unknown membership attack 'fedmia_iii'.*\n", done.stderr
    )
    assert not (tmp_path / "out").exists()
