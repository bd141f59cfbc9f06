"""What a membership attack is, which rounds it may use, and what secure aggregation leaves of it."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np

from fedsiege.errors import InputError, ThreatModelError
from fedsiege.registry import load, name_of, names, nearest
from fedsiege.view import EVERY, ON_REQUEST, SINGLE_UPDATES, Flags, Labels, Signal, Values, Vantage, View

BLOCK = 2**17
"""Values that are worked on together: few enough for a cache, so many that threads seldom wait for each other."""

OVER: Mapping[str, Signal] = {
    "all": "cosine",
    "nonzero": "cosine_nonzero",
    "unshifted": "cosine_unshifted",
    "front": "cosine_front",
}
"""Value of a field `coordinates` -> the cosine that it asks for."""

ADAPTATIONS: Mapping[tuple[str, str], str] = {
    ("coordinates", "nonzero"): "non-zero coordinates",
    ("coordinates", "unshifted"): "shift removed",
    ("coordinates", "front"): "before the tail",
    ("average", "trained"): "trained rounds",
    ("updates", "denoised"): "tail de-noised",
    ("updates", "coalition"): "coalition as one",
    ("updates", "insider"): "insider",
}
"""Field and value by which an attack is told of a defence -> what its title says of it."""

UNTOLD: Mapping[str, str] = {"coordinates": "all", "average": "all", "updates": "sent"}
"""Field -> the value at which an attack is told nothing."""

PRODUCTS: frozenset[Signal] = frozenset(
    {"cosine", "cosine_nonzero", "cosine_unshifted", "cosine_front", "diff", "norm2"}
)
"""Signals that are made of products of gradients and updates."""

TRAINED = 0.2
"""A class with less `rise` than this was left out of a round's training.

In the training that the tests simulate, 95 % of the classes that were left out lie below it, and less than 10 % of
the others. Many local epochs on a model that fits well, and very few steps, make them harder to tell apart.
"""


class MembershipAttack:
    """A way to tell a target's training examples from others by the evidence that a view grants.

    An attack declares below what it needs, so that a run can refuse it by name before the first round.
    """

    title: ClassVar[str]
    """Its name; tables and figures show `heading`."""
    needs: ClassVar[frozenset[Signal]]
    """The signals that `score` asks the view for; once told of a defence, an attack asks for its `signals`."""
    multi_round: ClassVar[bool] = False
    """True: reads every recorded round. False: one round, chosen by the field `round`."""
    single_update: ClassVar[bool] = True
    """True: from the server's place it reads what one client uploaded and cannot do with the global model."""
    needs_others: ClassVar[bool] = False
    """True: reads the other clients' updates too."""
    min_rounds: ClassVar[int] = 1
    """Recorded rounds it needs."""
    min_clients: ClassVar[int] = 1
    """Clients it needs in a round, the target among them."""
    shadows_asked: ClassVar[bool] = True
    """False: of shadow federations it reads their own candidates alone, and not what they make of the real ones."""

    vantage: Vantage
    """Each attack has this field; its Literal type lists the vantages that the attack supports."""

    @property
    def shadows_wanted(self) -> int:
        """Shadow federations that it asks its view for."""
        return 0

    @property
    def population_wanted(self) -> int:
        """Examples of nobody's that it asks its view for."""
        return 0

    @property
    def truth_wanted(self) -> bool:
        """Whether it is told the truth about half of the candidates; it is then judged on the other half."""
        return False

    @property
    def adapted(self) -> bool:
        """Whether a field tells the attack of a defence; with all fields at their defaults none does."""
        return bool(adaptations(self))

    @property
    def heading(self) -> str:
        """Its name in tables and figures: the title, and what it was told of a defence."""
        told = [ADAPTATIONS[field, value] for field, value in adaptations(self).items()]
        return f"{self.title} ({', '.join(told)})" if told else self.title

    @property
    def signals(self) -> frozenset[Signal]:
        """The signals that this attack, with its fields as they are, asks the view for."""
        told = adaptations(self)
        cosine = OVER[told.get("coordinates", "all")]
        trained: set[Signal] = {"rise", "labels"} if "average" in told else set()
        return frozenset(cosine if signal == "cosine" else signal for signal in self.needs) | trained

    def score(self, view: View, target: int) -> Values:
        """One number per candidate [m]; higher = member.

        Args:
            view: the evidence, as far as the adversary's vantage shows it.
            target: the client asked about.

        An attack states its rule here or, where that pays, for several targets in `score_targets`.

        """
        loop, owners = MembershipAttack.score_targets, type(self).__mro__
        # Past the classes that changed `score` alone: a subclass may ask super() for the rule it changes.
        stated = [
            vars(owner)["score_targets"] for owner in owners if vars(owner).get("score_targets", loop) is not loop
        ]
        if not stated:
            raise NotImplementedError(f"{type(self).__name__} has neither score nor score_targets")
        scores: Values = stated[0](self, view, [target])[0]
        return scores

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """The scores of several targets [targets, m]; row i is what `score` gives for `targets[i]`.

        An attack overrides this where reading a round once for all its targets pays. It then counts what concerns
        one target in `view.of(target)`, as `series` and `one_round` do when they are given that view.

        Raises InputError where `score` makes rows of different lengths.
        """
        rows = [np.asarray(self.score(view.of(target), target), dtype=np.float64) for target in targets]
        if len({row.shape for row in rows}) > 1:
            raise InputError(
                f"attack {name_of(self)}: made scores of shapes {', '.join(str(row.shape) for row in rows)}; "
                "expected one number for each candidate"
            )
        return np.stack(rows)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        single, several = (
            next(depth for depth, owner in enumerate(cls.__mro__) if name in vars(owner))
            for name in ("score", "score_targets")
        )
        # Whoever changes the score of an attack and no more would otherwise get the inherited scores in every run.
        if single < several:
            setattr(cls, "score_targets", MembershipAttack.score_targets)  # noqa: B010 - mypy bars the assignment


