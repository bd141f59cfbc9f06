"""A finished run, read from its folder: the figures by attack, target and kind of non-members."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from fedsiege.report.poisoning.schema import Poisoning, begins_fresh
from fedsiege.report.schema import SCHEMA, Curve, CurvesFile, Entry, Measured, Rate, ResultFile, RoundCurve
from fedsiege.report.typed import read_finished, read_json, typed

Where = int | Literal["pooled", "mean", "worst", "any", "coalition"]
"""Whose figures: one client's, all pooled, their mean, the client that leaks most, any client's, a coalition's."""

HEADLINE_FPR = "0.001"
BOUND = "Upper bound: "
"""How the name of what is no attack, but a bound on what attacks can find, begins."""
EVERY_AGAINST = ("all", "ifl", "ofl")
GROUPS: tuple[Where, ...] = ("any", "coalition")


@dataclass(frozen=True, slots=True)
class Row:
    """One attack's figures, as a table shows them; `style` is the attack's number, the same in every chart."""

    attack: str
    name: str
    style: int
    against: str
    target: Where
    worst_target: int | None
    n_members: int
    n_nonmembers: int
    n_distinct: int
    auc: Measured
    rates: dict[str, Rate]
    upper_bound: bool = False

    def rate(self, fpr: str) -> Rate:
        """The TPR at this FPR; all null where it was not measured."""
        return self.rates.get(fpr, Rate(value=None, low=None, high=None))


