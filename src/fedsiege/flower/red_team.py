"""Red-teaming one's own federation: a poisoner at a compromised node, in somebody's app.

The node trains as the app says, and what it sends in a round of attack is the poisoner's. It acts alone and knows
what a client knows: the model it was sent and its own data. Poisoners that see honest updates, know whose
membership is asked about, or use other clients' data are refused by name.

Settings, of the node or its environment; in a simulation, where no node has a node-config of its own, of the run
together with `fedsiege-attackers`:

- `fedsiege-poisoner`: a component as in a config's `adversary`: `{name: sign_flip, scale: 2.0}`.
- `fedsiege-attackers`: the `partition-id`s of the compromised nodes, in the order of their parts of a trigger.
- `fedsiege-attack-rounds`: the rounds of attack, `[3, 5]`, or `all`, which is the default.
- `fedsiege-model`, `fedsiege-examples`, `fedsiege-training`: for poisoners that train on other data than the app:
  the model as in a config (`module:function`), the attacker's data (an .npz file or any `data`) and local training,
  by the training loop of this package. Tensors of the model must have the names and shapes of the app's.
- `fedsiege-backdoor`: `{trigger: ..., target: ...}` as in a config, for poisoners that plant one.
- `fedsiege-rounds`: how many rounds there are, for schedules of learning rates; else the run's `num-server-rounds`.
- `fedsiege-cohort`: how many clients take part in a round. With it, `gamma: auto` is worked out for a server that
  takes the mean of their updates, all of the same weight; without it `auto` is refused.

A compromised node claims in its signature the defences that it was told to run, also in rounds of attack.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message
from numpy.random import Generator
from pydantic import ValidationError
from torch import Tensor

from fedsiege.attacks.poisoning.base import Plot, Poisoner, Scene
from fedsiege.data.dataset import Dataset
from fedsiege.data.shorthand import source_spec
from fedsiege.data.triggers.base import Backdoor, planted
from fedsiege.defences.client.base import UNGUARDED, Guard
from fedsiege.errors import InputError
from fedsiege.flower import wire
from fedsiege.flower.mods import Delta, Outline, plain, private
from fedsiege.flower.settings import setting, whole
from fedsiege.flower.sites import LOGGER
from fedsiege.models.base import build_model
from fedsiege.records import NOTHING, Counters, Examples, Memory
from fedsiege.registry import build, name_of
from fedsiege.task import Task, seeded
from fedsiege.training import PLAIN, Training

KEPT, MEMORY = "fedsiege.attack", "fedsiege.attack.memory"
"""Records of the node's state."""

START = "fedsiege/start"
"""What the model that the latest round began with is called among what is kept; no poisoner's name has a slash."""

SETTINGS = ("model", "examples", "training", "backdoor")
"""What a poisoner may need besides its own fields. (Not `data`: $FEDSIEGE_DATA is where all data lies.)"""


@dataclass(slots=True)
class Kept:
    """What an attacker keeps from round to round.

    Args:
        number: the latest round; 0 before the first.
        attacked: whether it attacked in it.
        memory: what its poisoner keeps, and the model that the round began with.

    """

    number: int = 0
    attacked: bool = False
    memory: Memory = field(default_factory=dict)

    @classmethod
    def taken(cls, context: Context) -> "Kept":
        """What was kept, out of the node's state."""
        said, memory = context.state.pop(KEPT, None), context.state.pop(MEMORY, None)
        if not isinstance(said, ConfigRecord):
            return cls()
        kept = NOTHING if memory is None else wire.unpacked(memory)  # type: ignore[arg-type]
        return cls(int(str(said["number"])), bool(said["attacked"]), kept)

    def keep(self, context: Context) -> None:
        """Put it back."""
        if self.number:
            context.state[KEPT] = ConfigRecord({"number": self.number, "attacked": self.attacked})
        if self.memory:
            context.state[MEMORY] = wire.packed(self.memory)


