"""From a config to everything a run needs, checked before the first round."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedsiege.aggregators.base import Aggregator, LinearAggregator
from fedsiege.attacks.membership.base import MembershipAttack, check_declared, check_plan, resolve_vantage
from fedsiege.data.candidates import Candidates, draw, resolve_targets
from fedsiege.data.dataset import Dataset, Partition
from fedsiege.data.duplicates import deduplicate
from fedsiege.data.fingerprint import fingerprint
from fedsiege.data.partitioning import partition
from fedsiege.data.shorthand import source_spec
from fedsiege.data.validation import reserve
from fedsiege.defences.client.base import ClientDefence, Ground, Posted, posted
from fedsiege.defences.coalition.base import Coalition, gathered, seated
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.experiment.config import Experiment
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation, arriving_in, invited_to
from fedsiege.models.base import build_model, maker
from fedsiege.records import Examples
from fedsiege.registry import build, label_of, name_of
from fedsiege.streams import entropy
from fedsiege.task import Task, seeded
from fedsiege.view import SINGLE_UPDATES, Flags, Vantage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Planned:
    """An attack with the label that tells it from others and the vantage that the run grants it."""

    attack: MembershipAttack
    label: str
    vantage: Vantage

    def serves(self, target: int, attendance: Mapping[int, Flags]) -> bool:
        """Whether a target took part in enough recorded rounds: `attendance` is who did [K], by round number."""
        if self.vantage not in SINGLE_UPDATES:
            return True
        others = self.attack.min_clients - 1 if self.attack.needs_others else 0
        there = [number for number, who in attendance.items() if who[target] and who.sum() > others]
        chosen = getattr(self.attack, "round", "last")
        return len(there) >= self.attack.min_rounds if chosen == "last" else chosen in there


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run, ready to begin."""

    experiment: Experiment
    data: Dataset
    fingerprint: str
    shards: list[NDArray[np.int64]]
    targets: list[int]
    candidates: Candidates
    attacks: list[Planned]
    aggregator: Aggregator
    defences: tuple[Posted, ...]
    task: Task
    validation: Examples | None = None

    def ground(self, defence: Posted) -> Ground:
        """What a defence may know of this run."""
        e = self.experiment
        few = self.data.train.take(np.arange(min(8, len(self.data.train))))
        return Ground(
            task=self.task,
            examples=few.to(self.task.device),
            sizes=[len(rows) for rows in self.shards],
            using=sorted(defence.clients),
            batch=e.training.step_size,
            precision=e.training.precision,
            weights=weights_of(self.aggregator, self.shards),
            cohort=len(invited_to(1, e.clients, e.participation, e.seed)),
            later=[one.defence for one in self.defences[self.defences.index(defence) + 1 :]],
            measured=self.data.measured,
            rounds=e.rounds,
            classes=len(self.data.classes),
            validation=0 if self.validation is None else len(self.validation),
            circle=defence.circle,
        )

    def federation(self, **options: Any) -> Federation:
        """The federation of this run; options as `Federation` has them."""
        e, task = self.experiment, self.task
        train = self.data.train.to(task.device)
        validation = None if self.validation is None else self.validation.to(task.device)
        return Federation(
            task=task,
            shards=tuple(train.take(rows) for rows in self.shards),
            training=e.training,
            aggregator=self.aggregator,
            engine=LocalEngine(),
            rounds=e.rounds,
            seed=e.seed,
            validation=validation,
            participation=e.participation,
            dropout=e.dropout,
            delay=e.delay,
            server_step=e.server_step,
            defences=self.defences,
            **options,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a run that its config alone makes."""

    aggregator: Aggregator
    attacks: list[Planned]
    defences: tuple[Posted, ...]
    divide: Partition
    targets: list[int]


def check(experiment: Experiment) -> Plan:
    """All that a config alone tells about a run; InputError names the first part that does not fit."""
    e = experiment
    aggregator = aggregator_of(e)
    _refuse_unbuilt(e)
    attacks = plan_attacks(e)
    defences = defences_of(e)
    source_of(e)
    divide: Partition = build("partition", e.partition, "partition")
    maker(e.model)
    targets = resolve_targets(e.targets, e.clients)
    check_attendance(e, attacks, targets)
    return Plan(aggregator, attacks, defences, divide, targets)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Data without duplicates, and its fingerprint."""

    data: Dataset
    fingerprint: str


def loaded(experiment: Experiment) -> Loaded:
    """The data of a run, read now."""
    data = deduplicate(source_of(experiment).load())
    if not len(data.heldout):
        raise InputError(
            "data: every held-out example is also in the training data; expected data that nobody owns"
        )
    return Loaded(data, fingerprint(data))


class Shelf:
    """Data for several runs, one after the other: what was read last stays, as long as they ask for the same."""

    def __init__(self) -> None:
        self._held: tuple[str, Loaded] | None = None

    def __call__(self, experiment: Experiment) -> Loaded:
        """The data of a run."""
        asked = json.dumps(experiment.model_dump(mode="json")["data"], sort_keys=True)
        if self._held is None or self._held[0] != asked:
            self._held = None  # not two data sets at once
            self._held = asked, loaded(experiment)
        return self._held[1]


def prepare(experiment: Experiment, load: Callable[[Experiment], Loaded] = loaded) -> Prepared:
    """Build and check every part of a run, with the data that `load` gives; InputError names what does not fit."""
    e = experiment
    plan = check(e)
    device = device_of(e.device)
    found = load(e)
    data, validation = reserve(found.data, e.validation, e.seed)
    e.training.check(data.train.x, device)
    shards = partition(data, plan.divide, e.clients, e.seed, e.examples_per_client)
    candidates = draw(data, shards, plan.targets, e.candidates, e.seed)
    task = task_of(e, data, device)
    for planned in plan.attacks:
        if planned.attack.signals & {"head", "rise"} and not task.ends_in_its_head(
            data.train.take(np.arange(min(8, len(data.train)))).to(device)
        ):
            raise InputError(
                f"attack {planned.label}: reads the updates of the layer that makes the logits, and the last layer "
                f"of model {e.model!r} ({task.layout.head_name}) is not that; list the attacks without it"
            )
    prepared = Prepared(
        experiment=e,
        data=data,
        fingerprint=found.fingerprint,
        shards=shards,
        targets=plan.targets,
        candidates=candidates,
        attacks=plan.attacks,
        aggregator=plan.aggregator,
        defences=with_circles(e, plan, data, shards),
        task=task,
        validation=validation,
    )
    for position, one in enumerate(prepared.defences):
        own = position < len(e.defences)
        where = f"defences.{position}" if own else _seat(position - len(e.defences), e)
        _on(where, one.defence.check, prepared.ground(one))
    return prepared


def defences_of(experiment: Experiment) -> tuple[Posted, ...]:
    """The client-side defences in order, each with the clients that use it, and the coalitions behind them."""
    alone: list[ClientDefence] = [
        _built("client_defence", spec, f"defences.{position}", ClientDefence)
        for position, spec in enumerate(experiment.defences)
    ]
    together: list[Coalition] = [
        _built("coalition", spec, _seat(position, experiment), Coalition)
        for position, spec in enumerate(experiment.coalitions)
    ]
    seats = [_seat(position, experiment) for position in range(len(together))]
    return posted(alone, experiment.clients) + seated(together, experiment.clients, seats)


def _seat(position: int, experiment: Experiment) -> str:
    """Where a coalition stands in the config."""
    return f"coalition.{position}" if isinstance(experiment.coalition, list) else "coalition"


def with_circles(
    experiment: Experiment, plan: Plan, data: Dataset, shards: list[NDArray[np.int64]]
) -> tuple[Posted, ...]:
    """The run's defences; the members of its coalitions know now what they have in common."""
    weights = weights_of(plan.aggregator, shards) or [float(len(rows)) for rows in shards]
    return tuple(
        gathered(one, experiment.seed, weights, len(data.classes), experiment.rounds) for one in plan.defences
    )


def weights_of(rule: Aggregator, shards: list[NDArray[np.int64]]) -> list[float] | None:
    """Each client's weight in the aggregation [K]; None when the rule is no weighted mean."""
    return [rule.weigh(float(len(rows))) for rows in shards] if isinstance(rule, LinearAggregator) else None


def task_of(experiment: Experiment, data: Dataset, device: torch.device) -> Task:
    """The model with its initial weights; InputError when it cannot take the data or has too few outputs."""
    shape, classes = tuple(data.train.x.shape[1:]), len(data.classes)
    seed = entropy(experiment.seed, "initial weights") % 2**63
    task = Task(seeded(lambda: build_model(experiment.model, shape, classes), seed), data.mean, data.std, device)
    try:
        logits = task.predict(task.state.clone(), data.train.take(np.arange(1)).to(device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"model: {experiment.model!r} cannot take inputs of shape {shape}: {why}") from None
    if logits.shape != (1, classes):
        raise InputError(
            f"model: {experiment.model!r} makes outputs of shape {tuple(logits.shape)} for one example; "
            f"expected (1, {classes}), one for each class"
        )
    return task


def source_of(experiment: Experiment) -> Any:
    """What reads the data."""
    spec = experiment.data
    return build("data", source_spec(spec) if isinstance(spec, str) else spec, "data")


def aggregator_of(experiment: Experiment) -> Aggregator:
    """The aggregation rule; refused by name when it needs the rows that secure aggregation hides."""
    rule = _built("aggregator", experiment.aggregator, "aggregator", Aggregator)
    if experiment.secure_aggregation and not isinstance(rule, LinearAggregator):
        raise ThreatModelError(
            f"aggregator {name_of(rule)}: needs single clients' updates, which secure_aggregation: true hides; "
            "use a rule that is a sum, such as fedavg"
        )
    return rule


def plan_attacks(experiment: Experiment) -> list[Planned]:
    """The attacks with their vantages; refused here, by name, when the run could not serve them."""
    e = experiment
    recorded = [number for number in range(1, e.rounds + 1) if e.recorded(number)]
    planned: list[Planned] = []
    for position, spec in enumerate(e.attacks):
        attack = _built("membership", spec, f"attacks.{position}", MembershipAttack)
        check_declared(attack, f"attacks.{position}")
        label = label_of(attack)
        if any(label == other.label for other in planned):
            raise InputError(f"attacks.{position}: {label} is listed twice; expected different attacks or fields")
        check_plan(attack, recorded, e.clients)
        planned.append(Planned(attack, label, resolve_vantage(attack, e.secure_aggregation)))
    return planned


def check_attendance(experiment: Experiment, attacks: list[Planned], targets: list[int]) -> None:
    """Refuse, by name, targets that an attack could not score because they answer in too few recorded rounds.

    Who is invited, and whose answers get lost, is known beforehand. With `targets: all` such targets are left out
    (the result says so), as long as there is another.
    """
    e = experiment
    attendance = {
        number: np.isin(np.arange(e.clients), arriving_in(number, e.clients, e.participation, e.dropout, e.seed))
        for number in range(1, e.rounds + 1)
        if e.recorded(number)
    }
    for planned in attacks:
        left_out = [target for target in targets if not planned.serves(target, attendance)]
        if left_out and (e.targets != "all" or left_out == targets):
            some = f"client {left_out[0]}" + (f" and {len(left_out) - 1} more" if len(left_out) > 1 else "")
            raise InputError(
                f"attack {planned.label}: with participation {e.participation:g}, {some} of the targets will be in "
                f"too few recorded rounds; it needs {planned.attack.min_rounds}, with {planned.attack.min_clients} "
                "clients each: record more rounds, raise participation or choose other targets"
            )


def at_round(attack: MembershipAttack, number: int) -> MembershipAttack:
    """A single-round attack, moved to another recorded round."""
    return replace(attack, round=number)  # type: ignore[type-var]


def device_of(name: str) -> torch.device:
    """The device a config names; `auto` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, there = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        raise InputError(
            f"device: got {name!r}, and torch finds {there} GPUs here; expected auto, cpu or one of them"
        )
    return device


def _built(kind: str, spec: object, where: str, base: type[T]) -> T:
    """A component that is what its place needs: a user's own class could be anything."""
    made = build(kind, spec, where)
    if not isinstance(made, base):
        raise InputError(f"{where}: {spec!r} is a {type(made).__name__}; expected a subclass of {base.__name__}")
    return made


def _on(where: str, check: Callable[[Ground], None], ground: Ground) -> None:
    """A component's own check, whose message says which part of the config it is about."""
    try:
        check(ground)
    except InputError as error:
        raise InputError(f"{where}.{error}") from None


def _refuse_unbuilt(e: Experiment) -> None:
    """Name the components that a config asks for and that are not there."""
    for field, kind, specs in (
        ("server_defences", "server_defence", e.server_defences),
        ("adversary", "poisoning", [e.adversary] if e.adversary else []),
    ):
        for spec in specs:
            build(kind, spec, field)
            raise InputError(f"{field}: {spec!r} cannot take part in a run yet")
