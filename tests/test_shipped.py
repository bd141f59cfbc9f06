"""Experiments that travel with the package."""

from pathlib import Path

import pytest

from fedsiege import shipped
from fedsiege.errors import InputError
from fedsiege.experiment.config import load


@pytest.mark.parametrize(
    "given", ["quickstart", "quickstart.yaml", "experiments/quickstart.yaml", "experiments/quickstart"]
)
def test_a_shipped_experiment_answers_to_its_names(given: str) -> None:
    assert shipped.find(given) == shipped.FOLDER / "quickstart.yaml"


def test_a_file_of_ones_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("rounds: 1")
    assert shipped.find("quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("quickstrat", "quickstrat: no such file or shipped experiment (did you mean 'quickstart'?); shipped: "),
        ("../secret", "../secret: no such file or shipped experiment"),
        ("", "is a folder; expected a YAML file"),
    ],
)
def test_what_cannot_be_found(given: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        shipped.find(given)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", shipped.names())
def test_every_shipped_experiment_is_valid_with_each_of_its_profiles(name: str) -> None:
    experiment = load(name)
    assert experiment.title
    for profile in experiment.profiles:
        assert load(name, [f"profile={profile}"]).profile == profile


def test_grids_are_told_from_experiments_by_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys are read without parsing: what only looks like a key of a grid, in a text, is none."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "grid.yaml").write_text("title: x\naxes:\n  rounds: [1]\n")
    (tmp_path / "seeds.yaml").write_text("seeds: [1, 2]\n")
    (tmp_path / "plain.yaml").write_text("# axes: none\ndescription: |\n  axes: none\nrounds: 1\n")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert shipped.names() == ["plain"]
    assert shipped.grids() == ["deep/grid", "seeds"]
    assert shipped.find("deep/grid") == tmp_path / "deep" / "grid.yaml"
    with pytest.raises(InputError, match=r"did you mean 'seeds'\?\); shipped: deep/grid, plain, seeds"):
        shipped.find("seed")
