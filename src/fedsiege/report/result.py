"""What `fedsiege.run` hands back: a finished run, for scripts and notebooks."""

from typing import Any

import pandas as pd
from rich.console import Console

from fedsiege.errors import InputError
from fedsiege.report import html, terminal
from fedsiege.report.figures import Chart, roc_figure
from fedsiege.report.finished import Finished, Where
from fedsiege.report.tables import frame


class Result(Finished):
    """A finished run, read from its files: `Result.read(folder)`.

    `folder` is the run folder and `data` its result.json as written.
    """

    @property
    def attacks(self) -> list[dict[str, Any]]:
        """The entries of result.json: one per attack, target and kind of non-members."""
        return list(self.data["attacks"])

    @property
    def accuracy(self) -> float | None:
        """The final model's accuracy on held-out data."""
        return self.report.task.accuracy

    def table(self, against: str = "all", target: Where = "pooled") -> pd.DataFrame:
        """One row an attack: AUC and TPR at each FPR with 95 % intervals, and the false positives behind each.

        `target` is "pooled", "mean", "worst", "any" or a client's number; `against` is "all", "ifl" or "ofl".
        InputError if the run has no such figures.
        """
        table = frame(self, target, against)
        if table.empty:
            known = ", ".join(map(str, [*self.wheres, *self.targets]))
            raise InputError(
                f"table: no figures for target {target!r} against {against!r}; expected a target of {known} and "
                f"against one of {', '.join(self.againsts)}"
            )
        return table

    def plot(self) -> Chart:
        """The log-log ROC of every attack, a matplotlib figure."""
        return roc_figure(self)

    def show(self) -> None:
        """Print headline, table and warnings to the terminal."""
        console = Console()
        console.print(terminal.summary(self, console.width))

    def _repr_html_(self) -> str:
        return html.fragment(self)
