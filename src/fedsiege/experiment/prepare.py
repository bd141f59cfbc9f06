"""From a config to everything a run needs, checked before the first round."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsiege.aggregators.base import Aggregator
from fedsiege.attacks.membership.base import MembershipAttack, check_plan, resolve_vantage
from fedsiege.data.candidates import Candidates, draw, resolve_targets
from fedsiege.data.dataset import Dataset
from fedsiege.data.duplicates import deduplicate
from fedsiege.data.fingerprint import fingerprint
from fedsiege.data.partitioning import partition
from fedsiege.data.shorthand import source_spec
from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.models.base import build_model
from fedsiege.registry import build, label_of
from fedsiege.streams import entropy
from fedsiege.task import Task, seeded
from fedsiege.view import Vantage


@dataclass(frozen=True, slots=True)
class Planned:
    """An attack with the label that tells it from others and the vantage that the run grants it."""

    attack: MembershipAttack
    label: str
    vantage: Vantage


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
    task: Task

    def federation(self, **options: Any) -> Federation:
        """The federation of this run; options as `Federation` has them."""
        e, task = self.experiment, self.task
        train = self.data.train.to(task.device)
        return Federation(
            task=task,
            shards=tuple(train.take(rows) for rows in self.shards),
            training=e.training,
            aggregator=self.aggregator,
            engine=LocalEngine(),
            rounds=e.rounds,
            seed=e.seed,
            participation=e.participation,
            delay=e.delay,
            server_step=e.server_step,
            **options,
        )


def prepare(experiment: Experiment) -> Prepared:
    """Build and check every part of a run; InputError names the first that does not fit."""
    e = experiment
    aggregator: Aggregator = build("aggregator", e.aggregator, "aggregator")
    _refuse_unbuilt(e)
    attacks = plan_attacks(e)
    source = build("data", source_spec(e.data) if isinstance(e.data, str) else e.data, "data")
    divide = build("partition", e.partition, "partition")
    targets = resolve_targets(e.targets, e.clients)
    device = device_of(e.device)
    data = deduplicate(source.load())
    shards = partition(data, divide, e.clients, e.seed, e.examples_per_client)
    candidates = draw(data, shards, targets, e.candidates, e.seed)
    module = seeded(
        lambda: build_model(e.model, tuple(data.train.x.shape[1:]), len(data.classes)),
        entropy(e.seed, "initial weights") % 2**63,
    )
    return Prepared(
        experiment=e,
        data=data,
        fingerprint=fingerprint(data),
        shards=shards,
        targets=targets,
        candidates=candidates,
        attacks=attacks,
        aggregator=aggregator,
        task=Task(module, data.mean, data.std, device),
    )


def plan_attacks(experiment: Experiment) -> list[Planned]:
    """The attacks with their vantages; refused here, by name, when the run could not serve them."""
    e = experiment
    recorded = [number for number in range(1, e.rounds + 1) if e.recorded(number)]
    planned: list[Planned] = []
    for position, spec in enumerate(e.attacks):
        attack: MembershipAttack = build("membership", spec, f"attacks.{position}")
        label = label_of(attack)
        if any(label == other.label for other in planned):
            raise InputError(f"attacks.{position}: {label} is listed twice; expected different attacks or fields")
        check_plan(attack, recorded, e.clients)
        planned.append(Planned(attack, label, resolve_vantage(attack, e.secure_aggregation)))
    return planned


def at_round(attack: MembershipAttack, number: int) -> MembershipAttack:
    """A single-round attack, moved to another recorded round."""
    return replace(attack, round=number)  # type: ignore[type-var]


def device_of(name: str) -> torch.device:
    """The device a config names; `auto` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device: got {name!r}, and torch finds no GPU here; expected cpu or auto")
    return torch.device(name)


def _refuse_unbuilt(e: Experiment) -> None:
    """Name the components that a config asks for and that are not there."""
    for field, kind, specs in (
        ("defences", "client_defence", e.defences),
        ("server_defences", "server_defence", e.server_defences),
        ("coalition", "coalition", [e.coalition] if e.coalition else []),
        ("adversary", "poisoning", [e.adversary] if e.adversary else []),
    ):
        for spec in specs:
            build(kind, spec, field)
            raise InputError(f"{field}: {spec!r} cannot take part in a run yet")
