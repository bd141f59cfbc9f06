"""The type of a sweep folder's sweep.json: what the report over a grid may rely on.

It accepts what it does not know and refuses what it cannot show, as a run's own files do.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsiege.report import schema
from fedsiege.report.poisoning.schema import Poisoning
from fedsiege.report.schema import Guarantee, Measured, Rate

SCHEMA = 1

Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True)


class Attacked(_Record):
    """One attack on one run: all targets pooled, against all non-members.

    `adapted` says that the attack is told of the defence, `upper_bound` that it is told the truth about candidates
    and is none. A non-member that several targets were judged on counts for each of them in `n_nonmembers`, and
    once in `n_distinct_nonmembers`.
    """

    attack: str
    name: str
    title: str
    adapted: bool = False
    upper_bound: bool = False
    n_nonmembers: int | None = None
    n_distinct_nonmembers: int | None = None
    auc: Measured
    tpr_at_fpr: dict[str, Rate]


class Cell(_Record):
    """One run of the grid: a cell with one seed.

    `axes` is empty for a named cell outside the product, and `changes` has what it sets beside defences, field by
    field. `idle` lists the components that never acted, or of which nothing tells whether they did: `unproven` has
    the counter that these lack.
    """

    name: str
    axes: dict[str, str] = {}
    changes: dict[str, str] = {}
    seed: int
    folder: str
    defences: list[str] = []
    labels: list[str] = []
    partly: bool | None = None
    """Whether a defence is used by some of the audited clients and not by others; null in older files."""
    rule: str = ""
    """The aggregation rule, written out; empty in older files."""
    averages: bool = True
    """Whether the rule is a weighted mean, which defends against nobody."""
    status: Literal["done", "failed", "missing"]
    error: str | None = None
    accuracy: Share | None = None
    train_accuracy: Share | None = None
    loss: float | None = None
    attacks: list[Attacked] = []
    idle: list[str] = []
    unproven: dict[str, str] = {}
    privacy: list[Guarantee] = []
    poisoning: Poisoning | None = None
    wall_seconds: float | None = None


class Published(schema.Published):
    """A published figure of a cell and ours, whose `n` is the number of seeds that it is the mean of.

    `attack` is empty where the figure is an accuracy or of decisions on membership; `against` is the cell that a
    change of accuracy is from. `rounding` is half the last digit that the paper prints.
    """

    cell: str
    attack: str = ""
    against: str = ""
    rounding: float = 0.0


class Paper(_Record):
    """A paper's claim and its published figures; `changed` has the fields in which this sweep's setting differs."""

    claim: str
    source: str
    link: str | None = None
    table: str | None = None
    changed: list[str] = []
    figures: list[Published]


class SweepFile(_Record):
    """sweep.json, schema 1. `budget` is the accuracy that a defence may cost, as a share."""

    title: str = ""
    description: str | None = None
    budget: Share = 0.02
    axes: dict[str, list[str]]
    seeds: list[int]
    cells: list[Cell]
    paper: Paper | None = None

    @model_validator(mode="after")
    def _each_run_once(self) -> Self:
        seen: set[tuple[str, int]] = set()
        for cell in self.cells:
            if (cell.name, cell.seed) in seen:
                raise ValueError(f"the cell {cell.name!r} is there twice with seed {cell.seed}")
            seen.add((cell.name, cell.seed))
        return self
