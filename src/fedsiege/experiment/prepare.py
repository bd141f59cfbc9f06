"""From a config to everything a run needs, checked before the first round."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedsiege.aggregators.base import Aggregator, LinearAggregator
from fedsiege.attacks.membership.base import (
    MembershipAttack,
    adaptations,
    check_declared,
    check_plan,
    resolve_vantage,
)
from fedsiege.attacks.poisoning.base import Poisoner
from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.countermeasures import coalitions_in, tail_of
from fedsiege.data.auxiliary import Auxiliary, auxiliary_of, check_enough, seed_of
from fedsiege.data.candidates import Candidates, draw, resolve_targets
from fedsiege.data.dataset import Dataset, Partition
from fedsiege.data.duplicates import deduplicate
from fedsiege.data.fingerprint import fingerprint
from fedsiege.data.partitioning import partition
from fedsiege.data.shorthand import source_spec
from fedsiege.data.triggers.base import Backdoor, Trigger, planted
from fedsiege.data.validation import reserve
from fedsiege.defences.client.base import ClientDefence, Ground, Posted, is_neutral, posted
from fedsiege.defences.coalition.base import Coalition, gathered, seated
from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.engines import require
from fedsiege.experiment.replay import Replay, attended, fitted, log_of, owned, with_data
from fedsiege.experiment.siege import (
    aggregator_of,
    built,
    campaign_of,
    check_siege,
    poisoner_of,
    server_defences_of,
    trigger_of,
)
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation, arriving_in, invited_to
from fedsiege.federation.server import Command, Guarding
from fedsiege.metrics.null import SIDE
from fedsiege.models.base import build_model, maker
from fedsiege.records import Examples
from fedsiege.registry import build, label_of
from fedsiege.streams import entropy
from fedsiege.task import Task, seeded
from fedsiege.update_log import UpdateLog
from fedsiege.view import SINGLE_UPDATES, Flags, Vantage, as_one

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Planned:
    """An attack with the label that tells it from others and the vantage that the run grants it."""

    attack: MembershipAttack
    label: str
    vantage: Vantage
    coalitions: tuple[frozenset[int], ...] = ()
    """The coalitions that the attack sees as one client each, where it is told to."""

    def serves(self, target: int, attendance: Mapping[int, Flags]) -> bool:
        """Whether a target took part in enough recorded rounds: `attendance` is who did [K], by round number."""
        if self.vantage not in SINGLE_UPDATES:
            return True
        others = self.attack.min_clients - 1 if self.attack.needs_others else 0
        seen = {number: as_one(who, self.coalitions, target) for number, who in attendance.items()}
        there = [number for number, who in seen.items() if who[target] and who.sum() > others]
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
    auxiliary: Auxiliary | None = None
    """What the adversary makes shadow federations of, where an attack wants some."""
    shadow: bool = False
    """Whether this is one: then no more is recorded than the attacks that want it read."""
    server_defences: tuple[Guarding, ...] = ()
    campaign: Campaign | None = None
    backdoor: Backdoor | None = None
    root: Examples | None = None
    initial: torch.Tensor | None = None
    """The model [d] that round 1 begins with, where it is not the task's fresh one."""
    replay: Replay | None = None
    """The rounds of a log, where they are audited and nothing is trained."""

    def invited(self, number: int) -> list[int]:
        """The clients of a round, sorted."""
        e = self.experiment
        return invited_to(number, e.clients, e.participation, e.seed, e.sure(number))

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
            weights=weights_of(self.aggregator, self.shards, self.server_defences),
            cohort=len(self.invited(1)),
            later=[one.defence for one in self.defences[self.defences.index(defence) + 1 :]],
            measured=self.data.measured,
            rounds=e.rounds,
            classes=len(self.data.classes),
            validation=0 if self.validation is None else len(self.validation),
            circle=defence.circle,
            dropout=e.dropout,
        )

    def federation(self, **options: Any) -> Federation:
        """The federation of this run; options as `Federation` has them."""
        e, task = self.experiment, self.task
        train = self.data.train.to(task.device)
        validation = None if self.validation is None else self.validation.to(task.device)
        root = None if self.root is None else self.root.to(task.device)
        return Federation(
            task=task,
            shards=tuple(train.take(rows) for rows in self.shards),
            training=e.training,
            aggregator=self.aggregator,
            rounds=e.rounds,
            seed=e.seed,
            classes=len(self.data.classes),
            server_defences=self.server_defences,
            campaign=self.campaign,
            validation=validation,
            root=root,
            participation=e.participation,
            dropout=e.dropout,
            delay=e.delay,
            staleness=e.engine.staleness,
            server_step=e.server_step,
            defences=self.defences,
            **{"engine": LocalEngine(), "done": e.pretrain_rounds, **options},
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a run that its config alone makes."""

    aggregator: Aggregator
    attacks: list[Planned]
    defences: tuple[Posted, ...]
    divide: Partition
    targets: list[int]
    server_defences: tuple[Guarding, ...] = ()
    poisoner: Poisoner | None = None
    trigger: Trigger | None = None
    log: UpdateLog | None = None
    """The log of updates that is audited, where nothing is trained."""


def check(experiment: Experiment) -> Plan:
    """All that a config alone tells about a run; InputError names the first part that does not fit."""
    e = experiment
    if e.engine.name == "flower":
        require("flwr", "ray")
    check_recorded(e)
    log = log_of(e)
    aggregator = aggregator_of(e)
    guarding, poisoner, trigger = server_defences_of(e), poisoner_of(e), trigger_of(e)
    campaign_of(e, poisoner, None)  # refuses clients and rounds that there are not
    attacks = plan_attacks(e)
    defences = defences_of(e)
    source_of(e)
    divide: Partition = build("partition", e.partition, "partition")
    maker(e.model)
    targets = honest_targets(e, resolve_targets(e.targets, e.clients), attackers_apart(e, poisoner))
    check_attendance(e, attacks, targets, attendance_of(e) if log is None else attended(log, e))
    check_background(e, attacks)
    return Plan(aggregator, attacks, defences, divide, targets, guarding, poisoner, trigger, log)


def check_recorded(experiment: Experiment) -> None:
    """Refuse rounds to be recorded that there will not be."""
    last = max(experiment.record_rounds or [0])
    if last > experiment.rounds:
        raise InputError(f"record_rounds: got {last}; expected rounds from 1 to {experiment.rounds}")


def attackers_apart(experiment: Experiment, poisoner: Poisoner | None) -> tuple[int, ...]:
    """The compromised clients, where they make membership visible: nobody asks about the data they hide behind."""
    if poisoner is None or not poisoner.probes:
        return ()
    return experiment.compromised.numbers(experiment.clients, experiment.seed)


def honest_targets(experiment: Experiment, targets: list[int], apart: Sequence[int]) -> list[int]:
    """The targets, and of `all` those that are not `apart`; InputError where one is, or none is left."""
    found = [target for target in targets if target not in apart]
    if not found or (experiment.targets != "all" and len(found) < len(targets)):
        named = next(target for target in targets if target in apart)
        raise InputError(
            f"targets: got client {named}, which is compromised: its data is what the adversary hides behind (its "
            "mask), and none of it may be asked about; expected clients that are not compromised"
        )
    return found


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
    data, root = reserve(data, e.root, e.seed, "root")
    backdoor = None
    if plan.trigger is not None and e.backdoor is not None:
        data, backdoor = planted(plan.trigger, e.backdoor.target, data, e.seed, e.backdoor.test)
    e.training.check(data.train.x, device)
    known = None if plan.log is None else owned(plan.log, data, plan.divide, e)
    shards = known or partition(data, plan.divide, e.clients, e.seed, e.examples_per_client)
    plan = replace(plan, targets=with_data(plan.targets, shards, e.targets))
    candidates = asked_about(e, plan, data, shards)
    check_told(plan.attacks, candidates, e)
    task = task_of(e, data, device)
    for planned in plan.attacks:
        if not task.signals:
            raise InputError(
                f"attack {planned.label}: the evidence it reads is of examples with one label; these have one "
                "at every position; expected attacks: []"
            )
        if planned.attack.signals & {"head", "rise"} and not task.ends_in_its_head(
            data.train.take(np.arange(min(8, len(data.train)))).to(device)
        ):
            raise InputError(
                f"attack {planned.label}: reads the updates of the layer that makes the logits, and the last layer "
                f"of model {e.model!r} ({task.layout.head_name}) is not that; list the attacks without it"
            )
    campaign = campaign_of(e, plan.poisoner, None if backdoor is None else backdoor.to(device))
    if campaign is not None and campaign.poisoner.probes:
        campaign = replace(campaign, targets=candidates.asked.to(device))
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
        auxiliary=own_data(e, plan, data, shards, candidates),
        server_defences=plan.server_defences,
        campaign=campaign,
        backdoor=None if backdoor is None else backdoor.to(device),
        root=root,
    )
    check_defences(prepared)
    check_siege(prepared)
    tail_of(e.trace.tail, prepared.defences, task.layout)  # refuses a share that is no parameter
    return prepared if plan.log is None else replayed(prepared, plan.log)


def replayed(prepared: Prepared, log: UpdateLog) -> Prepared:
    """The run with the rounds of a log in place of its own; InputError where they are another model's."""
    e = prepared.experiment
    fit = fitted(log, prepared.task, repr(e.model))
    replay = Replay(log, fit, tuple(number for number in log.rounds if number in (e.record_rounds or ())))
    return replace(prepared, replay=replay, initial=replay.first_model)


def check_defences(prepared: Prepared) -> None:
    """What the defences themselves have to say against a run; InputError names the first that refuses it."""
    e = prepared.experiment
    for position, one in enumerate(prepared.defences):
        if one.defence.private and e.pretrain_rounds and not is_neutral(one.defence):
            raise InputError(
                f"defences.{position}: {one.label} promises differential privacy, and pretrain_rounds "
                f"({e.pretrain_rounds}) train on the same data without it; expected one without the other"
            )
        own = position < len(e.defences)
        where = f"defences.{position}" if own else _seat(position - len(e.defences), e)
        _on(where, one.defence.check, prepared.ground(one))


def check_background(experiment: Experiment, attacks: list[Planned]) -> None:
    """Refuse, by name, an attack that wants to know more than this run's config can give it."""
    e = experiment
    for planned in attacks:
        attack = planned.attack
        wants = attack.shadows_wanted or attack.population_wanted or attack.truth_wanted
        if wants and e.candidates.compat != "none":
            raise InputError(
                f"attack {planned.label}: needs shadow federations, a population or known candidates, and with "
                f"candidates.compat {e.candidates.compat} a non-member is another example in every round; expected "
                "compat: none"
            )
        if attack.shadows_wanted and (e.start is not None or e.pretrain_rounds):
            raise InputError(
                f"attack {planned.label}: trains shadow federations, which begin with fresh weights; expected a "
                "run without start and pretrain_rounds"
            )
        clients = e.shadows.clients
        if not attack.shadows_wanted or clients is None:
            continue
        if clients < attack.min_clients:
            raise InputError(
                f"shadows.clients: got {clients}; attack {planned.label} needs {attack.min_clients} or more"
            )
        if planned.coalitions and clients != e.clients:
            raise InputError(
                f"shadows.clients: got {clients}; attack {planned.label} takes coalitions for one client each and "
                f"needs shadow federations of all {e.clients}"
            )
        try:
            defences_of(e.model_copy(update={"clients": clients}))
        except InputError as error:
            raise InputError(f"shadows.clients: got {clients}; with so many clients, {error}") from None


def check_told(attacks: list[Planned], candidates: Candidates, experiment: Experiment) -> None:
    """Refuse, by name, an attack that is told half of the truth, where a half is too small."""
    least = SIDE if experiment.candidates.null else 1
    for planned in attacks:
        for audit in candidates.audits if planned.attack.truth_wanted else ():
            told, judged = audit.halves(experiment.seed)
            for half, enough in ((told, 1), (judged, least)):
                members = int(half.members.sum())
                if min(members, len(half.ids) - members) < enough:
                    raise InputError(
                        f"attack {planned.label}: is told the truth about half of the candidates, and of client "
                        f"{audit.target}'s one half has {members} members and {len(half.ids) - members} others; "
                        f"expected {enough} of both or more: raise candidates.ifl, candidates.ofl or "
                        "candidates.members"
                    )


def asked_about(experiment: Experiment, plan: Plan, data: Dataset, shards: list[NDArray[np.int64]]) -> Candidates:
    """The examples whose membership is tested; none where no attack tests any."""
    if not plan.attacks:
        return Candidates(data.heldout.take(np.arange(0)), ())
    population = max(one.attack.population_wanted for one in plan.attacks)
    apart = attackers_apart(experiment, plan.poisoner)
    if plan.poisoner is not None and plan.poisoner.probes and not experiment.candidates.ofl:
        raise InputError(
            "candidates.ofl: got 0; the attack asks whether examples are anybody's, and without any of nobody's "
            "there is nothing to tell apart; expected 1 or more"
        )
    return draw(data, shards, plan.targets, experiment.candidates, experiment.seed, population, apart)


def own_data(
    experiment: Experiment, plan: Plan, data: Dataset, shards: list[NDArray[np.int64]], candidates: Candidates
) -> Auxiliary | None:
    """What the adversary makes shadow federations of, after each was dealt for a trial; None if none are wanted."""
    e = experiment
    wanting = max(plan.attacks, key=lambda planned: planned.attack.shadows_wanted, default=None)
    wanted = 0 if wanting is None else wanting.attack.shadows_wanted
    if wanting is None or not wanted:
        return None
    clients = e.shadows.clients or e.clients
    found = Auxiliary(
        pool=auxiliary_of(data, shards, candidates.examples.ids, natural=hasattr(plan.divide, "column")),
        clients=clients,
        dealt=round(len(data.train) * clients / e.clients),
        heldout=e.candidates.ofl,
        validation=e.validation,
        examples_per_client=e.examples_per_client,
    )
    check_enough(found, wanted, wanting.label)
    for number in range(wanted):
        try:
            found.deal(plan.divide, seed_of(e.seed, number))
        except InputError as error:
            raise InputError(
                f"shadows: the adversary's {len(found.pool.train)} examples cannot be dealt as the clients' were: "
                f"{error}"
            ) from None
    return found


def defences_of(experiment: Experiment) -> tuple[Posted, ...]:
    """The client-side defences in order, each with the clients that use it, and the coalitions behind them."""
    alone: list[ClientDefence] = [
        built("client_defence", spec, f"defences.{position}", ClientDefence)
        for position, spec in enumerate(experiment.defences)
    ]
    before = posted(alone, experiment.clients)
    return before + coalitions_of(experiment, before)


def coalitions_of(experiment: Experiment, before: Sequence[Posted] = ()) -> tuple[Posted, ...]:
    """The coalitions in order, each with its members, behind the defences of single clients."""
    together: list[Coalition] = [
        built("coalition", spec, _seat(position, experiment), Coalition)
        for position, spec in enumerate(experiment.coalitions)
    ]
    seats = [_seat(position, experiment) for position in range(len(together))]
    return seated(together, experiment.clients, seats, before)


def _seat(position: int, experiment: Experiment) -> str:
    """Where a coalition stands in the config."""
    return f"coalition.{position}" if isinstance(experiment.coalition, list) else "coalition"


def with_circles(
    experiment: Experiment, plan: Plan, data: Dataset, shards: list[NDArray[np.int64]]
) -> tuple[Posted, ...]:
    """The run's defences; the members of its coalitions know now what they have in common."""
    weights = weights_of(plan.aggregator, shards, plan.server_defences) or [float(len(rows)) for rows in shards]
    return tuple(
        gathered(one, experiment.seed, weights, len(data.classes), experiment.rounds) for one in plan.defences
    )


def weights_of(
    rule: Aggregator, shards: list[NDArray[np.int64]], before: Sequence[Guarding] = ()
) -> list[float] | None:
    """Each client's weight in the aggregation [K]; None when the rule, or what is before it, makes no such mean."""
    if not (isinstance(rule, LinearAggregator) and Command(rule, tuple(before)).streams):
        return None
    return [rule.weigh(float(len(rows))) for rows in shards]


def task_of(experiment: Experiment, data: Dataset, device: torch.device) -> Task:
    """The model with its initial weights; InputError when it cannot take the data or has too few outputs."""
    shape, classes = tuple(data.train.x.shape[1:]), len(data.classes)
    seed = entropy(experiment.seed, "initial weights") % 2**63
    module = seeded(lambda: build_model(experiment.model, shape, classes), seed)
    task = Task(module, data.mean, data.std, device, sequences=data.train.y.dim() > 1)
    positions = tuple(data.train.y.shape[1:])
    try:
        logits = task.predict(task.state.clone(), data.train.take(np.arange(1)).to(device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"model: {experiment.model!r} cannot take inputs of shape {shape}: {why}") from None
    if logits.shape != (1, classes, *positions):
        each = ", one for each class" if not positions else ", one for each word at each position"
        raise InputError(
            f"model: {experiment.model!r} makes outputs of shape {tuple(logits.shape)} for one example; "
            f"expected {(1, classes, *positions)}{each}"
        )
    return task


def source_of(experiment: Experiment) -> Any:
    """What reads the data."""
    spec = experiment.data
    return build("data", source_spec(spec) if isinstance(spec, str) else spec, "data")


def plan_attacks(experiment: Experiment) -> list[Planned]:
    """The attacks with their vantages; refused here, by name, when the run could not serve them."""
    e = experiment
    recorded = [number for number in range(1, e.rounds + 1) if e.recorded(number)]
    together = coalitions_in(coalitions_of(e))
    coalitions = tuple(one.clients for one in together)
    insiders = any(isinstance(one.defence, Coalition) and one.defence.shares for one in together)
    planned: list[Planned] = []
    for position, spec in enumerate(e.attacks):
        attack = built("membership", spec, f"attacks.{position}", MembershipAttack)
        check_declared(attack, f"attacks.{position}")
        label = label_of(attack)
        if any(label == other.label for other in planned):
            raise InputError(f"attacks.{position}: {label} is listed twice; expected different attacks or fields")
        check_plan(attack, recorded, e.clients, coalitions, e.trace.tail is not None, insiders)
        seen_as_one = coalitions if adaptations(attack).get("updates") == "coalition" else ()
        planned.append(Planned(attack, label, resolve_vantage(attack, e.secure_aggregation), seen_as_one))
    return planned


def attendance_of(experiment: Experiment) -> dict[int, Flags]:
    """Who will answer [K], by recorded round: who is invited, and whose answers get lost, is known beforehand."""
    e = experiment
    return {
        number: np.isin(
            np.arange(e.clients),
            arriving_in(number, e.clients, e.participation, e.dropout, e.seed, e.sure(number)),
        )
        for number in range(1, e.rounds + 1)
        if e.recorded(number)
    }


def check_attendance(
    experiment: Experiment, attacks: list[Planned], targets: list[int], attendance: Mapping[int, Flags]
) -> None:
    """Refuse, by name, targets that an attack could not score because they answer in too few recorded rounds.

    With `targets: all` such targets are left out (the result says so), as long as there is another.
    """
    e = experiment
    when = f"with participation {e.participation:g}" if e.updates is None else f"by the log {e.updates}"
    are = "will be" if e.updates is None else "are"
    for planned in attacks:
        left_out = [target for target in targets if not planned.serves(target, attendance)]
        if left_out and (e.targets != "all" or left_out == targets):
            some = f"client {left_out[0]}" + (f" and {len(left_out) - 1} more" if len(left_out) > 1 else "")
            raise InputError(
                f"attack {planned.label}: {when}, {some} of the targets {are} in "
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


def _on(where: str, check: Callable[[Ground], None], ground: Ground) -> None:
    """A component's own check, whose message says which part of the config it is about."""
    try:
        check(ground)
    except InputError as error:
        raise InputError(f"{where}.{error}") from None
