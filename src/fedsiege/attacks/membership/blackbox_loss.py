"""Blackbox-Loss: the loss of one round's model."""

from collections.abc import Sequence
from typing import Literal

from fedsiege.attacks.membership.base import MembershipAttack, in_one_round
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("blackbox_loss")
class BlackboxLoss(MembershipAttack):
    """A member has a lower loss: minus the cross-entropy of the uploaded model, in one round.

    Paper: Yeom et al., Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting, CSF 2018.
    """

    title = "Blackbox-Loss"
    needs = frozenset({"loss"})
    single_update = False

    vantage: Literal["server", "server_aggregate_only", "client"] = "server"
    """`server` reads the target's uploaded model; the others read the global model."""
    round: int | Literal["last"] = "last"
    """Number of the recorded round to read; `last` is the target's last recorded one."""

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """Minus the loss [targets, m]."""
        return -in_one_round(self, view, targets, "loss", self.round)
