from pathlib import Path

import pytest
from made_data import class_folder, parquet

from fedsiege.data.shorthand import source_spec
from fedsiege.errors import InputError
from fedsiege.registry import build


@pytest.mark.parametrize("value", ["digits", "wine", "digitz", "my.package:Source"])
def test_names_stay(value: str) -> None:
    assert source_spec(value) == value


def test_an_unknown_name_is_refused_by_the_registry() -> None:
    with pytest.raises(InputError, match="did you mean 'digits'"):
        build("data", source_spec("digit"), "data")


@pytest.mark.parametrize("value", ["uoft-cs/cifar100", "./not/there"])
def test_hub_names_and_paths(value: str) -> None:
    assert source_spec(value) == {"name": "huggingface", "path": value}


def test_existing_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "tables" / "train.parquet", {"x": [1], "label": [0]})
    class_folder(tmp_path / "photos", {"a": 1, "b": 1})
    assert source_spec("tables") == {"name": "huggingface", "path": "tables"}
    assert source_spec("tables/train.parquet") == {"name": "huggingface", "path": "tables/train.parquet"}
    assert source_spec("photos") == {"name": "imagefolder", "path": "photos"}
    assert source_spec("made.npz") == {"name": "npz", "path": "made.npz"}
