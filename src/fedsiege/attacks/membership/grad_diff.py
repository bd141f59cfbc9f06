"""Grad-Diff: the length that a gradient takes from one round's update."""

from collections.abc import Sequence
from typing import Literal

from fedsiege.attacks.membership.base import MembershipAttack, in_one_round
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("grad_diff")
class GradDiff(MembershipAttack):
    """Taking a member's gradient out of the update shortens it: |u|^2 - |u - g|^2, in one round.

    Paper: Li et al., Effective Passive Membership Inference Attacks in Federated Learning ..., ICLR 2023.
    """

    title = "Grad-Diff"
    needs = frozenset({"diff"})

    vantage: Literal["server", "server_aggregate_only", "client"] = "server"
    """`server` reads the target's update; the others read the global model's change."""
    round: int | Literal["last"] = "last"
    """Number of the recorded round to read; `last` is the target's last recorded one."""

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """2 <g, u> - |g|^2 [targets, m]."""
        return in_one_round(self, view, targets, "diff", self.round)
