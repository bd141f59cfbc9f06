"""FedMIA-I: does the target's loss stand out from the other clients'?"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.attacks.membership.likelihood import OneTailedTest
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("fedmia_i")
class FedMIAI(MembershipAttack):
    """A member's loss under the target's model is lower than under the other clients' models.

    Per round, the other clients' measurements give mean and variance of a non-member's, and the normal distribution
    function of the target's is the round's score. The attack's score is the mean over rounds (eq. 12).

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289.
    """

    title = "FedMIA-I"
    needs = frozenset({"loss"})
    multi_round = True
    needs_others = True
    min_rounds = 2
    min_clients = 3

    vantage: Literal["server"] = "server"
    """The server alone sees what every client uploaded."""
    sigma_filter: Annotated[float, Field(gt=0)] | None = 3.0
    """First drop other clients at or above mean + this many deviations (3 needs K > 11 to fire); null: keep all."""
    null: Literal["moments", "robust"] = "moments"
    """Non-member distribution from mean and variance (the paper), or from median and 1.4826 x MAD."""
    combine: Literal["mean_cdf", "sum_z"] = "mean_cdf"
    """Combine rounds by the mean distribution function (the paper; saturates at 1), or by the sum of z-scores."""
    average: Literal["all", "trained"] = "all"
    """`trained`: by candidate, over the rounds in which the target's update shows that it trained the class."""
    updates: Literal["sent", "denoised", "coalition", "insider"] = "sent"
    """Uploads are looked at as sent, without shifts of their tails, as a coalition's mean, or without its noise."""

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """The mean distribution function, or the sum of z-scores, over rounds [targets, m]."""
        test = OneTailedTest(self.sigma_filter, self.null, self.combine)
        return test.score(self, view, targets, "loss", sign=-1)