def adaptations(attack: MembershipAttack) -> dict[str, str]:
    """The fields by which an attack is told of a defence, with their values."""
    return {field: value for field, value in ADAPTATIONS if getattr(attack, field, None) == value}


def recordings(attacks: Iterable[MembershipAttack]) -> frozenset[str]:
    """What these attacks need recorded that is not recorded by itself."""
    planned = list(attacks)
    asked = {signal for attack in planned for signal in attack.signals}
    told = {adaptations(attack).get("updates") for attack in planned} - {None}
    return frozenset({ON_REQUEST[one] for one in asked if one in ON_REQUEST} | {f"updates:{one}" for one in told})


def products(attacks: Iterable[MembershipAttack]) -> frozenset[str]:
    """Of which `updates` these attacks read products with gradients, the costly part of the evidence."""
    return frozenset(adaptations(one).get("updates", "sent") for one in attacks if one.signals & PRODUCTS)


def vantages(attack: MembershipAttack) -> tuple[Vantage, ...]:
    """The vantages that the attack supports: the Literal type of its field."""
    return get_args(get_type_hints(type(attack))["vantage"])


def check_declared(attack: MembershipAttack, where: str) -> None:
    """Refuse an attack that says where it works from, or what it reads, in words that nobody knows."""
    name = name_of(attack)
    if not set(get_args(get_type_hints(type(attack)).get("vantage"))) <= set(get_args(Vantage)):
        raise InputError(f"{where}: {name} has vantages that are not known; known: {', '.join(get_args(Vantage))}")
    if getattr(attack, "vantage", None) is None:
        raise InputError(
            f'{where}: {name} has no vantage; expected a field like `vantage: Literal["server"] = "server"`'
        )
    for signal in sorted(attack.needs):
        if signal not in get_args(Signal):
            known = list(get_args(Signal))
            raise InputError(
                f"{where}: {name} needs {signal!r}{nearest(signal, known)}; known signals: {', '.join(known)}"
            )


