"""What a server that knows of a defence makes of the uploads before it looks at them.

A countermeasure turns what was received in a round into another cohort, from which evidence is recorded as from the
first. None of them needs more than the server has; `noiseless` needs what one member of a coalition has.

There is one tail for all clients. Where coalitions' tails differ, `denoised` looks at the longest. Of a member
whose noise is a number on a share s of it, s times the number is taken off the whole: 1 - s of it stays on the
entries that have it, and s of it, with the other sign, is put on those that had none. Noise beyond a tail that the
config says is shorter stays. `shifted_elsewhere` says whose noise that is.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedsiege.defences.client.base import Posted, is_neutral
from fedsiege.defences.coalition.base import Coalition
from fedsiege.errors import InputError
from fedsiege.records import Cohort, Layout
from fedsiege.signals import sums

Updates = Literal["denoised", "coalition", "insider"]
"""The countermeasures, as attacks ask for them."""

Countermeasure = Callable[[Cohort, int], Cohort]
"""What was received, and the number of the round -> what the server looks at."""

Room = Callable[[Tensor], Tensor]
"""Rows [n, d] -> room for as many, whose content does not matter."""

BLOCK = 2**18
"""Columns that are worked on together in float64."""


def denoised(cohort: Cohort, tail: slice, room: Room = torch.empty_like) -> Cohort:
    """The cohort with each update's shift of the tail taken off: what its mean there exceeds the others' by.

    The others' is the median of the other clients' means; a client alone is left as it is. A constant that was
    added to the tail vanishes as long as most of the others added none; what all share stays.
    """
    means = sums(cohort.updates[:, tail]).cpu().numpy() / (tail.stop - tail.start)
    updates = _copied(cohort.updates, room)
    for row, own in enumerate(means):
        others = np.delete(means, row)
        if len(others):
            updates[row, tail] -= float(own - np.median(others))
    return replace(cohort, updates=updates)


def as_one(cohort: Cohort, coalitions: Sequence[Mapping[int, float]], room: Room = torch.empty_like) -> Cohort:
    """The cohort with each member's update replaced by its coalition's weighted mean, in which noise cancels.

    Args:
        cohort: what was received.
        coalitions: each with its members' weights in the aggregation; a mean is over those that are there.
        room: for the new updates.

    Where members answered from models of different ages, their mean counts from the latest.

    """
    updates, ages = _copied(cohort.updates, room), list(cohort.ages)
    for weights in coalitions:
        rows = [row for row, client in enumerate(cohort.clients) if client in weights]
        if not rows:
            continue
        shares = torch.tensor([weights[cohort.clients[row]] for row in rows], dtype=torch.float64)
        shares = (shares / shares.sum()).to(updates.device)
        for first in range(0, updates.shape[1], BLOCK):
            some = slice(first, first + BLOCK)
            updates[rows, some] = (shares @ cohort.updates[rows, some].double()).to(updates.dtype)
        latest = min(cohort.ages[row] for row in rows)
        for row in rows:
            ages[row] = latest
    starts = {age: cohort.starts[age] for age in sorted(set(ages))}
    return replace(cohort, updates=updates, ages=tuple(ages), starts=starts)


def noiseless(cohort: Cohort, noise: Callable[[int], Tensor | None], room: Room = torch.empty_like) -> Cohort:
    """The cohort without what each client added to its update: `noise` gives it [d], or None, by client."""
    updates = _copied(cohort.updates, room)
    for row, client in enumerate(cohort.clients):
        added = noise(client)
        if added is not None:
            updates[row] = updates[row].double() - added.to(updates.device)
    return replace(cohort, updates=updates)


def taken_off(sent: Cohort, seen: Cohort) -> Tensor:
    """What a countermeasure took off each upload [n]: the root mean square over the entries that it changed.

    0 where it changed nothing. `seen` has the rows of `sent`, in their order.
    """
    squares = torch.zeros(len(sent.clients), dtype=torch.float64, device=sent.updates.device)
    entries = torch.zeros_like(squares)
    for first in range(0, sent.updates.shape[1], BLOCK):
        some = slice(first, first + BLOCK)
        off = sent.updates[:, some].double() - seen.updates[:, some].double()
        squares += off.square().sum(1)
        entries += off.ne(0).sum(1)
    return (squares / entries.clamp(min=1)).sqrt()


def countermeasures(
    wanted: Collection[str],
    layout: Layout,
    tail: int | None,
    defences: Sequence[Posted],
    invited: Callable[[int], Sequence[int]],
    room: Room = torch.empty_like,
) -> dict[str, Countermeasure]:
    """The countermeasures of a run, by name.

    Args:
        wanted: what is to be recorded; `updates:NAME` asks for one.
        layout: of the model.
        tail: how many of the last trained entries noise is looked for in; None where nobody says.
        defences: of the run.
        invited: the clients that are invited to a round, by its number.
        room: for the updates that they make.

    """
    coalitions = coalitions_in(defences)
    shares = [one.circle.volumes for one in coalitions if one.circle is not None]

    def take_off_shift(cohort: Cohort, number: int) -> Cohort:  # noqa: ARG001 - alike in every round
        return denoised(cohort, tail_place(layout, tail), room) if tail else cohort

    def see_as_one(cohort: Cohort, number: int) -> Cohort:  # noqa: ARG001
        return as_one(cohort, shares, room)

    def take_off_noise(cohort: Cohort, number: int) -> Cohort:
        return noiseless(cohort, lambda client: _noise(coalitions, number, client, invited, layout), room)

    every: dict[Updates, Countermeasure] = {
        "denoised": take_off_shift,
        "coalition": see_as_one,
        "insider": take_off_noise,
    }
    return {name: every[name] for name in get_args(Updates) if f"updates:{name}" in wanted}


def coalitions_in(defences: Sequence[Posted]) -> list[Posted]:
    """The coalitions among a run's defences, no client in two: each is one client to a server that is told of it.

    A neutral one is too, for that is how an undefended aggregate is looked at; where it shares a client with
    another it stands back.
    """
    every = [one for one in defences if isinstance(one.defence, Coalition)]
    found = [one for one in every if not is_neutral(one.defence)]
    for one in every:
        if is_neutral(one.defence) and all(one.clients.isdisjoint(other.clients) for other in found):
            found.append(one)
    return found


def shifted_elsewhere(tail: int | None, defences: Sequence[Posted], layout: Layout) -> dict[str, int]:
    """The coalitions, by label, whose noise falls on another tail than is looked at, and that tail's length."""
    tails = {one.label: one.defence.disturbed(layout) for one in defences if isinstance(one.defence, Coalition)}
    return {label: size for label, size in tails.items() if size not in (0, tail)}


