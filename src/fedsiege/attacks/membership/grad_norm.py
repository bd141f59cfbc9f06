"""Grad-Norm: the size of the gradient at one round's start."""

from collections.abc import Sequence
from typing import Literal

from fedsiege.attacks.membership.base import MembershipAttack, in_one_round
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("grad_norm")
class GradNorm(MembershipAttack):
    """A fitted example has a small gradient: minus its squared norm at the global model, in one round.

    Paper: Nasr et al., Comprehensive Privacy Analysis of Deep Learning, S&P 2019.
    """

    title = "Grad-Norm"
    needs = frozenset({"norm2"})
    single_update = False

    vantage: Literal["server", "server_aggregate_only", "client"] = "server"
    """Every vantage sees the global model that the gradient is taken at."""
    round: int | Literal["last"] = "last"
    """Number of the recorded round to read; `last` is the target's last recorded one."""

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """Minus the squared norm [targets, m]."""
        return -in_one_round(self, view, targets, "norm2", self.round)
