"""Loss-Series: Blackbox-Loss over all rounds."""

from collections.abc import Sequence
from typing import Literal

from fedsiege.attacks.membership.base import MembershipAttack, means_over_rounds
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("loss_series")
class LossSeries(MembershipAttack):
    """A member's loss stays low: minus the mean cross-entropy over all recorded rounds.

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289 (Table 1, the comparison).
    """

    title = "Loss-Series"
    needs = frozenset({"loss"})
    multi_round = True
    single_update = False
    min_rounds = 2

    vantage: Literal["server", "server_aggregate_only", "client"] = "server"
    """`server` reads the target's uploaded model; the others read the global model."""
    average: Literal["all", "trained"] = "all"
    """`trained`: by candidate, over the rounds in which the target's update shows that it trained the class."""
    updates: Literal["sent", "denoised", "coalition", "insider"] = "sent"
    """Uploads are looked at as sent, without shifts of their tails, as a coalition's mean, or without its noise."""

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """Minus the mean loss [targets, m]."""
        return -means_over_rounds(self, view, targets, "loss")
