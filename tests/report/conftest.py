"""Run folders for the tests of the report."""

from pathlib import Path

import pytest

from . import made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run with four audited clients."""
    return made.folder(tmp_path / "run", *made.result())


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """The same with markup in every text, a null test and a paper."""
    data, curves = made.result()
    return made.folder(tmp_path / "hostile", made.hostile(data), made.hostile_curves(curves))


@pytest.fixture
def lone(tmp_path: Path) -> Path:
    """One audited client, nothing optional."""
    data, curves = made.result(targets=1)
    for optional in ("null_test", "paper"):
        del data[optional]
    data["experiment"] |= {"description": None, "profile": "small"}
    data["task"] |= {"history": [], "loss": None, "train_accuracy": None}
    data |= {"cost": {}, "components": [], "warnings": [], "provenance": {"fedsiege": "0.1.0"}}
    curves["rounds"] = []
    return made.folder(tmp_path / "lone", data, curves)