def tail_of(share: float | None, defences: Sequence[Posted], layout: Layout) -> int | None:
    """How many of the last trained entries noise is looked for in; None where nobody says.

    Args:
        share: of the trained entries, as the run's config says; else the longest tail of its coalitions counts.
        defences: of the run.
        layout: of the model.

    Raises InputError for a share that is no entry.

    """
    if share is None:
        tails = [one.defence.disturbed(layout) for one in defences if isinstance(one.defence, Coalition)]
        return max(tails, default=None)
    # A share such as 0.29 of 100 is 29.
    size = math.floor(share * layout.trained + 1e-9)
    if size == 0:
        raise InputError(
            f"trace.tail: got {share:g}, which is none of the model's {layout.trained} trained parameters; "
            f"expected {1 / layout.trained:.2g} or more"
        )
    return size


def tail_place(layout: Layout, tail: int) -> slice:
    """Where the last `tail` trained entries lie in the flat vector."""
    return slice(layout.trained - tail, layout.trained)


def _noise(
    coalitions: Sequence[Posted],
    number: int,
    client: int,
    invited: Callable[[int], Sequence[int]],
    layout: Layout,
) -> Tensor | None:
    """What a client's coalition has it add in a round, as its fellow members can work out, if they can."""
    for one in coalitions:
        if client not in one.clients or not isinstance(one.defence, Coalition) or one.circle is None:
            continue
        if one.defence.shares:
            return one.defence.noise(one.circle, number, one.present(invited(number)), client, layout)
    return None


def _copied(rows: Tensor, room: Room) -> Tensor:
    return room(rows).copy_(rows)
