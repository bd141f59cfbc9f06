"""The `fedsiege` command. Imports wait until a command needs them: help and lists must not wait for torch."""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fedsiege import __version__
from fedsiege.errors import FedSiegeError, InputError

if TYPE_CHECKING:
    from fedsiege.report import Result
    from fedsiege.report.grid import SweepResult

INTERRUPTED = 130

app = typer.Typer(
    name="fedsiege",
    add_completion=False,
    suggest_commands=False,  # click suggests by itself
    pretty_exceptions_enable=False,
    help="Attack and defend federated learning: what a federation leaks, and what a defence costs.",
)

Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run; must not exist yet.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a field, e.g. --set candidates.ofl=1000 (repeatable)."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")]
GridSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a field of every cell, or profile=NAME or seeds=[0] of the grid (repeatable).",
    ),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", metavar="N", help="Cells at the same time; one when left out.")
]
Engine = Annotated[
    str, typer.Option("--engine", metavar="ENGINE", help="local (processes) or ray (a cluster's tasks).")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Neither progress nor table.")]
Open = Annotated[bool, typer.Option("--open", help="Open the report in a browser, where there is a display.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"fedsiege {__version__}")
        raise typer.Exit


@app.command()
def run(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped experiment's name.")],
    out: Out = None,
    overrides: Set = None,
    resume: Resume = False,
    quiet: Quiet = False,
    open_report: Open = False,
) -> None:
    """Train a federation, record the evidence, attack it, report."""
    from fedsiege import experiment

    _present(
        experiment.run(config, out, overrides=overrides or (), resume=resume, progress=not quiet),
        quiet,
        open_report,
    )


@app.command()
def audit(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A folder with the updates that a server received.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="Whose examples are whose: a source as in a config, a file or folder, or {name: ..., field: ...}.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="The recorded model: a name, or your own module:function."),
    ],
    out: Out = None,
    overrides: Set = None,
    resume: Resume = False,
    quiet: Quiet = False,
    open_report: Open = False,
) -> None:
    """Attack a federation that was recorded elsewhere, by what its server received, and report."""
    from fedsiege import experiment

    _present(
        experiment.audit(log, data, model, out, overrides=overrides or (), resume=resume, progress=not quiet),
        quiet,
        open_report,
    )


@app.command()
def deploy(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped experiment's name.")],
    out: Out = None,
    overrides: Set = None,
    resume: Resume = False,
    quiet: Quiet = False,
    open_report: Open = False,
) -> None:
    """Run an experiment with real Flower processes on this machine, one SuperNode for each client.

    TLS and keys are made for the occasion, all processes are stopped in the end. Several machines: docs/flower.md.
    """
    from fedsiege.experiment.engines import require

    require("flwr", "cryptography")
    from fedsiege.flower import loopback

    def follow(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    _present(
        loopback.deploy(config, out, overrides=overrides or (), resume=resume, follow=follow), quiet, open_report
    )


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An experiment, or a grid of them, with published figures.")
    ],
    out: Out = None,
    overrides: Set = None,
    jobs: Jobs = None,
    engine: Engine = "local",
    resume: Resume = False,
    quiet: Quiet = False,
    open_report: Open = False,
) -> None:
    """Run a published experiment or table: published figure, ours, interval, verdict.

    Of a grid, --set overrides a field of every cell, or profile=NAME or seeds=[0] of the grid.
    """
    from fedsiege import experiment
    from fedsiege.report.grid import SweepResult

    result = experiment.reproduce(
        name, out, overrides=overrides or (), jobs=jobs, engine=engine, resume=resume, progress=not quiet
    )
    _present(result, quiet, open_report)
    if isinstance(result, SweepResult):
        _fail_for_cells(result)


@app.command()
def sweep(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="A YAML file, or a shipped grid's name.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the sweep; must not exist yet.")
    ] = None,
    overrides: GridSet = None,
    jobs: Jobs = None,
    engine: Engine = "local",
    resume: Annotated[bool, typer.Option("--resume", help="Run what is missing or failed in --out.")] = False,
    quiet: Quiet = False,
    open_report: Open = False,
) -> None:
    """Run every cell of a grid: which defence helps against which attack, and what it costs."""
    from fedsiege import experiment

    result = experiment.sweep(
        grid, out, overrides=overrides or (), jobs=jobs, engine=engine, resume=resume, progress=not quiet
    )
    _present(result, quiet, open_report)
    _fail_for_cells(result)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run or of a sweep.")],
    open_report: Open = False,
) -> None:
    """Write the report, figures and tables of a finished run or of a sweep again, from its files."""
    from fedsiege import report as room
    from fedsiege.report import grid

    if (folder / "sweep.json").is_file():
        grid.write(folder)
        _present(grid.SweepResult.read(folder), False, open_report)
        return
    room.write(folder)
    _present(room.Result.read(folder), False, open_report)


