"""Privacy mods around somebody's Flower client: their ClientApp runs unchanged, and defends what it sends.

In the app's pyproject.toml, `clientapp = "quickstart.client_app:app"` becomes
`clientapp = "fedsiege.flower.client_mods:around.quickstart.client_app.app"`. The arrays of each reply to a train
message, less those of the message, are the update; the defences change it, and the reply carries what comes of
that. A defence that acts before there is an update (on data, batches, the loss, gradients) is refused by name.
Metrics in a reply (a training loss, say) are left as they are.

What goes wrong here stops the reply: nothing leaves the node undefended. The server is told no more than that; the
reason is in the node's own log, as are the counters of what the defences did.

Settings, all optional, of the node (`flower-supernode --node-config`), its environment (`FEDSIEGE_DEFENCES` and so
on) or the run, in this order; lists and mappings are written as YAML or JSON:

- `fedsiege-defences`: components as in a config: `[{name: perturb, sigma: 0.01}]`.
- `fedsiege-cohort`: how many clients take part in a round, for noise that they share (then set it where the
  defences are set) and gammas that are worked out from it.
- `fedsiege-seed`, of the node or its environment alone: whoever knows it knows the noise. Without it noise is drawn
  from the system's entropy; with it a run can be repeated, and runs with one seed have the same noise.
- `fedsiege-coalition`, likewise: a file that the members of a coalition gave each other (see `flower.circle`).
- `fedsiege-poisoner` and what belongs to it: see `red_team`.

A node signs what it ran into its replies, for the server's tap and `fedsiege verify`. A member of a coalition signs
nothing but its number: what it adds would belie the rest, and that there is a coalition is its own business.
"""

import secrets
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedsiege.defences.client.base import MOMENTS, ClientDefence, Ground, Posted, Turn, acting, is_neutral, posted
from fedsiege.defences.coalition.base import Circle, Coalition
from fedsiege.defences.coalition.cofedmid import CoFedMID
from fedsiege.errors import InputError
from fedsiege.flower import red_team, wire
from fedsiege.flower.chain import Chain
from fedsiege.flower.circle import circle_in, of_run
from fedsiege.flower.mods import Delta, Outline, listed, own, private
from fedsiege.flower.settings import setting, whole
from fedsiege.flower.signature import sign
from fedsiege.flower.sites import LOGGER
from fedsiege.promises.declared import COHORT, shares
from fedsiege.records import Layout, Memory
from fedsiege.registry import build, load, name_of, names
from fedsiege.streams import stream

KEPT, MEMORY = "fedsiege.mods", "fedsiege.mods.memory"
"""Records of the node's state: its seed and how often it trained; what defences keep."""

BEFORE = {**MOMENTS, "during": "the length of the training"}
"""The moments at which a mod cannot act, in words."""


class RefusedError(InputError):
    """What the server is told where a mod refuses."""


@dataclass(slots=True)
class Node:
    """What a node keeps from message to message, taken out of the app's sight while it runs.

    Args:
        seed: of its noise.
        trained: train messages so far, this one included.
        last: the latest round that it answered as a member of a coalition.
        memory: what its defences keep.
        attack: what its poisoner keeps.

    """

    seed: int
    trained: int
    last: int
    memory: Memory
    attack: red_team.Kept = field(default_factory=red_team.Kept)

    @classmethod
    def taken(cls, context: Context, seed: int | None) -> "Node":
        """What a node kept, out of its context; without a seed of its own it draws one in its first round."""
        said, memory = context.state.pop(KEPT, None), context.state.pop(MEMORY, None)
        known = said if isinstance(said, ConfigRecord) else ConfigRecord()
        return cls(
            seed=int(str(known.get("seed", secrets.randbits(63)))) if seed is None else seed,
            trained=int(str(known.get("trained", 0))) + 1,
            last=int(str(known.get("last", 0))),
            memory={} if memory is None else wire.unpacked(memory),  # type: ignore[arg-type]
            attack=red_team.Kept.taken(context),
        )

    def keep(self, context: Context) -> None:
        """Put it back."""
        context.state[KEPT] = ConfigRecord({"seed": self.seed, "trained": self.trained, "last": self.last})
        if self.memory:
            context.state[MEMORY] = wire.packed(self.memory)
        self.attack.keep(context)


