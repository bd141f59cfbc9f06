"""FTA-C: how fast the confidence rises."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.attacks.membership.trend import slopes
from fedsiege.registry import register
from fedsiege.view import Values, View


@register("fta_c")
class FTAC(MembershipAttack):
    """A member's confidence rises faster: the slope of a line through its label's probability in all rounds.

    The probability is exp(-loss). Lines are fitted by least squares at the rounds' numbers; the authors fit every
    round, here it is every recorded one. They audit global models. But a client's own uploads alone can tell its
    examples from other clients' as well as CoFedMID (arXiv 2601.06866) says that FTA does, and so `server` is the
    default.

    Where members are fitted within the first recorded round they have little left to gain, non-members change more,
    and the AUC falls below 0.5: the attack is for training that takes many rounds.

    Paper: Chang et al., Efficient Privacy Auditing in Federated Learning, USENIX Security 2024.
    """

    title = "FTA-C"
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
        """The slope of the label's probability per round [targets, m]."""
        return slopes(self, view, targets, "loss", lambda losses: np.exp(-losses))
