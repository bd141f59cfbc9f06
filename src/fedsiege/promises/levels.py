"""The promise that the entries of an update lie on few levels."""

import math

import numpy as np

from fedsiege.promises.base import Arrived, Finding, Floats, Promise

BY_CHANCE = 1e-6
"""Chance below which entries that all lie on levels are not there by accident."""


class Levels(Promise):
    """The entries of each tensor lie on 2^bits + 1 evenly spaced levels from its smallest to its largest."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.words = f"entries on levels of {bits} bits (distance in steps)"

    def found(self, arrived: Arrived, level: float) -> Finding:  # noqa: ARG002 - a bound
        """How far the entry that is farthest from a level is, beyond rounding, and where."""
        chance, worst = 0.0, (0.0, 0.0, -math.inf, "")
        for tensor, place in arrived.places():
            entries, slack = arrived.update[place], arrived.slack[place]
            if tensor.size < 2 or np.ptp(entries) == 0:
                continue
            off, allowed = off_level(entries, slack, self.bits)
            most = int(np.argmax(off - allowed))
            if off[most] - allowed[most] > worst[2]:
                worst = (float(off[most]), float(allowed[most]), float(off[most] - allowed[most]), tensor.name)
            # An entry anywhere between two levels is as near to one with this chance; the two ends are on levels.
            chance += float(np.log(np.partition(np.minimum(1.0, 2 * allowed), 1)[2:]).sum())
        off_most, allowed_most, beyond, name = worst
        telling = chance < math.log(BY_CHANCE)
        if beyond > 0:
            said = f"an entry of {name} is {off_most:.2g} of a step from a level, {allowed_most:.2g} is rounding"
        elif telling:
            said = f"every entry is on a level, to {allowed_most:.2g} of a step in {name}"
        else:
            said = "the levels are too close for what rounding leaves to see"
        return Finding(beyond > 0, telling, off_most, allowed_most, beyond, None, said)


def off_level(entries: Floats, slack: Floats, bits: int) -> tuple[Floats, Floats]:
    """How far each entry [n] is from a level, and by how much rounding may move it, both in steps."""
    low, high = int(np.argmin(entries)), int(np.argmax(entries))
    step = (entries[high] - entries[low]) / 2**bits
    places = (entries - entries[low]) / step
    # The ends are rounded too, and levels are counted in single precision.
    ends = slack[low] + slack[high] + 4 * 2.0**-24 * max(abs(entries[low]), abs(entries[high]))
    return np.abs(places - np.rint(places)), (slack + 2 * ends) / step
