"""Avg-Cosine: Grad-Cosine over all rounds."""

from collections.abc import Sequence
from typing import Literal

from fedsiege.attacks.membership.base import OVER, MembershipAttack, means_over_rounds
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("avg_cosine")
class AvgCosine(MembershipAttack):
    """A member's gradient keeps pointing along the update: the mean of Grad-Cosine over all recorded rounds.

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289 (Table 1, the comparison).
    """

    title = "Avg-Cosine"
    needs = frozenset({"cosine"})
    multi_round = True
    min_rounds = 2

    vantage: Literal["server", "server_aggregate_only", "client"] = "server"
    """`server` reads the target's update; the others read the global model's change."""
    coordinates: Literal["all", "nonzero", "unshifted", "front"] = "all"
    """`nonzero`: where the update is not zero; `unshifted`: without what was added to each; `front`: no tail."""
    average: Literal["all", "trained"] = "all"
    """`trained`: by candidate, over the rounds in which the target's update shows that it trained the class."""
    updates: Literal["sent", "denoised", "coalition", "insider"] = "sent"
    """Uploads are looked at as sent, without shifts of their tails, as a coalition's mean, or without its noise."""

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """The mean cosine [targets, m]."""
        return means_over_rounds(self, view, targets, OVER[self.coordinates])
