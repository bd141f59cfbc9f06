"""Label-only: what the label alone says."""

from typing import Literal

import numpy as np

from fedsiege.attacks.membership.base import MembershipAttack, series
from fedsiege.attacks.membership.likelihood import OneTailedTest
from fedsiege.errors import InputError
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("label_only")
class LabelOnly(MembershipAttack):
    """A baseline that never looks at the example: does the target's update of the last layer point at its label?

    A client that holds many examples of a class raises that class's output, so in non-IID runs the label alone says
    a lot about membership, and an attack has to beat this figure to show that it recognises examples. Every example
    of a class gets the same score: the target's update of the class's output, as a share of its whole last-layer
    update, in standard deviations of the other clients' shares, averaged over rounds.
    """

    title = "Label-only"
    needs = frozenset({"head", "labels"})
    multi_round = True
    needs_others = True
    min_rounds = 2
    min_clients = 3

    vantage: Literal["server"] = "server"
    """The server alone sees what every client uploaded."""

    def score(self, view: View, target: int) -> Values:
        """The mean over rounds of how many standard deviations the target leans towards each one's label [m]."""
        used = series(self, view, target)
        test = OneTailedTest(sigma_filter=None, null="moments", combine="sum_z")
        per_class = np.zeros_like(view.own("head", target, used[0]))
        for t in used:
            own = _direction(view.own("head", target, t))
            per_class += test.standardise(own, _direction(view.others("head", target, t)))[0]
        labels = view.labels
        if labels.min() < 0 or labels.max() >= len(per_class):
            raise InputError(
                f"attack label_only: labels go from {labels.min()} to {labels.max()}; "
                f"expected 0..{len(per_class) - 1}, the outputs of the last layer"
            )
        return (per_class / len(used))[labels]


def _direction(head: Values) -> Values:
    """Updates [..., C] of length 1: a client with more data or steps makes longer ones. Zeros stay zeros."""
    length: Values = np.linalg.norm(head, axis=-1, keepdims=True)
    return head / np.where(length > 0, length, 1.0)