@app.command(name="list")
def list_components(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every field.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As the documentation's page.")] = False,
) -> None:
    """List every component, shipped experiment and grid."""
    from fedsiege import catalogue

    if as_json and as_markdown:
        raise InputError("list: got --json and --markdown; expected one of them")
    render = catalogue.as_json if as_json else catalogue.as_markdown if as_markdown else catalogue.as_text
    typer.echo(render())


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A component, also one's own module:Class, or a shipped experiment or grid."
        ),
    ],
) -> None:
    """Show what a component does and its fields, or the file of a shipped experiment or grid."""
    from fedsiege import catalogue

    typer.echo(catalogue.describe(name))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The file to write.")] = Path("fedsiege.yaml"),
) -> None:
    """Write a commented config to start from."""
    from fedsiege import shipped

    if path.is_dir():
        raise InputError(f"init: {path} is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise InputError(f"init: the folder {path.parent} does not exist")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(shipped.TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError(f"init: {path} exists already; expected a name that is free") from None
    typer.echo(f"wrote {path}; next: fedsiege run {path} --out runs/mine")


@app.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors."""
    from fedsiege import editor

    typer.echo(editor.json_schema())


@app.command()
def verify(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A folder with the updates that a server received.")],
    declared: Annotated[
        Path | None,
        typer.Option(
            "--declared",
            metavar="FILE",
            help="YAML or JSON: the defences that clients promise; else what the log says they declared.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check in received updates that clients' privacy mods ran: exit code 1 where a promise is broken."""
    from fedsiege import promises
    from fedsiege.update_log import UpdateLog

    if not promises.verify(UpdateLog.read(log), declared, as_json):
        raise typer.Exit(1)


@app.command()
def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A figure's name, or how several names begin; else all.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON when all is measured; lines go to standard error.")
    ] = False,
) -> None:
    """Measure speed and memory against plain references (in a source checkout).

    All there is to measure, or one figure by its NAME, or all figures whose names begin so.
    """
    from fedsiege import bench as way

    way.command().run(name, as_json)


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.path.append(str(Path.cwd()))  # a user's own `module:function` lies where the command was typed
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Run one command; returns 0 done, 2 bad input, 1 failure, 130 interrupted."""
    try:
        code = app(list(arguments) or ["--help"], prog_name="fedsiege", standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "fedsiege"
        return _fail(f"{error.format_message()} (see {command} --help)", error.exit_code)
    except FedSiegeError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return _fail(f"{_REFUSED[error.errno]} ({error})", FedSiegeError.exit_code)
    if code == INTERRUPTED:  # typer turns some interrupts into this code by itself
        resumable = list(arguments[:1]) in (["run"], ["deploy"], ["audit"], ["reproduce"], ["sweep"])
        return _fail("interrupted; go on with --resume" if resumable else "interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


_REFUSED: dict[int | None, str] = {
    errno.ENOSPC: "the disk is full; free some space and go on with --resume",
    errno.EDQUOT: "the disk quota is used up; free some space and go on with --resume",
    errno.EACCES: "no permission",
    errno.EROFS: "the file system is read-only",
}
"""What the operating system may refuse, in plain words; any other OSError is our fault and keeps its traceback."""


def _fail(message: str, code: int) -> int:
    typer.echo(f"fedsiege: error: {message}", err=True)
    return code


def _fail_for_cells(result: "SweepResult") -> None:
    """Say so, at the end, where runs of a sweep failed."""
    cells = result.data["cells"]
    failed = [cell for cell in cells if cell["status"] == "failed"]
    if failed:
        first = f"{failed[0]['name']}, seed {failed[0]['seed']}: {failed[0]['error']}"
        raise FedSiegeError(f"{len(failed)} of {len(cells)} runs failed; the first is {first}")


def _present(result: "Result | SweepResult", quiet: bool, open_report: bool) -> None:
    """Show a finished run or sweep in the terminal and, where asked, in a browser.

    Without a display there is no browser (a text one would take the terminal): the path is all there is to show.
    """
    path = result.folder / "report.html"
    if not quiet:
        result.show()
        typer.echo(f"report: {path}")
    display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if open_report and display:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