@dataclass(slots=True)
class OwnScene(Scene):
    """A round as one attacker inside somebody's app sees it: honest training is the app's own.

    `own` is the update [d] that the app's training made; before it is known, an attacker can only look on.
    """

    own: Tensor | None = None

    def honest(self, at: int, examples: Examples | None = None) -> Tensor:
        """The update [d] of the app's training; on other data than the node's, of this package's."""
        if examples is None or examples is self.shards[at]:
            assert self.own is not None, "nothing is sent before the app has trained"
            return self.own.clone()
        return Scene.honest(self, at, examples)

    def train(
        self,
        examples: Examples,
        rng: Generator,
        guard: Guard = UNGUARDED,
        training: Training | None = None,
        lr: float | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Train as `Scene` does; InputError where the node has no model to train."""
        if isinstance(self.task, Outline):
            raise InputError(
                "fedsiege-poisoner: it trains on its own: expected fedsiege-model and fedsiege-examples too"
            )
        return Scene.train(self, examples, rng, guard, training, lr, start)


@dataclass(frozen=True, slots=True)
class Means:
    """What an attacker has besides the app.

    Args:
        task: its model, with the tensors of the app's.
        data: its own, without what a trigger found.
        backdoor: what it plants, where it plants something.
        training: how it trains.
        names: the model's tensors by the positions that stand for names in apps that send lists of arrays.

    """

    task: Task
    data: Dataset
    backdoor: Backdoor | None
    training: Training
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Adversary:
    """A compromised node.

    Args:
        poisoner: what it does.
        client: its number.
        seats: the compromised nodes, in the order of their parts of a trigger.
        rounds: the rounds of attack; None for all.
        total: how many rounds there are.
        cohort: how many clients take part in a round; 0 where that is not known.
        seed: of its streams.
        means: what it has besides the app; None where it was given nothing.

    """

    poisoner: Poisoner
    client: int
    seats: tuple[int, ...]
    rounds: frozenset[int] | None
    total: int
    cohort: int
    seed: int
    means: Means | None

    def attacks(self, number: int) -> bool:
        """Whether a round is one of attack."""
        return self.rounds is None or number in self.rounds

    def check(self, task: Task) -> None:
        """What the poisoner has to say against the model and what it was given; InputError says why."""
        name, poisoner = name_of(self.poisoner), self.poisoner
        refuse_unknowing(poisoner, name)
        trains = poisoner.plants or type(poisoner).poison_data is not Poisoner.poison_data
        if trains and self.means is None:
            raise InputError(
                f"fedsiege-poisoner: {name} trains on data that it changes: expected fedsiege-model and "
                "fedsiege-examples too"
            )
        if getattr(poisoner, "gamma", None) == "auto" and not self.cohort:
            raise InputError("fedsiege-poisoner.gamma: got auto; expected a number, or fedsiege-cohort too")
        plot = Plot(
            rule="of the app",
            step=1.0 if self.cohort else None,
            compromised=(self.client,),
            cohort=max(1, self.cohort),
            backdoor=None if self.means is None else self.means.backdoor,
            task=task,
            classes=0 if self.means is None else len(self.means.data.classes),
            attacks=self.total if self.rounds is None else len(self.rounds),
            training=PLAIN if self.means is None else self.means.training,
            sizes=() if self.means is None else (len(self.means.data.train),) * (self.client + 1),
        )
        poisoner.check(plot)

    def scene(self, number: int, attacks: bool, delta: Delta, memory: Memory, task: Task) -> OwnScene:
        """A round as the attacker sees it."""
        means, clients = self.means, (self.client,) if attacks else ()
        training = PLAIN if means is None else means.training
        return OwnScene(
            number=number,
            rounds=self.total,
            start=delta.start,
            clients=clients,
            shards=tuple(nobody() if means is None else means.data.train for _ in clients),
            weights=tuple(1 / max(1, self.cohort) for _ in clients),
            step=1.0 if self.cohort else None,
            cohort=max(1, self.cohort),
            task=task,
            training=training,
            lr=training.rate(number, max(number, self.total)),
            classes=0 if means is None else len(means.data.classes),
            seed=self.seed,
            backdoor=None if means is None else means.backdoor,
            compromised=self.seats,
            memory=dict(memory),
        )

    def delta(self, message: Message, reply: Message) -> Delta:
        """The update of a reply, its tensors in the order of the attacker's model, where it has one."""
        if self.means is None:
            return Delta.of(message, reply)
        return Delta.of(message, reply, self.means.task.layout, self.means.names)

    def began(self, message: Message, number: int, kept: Kept) -> None:
        """A message of a round: its model is what the round before ended with, if that was this node's latest."""
        delta = self.delta(message, message)
        task = self.task(delta)
        self.check(task)
        start = kept.memory.get(START)
        memory = {name: value for name, value in kept.memory.items() if name != START}
        learns = type(self.poisoner).observe is not Poisoner.observe
        if learns and start is not None and kept.number == number - 1 and len(start) == len(delta.start):
            scene = self.scene(kept.number, kept.attacked, replace(delta, start=start), memory, task)
            self.poisoner.observe(scene, delta.start)
            memory = dict(scene.memory)
        kept.number, kept.attacked = number, self.attacks(number)
        kept.memory = {**memory, START: delta.start} if learns else memory

    def poison(self, message: Message, reply: Message, kept: Kept) -> None:
        """Make the reply of a round of attack the poisoner's."""
        delta = self.delta(message, reply)
        task, start = self.task(delta), kept.memory.get(START)
        memory = {name: value for name, value in kept.memory.items() if name != START}
        scene = self.scene(kept.number, True, delta, memory, task)
        scene.own = delta.update
        sent = self.poisoner.poison_updates(scene)[0]
        kept.memory = {**scene.memory} if start is None else {**scene.memory, START: start}
        said = counted(self.poisoner.told(scene.counters))
        LOGGER.info("FedSiege: round %d: %s: %s", kept.number, name_of(self.poisoner), said)
        delta.write(sent.to(delta.update.dtype))

    def task(self, delta: Delta) -> Task:
        """The attacker's model; without one, what it knows of the app's."""
        return Outline(delta.layout) if self.means is None else self.means.task


def adversary_of(context: Context, client: int, cohort: int, seed: int) -> Adversary | None:
    """What plays a node; None where it is honest. InputError for what cannot be played."""
    said, seats = setting(context, "poisoner"), numbers(context, "attackers")
    if said == "" or (seats is not None and client not in seats):
        return None
    if not private(context, "poisoner") and seats is None:
        raise InputError(
            "fedsiege-poisoner: got it from the run-config, which is every node's; expected it in the node-config "
            "of the node that it compromises, or fedsiege-attackers too"
        )
    poisoner = build("poisoning", plain(said, "fedsiege-poisoner"), "fedsiege-poisoner")
    if not isinstance(poisoner, Poisoner):
        raise InputError(f"fedsiege-poisoner: got {said!r}; expected a poisoning attack")
    rounds = numbers(context, "attack-rounds")
    total = whole(context, "rounds", int(str(context.run_config.get("num-server-rounds", 1))), least=1)
    given = {name: str(setting(context, name)) for name in SETTINGS}
    return Adversary(
        poisoner=poisoner,
        client=client,
        seats=(client,) if seats is None else seats,
        rounds=None if rounds is None else frozenset(rounds),
        total=total,
        cohort=cohort,
        seed=seed,
        means=means_of(**given, seed=seed) if given["model"] or given["examples"] else None,
    )


@functools.lru_cache(maxsize=1)
def means_of(model: str, examples: str, training: str, backdoor: str, seed: int) -> Means:
    """A model, data and a backdoor, as the settings of these names say; InputError for what cannot be had."""
    if not model or not examples:
        raise InputError(f"fedsiege-{'examples' if model else 'model'}: missing; model and examples go together")
    spec = plain(examples, "fedsiege-examples")
    source = build("data", source_spec(spec) if isinstance(spec, str) else spec, "fedsiege-examples")
    found: Dataset = source.load()
    shape, classes = tuple(found.train.x.shape[1:]), len(found.classes)
    made = plain(model, "fedsiege-model")
    module = seeded(lambda: build_model(made, shape, classes, "fedsiege-model"), 0)
    positions = {str(place): name for place, name in enumerate(module.state_dict())}
    task = Task(module, found.mean, found.std, sequences=found.sequences)
    plan = plain(backdoor, "fedsiege-backdoor")
    planned = None if plan in (None, "") else backdoor_of(plan, found, seed)
    left, what = (found, None) if planned is None else planned
    return Means(task, left, what, training_of(training), MappingProxyType(positions))


def backdoor_of(plan: object, data: Dataset, seed: int) -> tuple[Dataset, Backdoor]:
    """The data that is left, and the backdoor, of `{trigger: ..., target: ...}`."""
    if not isinstance(plan, dict) or set(plan) != {"trigger", "target"}:
        raise InputError(f"fedsiege-backdoor: got {plan!r}; expected {{trigger: ..., target: ...}}")
    trigger = build("trigger", plan["trigger"], "fedsiege-backdoor.trigger")
    return planted(trigger, plan["target"], data, seed)


def training_of(said: str) -> Training:
    """Local training as in a config; every field at its default where nothing is said."""
    fields = plain(said, "fedsiege-training")
    try:
        return Training.model_validate({} if fields in (None, "") else fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["fedsiege-training", *(str(part) for part in first["loc"])])
        raise InputError(f"{place}: got {first['input']!r}; {first['msg']}") from None


def refuse_unknowing(poisoner: Poisoner, name: str) -> None:
    """InputError, by name, for a poisoner that knows what no single client of somebody's federation knows."""
    if poisoner.sees_honest:
        raise InputError(
            f"fedsiege-poisoner: {name} sees honest clients' updates (knowledge: full), which no client does; "
            "expected knowledge: partial"
        )
    if poisoner.probes:
        raise InputError(
            f"fedsiege-poisoner: {name} has to be told the examples whose membership is asked about, which no node "
            "is; expected an attack without targets"
        )
    if poisoner.uses_others:
        raise InputError(f"fedsiege-poisoner: {name} trains on other clients' data, which no client has")


def numbers(context: Context, name: str) -> tuple[int, ...] | None:
    """A list of whole numbers out of a setting; None for `all`, or where nothing is said."""
    said: Any = plain(setting(context, name), f"fedsiege-{name}")
    if said in ("", None, "all"):
        return None
    found = said if isinstance(said, list) else [said]
    if not found or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in found):
        raise InputError(f"fedsiege-{name}: got {said!r}; expected all, or a list of whole numbers")
    return tuple(found)


def nobody() -> Examples:
    """No examples: all that a poisoner has of the app's data."""
    return Examples(np.zeros(0, np.str_), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def counted(counters: Counters) -> str:
    """Counters on one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in counters.items())
