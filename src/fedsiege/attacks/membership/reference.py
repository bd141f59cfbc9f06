"""What models that never trained on a candidate say of it: the adversary's own federations stand in for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsiege.attacks.membership.base import MembershipAttack, by_round, one_round
from fedsiege.errors import InputError
from fedsiege.registry import name_of
from fedsiege.view import Values, View


@dataclass(frozen=True, slots=True)
class Reference:
    """Mean and variance [m] over `models` models, none of which trained on the candidates.

    The variance is that of a sample (divided by one less than the models), zero for a single model. `apart` says
    by how many rounds at most a federation's models are older or younger than the one they stand beside.
    """

    models: int
    mean: Values
    variance: Values
    apart: int


def reference(view: View, number: int, shadows: int, measure: Callable[[Values], Values]) -> Reference:
    """`measure` of the losses of the adversary's own models, in the round `number` or the recorded one next to it.

    From a place that sees single updates every upload of that round counts as a model, from any other the global
    model does. One federation's losses are in memory at a time.

    Args:
        view: the adversary's view of the real federation, with its shadow federations.
        number: the real federation's round.
        shadows: how many federations to use, the first ones.
        measure: from losses [models, m] to what is compared.

    Raises InputError where there are fewer shadow federations.

    """
    models, apart = 0, 0
    mean = squares = np.zeros(0)
    for shadow, own in view.shadow_views(shadows)[:shadows]:
        t = _nearest(own, number)
        apart = max(apart, abs(own.recorded[t] - number))
        losses = own.everyone("loss", t) if own.sees_updates else own.each("loss", [0], t)
        values = measure(losses[:, shadow.asked])
        part = values.mean(axis=0)
        spread = np.square(values - part).sum(axis=0)
        if not models:
            models, mean, squares = len(values), part, spread
            continue
        share = len(values) / (models + len(values))
        squares += spread + np.square(part - mean) * models * share
        mean += (part - mean) * share
        models += len(values)
    return Reference(models, mean, squares / max(1, models - 1), apart)


def beside_reference(
    attack: MembershipAttack,
    view: View,
    targets: Sequence[int],
    chosen: int | Literal["last"],
    refer: Callable[[int], Reference],
    judge: Callable[[Values, Reference], Values],
) -> Values:
    """Scores [targets, m]: `judge` compares losses [q, m] in a round with that round's reference, of `refer`.

    The round is each target's of `one_round`. Counts for each target `reference_models`, and as `rounds_apart` how
    far off their rounds are.
    """
    used = [[one_round(attack, view.of(target), target, chosen)] for target in targets]
    scores: list[Values] = [np.zeros(0)] * len(targets)
    for t, rows in by_round(used):
        there = [targets[i] for i in rows]
        found = refer(view.recorded[t])
        losses = view.each("loss", there, t)
        if found.mean.shape != losses.shape[1:]:
            raise InputError(
                f"attack {name_of(attack)}: its shadow federations recorded {len(found.mean)} of the candidates; "
                f"expected all {losses.shape[1]}"
            )
        for i, row in zip(rows, judge(losses, found), strict=True):
            scores[i] = row
            view.of(targets[i]).count("reference_models", found.models)
            view.of(targets[i]).count("rounds_apart", found.apart)
    return np.stack(scores)


def _nearest(view: View, number: int) -> int:
    """The recorded round t with the number closest to this one, the earlier of two, in which anyone took part."""
    taken = [t for t in range(len(view.recorded)) if not view.sees_updates or len(view.present(t))]
    return min(taken, key=lambda t: (abs(view.recorded[t] - number), t))
