"""The promise that an update is no longer than it was clipped to."""

import math

from fedsiege.defences.client.base import ClientDefence
from fedsiege.promises.base import Arrived, Finding, Promise, norm, shrinks

CLIPPED = 1e-4
"""By what share a clipped update may be longer than its bound: norms are counted in single precision."""


class Length(Promise):
    """The update is no longer than `clip`, but for its noise of standard deviation `sigma`.

    Without noise that is a bound. With noise z of deviation s on d entries, the squared length of u + z over s^2 is
    a non-central chi-squared variable, the larger the longer u is; with L = clip^2,
    P(|u + z|^2 >= s^2 d + L + 2 sqrt((s^4 d + 2 s^2 L) t) + 2 s^2 t) <= exp(-t) (Birge 2001), which gives the p.
    """

    def __init__(self, clip: float, sigma: float, whole: bool) -> None:
        self.clip, self.sigma, self.whole = clip, sigma, whole
        self.by_chance = sigma > 0
        self.words = f"length at most {clip:g}" + (" before its noise" if self.by_chance else "")

    def found(self, arrived: Arrived, level: float) -> Finding:
        """Its length, less what rounding can have added."""
        entries, slack = arrived.part(self.whole)
        length, clip = norm(entries), self.clip * (1 + CLIPPED)
        least = max(0.0, length - norm(slack))
        if not self.by_chance:
            allowed = clip + norm(slack)
            said = f"length {length:.4g}, at most {allowed:.4g} is promised"
            return Finding(length > allowed, True, length, allowed, length / allowed, None, said)
        sigma, d = self.sigma, len(entries)
        p = math.exp(-excess(least, clip, sigma, d))
        threshold = longest(clip, sigma, d, level)
        # Would an update of twice the length, with the noise, have been noticed?
        telling = math.hypot(2 * clip, sigma * math.sqrt(d)) > threshold
        said = f"length {length:.4g}, where clipping to {self.clip:g} and noise make at most {threshold:.4g}"
        if not telling:
            said = f"its noise would hide an update of twice the length ({said})"
        return Finding(p < level, telling, length, threshold, -math.log(max(p, 1e-300)), p, said)

    def survives(self, later: ClientDefence) -> bool:
        """After what only makes updates shorter."""
        return shrinks(later)


def excess(length: float, clip: float, sigma: float, d: int) -> float:
    """The t at which the bound on the length of a clipped update with noise is `length`; 0 where it is shorter."""
    beyond = length * length - sigma * sigma * d - clip * clip
    if beyond <= 0:
        return 0.0
    middle = 2 * sigma * math.sqrt(sigma * sigma * d + 2 * clip * clip)
    below = middle + math.sqrt(middle * middle + 8 * sigma * sigma * beyond)
    root = 2 * beyond / below if below > 0 else math.inf
    return root * root


def longest(clip: float, sigma: float, d: int, level: float) -> float:
    """The length that a clipped update with noise passes with a chance of at most `level`."""
    t, square, noise = math.log(1 / level), clip * clip, sigma * sigma
    return math.sqrt(noise * d + square + 2 * sigma * math.sqrt((noise * d + 2 * square) * t) + 2 * noise * t)
