"""Whole runs on text, whose examples have a label at every position: what serves them runs, the rest says no."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsiege.errors import InputError
from fedsiege.experiment.config import load
from fedsiege.experiment.prepare import prepare
from fedsiege.experiment.run import run
from fedsiege.registry import names

ONE_LABEL = "works on one label an example; this data has one at every position"
REFUSED = {
    **{name: f"{name}: {ONE_LABEL}" for name in ("hamp", "instahide", "loden", "mixup", "relaxloss")},
    "augment": "strength: got 1, which moves images",
    "dp_sgd": "",
}
IDLE: dict[str, dict[str, Any]] = {
    "hamp": {"weight": 0.0},
    "loden": {"warmup": None},
    "mixup": {"probability": 0.0},
    "relaxloss": {"weight": 0.0},
    "augment": {"strength": 0.0},
}


@pytest.fixture
def text(tmp_path: Path) -> dict[str, Any]:
    """Six authors, each of whom writes what comes to mind."""
    rng, folder = np.random.default_rng(0), tmp_path / "texts"
    folder.mkdir()
    for author in "abcdef":
        words = rng.choice(["we", "all", "say", "that", "so", "no", "yes", "well"], size=300)
        (folder / f"{author}.txt").write_text(" ".join(words))
    return {
        "data": {"name": "text", "path": str(folder), "length": 6, "holdout": 0.3},
        "partition": {"name": "natural", "column": "author"},
        "model": {"name": "lstm", "width": 8, "layers": 1},
        "clients": 6,
        "rounds": 1,
        "training": {"batch": 8, "lr": 1.0, "clip": 0.25},
        "attacks": [],
        "threads": 1,
    }


def result(config: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    run({**config, **changes}, folder, progress=False)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_text_is_reserved_for_the_server_and_for_defences(text: dict[str, Any], tmp_path: Path) -> None:
    found = result(text, tmp_path / "a", root=10, validation=10, aggregator="fltrust")
    (rule,) = [one for one in found["components"] if one["kind"] == "aggregator"]
    assert rule["counters"]["rows"] == 6
    ready, plain = (prepare(load({**text, "root": size, "validation": size})) for size in (10, 0))
    assert ready.root is not None
    assert ready.validation is not None
    assert (len(ready.root), len(ready.validation)) == (10, 10)
    parts = [ready.root, ready.validation, ready.data.heldout]
    assert {i for part in parts for i in part.ids} == set(plain.data.heldout.ids)
    assert sum(map(len, parts)) == len(plain.data.heldout)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_defence_that_cannot_serve_text_refuses_it_before_the_first_round(
    name: str, text: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as error:
        prepare(load({**text, "defences": [name]}))
    assert str(error.value).startswith(f"defences.0.{REFUSED[name]}")


@pytest.mark.parametrize("name", sorted(set(names("client_defence")) - set(REFUSED)))
def test_every_other_defence_serves_it(name: str, text: dict[str, Any], tmp_path: Path) -> None:
    spec = {"name": name, **({"spare": 10} if name == "sparsify" else {})}
    found = result(text, tmp_path / "a", defences=[spec])
    (defence,) = [one for one in found["components"] if one["kind"] == "client_defence"]
    assert defence["acted"]


@pytest.mark.parametrize("name", IDLE)
def test_a_defence_that_is_set_to_do_nothing_does_so_on_text(
    name: str, text: dict[str, Any], tmp_path: Path
) -> None:
    plain = result(text, tmp_path / "plain")
    idle = result(text, tmp_path / "idle", defences=[{"name": name, **IDLE[name]}])
    assert idle["task"]["history"] == plain["task"]["history"]


def test_a_coalition_that_shares_out_classes_refuses_text_and_its_noise_serves_it(
    text: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        prepare(load({**text, "coalition": "cofedmid"}))
    assert str(error.value) == (
        "coalition.cofedmid: works on one label an example; this data has one at every position; "
        "expected assignment: none, which leaves its noise"
    )
    noise = {"name": "cofedmid", "assignment": "none", "compensation": "none", "sigma": 0.01}
    found = result(text, tmp_path / "a", coalition=noise)
    (coalition,) = [one for one in found["components"] if one["kind"] == "coalition"]
    assert coalition["acted"]
