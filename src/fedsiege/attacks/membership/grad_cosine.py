"""Grad-Cosine: the direction of one round's update."""

from collections.abc import Sequence
from typing import Literal

from fedsiege.attacks.membership.base import OVER, MembershipAttack, in_one_round
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("grad_cosine")
class GradCosine(MembershipAttack):
    """A member's gradient points along `start - local`: their cosine, in one round.

    Paper: Li et al., Effective Passive Membership Inference Attacks in Federated Learning ..., ICLR 2023.
    """

    title = "Grad-Cosine"
    needs = frozenset({"cosine"})

    vantage: Literal["server", "server_aggregate_only", "client"] = "server"
    """`server` reads the target's update; the others read the global model's change."""
    round: int | Literal["last"] = "last"
    """Number of the recorded round to read; `last` is the target's last recorded one."""
    coordinates: Literal["all", "nonzero", "unshifted"] = "all"
    """`nonzero`: those that the update did not leave at zero; `unshifted`: all, without what was added to each."""

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """The cosine [targets, m]."""
        return in_one_round(self, view, targets, OVER[self.coordinates], self.round)