class GuardedClientApp(ClientApp):
    """Somebody's ClientApp with mods around it; its own mods and lifespan run as they do without."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self._app = app

    def __call__(self, message: Message, context: Context) -> Message:
        """The app's reply, defended or poisoned, and signed; only replies to train messages are touched."""
        if message.metadata.message_type.partition(".")[0] != "train" or not message.has_content():
            return self._app(message, context)
        try:
            seed = own_seed(context)
            node = Node.taken(context, seed)
        except InputError as error:
            raise refused(error) from error
        try:
            return answered(self._app, message, context, node)
        finally:
            node.keep(context)


@dataclass(slots=True)
class Mods:
    """What a node does to its reply in one round.

    Args:
        node: what it keeps.
        client: its number.
        number: the round.
        defences: that it uses, in order, coalitions last.
        adversary: who plays it, where it is compromised.
        cohort: how many clients take part.

    """

    node: Node
    client: int
    number: int
    defences: tuple[Posted, ...]
    adversary: red_team.Adversary | None
    cohort: int

    @classmethod
    def of(cls, message: Message, context: Context, node: Node) -> "Mods":
        """The mods of a message, checked before anybody trains; InputError for what cannot be done."""
        number = round_of(message, node.trained)
        client, cohort = client_of(context), whole(context, "cohort", 0, least=0)
        adversary = red_team.adversary_of(context, client, cohort, node.seed)
        mods = cls(node, client, number, defences_of(context, client), adversary, cohort)
        for one in mods.defences:
            check_shared(context, one.defence, cohort)
        if mods.defences:
            mods.check(Delta.of(message, message).layout)
        if adversary is not None:
            adversary.began(message, number, node.attack)
        return mods

    def check(self, layout: Layout) -> None:
        """What the defences have to say against the model, the round, or each other."""
        for one in self.defences:
            if one.circle is not None and not self.node.last < self.number <= one.circle.rounds:
                raise InputError(
                    f"round {self.number}: a member of a coalition answers each of its {one.circle.rounds} rounds "
                    f"once, in order, and did the last time in round {self.node.last}: its noise would show"
                )
            one.defence.check(self.ground(one, layout))

    def ground(self, one: Posted, layout: Layout) -> Ground:
        """What is known of the run: no data, no model, and of a coalition that all members take part."""
        members = None if one.circle is None else sorted(one.circle.volumes)
        clients = max([self.client, *(members or ())]) + 1
        return Ground(
            task=Outline(layout),
            examples=red_team.nobody(),
            sizes=[0] * clients,
            using=members or [self.client],
            batch=None,
            cohort=clients if members else max(1, self.cohort),
            circle=one.circle,
            rounds=1 if one.circle is None else one.circle.rounds,
        )

    def act(self, message: Message, reply: Message) -> None:
        """Poison the reply in a round of attack, else defend it."""
        if self.adversary is not None and self.adversary.attacks(self.number):
            self.adversary.poison(message, reply, self.node.attack)
        elif self.defences:
            self.defend(Delta.of(message, reply))

    def declared(self) -> list[dict[str, Any]]:
        """What the node says it ran; a member of a coalition says nothing."""
        member = any(one.circle is not None for one in self.defences)
        return [] if member else [spec_of(one.defence, self.cohort) for one in self.defences]

    def defend(self, delta: Delta) -> None:
        """Let each defence have the update in turn, and write what is left into the reply."""
        update, task = delta.update, Outline(delta.layout)
        # The stream goes by the node's own count: whoever asks for a round twice is not to get its noise twice.
        at = Turn(
            task=task,
            number=self.node.trained,
            client=self.client,
            examples=0,
            batch=None,
            rng=stream(self.node.seed, "turn", self.node.trained, self.client),
            cohort=max(1, self.cohort),
        )
        for one in self.defences:
            if one.circle is not None:
                update = self.hidden(one, one.circle, update, delta.layout)
                continue
            turn = one.turn(self.node.seed, at, memory=self.node.memory)
            turn.number = self.number
            update = one.defence.on_update(update, turn)
            place = one.place(self.client)
            kept = {name: value for name, value in self.node.memory.items() if not name.startswith(place)}
            self.node.memory = {**kept, **{f"{place}{name}": value for name, value in turn.memory.items()}}
            said = red_team.counted(one.defence.told(turn.counters))
            LOGGER.info("FedSiege: round %d: %s: %s", self.number, one.label, said)
        delta.write(update)

    def hidden(self, one: Posted, circle: Circle, update: Tensor, layout: Layout) -> Tensor:
        """The update [d] with what a member of a coalition adds to it."""
        assert isinstance(one.defence, Coalition)
        present = sorted(circle.volumes)
        noise = one.defence.noise(circle, self.number, present, self.client, layout)
        self.node.last = self.number
        if noise is None:
            return update
        LOGGER.info("FedSiege: round %d: %s: noise of norm %.4g", self.number, one.label, float(noise.norm()))
        # Rounded once, and only where something is added.
        return torch.where(noise != 0, (update.double() + noise).to(update.dtype), update)

    def classes(self) -> tuple[int, ...] | None:
        """The classes that a coalition gives this member for the round; None where it gives none."""
        for one in self.defences:
            if isinstance(one.defence, CoFedMID) and one.circle is not None and one.defence.assignment != "none":
                plan = one.defence.coordinator(one.circle).plan(self.number, sorted(one.circle.volumes))
                return plan.classes[self.client]
        return None


