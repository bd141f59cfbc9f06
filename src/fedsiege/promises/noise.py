"""The promise that every entry of an update carries normal noise."""

import math

import numpy as np
from scipy.special import erf
from scipy.stats import chi2

from fedsiege.promises.base import Arrived, Finding, Floats, Promise, norm

LIKE = 0.1
"""Largest distance between the distributions of the entries' sizes and of normal ones that is taken for noise."""


LOUD = 1.5
"""Largest root mean square of the entries, in standard deviations of the noise, that is taken for noise."""


class Noise(Promise):
    """Every entry carries normal noise of a standard deviation s, whatever else it is.

    Whatever the update u is, |u_i + z_i| is stochastically larger than |z_i|. So the sum of squares over s^2 is
    stochastically larger than a chi-squared variable of d degrees, and the share of entries of up to any size is
    above that of normal ones by more than D with a chance of at most exp(-2 d D^2) (Massart 1990). p is twice the
    smaller of both. The second finds missing noise under a few long entries, which most updates have.
    """

    by_chance = True

    def __init__(self, sigma: float, whole: bool, cohort: int = 1) -> None:
        """Of `sigma` together in `cohort` uploads, so that each has its share."""
        self.sigma, self.whole = sigma / math.sqrt(cohort), whole
        self.words = f"noise of {self.sigma:.4g} on each entry"
        if cohort > 1:
            self.words += f" ({sigma:.4g} over the root of {cohort} clients)"

    def found(self, arrived: Arrived, level: float) -> Finding:
        """The root mean square of its entries, and whether they look like the noise and little else."""
        entries, slack = arrived.part(self.whole)
        sigma, d = self.sigma, len(entries)
        sizes = np.sort(np.abs(entries) + slack)
        # Not `**`, which raises where a number is too large to be one.
        squares = norm(sizes) / sigma * (norm(sizes) / sigma)
        crowd = crowding(sizes, sigma)
        p = min(1.0, 2 * min(float(chi2.cdf(squares, d)), math.exp(-2 * d * crowd * crowd)))
        rms = norm(entries) / math.sqrt(d)
        threshold = sigma * math.sqrt(float(chi2.ppf(level / 2, d)) / d)
        if p < level:
            said = f"entries of {rms:.3g} root mean square, {crowd:.0%} too many of them small"
            return Finding(True, True, rms, threshold, -math.log(max(p, 1e-300)), p, said)
        alike = apart(sizes, rms) <= LIKE + 1 / math.sqrt(d)
        telling = alike and rms <= LOUD * sigma
        said = f"entries of {rms:.3g} root mean square"
        said += ", distributed as the noise is" if telling else ", which training alone can make as well"
        return Finding(False, telling, rms, threshold, -math.log(max(p, 1e-300)), p, said)


def half_normal(sizes: Floats, sigma: float) -> Floats:
    """P(|z| <= size) of normal z with this standard deviation [d]."""
    with np.errstate(over="ignore"):
        return np.asarray(erf(sizes / (sigma * math.sqrt(2))), dtype=np.float64)


def crowding(sizes: Floats, sigma: float) -> float:
    """By how much more of the sizes [d], sorted, than of normal entries lie below some size, at most; 0 or more."""
    share = np.arange(1, len(sizes) + 1) / len(sizes)
    return max(0.0, float((share - half_normal(sizes, sigma)).max()))


def apart(sizes: Floats, sigma: float) -> float:
    """Kolmogorov distance of sizes [d], sorted, from those of normal entries; 1 where all are zero."""
    if sigma <= 0:
        return 1.0
    n, expected = len(sizes), half_normal(sizes, sigma)
    above = (np.arange(1, n + 1) / n - expected).max()
    below = (expected - np.arange(n) / n).max()
    return float(max(above, below))
