"""What a worker does, wherever it runs: carry out a cell, whatever happens in it."""

import traceback
from dataclasses import dataclass
from pathlib import Path

from fedsiege.errors import FedSiegeError
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.prepare import Shelf
from fedsiege.experiment.run import run
from fedsiege.experiment.sharing import share

LOG = "sweep.log"
"""What workers have to say that is not for the table: tracebacks, warnings."""


@dataclass(frozen=True, slots=True)
class Work:
    """A cell to carry out in `folder`; `donors` are the folders of the other cells that share its training."""

    place: int
    folder: Path
    experiment: Experiment
    donors: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a cell ended; `error` is null when all went well."""

    place: int
    error: str | None


def carry_out(work: Work, log: Path, shelf: Shelf) -> Ended:
    """Carry out a cell from where it stands, with data from the shelf; whatever it raises is how it ended."""
    try:
        for donor in work.donors:
            share(donor, work.folder, work.experiment)
        run(work.experiment.model_dump(mode="json"), work.folder, resume=True, progress=False, load_data=shelf)
    except FedSiegeError as error:
        return Ended(work.place, str(error))
    except Exception as error:  # a user's own component may raise anything
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{work.folder}\n{traceback.format_exc()}\n")
        said = f"{type(error).__name__}: {error} (traceback in {log.name})"
        return Ended(work.place, " ".join(said.split()))
    return Ended(work.place, None)