def answered(app: ClientApp, message: Message, context: Context, node: Node) -> Message:
    """The app's reply, and what the mods make of it; RefusedError where they cannot."""
    try:
        mods = Mods.of(message, context, node)
    except InputError as error:
        raise refused(error) from error
    hook = Hook(mods.classes())
    token = _HOOK.set(hook)
    try:
        reply = app(message, context)
    finally:
        _HOOK.reset(token)
    if not reply.has_content():
        return reply
    try:
        if hook.classes is not None and not hook.asked:
            raise InputError("assignment: the app did not ask examples_of_round(labels) what to train on")
        mods.act(message, reply)
    except InputError as error:
        raise refused(error) from error
    sign(reply, context, mods.declared())
    return reply


@dataclass(slots=True)
class Hook:
    """What the app may ask while it trains, and whether it did."""

    classes: tuple[int, ...] | None = None
    asked: bool = False


_HOOK: ContextVar[Hook | None] = ContextVar("fedsiege_round", default=None)


def examples_of_round(labels: ArrayLike) -> NDArray[np.int64]:
    """The rows of a site's examples to train on in this round, by their labels [n]: all, unless a coalition says.

    The one line that a member's train function needs for CoFedMID's class-guided partition; without mods, and on
    all other nodes, it changes nothing. There may be none. The number of examples that the reply names, by which
    its update is weighed, has to stay that of all of them.
    """
    y, hook = np.asarray(labels), _HOOK.get()
    if y.ndim != 1:
        raise InputError(f"labels: got shape {y.shape}; expected [n], one label an example")
    if hook is None or hook.classes is None:
        return np.arange(len(y))
    hook.asked = True
    return np.flatnonzero(np.isin(y, hook.classes))


def defences_of(context: Context, client: int) -> tuple[Posted, ...]:
    """The defences that a node uses, in order; InputError for those that no mod can be."""
    where = "fedsiege-defences"
    specs = listed(setting(context, "defences"), where)
    single = [(at, spec) for at, spec in enumerate(specs) if spec["name"] not in names("coalition")]
    built = [built_mod(spec, f"{where}.{at}") for at, spec in single]
    together = [spec for spec in specs if spec["name"] in names("coalition")]
    named = [one.clients for one in built if one.clients != "all"]
    most = max([client, *(max(numbers) if isinstance(numbers, tuple) else numbers for numbers in named)])
    try:
        using = [one for one in posted(built, most + 1) if client in one.clients]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return (*(one for one in using if not is_neutral(one.defence)), *coalitions(context, client, together))


