"""An experiment on real Flower processes of this machine: all of a deployment in one call."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedsiege.errors import FedSiegeError
from fedsiege.experiment import folder as run_folder
from fedsiege.experiment.config import load
from fedsiege.flower.app import SAID, on_flower
from fedsiege.flower.deployment import Deployment, Value
from fedsiege.flower.seat import PARTITION, write_sites
from fedsiege.report.result import Result

APP = """\
[project]
name = "fedsiege-experiment"
version = "1.0.0"
description = "A FedSiege experiment, with real clients"
license = "Apache-2.0"
dependencies = []  # FedSiege itself is installed on every machine beforehand

[tool.flwr.app]
publisher = "fedsiege"

[tool.flwr.app.components]
serverapp = "fedsiege.flower.app:server"
clientapp = "fedsiege.flower.app:client"

[tool.flwr.app.config]
config = "quickstart"  # a shipped experiment, a YAML file in this folder, or JSON
set = ""               # changes: KEY=VALUE; KEY=VALUE
out = ""               # the run folder, on the SuperLink's machine
resume = false
"""
"""The pyproject.toml of the Flower app: all that there is to it."""

LOGS = "flower"
"""The folder, in the run folder, of what the processes said."""


class DeploymentFailedError(FedSiegeError):
    """A run that did not end well on Flower; the exit code is that of the run."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def deploy(
    config: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    follow: Callable[[str], None] = lambda _: None,
) -> Result:
    """Run an experiment with a SuperLink and one SuperNode for each client, all on this machine, and stop them.

    Each node is given its own client's data in a file and reads nothing else, but for compromised clients. Keys,
    data files and Flower's own things lie in a temporary folder that is removed; logs are kept in the run folder.

    Args:
        config: a path or the name of a shipped experiment.
        out: the run folder; the config's `out`, else `runs/<name>`, when left out.
        overrides: changes like `training.lr=0.05`.
        resume: go on in a folder that already holds this run.
        follow: is called with a line of text when something happens.

    Raises:
        InputError: the experiment, or the folder, is not right; nothing was started.
        DeploymentFailedError: the run failed, with the exit code that `fedsiege run` would have had.

    """
    experiment = on_flower(load(config, overrides))
    place = Path(out or experiment.out or Path("runs") / (experiment.name or "run")).absolute()
    with run_folder.opened(place, experiment, resume):
        if run_folder.finished(place):
            return Result.read(place)
    with tempfile.TemporaryDirectory(prefix="fedsiege-", ignore_cleanup_errors=True) as aside:
        files = Path(aside)
        (files / "app").mkdir()
        (files / "app" / "pyproject.toml").write_text(APP, encoding="utf-8")
        follow("writing each client's own data")
        nodes = write_sites(experiment, files / "sites")
        follow(f"starting a SuperLink and {len(nodes)} SuperNodes")
        asked: dict[str, Value] = {"out": str(place), "resume": resume}
        asked["config"] = json.dumps(experiment.model_dump(mode="json"))
        try:
            with Deployment(files / "deployment", [numbered(node) for node in nodes]) as deployment:
                outcome = deployment.run(files / "app", asked, lambda line: _told(line, follow))
            if outcome.status != "completed":
                raise DeploymentFailedError(outcome.message or f"the run was {outcome.status}", outcome.exit_code)
        except FedSiegeError as error:
            logs = (
                place if (place / run_folder.CONFIG).is_file() else Path(tempfile.mkdtemp(prefix="fedsiege-logs-"))
            )
            said = f"{error} (logs: {_keep_logs(files / 'deployment', logs)})"
            raise DeploymentFailedError(said, error.exit_code) from None
        _keep_logs(files / "deployment", place)
    return Result.read(place)


def numbered(node: Mapping[str, str]) -> dict[str, Value]:
    """A node's configuration with its numbers as such."""
    return {key: int(value) if key in (PARTITION, "num-partitions") else value for key, value in node.items()}


def _told(line: str, follow: Callable[[str], None]) -> None:
    """Pass on what the experiment says itself, and what happens to nodes."""
    if line.startswith("node "):
        follow(line)
    elif line.startswith(SAID) and not line.startswith(f"{SAID}error"):
        follow(line.removeprefix(SAID))


def _keep_logs(folder: Path, place: Path) -> Path:
    """Copy what the processes said to a folder within `place`, which is returned."""
    kept = place / LOGS
    kept.mkdir(exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, kept / log.name)
    return kept
