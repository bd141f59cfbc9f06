"""RMIA (offline): does the example gain more on other models than the population does?"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy.special import expit

from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.attacks.membership.reference import Reference, beside_reference, reference
from fedsiege.registry import register
from fedsiege.view import Labels, Values, View

TINY = float(np.finfo(np.float64).tiny)
"""The least probability: that of a candidate on which all models fail has a logarithm."""


@register("rmia")
class RMIA(MembershipAttack):
    """A member's probability exceeds its average over models by more than most examples' of the population do.

    The ratio of an example x is p(x | model) / p(x), and p(x) = ((1 + a) p_out(x) + 1 - a) / 2 with p_out the mean
    over models that never trained on it: the adversary's own federations. The score is the share of population
    examples z with ratio(x) / ratio(z) >= gamma.

    A share of n examples has n + 1 values, and a low false-positive rate falls between two. Ties are broken by the
    ratio: the score is (examples counted + s) / (n + 1), with s from 0 to 1 rising with ratio(x). Within one model
    it then ranks as the ratio does, whatever gamma is: gamma and the population make scores of several models
    comparable. Probabilities are the softmax's; the authors' experiments take a Taylor softmax with a margin and
    average over augmented queries, which are not made here.

    Paper: Zarifzadeh et al., Low-Cost High-Power Membership Inference Attacks, ICML 2024, arXiv 2312.03262.
    """

    title = "RMIA"
    needs = frozenset({"loss"})
    single_update = False

    vantage: Literal["client", "server_aggregate_only", "server"] = "client"
    """`server` sets the target's uploaded model beside all shadow uploads; the others set global beside global."""
    shadows: Annotated[int, Field(ge=1)] = 8
    """Shadow federations to train."""
    population: Annotated[int, Field(ge=1)] = 1000
    """Examples of nobody's to compare with; the adversary has them besides the candidates."""
    gamma: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """What a ratio of ratios has to reach; 2 as in the authors' configurations."""
    offline_a: Annotated[float, Field(ge=0, le=1)] = 0.3
    """The a above: 0.33 for CIFAR-10, 0.6 for CIFAR-100 in the authors' configurations; 1 takes p_out itself."""
    round: int | Literal["last"] = "last"
    """Number of the recorded round to read; `last` is the target's last recorded one."""

    @property
    def shadows_wanted(self) -> int:
        """Shadow federations that it asks its view for."""
        return self.shadows

    @property
    def population_wanted(self) -> int:
        """Examples of nobody's that it asks its view for."""
        return self.population

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        """The share of the population that a candidate's ratio exceeds by gamma, ties broken [targets, m]."""
        refer = partial(reference, view, shadows=self.shadows, measure=lambda losses: np.exp(-losses))
        judge = partial(self._judge, view)
        return beside_reference(self, view, targets, self.round, refer, judge)

    def _judge(self, view: View, losses: Values, out: Reference) -> Values:
        population: Labels = view.population()[: self.population]
        average = 0.5 * ((1 + self.offline_a) * out.mean + 1 - self.offline_a)
        ratios: Values = -losses - np.log(np.maximum(average, TINY))
        bars = ratios - np.log(self.gamma)
        counts = [
            np.searchsorted(np.sort(row[population]), bar, side="right")
            for row, bar in zip(ratios, bars, strict=True)
        ]
        scores: Values = (np.array(counts) + expit(ratios)) / (len(population) + 1)
        return scores
