"""Whose run folder it is: nothing of anybody else's is overwritten, and one process works in it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsiege.errors import InputError
from fedsiege.experiment import folder as run_folder
from fedsiege.experiment.config import Experiment, load
from fedsiege.experiment.folder import CONFIG, LOCK, REPORTED, RESULT, begin, finished, opened

E = Experiment(name="x")


def begun(place: Path, experiment: Experiment = E) -> None:
    with opened(place, experiment, False):
        begin(place, experiment)


def test_a_new_folder_holds_the_config_and_the_lock(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "run"
    begun(place)
    assert {path.name for path in place.iterdir()} == {CONFIG, LOCK}
    assert load(place / CONFIG) == E
    assert (place / LOCK).read_text().strip() == str(os.getpid())


def test_a_folder_in_which_nothing_was_written_goes_away_again(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bad data"), opened(tmp_path / "run", E, False):
        raise InputError("bad data")
    assert list(tmp_path.iterdir()) == []
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(InputError), opened(mine, E, False):
        raise InputError("bad data")
    assert mine.is_dir(), "it was there before"


def test_a_folder_in_which_something_was_written_stays(tmp_path: Path) -> None:
    def fail() -> None:
        with opened(tmp_path / "run", E, False):
            begin(tmp_path / "run", E)
            raise InputError("later")

    with pytest.raises(InputError, match="later"):
        fail()
    assert (tmp_path / "run" / CONFIG).is_file()


@pytest.mark.parametrize("name", ["notes.txt", CONFIG, "data"])
def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"exists and is not empty; choose another --out, or --resume"):
        begun(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "file" / "deep" / "run"):
        with pytest.raises(InputError, match=rf"{place}: .*file is a file; expected a folder"):
            begun(place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("state", ["absent", "empty", "with config", "with a note"])
def test_resuming_where_nothing_was_done_is_a_beginning(tmp_path: Path, state: str) -> None:
    place = tmp_path / "run"
    if state != "absent":
        place.mkdir()
    if state == "with config":
        begun(place)
    if state == "with a note":
        (place / "note.txt").write_text("mine")
    with opened(place, E, True):
        begin(place, E)
    assert load(place / CONFIG) == E


@pytest.mark.parametrize(
    "name", ["result.json", "scores.parquet", "checkpoint.safetensors", "trace", "table.csv", "figures"]
)
def test_resuming_in_a_folder_that_is_no_run_would_overwrite(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with (
        pytest.raises(InputError, match=rf"has {name} but no config.yaml; it is not a run that can go on"),
        opened(tmp_path, E, True),
    ):
        pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["rounds=51"], "rounds was 50 and is now 51"),
        (["training.lr=0.2"], "training.lr was 0.1 and is now 0.2"),
        (["candidates.null=true"], "candidates.null was False and is now True"),
        (["model.hidden=[8]"], "model was 'mlp' and is now {'name': 'mlp', 'hidden': .8.}"),
        (["attacks=[fedmia_ii]"], "attacks was .* and is now"),
        (["seed=1", "rounds=3"], "rounds was 50 and is now 3"),
    ],
)
def test_a_changed_config_is_refused_by_the_field(tmp_path: Path, changes: list[str], message: str) -> None:
    begun(tmp_path)
    before = (tmp_path / CONFIG).read_bytes()
    with (
        pytest.raises(InputError, match=f"cannot resume with a changed config: {message}"),
        opened(tmp_path, load({"name": "x"}, changes), True),
    ):
        pass
    assert (tmp_path / CONFIG).read_bytes() == before


def test_the_place_itself_may_change(tmp_path: Path) -> None:
    begun(tmp_path)
    with opened(tmp_path, load({"name": "x", "out": "elsewhere"}), True):
        pass


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not YAML"), ("- 1", "not a run's config"), ("\xff", "not YAML")]
)
def test_a_spoilt_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / CONFIG).write_bytes(text.encode("latin-1"))
    with (
        pytest.raises(InputError, match=rf"config.yaml: {message}.*the run cannot be resumed"),
        opened(tmp_path, E, True),
    ):
        pass


def test_finished_means_that_every_file_is_there(tmp_path: Path) -> None:
    names = (CONFIG, RESULT, *REPORTED)
    (tmp_path / "figures").mkdir()
    for name in names:
        assert not finished(tmp_path)
        (tmp_path / name).write_text("")
    assert finished(tmp_path)


def test_a_run_does_not_go_on_in_a_sweeps_folder(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("axes: {}")
    with pytest.raises(InputError, match=r"holds a sweep \(grid\.yaml\)"), opened(tmp_path, E, True):
        pass


def test_a_finished_run_is_not_even_locked(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / LOCK).unlink()
    (tmp_path / "figures").mkdir()
    for name in (RESULT, *REPORTED):
        (tmp_path / name).write_text("")
    with opened(tmp_path, E, True):
        assert not (tmp_path / LOCK).exists()
    with pytest.raises(InputError, match="rounds was 50"), opened(tmp_path, Experiment(name="x", rounds=3), True):
        pass


HOLD = """
import sys, time
from pathlib import Path
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.folder import begin, opened
place, e = Path(sys.argv[1]), Experiment(name="x")
with opened(place, e, False):
    begin(place, e)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_live_lock_is_refused_and_a_dead_ones_is_taken_over(tmp_path: Path) -> None:
    place = tmp_path / "run"
    sources = str(Path(run_folder.__file__).parents[2])
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} is running in it"), opened(place, E, True):
            pass
        assert (place / LOCK).read_text().strip() == str(holder.pid)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert (place / LOCK).is_file(), "it is stale now"
    with opened(place, E, True):
        assert (place / LOCK).read_text().strip() == str(os.getpid())
