"""Label-only: what the label alone says."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedsiege.attacks.membership.base import MembershipAttack, by_round, series
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

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """How many standard deviations a target leans towards each label, mean over rounds [targets, m]."""
        used = [series(self, view.of(target), target) for target in targets]
        test = OneTailedTest(sigma_filter=None, null="moments", combine="sum_z")
        per_class = np.zeros((len(targets), view.own("head", targets[0], used[0][0]).size))
        for t, places in by_round(used):
            rows = np.searchsorted(view.present(t), [targets[i] for i in places])
            per_class[places] += test.standardise_each(_direction(view.everyone("head", t)), rows)[0]
        per_class /= np.array([[len(rounds)] for rounds in used])
        labels = view.labels
        if labels.min() < 0 or labels.max() >= per_class.shape[1]:
            raise InputError(
                f"attack label_only: labels go from {labels.min()} to {labels.max()}; "
                f"expected 0..{per_class.shape[1] - 1}, the outputs of the last layer"
            )
        return per_class[:, labels]


def _direction(head: Values) -> Values:
    """Updates [..., C] of length 1: a client with more data or steps makes longer ones. Zeros stay zeros."""
    length: Values = np.linalg.norm(head, axis=-1, keepdims=True)
    return head / np.where(length > 0, length, 1.0)