def resolve_vantage(attack: MembershipAttack, secure_aggregation: bool) -> Vantage:
    """The vantage to give the attack's view.

    Without secure aggregation it is the attack's own. With it, single uploads are hidden from the server: an attack
    that works on models alone gets the global model, one that needs a client's own update raises ThreatModelError.
    A vantage that sees global models only stays as it is.
    """
    if not secure_aggregation or attack.vantage not in SINGLE_UPDATES:
        return attack.vantage
    name, told = name_of(attack), adaptations(attack)
    if not attack.single_update and not told:
        return "server_aggregate_only"
    if not attack.single_update:
        raise ThreatModelError(
            f"attack {name}: {_spelt(told)} reads single clients' updates, which secure_aggregation: true hides; "
            f"set {_untold(told)}"
        )
    known: dict[str, type[MembershipAttack]] = {other: load("membership", other) for other in names("membership")}
    whole = [other for other, cls in known.items() if not cls.single_update]
    instead = f"use an attack on the global model ({', '.join(whole)})"
    if "server_aggregate_only" in vantages(attack) and not told:
        instead = f"set its vantage to server_aggregate_only (it then reads the global change), or {instead}"
    raise ThreatModelError(
        f"attack {name}: needs single clients' updates, which secure_aggregation: true hides; {instead}"
    )


def check_plan(
    attack: MembershipAttack,
    rounds: Sequence[int],
    clients: int,
    coalitions: Sequence[Collection[int]] | None = None,
    tail: bool = False,
    insiders: bool = True,
) -> None:
    """Refuse, before a federation is trained, an attack that its record could not serve.

    Args:
        attack: the attack.
        rounds: the numbers of the rounds that will be recorded.
        clients: clients of the federation.
        coalitions: the members of each of the run's; left out where the evidence is there already.
        tail: whether the run says where noise is looked for, coalition or not.
        insiders: whether there is a coalition whose members know what the others do.

    Raises InputError naming the attack and what to change; ThreatModelError where a field tells the attack of what
    a defence did to single updates and its vantage does not show them.

    """
    name, told = name_of(attack), adaptations(attack)
    if told and attack.vantage not in SINGLE_UPDATES:
        raise ThreatModelError(
            f"attack {name}: {_spelt(told)} reads single clients' updates, which vantage {attack.vantage} does not "
            f"see; set vantage to server, or {_untold(told)}"
        )
    if coalitions is not None:
        _check_coalitions(attack, clients, coalitions, tail, insiders)
    if clients < attack.min_clients:
        raise InputError(
            f"attack {name}: got {clients} clients; expected at least {attack.min_clients} "
            f"(the target and {attack.min_clients - 1} others to compare it with)"
        )
    if len(rounds) < attack.min_rounds:
        raise InputError(
            f"attack {name}: got {len(rounds)} recorded round(s); expected at least {attack.min_rounds}: "
            "lower record_every or train more rounds"
        )
    chosen = getattr(attack, "round", "last")
    if chosen != "last" and chosen not in rounds:
        raise InputError(f"attack {name}: got round {chosen}; expected a recorded one: {_listed(rounds)}")


def _check_coalitions(
    attack: MembershipAttack, clients: int, coalitions: Sequence[Collection[int]], tail: bool, insiders: bool
) -> None:
    """Refuse an attack that is told of a coalition, or of a tail, that the run does not have."""
    name, told = name_of(attack), adaptations(attack)
    if told.get("updates") in ("coalition", "insider") and not coalitions:
        raise InputError(
            f"attack {name}: updates: {told['updates']} is told of a coalition, and the run has none; "
            "expected a run with a coalition, or updates: sent"
        )
    if told.get("updates") == "insider" and not insiders:
        raise InputError(
            f"attack {name}: updates: insider is told what one member knows of the others, and in this run's "
            "coalition every member acts alone and knows nothing of them; expected one whose members share a plan, "
            "or updates: coalition, denoised or sent"
        )
    looks = {field: value for field, value in told.items() if value in ("denoised", "front")}
    if looks and not coalitions and not tail:
        raise InputError(
            f"attack {name}: {_spelt(looks)} needs to know how many of the last parameters are noisy, and the run "
            f"has no coalition; set trace.tail to their share, or {_untold(looks)}"
        )
    if told.get("updates") == "coalition":
        seen = clients - sum(len(members) - 1 for members in coalitions)
        if seen < attack.min_clients:
            raise InputError(
                f"attack {name}: with updates: coalition the server sees {seen} clients, each coalition as one; "
                f"expected at least {attack.min_clients}: set updates to sent"
            )


