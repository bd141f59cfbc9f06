"""The coordinate-wise trimmed mean."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedsiege.aggregators.base import Aggregator, Bench, Server, Treatment, check_f
from fedsiege.aggregators.choice import minority
from fedsiege.aggregators.order import trimmed
from fedsiege.records import Cohort, Counters
from fedsiege.registry import register


@register("trimmed_mean")
class TrimmedMean(Aggregator):
    """The mean of each coordinate without its f largest and its f smallest values.

    Needs n > 2 f. Clients count alike, whatever their numbers of examples. The paper drops a fraction beta of the
    values at each end: f = beta n.

    Paper: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018
    """

    f: Annotated[int, Field(ge=0)] = 1
    """How many clients it withstands: so many values are dropped at each end. 0 gives the mean."""

    def __call__(self, cohort: Cohort, server: Server) -> tuple[Tensor, Treatment]:  # noqa: ARG002
        """The trimmed mean [d]; a row is kept as far as its values are not dropped."""
        n, d = cohort.updates.shape
        f = self.withstands(n)
        mean, used = trimmed(cohort.updates, f)
        counters: Counters = {"rows": n, "trimmed": 2 * f * d, "f_lowered": int(f < self.f)}
        return mean, Treatment(used, used.new_ones(n), counters)

    def withstands(self, n: int) -> int:
        """As many as it drops at each end: f, or as many as n rows allow."""
        return min(self.f, minority(n))

    def check(self, bench: Bench) -> None:
        """n > 2 f."""
        check_f("trimmed_mean", self.f, minority(bench.cohort), bench.cohort, "n > 2 f")