def built_mod(spec: Mapping[str, Any], where: str) -> ClientDefence:
    """A defence whose only moment is the update; InputError that says what else it acts on."""
    defence: ClientDefence = build("client_defence", dict(spec), where)
    if not isinstance(defence, ClientDefence):
        raise InputError(f"{where}: {spec!r} is a {type(defence).__name__}; expected a client defence")
    if acts_on := acting(type(defence), BEFORE):
        fit = [name for name in names("client_defence") if not acting(load("client_defence", name), BEFORE)]
        raise InputError(
            f"{where}: {name_of(defence)} acts on {' and '.join(acts_on)}, and a mod sees finished updates alone; "
            f"expected one of {', '.join(fit)}"
        )
    return defence


def check_shared(context: Context, defence: ClientDefence, cohort: int) -> None:
    """InputError for noise that a round's clients share where the node does not know how many they are.

    A node that names its own defences has to know that by itself, too: by that number its noise is less.
    """
    if not shares(defence):
        return
    if not cohort or (private(context, "defences") and not private(context, "cohort")):
        raise InputError(
            "fedsiege-cohort: missing; noise: distributed needs the number of clients of a round, from where the "
            "defences were set"
        )


def coalitions(context: Context, client: int, specs: Sequence[Mapping[str, Any]]) -> list[Posted]:
    """The coalition of a node, if it is in one; InputError where it lacks what members know, or needs its data."""
    if not specs:
        return []
    if len(specs) > 1:
        raise InputError(f"fedsiege-defences: got {len(specs)} coalitions; expected one")
    made: Coalition = build("coalition", dict(specs[0]), "fedsiege-defences")
    path = own(context, "coalition")
    if not path:
        raise InputError(f"fedsiege-coalition: missing; {name_of(made)} needs the file that its members share")
    circle = of_run(circle_in(Path(path), "fedsiege-coalition"), context.run_id)
    if client not in circle.volumes:
        raise InputError(f"{path}: client {client} is no member; there are {sorted(circle.volumes)}")
    made = replace(made, members=tuple(sorted(circle.volumes)))  # type: ignore[type-var]
    for name, neutral in (made.neutral or {}).items():
        fits = name == "perturbation" or (name == "assignment" and isinstance(made, CoFedMID))
        if not fits and getattr(made, name) != neutral:
            raise InputError(
                f"fedsiege-defences: {name_of(made)}.{name}: got {getattr(made, name)}, which acts on data and "
                f"losses that a mod does not see; expected {neutral}"
            )
    return [Posted(made, name_of(made), frozenset(circle.volumes), 0, circle)]


def round_of(message: Message, counted: int) -> int:
    """The round that a message says it is of (`server-round`), else how many this node was asked to train in."""
    for record in message.content.config_records.values():
        said = record.get("server-round")
        if isinstance(said, int) and not isinstance(said, bool) and said >= 1:
            return said
    return counted


def client_of(context: Context) -> int:
    """The node's `partition-id`; 0 where it has none: its streams are its own by its seed."""
    number = context.node_config.get("partition-id", 0)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise InputError(f"partition-id: got {number!r}; expected the client's number, from 0")
    return number


def own_seed(context: Context) -> int | None:
    """The seed that a node was given; None where it has to draw one."""
    said = own(context, "seed")
    if said and not (said.isdecimal() and int(said) < 2**63):
        raise InputError("fedsiege-seed: expected a whole number from 0 to 2^63 - 1")
    return int(said) if said else None


def spec_of(defence: ClientDefence, cohort: int) -> dict[str, Any]:
    """A defence as a config names it, with all its fields but who uses it.

    Beside them is among how many its noise was shared out, where a round has it together: that is all that a server
    can hold the noise of one against.
    """
    known = [one.name for one in fields(defence) if one.name != "clients"]  # type: ignore[arg-type]
    among = {COHORT: cohort} if shares(defence) else {}
    return {"name": name_of(defence), **{name: getattr(defence, name) for name in known}, **among}


def refused(error: InputError) -> RefusedError:
    """The error that the server is told of, once the node's log has the reason."""
    LOGGER.error("FedSiege: %s", error)
    return RefusedError("the client mods of this node refused to answer; its log says why")


# A plain assignment: Flower looks for the name in this file's syntax tree before it imports it.
around = Chain(GuardedClientApp, ClientApp)