def series(attack: MembershipAttack, view: View, target: int) -> list[int]:
    """The recorded rounds t that a multi-round attack reads; those with too few other clients are skipped, counted.

    Raises InputError where fewer than `min_rounds` are left or the federation has fewer than `min_clients` clients.
    """
    check_plan(attack, view.recorded, view.clients)
    used = view.rounds(target)
    if attack.needs_others:
        taken, used = used, [t for t in used if view.company(target, t) >= attack.min_clients - 1]
        view.count("rounds_skipped", len(taken) - len(used))
    if len(used) < attack.min_rounds:
        others = f" with {attack.min_clients - 1} others" if attack.needs_others else ""
        raise InputError(
            f"attack {name_of(attack)}: client {target} took part{others} in {len(used)} of the recorded rounds "
            f"{_listed(view.recorded)}; expected at least {attack.min_rounds}: "
            "lower record_every, train more rounds or choose another target"
        )
    view.count("rounds_used", len(used))
    return used


def one_round(attack: MembershipAttack, view: View, target: int, chosen: int | Literal["last"]) -> int:
    """The recorded round t that a single-round attack reads: round number `chosen`, or the target's last.

    Raises InputError for a round that is not recorded, or that the target took no part in.
    """
    check_plan(attack, view.recorded, view.clients)
    taken = view.rounds(target)
    t = taken[-1] if chosen == "last" else view.recorded.index(chosen)
    if t not in taken:
        raise InputError(
            f"attack {name_of(attack)}: client {target} took no part in round {chosen}; "
            f"recorded rounds with it: {_listed([view.recorded[t] for t in taken])}"
        )
    view.count("rounds_used")
    return t


def by_round(used: Sequence[Collection[int]]) -> list[tuple[int, list[int]]]:
    """Each recorded round t that some target reads, increasing, with the places in `used` of those targets."""
    return [(t, [i for i, rounds in enumerate(used) if t in rounds]) for t in sorted(set().union(*used))]


