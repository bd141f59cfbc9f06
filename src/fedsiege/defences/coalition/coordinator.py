"""What a coalition's members do in a round, worked out from what all of them know.

In the paper one member, or a third party, plays the coordinator and sends each member its classes and its noise.
Here each member works the same plan out for itself: a pure function of the secret, the round, those present and
their volumes. Nothing passes through the server, and label ids, volumes and scalars are all that is looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fedsiege.defences.coalition.assignment import Assignment, Decay, bounded, classes_each, drawn
from fedsiege.defences.coalition.base import Circle
from fedsiege.defences.coalition.noise import Form, Noise
from fedsiege.streams import stream

LABEL, SCALAR = 2, 8
"""Bytes of a class id (an unsigned integer of 16 bits) and of a scalar (a float of 64) in a message."""

SCALARS = 2
"""Scalars in a message, as the paper counts them: the noise is one, and it does not name the other.

The vector form is billed the same, as if a seed stood for the noise: the noise itself would take 8 bytes for every
parameter of the tail.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """One round of a coalition.

    Args:
        m: the classes that each member was to get.
        assignment: the sets, in the order of those present; None where everybody trains on all classes.
        classes: the set of each member that is present, by number.
        noise: what they add to their uploads.
        messages, bytes: what a coordinator would have sent, instead of each working it out.

    """

    m: int
    assignment: Assignment | None
    classes: Mapping[int, tuple[int, ...]]
    noise: Noise
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Coordinator:
    """What a coordinator would know: the circle and the defence's settings, with no data and no model.

    Args:
        circle: what the members know.
        most, least: classes of each member in the first and in the last round.
        decay: how the number falls between them.
        assignment: `bounded` looks at how much sets overlap, `random` does not; `none` gives everybody all classes.
        together: whether the members act on one plan; else each draws its own classes, and its own noise.
        sigma: standard deviation of the raw noise; 0 adds none.
        form: of the noise.

    """

    circle: Circle
    most: int
    least: int
    decay: Decay
    assignment: Literal["bounded", "random", "none"]
    together: bool
    sigma: float
    form: Form

    def m(self, number: int) -> int:
        """How many classes each member gets in a round."""
        if self.assignment == "none":
            return self.circle.classes
        return classes_each(number, self.circle.rounds, self.most, self.least, self.decay)

    def plan(self, number: int, present: Sequence[int]) -> Plan:
        """What those present do in round `number`; the same for each who works it out."""
        m, members = self.m(number), sorted(present)
        assigned = self._assigned(number, members, m)
        sets = [tuple(range(m))] * len(members) if assigned is None else assigned.sets
        weights = {member: self.circle.volumes[member] for member in members}
        noise = Noise(self.circle.secret, number, weights, self.sigma, self.form, self.together)
        messages, size = self._sent(number, len(members), 0 if assigned is None else m)
        return Plan(m, assigned, dict(zip(members, sets, strict=True)), noise, messages, size)

    def _assigned(self, number: int, members: Sequence[int], m: int) -> Assignment | None:
        if self.assignment == "none" or not members:
            return None
        classes, secret = self.circle.classes, self.circle.secret
        if self.assignment == "bounded" and self.together:
            return shared_out(secret, number, classes, len(members), m)
        sets = (drawn(classes, m, stream(secret, "classes", number, member)) for member in members)
        return Assignment(tuple(sets), allowed=m)

    def _sent(self, number: int, members: int, labels: int) -> tuple[int, int]:
        """Messages and bytes: to each present its class ids and two scalars.

        With the first round's go those in which each member says its volume, whether it takes part in it or not.
        """
        if not self.together or (self.assignment == "none" and self.sigma == 0):
            return 0, 0
        volumes = len(self.circle.volumes) if number == 1 else 0
        return members + volumes, members * (labels * LABEL + SCALARS * SCALAR) + volumes * SCALAR


@lru_cache(maxsize=16)
def shared_out(secret: int, number: int, classes: int, members: int, m: int) -> Assignment:
    """The bounded assignment of a round, which all members of this process need and one works out."""
    return bounded(classes, members, m, stream(secret, "classes", number))
