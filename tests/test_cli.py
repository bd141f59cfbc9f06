"""The command line: what reaches the house, what comes back, and with which exit code."""

import errno
import json
import os
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import click
import pytest

import fedsiege
from fedsiege.cli import execute
from fedsiege.errors import FedSiegeError, InputError, TrainingDivergedError
from fedsiege.experiment.config import Experiment, load
from fedsiege.registry import index
from fedsiege.shipped import TEMPLATE
from fedsiege.training import Training

SOURCES = Path(fedsiege.__file__).parents[1]


class FakeResult:
    """Stands in for a finished run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def show(self) -> None:
        print("the table")


class FakeSweep(FakeResult):
    """Stands in for a sweep."""

    def __init__(self, folder: Path, *states: str) -> None:
        super().__init__(folder)
        self.data = {
            "cells": [{"name": f"cell {i}", "seed": 0, "status": s, "error": "why"} for i, s in enumerate(states)]
        }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `run` and `reproduce` were called with."""
    seen: list[tuple[Any, ...]] = []

    def record(name: str) -> Any:
        def called(config: str, out: Path | None, **options: Any) -> FakeResult:
            seen.append((name, config, out, options))
            return FakeResult(out or Path("runs/x"))

        return called

    for name in ("run", "reproduce"):
        monkeypatch.setattr(f"fedsiege.experiment.{name}", record(name))
    return seen


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (None, {"overrides": (), "jobs": None, "engine": "local", "resume": False, "progress": True})),
        (
            ["--out", "there", "--set", "a=1", "--jobs", "3", "--engine", "ray", "--resume", "--quiet"],
            (
                Path("there"),
                {"overrides": ["a=1"], "jobs": 3, "engine": "ray", "resume": True, "progress": False},
            ),
        ),
    ],
)
def test_every_option_of_a_sweep_arrives(
    arguments: list[str], expected: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen: list[Any] = []

    def sweep(grid: str, out: Path | None, **options: Any) -> FakeSweep:
        seen.append((grid, (out, options)))
        return FakeSweep(Path("runs/x"), "done", "done")

    monkeypatch.setattr("fedsiege.experiment.sweep", sweep)
    assert execute(["sweep", "grid.yaml", *arguments]) == 0
    assert seen == [("grid.yaml", expected)]
    shown = "" if "--quiet" in arguments else f"the table\nreport: {Path('runs/x/report.html')}\n"
    assert capsys.readouterr().out == shown


def test_a_sweep_with_failed_runs_shows_its_report_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    states = ("done", "failed", "failed", "missing")
    monkeypatch.setattr("fedsiege.experiment.sweep", lambda *_, **__: FakeSweep(Path("runs/x"), *states))
    assert execute(["sweep", "grid.yaml"]) == 1
    said = capsys.readouterr()
    assert "the table" in said.out
    assert said.err == "fedsiege: error: 2 of 4 runs failed; the first is cell 1, seed 0: why\n"


def test_the_report_of_a_sweep_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    written: list[Path] = []
    monkeypatch.setattr("fedsiege.report.grid.write", written.append)
    monkeypatch.setattr("fedsiege.report.grid.SweepResult.read", FakeSweep)
    (tmp_path / "sweep.json").write_text("{}")
    assert execute(["report", str(tmp_path)]) == 0
    assert written == [tmp_path]
    assert capsys.readouterr().out == f"the table\nreport: {tmp_path / 'report.html'}\n"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("fedsiege.experiment.run", run)


@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_every_option_arrives(command: str, calls: list[tuple[Any, ...]], capsys: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = execute(
        [command, "quickstart", "--out", str(out), "--set", "a.b=1", "--set", "c=[2]", "--resume", "--quiet"]
    )
    assert code == 0
    of_a_grid = {"jobs": None, "engine": "local"} if command == "reproduce" else {}
    options = {"overrides": ["a.b=1", "c=[2]"], **of_a_grid, "resume": True, "progress": False}
    assert calls == [(command, "quickstart", out, options)]
    assert capsys.readouterr().out == ""


def test_the_options_of_a_grid_that_is_reproduced_arrive(calls: list[tuple[Any, ...]]) -> None:
    assert execute(["reproduce", "grid.yaml", "--jobs", "2", "--engine", "ray", "--quiet"]) == 0
    options = {"overrides": (), "jobs": 2, "engine": "ray", "resume": False, "progress": False}
    assert calls == [("reproduce", "grid.yaml", None, options)]


def test_defaults(calls: list[tuple[Any, ...]], capsys: Any) -> None:
    assert execute(["run", "mine.yaml"]) == 0
    assert calls == [("run", "mine.yaml", None, {"overrides": (), "resume": False, "progress": True})]
    assert capsys.readouterr().out == f"the table\nreport: {Path('runs/x/report.html')}\n"


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(("display", "opened"), [(":0", True), ("", False)])
def test_a_browser_opens_only_where_there_is_a_display(
    display: str, opened: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(webbrowser, "open", seen.append)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert execute(["run", "quickstart", "--out", str(tmp_path), "--open"]) == 0
    assert seen == ([(tmp_path / "report.html").as_uri()] if opened else [])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("candidates.ofl: got -1; expected 0 or more"), 2, "candidates.ofl: got -1; expected 0 or more"),
        (TrainingDivergedError("round 3, client 1: not finite"), 1, "round 3, client 1: not finite"),
        (FedSiegeError("no"), 1, "no"),
        (KeyboardInterrupt(), 130, "interrupted; go on with --resume"),
        (click.Abort(), 130, "interrupted; go on with --resume"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            1,
            "the disk is full; free some space and go on with --resume",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "no permission ([Errno 13] Permission denied: '/x')",
        ),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    failing(monkeypatch, error)
    assert execute(["run", "quickstart"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip().startswith(f"fedsiege: error: {message}")
    assert len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("a fault of ours"), OSError(errno.EBADF, "Bad file descriptor")])
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        execute(["run", "quickstart"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "No such command 'rum'"),
        (["run", "quickstart", "--fast"], "--fast"),
        (["run"], "Missing argument 'CONFIG'"),
        (["list", "extra"], "unexpected extra argument"),
        (["show", "fedmia_3"], "show: nothing is named 'fedmia_3' (did you mean 'fedmia_i'?)"),
        (["list", "--json", "--markdown"], "got --json and --markdown; expected one of them"),
        (["run", "quickstrat"], "quickstrat: no such file or shipped experiment (did you mean 'quickstart'?)"),
        (["reproduce", "quickstart"], "quickstart: has no `paper:` part"),
        (["reproduce", "quickstart_defences"], "quickstart_defences: has no `paper:` part"),
        (["sweep", "quickstart_defences", "--set", "round=3"], "--set: 'round' names no field of an experiment"),
        (
            ["reproduce", "fedmia/cifar100_alexnet", "--jobs", "2"],
            "jobs: got 2 for fedmia/cifar100_alexnet, a single experiment; expected it for a grid alone",
        ),
        (
            ["reproduce", "fedmia/cifar100_alexnet", "--engine", "ray"],
            "engine: got 'ray' for fedmia/cifar100_alexnet",
        ),
        (
            ["sweep", "quickstart"],
            "quickstart.yaml: is a single experiment; expected a grid, which has some of axes,",
        ),
        (["sweep", "grid.yaml", "--jobs", "many"], "'many' is not a valid int"),
        (["report", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input_exits_2(arguments: list[str], message: str, capsys: Any) -> None:
    assert execute(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("fedsiege: error: ")


def test_no_command_is_a_question_for_help(capsys: Any) -> None:
    assert execute([]) == 0
    assert "reproduce" in capsys.readouterr().out


def test_version(capsys: Any) -> None:
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out == f"fedsiege {fedsiege.__version__}\n"


def test_list_names_everything(capsys: Any) -> None:
    assert execute(["list"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {entry.name} " in text for entry in index().values())
    assert "quickstart" in text


def test_list_json(capsys: Any) -> None:
    assert execute(["list", "--json"]) == 0
    entries = {(entry["kind"], entry["name"]): entry for entry in json.loads(capsys.readouterr().out)}
    assert set(entries) == set(index())
    found = entries["model", "mlp"]
    assert set(found) == {"kind", "name", "summary", "paper", "fields"}
    assert found["fields"][0]["name"] == "hidden"
    assert found["fields"][0]["default"] == "(512, 128)"


def test_init_writes_a_config_that_is_valid_and_complete(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "mine.yaml"
    assert execute(["init", str(path)]) == 0
    assert f"fedsiege run {path}" in capsys.readouterr().out
    written = load(path)
    assert written.model_fields_set | {"paper"} == set(Experiment.model_fields)
    assert written.training.model_fields_set == set(Training.model_fields)
    assert load(path, ["profile=quick"]).rounds == 10


def test_the_template_states_the_defaults() -> None:
    written, default = load(TEMPLATE), Experiment()
    differing = {name for name in Experiment.model_fields if getattr(written, name) != getattr(default, name)}
    assert differing == {"name", "title", "attacks", "profiles"}
    assert set(map(str, written.attacks)) == set(map(str, default.attacks))


def test_the_paper_part_of_the_template_is_valid(tmp_path: Path) -> None:
    lines = TEMPLATE.read_text().splitlines()
    start = lines.index("# paper:")
    path = tmp_path / "paper.yaml"
    path.write_text("\n".join(line.removeprefix("# ") for line in lines[start:]))
    paper = load(path).paper
    assert paper is not None
    assert paper.figures[0].attack == "fedmia_ii"


@pytest.mark.parametrize("place", ["taken.yaml", ".", "absent/mine.yaml"])
def test_init_overwrites_nothing(place: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "taken.yaml").write_text("mine")
    assert execute(["init", str(tmp_path / place)]) == 2
    assert (tmp_path / "taken.yaml").read_text() == "mine"
    assert "fedsiege: error: init: " in capsys.readouterr().err


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["list", "--json"],
        ["show", "resnet18"],
        ["run", "--help"],
        ["sweep", "--help"],
        ["bench", "--help"],
    ],
)
def test_help_and_lists_do_not_wait_for_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom fedsiege.cli import execute\n"
        f"code = execute({arguments!r})\n"
        "slow = {'torch', 'numpy', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(slow) if slow else code)"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_fedsiege_is_the_command(tmp_path: Path) -> None:
    done = run_python("-m", "fedsiege", "shwo", cwd=tmp_path)
    assert done.returncode == 2
    assert "No such command 'shwo'" in done.stderr


def test_a_module_in_the_folder_of_the_command_is_found(tmp_path: Path) -> None:
    """What is said of the class proves that the user's own module was imported, without a run."""
    (tmp_path / "mine.py").write_text("class Attack:\n    pass\n")
    done = run_python("-P", "-m", "fedsiege", "run", "quickstart", "--set", "attacks=['mine:Attack']", cwd=tmp_path)
    assert done.returncode == 2
    assert "'mine:Attack' is not a component" in done.stderr
