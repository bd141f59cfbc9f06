"""The grid: a base experiment, axes of changes, seeds; and how it becomes cells, each an experiment of its own."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError

from fedsiege.attacks.poisoning.campaign import Compromised
from fedsiege.data.candidates import CandidateSpec
from fedsiege.errors import InputError
from fedsiege.experiment.config import (
    BackdoorSpec,
    Change,
    Experiment,
    Strict,
    TraceSpec,
    changed,
    parsed,
    read_mapping,
)
from fedsiege.registry import nearest
from fedsiege.shipped import GRID_KEYS, find, is_grid
from fedsiege.training import Training

PARTS = {
    "training": list(Training.model_fields),
    "trace": list(TraceSpec.model_fields),
    "compromised": list(Compromised.model_fields),
}
PARTS["backdoor"] = list(BackdoorSpec.model_fields)
PARTS["candidates"] = sorted(CandidateSpec.__dataclass_fields__)
"""The parts of an experiment that are no components, with their fields."""

FIELDS = [*Experiment.model_fields, *(f"{part}.{field}" for part, fields in PARTS.items() for field in fields)]

OURS = {
    "seed": "expected a list under seeds:",
    "name": "a cell is named after its values",
    "out": "cells are written below the sweep's own folder",
    "changed": "the program fills it in",
    "profiles": "expected them in the base",
}
"""Fields that a grid cannot set, and why."""

ASKED = ("profile", "seeds", "budget", "title", "description")
"""A grid's own keys that an override can set; any other override is about the experiments."""

ACCURACIES = ("accuracy", "accuracy_change")
DECISIONS = {"best_decision": "best", "last_decision": "last"}
Metric = Literal[
    "auc",
    "tpr@0.1",
    "tpr@0.01",
    "tpr@0.001",
    "tpr@0.0001",
    "accuracy",
    "accuracy_change",
    "best_decision",
    "last_decision",
]
"""What a figure measures; `accuracy_change` is the cell's test accuracy minus that of the cell `against`.

`best_decision` and `last_decision` are how often "member if the model is right" was right, under an attack that
makes membership visible: in the best round, which takes the truth to find, and over the last rounds.
"""

NO_ATTACK = {*ACCURACIES, *DECISIONS}
"""What is measured without one of the run's membership attacks."""


class Figure(Strict):
    """A published figure of one cell."""

    cell: str
    """The cell's name."""
    metric: Metric
    attack: str = ""
    """Label or name of an attack; empty for an accuracy and for decisions."""
    against: str = ""
    """Of an `accuracy_change`: the cell without the defence."""
    value: float
    """As a share, not per cent."""
    spread: Annotated[float, Field(ge=0)] | None = None
    """The published standard deviation."""