def blocks(m: int, rows: int) -> Iterator[slice]:
    """The columns of an array [rows, m] in parts of about BLOCK values."""
    step = max(1, BLOCK // rows)
    for start in range(0, m, step):
        yield slice(start, start + step)


def in_one_round(
    attack: MembershipAttack, view: View, targets: Sequence[int], signal: Signal, chosen: int | Literal["last"]
) -> Values:
    """Each target's signal [targets, m] in its round of `one_round`; a round is read once for all its targets."""
    used = [[one_round(attack, view.of(target), target, chosen)] for target in targets]
    values = np.zeros((len(targets), view.own(signal, targets[0], used[0][0]).size))
    for t, rows in by_round(used):
        values[rows] = view.each(signal, [targets[i] for i in rows], t)
    return values


@dataclass(frozen=True, slots=True)
class Counted:
    """Which of their rounds count for targets' candidates: `used` lists the rounds t of each target.

    `classes` holds for each round t the classes that count [targets, C], and `labels` [m] the candidates' classes.
    Without `classes` every round counts for every candidate.
    """

    used: list[list[int]]
    classes: Mapping[int, Flags] | None
    labels: Labels

    def of(self, part: Values, t: int, places: Sequence[int], columns: slice = EVERY) -> Values:
        """What round t adds [places, m] to the totals of some targets: nothing where it does not count."""
        if self.classes is None:
            return part
        return part * self.classes[t][list(places)][:, self.labels[columns]]

    def rounds(self) -> Values:
        """How many rounds count [targets, 1], or [targets, m] where that depends on the candidate."""
        if self.classes is None:
            return np.array([[len(rounds)] for rounds in self.used], dtype=np.float64)
        total: Values = np.sum(list(self.classes.values()), axis=0, dtype=np.float64)
        return total[:, self.labels]


def counted(attack: MembershipAttack, view: View, targets: Sequence[int]) -> Counted:
    """The targets' rounds of `series`; with `average: trained`, by candidate, those that trained its class.

    A class that a target trained in none of them keeps them all. Counts, for each target, `masked` values (of a
    candidate in a round) and `never_trained` candidates.

    Raises InputError for a label beyond the last layer's outputs.
    """
    used = [series(attack, view.of(target), target) for target in targets]
    if adaptations(attack).get("average") != "trained":
        return Counted(used, None, np.zeros(0, dtype=np.int64))
    labels = view.labels
    classes = {t: _trained(view, targets, t, places) for t, places in by_round(used)}
    outputs = next(iter(classes.values())).shape[1]
    if labels.min() < 0 or labels.max() >= outputs:
        raise InputError(
            f"attack {name_of(attack)}: labels go from {labels.min()} to {labels.max()}; "
            f"expected 0..{outputs - 1}, the outputs of the last layer"
        )
    never = ~np.any(list(classes.values()), axis=0)
    for t, places in by_round(used):
        classes[t][places] |= never[places]
    found = Counted(used, classes, labels)
    for i, (target, rounds) in enumerate(zip(targets, found.rounds(), strict=True)):
        view.of(target).count("masked", len(used[i]) * len(labels) - int(rounds.sum()))
        view.of(target).count("never_trained", int(never[i][labels].sum()))
    return found


def _trained(view: View, targets: Sequence[int], t: int, places: Sequence[int]) -> Flags:
    """Which classes each target trained in a round [targets, C]; none for targets that are not at these places."""
    rise = view.each("rise", [targets[i] for i in places], t)
    trained = np.zeros((len(targets), rise.shape[1]), dtype=np.bool_)
    trained[places] = rise >= TRAINED
    return trained


def means_over_rounds(attack: MembershipAttack, view: View, targets: Sequence[int], signal: Signal) -> Values:
    """The mean of each target's signal [targets, m] over its rounds of `series`; a round is read once for all.

    With `average: trained` over a candidate's own rounds of `counted`. Losses fall from round to round, and so
    rounds are compared as if each had the same mean over candidates: what the rounds that count for a candidate
    exceed all rounds by, in their means, is taken off.
    """
    rounds = counted(attack, view, targets)
    total: Values = np.zeros((len(targets), view.own(signal, targets[0], rounds.used[0][0]).size))
    for t, rows in by_round(rounds.used):
        there = [targets[i] for i in rows]
        for columns in blocks(total.shape[1], len(rows)):
            total[rows, columns] += rounds.of(view.each(signal, there, t, columns), t, rows, columns)
    total /= rounds.rounds()
    return total if rounds.classes is None else total - _level(view, targets, signal, rounds)


def _level(view: View, targets: Sequence[int], signal: Signal, rounds: Counted) -> Values:
    """What the rounds that count for a candidate exceed all of the target's by, in their means [targets, m]."""
    every, own = np.zeros((len(targets), 1)), np.zeros_like(rounds.rounds())
    for t, rows in by_round(rounds.used):
        mean = view.each(signal, [targets[i] for i in rows], t).mean(axis=1, keepdims=True)
        every[rows] += mean
        own[rows] += rounds.of(mean, t, rows)
    level: Values = own / rounds.rounds() - every / np.array([[len(one)] for one in rounds.used])
    return level


def _spelt(told: Mapping[str, str]) -> str:
    return " and ".join(f"{field}: {value}" for field, value in told.items())


def _untold(told: Iterable[str]) -> str:
    return " and ".join(f"{field} to {UNTOLD[field]}" for field in told)


def _listed(rounds: Sequence[int]) -> str:
    return ", ".join(map(str, rounds))
