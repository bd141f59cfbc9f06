"""How fast a signal moves over rounds: the slope of the least-squares line, candidate by candidate."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fedsiege.attacks.membership.base import Counted, MembershipAttack, blocks, by_round, counted
from fedsiege.view import Signal, Values, View

Measure = Callable[[Values], Values]
"""What is made of a signal, value by value, before lines are fitted to it."""


def slopes(
    attack: MembershipAttack, view: View, targets: Sequence[int], signal: Signal, measure: Measure
) -> Values:
    """The slope of each target's `measure(signal)` per round [targets, m]; a round is read once for all.

    Over the target's rounds of `series`, at their numbers: rounds that it missed, or that were not recorded, leave
    no gap of zeros. With `average: trained` over a candidate's own rounds of `counted`, or over all where fewer
    than two count; `trained_once` counts the candidates of which one does. Curves bend, and candidates with other
    rounds would have other slopes for that alone: the round's mean over candidates is taken off first, and the
    slope of these means over all rounds is added again.
    """
    rounds = _two_or_more(counted(attack, view, targets), view, targets)
    centre = np.zeros_like(rounds.rounds())
    for t, rows in by_round(rounds.used):
        centre[rows] += rounds.of(np.full((len(rows), 1), float(view.recorded[t])), t, rows)
    centre /= rounds.rounds()
    total = np.zeros((len(targets), view.own(signal, targets[0], rounds.used[0][0]).size))
    squares = np.zeros_like(centre)
    for t, rows in by_round(rounds.used):
        there = [targets[i] for i in rows]
        offset = view.recorded[t] - centre[rows]
        squares[rows] += rounds.of(np.square(offset), t, rows)
        level = 0.0 if rounds.classes is None else _level(view, there, signal, measure, t)
        for columns in blocks(total.shape[1], len(rows)):
            part = measure(view.each(signal, there, t, columns)) - level
            part *= offset if rounds.classes is None else offset[:, columns]
            total[rows, columns] += rounds.of(part, t, rows, columns)
    total /= squares
    return total if rounds.classes is None else total + _common(rounds, view, targets, signal, measure)


def _two_or_more(rounds: Counted, view: View, targets: Sequence[int]) -> Counted:
    """As counted, but a class with a single round keeps them all: no line goes through one point alone."""
    if rounds.classes is None:
        return rounds
    once = np.sum(list(rounds.classes.values()), axis=0) == 1
    classes = {t: kept.copy() for t, kept in rounds.classes.items()}
    for t, rows in by_round(rounds.used):
        classes[t][rows] |= once[rows]
    for target, used, single in zip(targets, rounds.used, once[:, rounds.labels].sum(axis=1), strict=True):
        view.of(target).count("trained_once", int(single))
        view.of(target).count("masked", -int(single) * (len(used) - 1))
    return replace(rounds, classes=classes)


def _level(view: View, targets: Sequence[int], signal: Signal, measure: Measure, t: int) -> Values:
    """Each target's mean over candidates in a round [targets, 1]."""
    level: Values = measure(view.each(signal, targets, t)).mean(axis=1, keepdims=True)
    return level


def _common(rounds: Counted, view: View, targets: Sequence[int], signal: Signal, measure: Measure) -> Values:
    """The slope of each target's means over candidates, over all of its rounds [targets, 1]."""
    numbers = [np.array([view.recorded[t] for t in used], dtype=np.float64) for used in rounds.used]
    slope = np.zeros((len(targets), 1))
    for t, rows in by_round(rounds.used):
        offsets = np.array([[view.recorded[t] - numbers[i].mean()] for i in rows])
        slope[rows] += offsets * _level(view, [targets[i] for i in rows], signal, measure, t)
    spread: Values = np.array([[np.square(one - one.mean()).sum()] for one in numbers])
    return slope / spread