@dataclass(frozen=True)
class Finished:
    """A run folder's result.json (`data` as written, `report` typed) and curves.json."""

    folder: Path
    data: dict[str, Any]
    report: ResultFile
    curves: CurvesFile

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read a finished run folder; InputError says which file is missing, unreadable or of another schema."""
        folder = Path(folder)
        data = read_finished(folder, "result.json", SCHEMA, "finished run")
        path = folder / "curves.json"
        return cls(
            folder=folder,
            data=data,
            report=typed(ResultFile, data, folder / "result.json"),
            curves=typed(CurvesFile, read_json(path, "the file of a finished run"), path),
        )

    @property
    def audited(self) -> bool:
        """Whether membership attacks were made; a run may be about poisoning alone."""
        return bool(self.report.attacks)

    @cached_property
    def poisoning(self) -> Poisoning | None:
        """What there is about compromised clients; None where there is nothing."""
        found = self.report.poisoning
        if found is None or found.adversary is None:
            return found
        fresh = begins_fresh(self.report.experiment.config, found.adversary.attack_rounds)
        return found.model_copy(update={"fresh": fresh})

    @property
    def besieged(self) -> bool:
        """Whether clients attacked, or a backdoor was measured."""
        return self.poisoning is not None and self.poisoning.asked

    @cached_property
    def styles(self) -> dict[str, int]:
        """Attack label -> its number in order of appearance, which fixes its colour, dash and marker."""
        labels = [one.attack for one in self.report.attacks]
        labels += [one.attack for one in self.curves.roc] + [one.attack for one in self.curves.rounds]
        labels += [one.attack for one in self.report.null_test or ()]
        return {label: number for number, label in enumerate(dict.fromkeys(labels))}

    @cached_property
    def names(self) -> dict[str, str]:
        """Attack label -> what people read: its title, with the label where two attacks share a title.

        An upper bound is called one, wherever it is named.
        """
        sources: list[Entry | Curve | RoundCurve] = [*self.curves.rounds, *self.curves.roc, *self.report.attacks]
        titles = {one.attack: one.title for one in sources}
        shared = Counter(titles.values())
        named = {a: t if shared[t] == 1 else f"{t} · {a}" for a, t in titles.items()}
        bounds = {one.attack for one in self.report.attacks if one.upper_bound}
        return {label: BOUND * (label in bounds) + named.get(label, label) for label in self.styles}

    @cached_property
    def targets(self) -> list[int]:
        """The audited clients, sorted."""
        return sorted({one.target for one in self.report.attacks if isinstance(one.target, int)})

    @cached_property
    def fprs(self) -> list[str]:
        """The false-positive rates as result.json names them, largest first."""
        return sorted({key for one in self.report.attacks for key in one.tpr_at_fpr}, key=float, reverse=True)

    @cached_property
    def headline_fpr(self) -> str:
        """0.1 %, or the smallest rate that was measured."""
        return HEADLINE_FPR if HEADLINE_FPR in self.fprs or not self.fprs else self.fprs[-1]

    @cached_property
    def againsts(self) -> list[str]:
        """The kinds of non-members there are figures for."""
        present = {one.against for one in self.report.attacks}
        return [kind for kind in EVERY_AGAINST if kind in present]

    @cached_property
    def wheres(self) -> list[Where]:
        """Whose figures there are, the default first: pooled, mean, worst, any, coalition; else a lone target's.

        Where poisoning is to make membership visible, what is asked is whether an example is anybody's: `any` is
        then the default, if each of the attacks was judged on it.
        """
        present = {one.target for one in self.report.attacks}
        found: list[Where] = []
        if "pooled" in present:
            found.append("pooled")
        if len(self.targets) > 1 and any(one.mean_over_targets for one in self.report.attacks):
            found.append("mean")
        if "worst" in present and len(self.targets) > 1:
            found.append("worst")
        found += [where for where in GROUPS if where in present]
        if self._asks_for_any:
            found = ["any", *(where for where in found if where != "any")]
        return found or list(self.targets[:1])

    @cached_property
    def against(self) -> str:
        """The kind of non-members of the run's default figures; whoever is anybody's member is no IFL."""
        return "ofl" if self.wheres[:1] == ["any"] else "all"

    @cached_property
    def _asks_for_any(self) -> bool:
        judged = {one.attack for one in self.report.attacks if one.target == "any"}
        made = {one.attack for one in self.report.attacks if not one.upper_bound}
        return self.poisoning is not None and self.poisoning.probing and bool(judged) and made <= judged

    def rows(self, target: Where | None = None, against: str | None = None) -> list[Row]:
        """The attacks' figures in the run's order; without a `target` the run's default figures (pooled).

        `against` None means all non-members, or the default's kind of them.
        """
        where = target if target is not None else self.wheres[0] if self.wheres else "pooled"
        source = "pooled" if where == "mean" else where
        kind = against or (self.against if target is None else "all")
        found = self._entries.get((source, kind), [])
        return [self._row(one, where) for one in found if where != "mean" or one.mean_over_targets]

    def best(self, rows: list[Row]) -> Row | None:
        """The attack that finds most at the headline FPR, then by AUC, first of equals; None if none has any.

        An upper bound is no attack, and never the best.
        """
        known = [row for row in attacks_of(rows) if row.rate(self.headline_fpr).value is not None]
        return max(known, key=lambda row: (row.rate(self.headline_fpr).value, row.auc.value or 0.0), default=None)

    @cached_property
    def _entries(self) -> dict[tuple[int | str, str], list[Entry]]:
        found: dict[tuple[int | str, str], list[Entry]] = {}
        for one in self.report.attacks:
            found.setdefault((one.target, one.against), []).append(one)
        return found

    def _row(self, entry: Entry, where: Where) -> Row:
        auc, rates = entry.auc, entry.tpr_at_fpr
        if where == "mean" and entry.mean_over_targets:
            mean = entry.mean_over_targets
            auc = Measured(value=mean.auc, low=None, high=None)
            rates = {fpr: Rate(value=value, low=None, high=None) for fpr, value in mean.tpr_at_fpr.items()}
        return Row(
            attack=entry.attack,
            name=self.names[entry.attack],
            style=self.styles[entry.attack],
            against=entry.against,
            target=where,
            worst_target=entry.worst_target,
            n_members=entry.n_members,
            n_nonmembers=entry.n_nonmembers,
            n_distinct=entry.n_distinct_nonmembers or entry.n_nonmembers,
            auc=auc,
            rates=rates,
            upper_bound=entry.upper_bound,
        )


def attacks_of(rows: Sequence[Row]) -> list[Row]:
    """The rows of attacks that their adversary could make: those of upper bounds are left out."""
    return [row for row in rows if not row.upper_bound]