class GridPaper(Strict):
    """What a paper's table reports for the cells of a grid."""

    claim: str
    source: str
    table: str
    link: str
    rounding: dict[Metric, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """By metric, half the last digit that the paper prints: 0.005 for two decimals."""
    figures: Annotated[list[Figure], Field(min_length=1)]


class Extra(Strict):
    """A cell outside the product of the axes."""

    name: Annotated[str, Field(min_length=1)]
    set: dict[str, Any] = Field(default_factory=dict)
    """Changes by dotted field."""
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name of one of the base's profiles -> further changes of the cell where the grid is run with it."""

    def changes(self, profile: str | None) -> dict[str, Any]:
        """What the cell sets, by dotted field, where the grid is run with a profile."""
        return {**self.set, **self.profiles.get(profile or "", {})}


class Grid(Strict):
    """A grid file, its base resolved to a mapping."""

    title: str = ""
    """Headline of the report."""
    description: str = ""
    """What the sweep is for, in a sentence or two."""
    experiment: dict[str, Any] = Field(default_factory=dict)
    """What every cell starts from."""
    profile: str | None = None
    """Which of the base's profiles is applied."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Changes for every cell, by dotted field."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Changes asked for when the grid was run, after `set`; the program fills it in."""
    axes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Dotted field -> name -> value."""
    cells: list[Extra] = Field(default_factory=list)
    """Further cells, outside the product."""
    seeds: Annotated[list[int], Field(min_length=1)]
    """Every cell is run with each."""
    budget: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Test accuracy that a defence may cost, as a share."""
    paper: GridPaper | None = None
    """The published figures of these cells."""

    @classmethod
    def load(cls, grid: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[Self, str]:
        """A grid from a path, the name of a shipped one, or a mapping, and what messages call it.

        Overrides are `a.b=value`: a field of the experiments, or one of the grid's own keys `profile`, `seeds`,
        `budget`, `title` and `description`. Raises InputError naming file, field, value and what was expected.
        """
        where, raw = ("grid", dict(grid)) if isinstance(grid, Mapping) else read_mapping(find(grid))
        if not is_grid(raw):
            raise InputError(
                f"{where}: is a single experiment; expected a grid, which has some of "
                f"{', '.join(sorted(GRID_KEYS))}: use fedsiege run for it"
            )
        near = None if isinstance(grid, Mapping) else Path(where).parent
        raw = {**raw, "experiment": _base(raw, where, near)}
        raw.pop("base", None)
        raw = _overridden(raw, [parsed(text) for text in overrides], where)
        raw["axes"] = _axes(raw.get("axes"), where)
        raw.setdefault("seeds", [_seed(raw, where)])
        try:
            made = cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"{where}: {_fault(error)}") from None
        made._check(where)
        return made, where

    def cells_of(self, where: str) -> "list[Cell]":
        """Every cell with every seed, each a whole, validated experiment; InputError names the first bad cell."""
        plans = self._product(f"{where}: axes") + [
            (extra.name, {}, _changes(f"{where}: cells.{i}.set.", extra.changes(self.profile)))
            for i, extra in enumerate(self.cells)
        ]
        slugs = _slugs([name for name, _, _ in plans])
        own: list[dict[str, str]] = [{}] * (len(plans) - len(self.cells)) + [
            self._said(extra.changes(self.profile)) for extra in self.cells
        ]
        return [
            Cell(name, axes, seed, f"cells/{slug}/seed{seed}", self._experiment(name, changes, seed, where), said)
            for (name, axes, changes), slug, said in zip(plans, slugs, own, strict=True)
            for seed in self.seeds
        ]

    def _said(self, changes: Mapping[str, Any]) -> dict[str, str]:
        """What a cell outside the product sets, as the axes would name it."""
        return {
            field: next((n for n, v in self.axes.get(field, {}).items() if v == value), compact(value))
            for field, value in changes.items()
        }

    def _product(self, place: str) -> "list[tuple[str, dict[str, str], list[Change]]]":
        """Name, values by axis, and changes of every cell of the product; the base alone where there is no axis."""
        if not self.axes:
            return [] if self.cells else [("base", {}, [])]
        found = []
        for names in itertools.product(*self.axes.values()):
            axes = dict(zip(self.axes, names, strict=True))
            values = {field: self.axes[field][name] for field, name in axes.items()}
            found.append((", ".join(f"{f}={n}" for f, n in axes.items()), axes, _changes(f"{place}.", values)))
        return found

    def _experiment(self, name: str, changes: list[Change], seed: int, where: str) -> Experiment:
        title = f"{self.title}: {name}" if self.title else name
        first = [] if self.profile is None else [Change("profile", ["profile"], self.profile)]
        ours = [Change("seeds", ["seed"], seed), Change("title", ["title"], f"{title}, seed {seed}")]
        return changed(
            self.experiment,
            [
                *first,
                *_changes(f"{where}: set.", self.set),
                *_changes(f"{where}: --set ", self.overrides),
                *changes,
                *ours,
            ],
            f"{where}: cell {name!r}",
        )

    def _check(self, where: str) -> None:
        _unique(self.seeds, f"{where}: seeds", "different seeds")
        for place, fields in (
            ("set", self.set),
            ("--set", self.overrides),
            ("axes", self.axes),
            *((f"cells.{i}.set", extra.set) for i, extra in enumerate(self.cells)),
            *(
                (f"cells.{i}.profiles.{name}", fields)
                for i, extra in enumerate(self.cells)
                for name, fields in extra.profiles.items()
            ),
        ):
            for field in fields:
                _known(field, f"{where}: {place}")
        self._check_profiles(where)
        plans = self._product(f"{where}: axes")
        names = [*(name for name, _, _ in plans), *(extra.name for extra in self.cells)]
        _unique(names, f"{where}: cells", "another name")
        self._check_overrides(where, len(plans) > 0)
        if self.paper is not None:
            _check_paper(self.paper, names, f"{where}: paper.figures")

    def _check_profiles(self, where: str) -> None:
        """A cell can only say more of a profile that the base has."""
        profiles = self.experiment.get("profiles")
        known = list(profiles) if isinstance(profiles, Mapping) else []
        for i, extra in enumerate(self.cells):
            for name in extra.profiles:
                if name not in known:
                    raise InputError(
                        f"{where}: cells.{i}.profiles: the base has no profile {name!r}{nearest(name, known)}; "
                        f"expected one of {', '.join(known) or 'none'}"
                    )

    def _check_overrides(self, where: str, product: bool) -> None:
        """Refuse an override that no cell would show, because each sets that field itself."""
        own = [extra.changes(self.profile) for extra in self.cells] + ([self.axes] if product else [])
        for field in self.overrides:
            parents = [field[:end] for end in range(len(field) + 1) if f"{field}."[end] == "."]
            if all(any(parent in fields for parent in parents) for fields in own):
                raise InputError(f"{where}: --set {field}: every cell sets it itself; expected another field")


@dataclass(frozen=True, slots=True)
class Cell:
    """One experiment of a grid, with one seed; `folder` is its run folder, below the sweep's.

    `axes` has the values of a cell of the product by name, `changes` what a cell outside it sets.
    """

    name: str
    axes: Mapping[str, str]
    seed: int
    folder: str
    experiment: Experiment
    changes: Mapping[str, str]


def _base(raw: Mapping[str, Any], where: str, near: Path | None) -> dict[str, Any]:
    """The experiment that the cells start from, as a mapping; a file beside the grid's own goes first."""
    if "base" not in raw:
        written = raw.get("experiment", {})
        if not isinstance(written, Mapping):
            raise InputError(f"{where}: experiment: got {written!r}; expected a mapping of fields to values")
        if is_grid(written):
            raise InputError(f"{where}: experiment: is a grid itself; expected a single experiment")
        return dict(written)
    base = raw["base"]
    if "experiment" in raw:
        raise InputError(f"{where}: has base and experiment; expected one of them")
    if not isinstance(base, str):
        raise InputError(f"{where}: base: got {base!r}; expected a file or the name of a shipped experiment")
    beside = None if near is None else near / base
    try:
        name, found = read_mapping(beside if beside is not None and beside.is_file() else find(base))
    except InputError as error:
        raise InputError(f"{where}: base: {error}") from None
    if is_grid(found):
        raise InputError(f"{where}: base: {name} is a grid itself; expected a single experiment")
    return {"name": Path(name).stem, **found}


def _overridden(raw: Mapping[str, Any], changes: Sequence[Change], where: str) -> dict[str, Any]:
    """The grid with what was asked for: its own keys replaced, fields of the experiments among its overrides."""
    made = dict(raw)
    if not isinstance(made.get("overrides", {}), Mapping):
        raise InputError(f"{where}: overrides: got {made['overrides']!r}; expected a mapping of fields to values")
    own = {key for key in ["base", *Grid.model_fields] if key not in ASKED}
    for said, path, value in changes:
        if len(path) == 1 and path[0] in ASKED:
            made[path[0]] = value
        elif path[0] in own:
            raise InputError(
                f"{where}: {said}: is the grid's own; expected {', '.join(ASKED)} or a field of the experiments"
            )
        else:
            made["overrides"] = {**made.get("overrides", {}), ".".join(path): value}
    return made


def _check_paper(paper: GridPaper, names: list[str], place: str) -> None:
    """Refuse a figure that stands beside no cell, or that does not say what it measures; and none twice."""
    for i, figure in enumerate(paper.figures):
        changes = figure.metric == "accuracy_change"
        for field, wanted, why in (
            ("attack", figure.metric not in NO_ATTACK, "the attack that it was measured with"),
            ("against", changes, "the cell without the defence"),
        ):
            given = getattr(figure, field)
            if bool(given) is not wanted:
                expected = why if wanted else "none"
                raise InputError(
                    f"{place}.{i}.{field}: got {given!r} with metric {figure.metric}; expected {expected}"
                )
        for field, name in (("cell", figure.cell), *([("against", figure.against)] if changes else [])):
            if name not in names:
                raise InputError(
                    f"{place}.{i}.{field}: got {name!r}{nearest(name, names)}; expected one of the grid's cells: "
                    f"{', '.join(names)}"
                )
    measured = [", ".join(filter(None, (one.cell, one.attack, one.metric))) for one in paper.figures]
    _unique(measured, place, "each figure once")


def _seed(raw: Mapping[str, Any], where: str) -> Any:
    """The base's own seed, which its profile may set."""
    profile = raw.get("profile")
    changes = [] if profile is None else [Change("profile", ["profile"], profile)]
    return changed(raw["experiment"], changes, where).seed


def _axes(axes: Any, where: str) -> dict[str, Any]:
    """Every axis as name -> value: a plain list's values are named by what they are."""
    if axes is None:
        return {}
    if not isinstance(axes, Mapping):
        raise InputError(f"{where}: axes: got {axes!r}; expected a mapping of fields to lists of values")
    found = {}
    for field, values in axes.items():
        place = f"{where}: axes.{field}"
        if not isinstance(values, list | Mapping) or not values:
            raise InputError(f"{place}: got {values!r}; expected a list of values, or a mapping of names to values")
        pairs = list(values.items()) if isinstance(values, Mapping) else [(value, value) for value in values]
        names = [compact(name) for name, _ in pairs]
        _unique(names, place, "different values")
        found[str(field)] = {name: value for name, (_, value) in zip(names, pairs, strict=True)}
    return found


def compact(value: Any) -> str:
    """A value on one line: text as it is, anything else as YAML writes it."""
    if isinstance(value, str):
        return value
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def _changes(place: str, values: Mapping[str, Any]) -> list[Change]:
    """Changes in such an order that a part is set before what is in it; `place` goes before a field's name."""
    paths = sorted(values, key=lambda field: field.count("."))
    return [Change(f"{place}{field}", field.split("."), values[field]) for field in paths]


def _known(field: str, place: str) -> None:
    """Refuse a dotted field that no experiment has; the fields of components are known to the components."""
    first, dot, rest = field.partition(".")
    if first in OURS:
        raise InputError(f"{place}: a grid cannot set {field!r}; {OURS[first]}")
    part = PARTS.get(first)
    if first not in Experiment.model_fields or (dot and part is not None and rest not in part):
        raise InputError(
            f"{place}: {field!r} names no field of an experiment{nearest(field, FIELDS)}; expected one, with dots "
            "to get inside: training.lr"
        )


def _unique(values: Sequence[object], place: str, expected: str) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise InputError(f"{place}: {twice[0]!r} is there twice; expected {expected}")


def _slugs(names: list[str]) -> list[str]:
    """Folder names, all different, also where a file system cannot tell upper case from lower."""
    plain = [re.sub(r"[^A-Za-z0-9.=_]+", "-", name).strip("-.")[:80] for name in names]
    many = Counter(slug.lower() for slug in plain)
    return [
        slug if slug and many[slug.lower()] == 1 else f"{slug}-{_digest(name)}".lstrip("-")
        for slug, name in zip(plain, names, strict=True)
    ]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _fault(error: ValidationError) -> str:
    """The first fault: field, value given and what was expected."""
    first = error.errors()[0]
    place = first["loc"]
    field = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = _keys_at(place)
        return f"{field}: unknown key{nearest(str(place[-1]), known)}; known: {', '.join(known)}"
    if first["type"] == "missing":
        return f"{field}: missing; expected a value"
    if first["type"] == "model_type":
        return f"{field}: got {first['input']!r}; expected a mapping of keys to values"
    return f"{field}: got {first['input']!r}; {first['msg']}"


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    """The known keys of the part of a grid that a faulty key was found in."""
    if len(place) == 1:
        return ["base", *Grid.model_fields]
    model: type[Strict] = Extra if place[0] == "cells" else GridPaper if len(place) == 2 else Figure
    return list(model.model_fields)
