"""LiRA (offline): is the model more confident than models that never saw the example?"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.attacks.membership.reference import Reference, beside_reference, reference
from fedsiege.registry import register
from fedsiege.view import Values, View

SMALLEST = 2.0**-24
"""The loss that a loss below it counts as. A float32 probability of almost 1 has steps of 2**-24."""

FLOOR = 1e-12
"""Added to every variance: logits of models that all agree spread by 1e-6."""


@register("lira")
class LiRA(MembershipAttack):
    """A member's confidence lies above what models that never trained on it give it.

    The confidence log(p / (1 - p)) is about normal. The adversary's own federations, which never hold a candidate,
    give the mean and variance of a non-member's; the score is how many standard deviations the model in question
    lies above. The paper's is the normal distribution function of that: the same ranks, but it rounds to 1 from
    8.3 deviations on, and candidates there would tie. The paper's several augmented queries of an example are not
    made.

    Paper: Carlini et al., Membership Inference Attacks From First Principles, S&P 2022, arXiv 2112.03570.
    """

    title = "LiRA"
    needs = frozenset({"loss"})
    single_update = False

    vantage: Literal["client", "server_aggregate_only", "server"] = "client"
    """`server` sets the target's uploaded model beside all shadow uploads; the others set global beside global."""
    shadows: Annotated[int, Field(ge=2)] = 8
    """Shadow federations to train."""
    variance: Literal["global", "candidate"] = "global"
    """`global`: one for all candidates, their mean; `candidate`: its own, of which few shadows tell little."""
    round: int | Literal["last"] = "last"
    """Number of the recorded round to read; `last` is the target's last recorded one."""

    @property
    def shadows_wanted(self) -> int:
        """Shadow federations that it asks its view for."""
        return self.shadows

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """The confidence in standard deviations above a non-member's mean [targets, m]."""
        refer = partial(reference, view, shadows=self.shadows, measure=confidence)
        return beside_reference(self, view, targets, self.round, refer, self._judge)

    def _judge(self, losses: Values, out: Reference) -> Values:
        variance = out.variance if self.variance == "candidate" else out.variance.mean()
        z: Values = (confidence(losses) - out.mean) / np.sqrt(variance + FLOOR)
        return z


def confidence(losses: Values) -> Values:
    """log(p / (1 - p)) of the label's probability p = exp(-loss), exact where p is close to 0 or 1."""
    held = np.maximum(losses, SMALLEST)
    # For large losses 1 - p is 1 and expm1 would overflow.
    logits: Values = -held - np.log(-np.expm1(-held))
    return logits
