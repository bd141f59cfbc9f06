"""What differential privacy takes: epsilons of composed Gaussian mechanisms, and models that it can hold for."""

import math
import warnings
from collections.abc import Collection
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from torch import nn

from fedsiege.errors import InputError
from fedsiege.task import Task

Accountant = Literal["rdp", "prv"]

ORDERS = [
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 1024),
]
"""Orders of Renyi divergence that are looked at: Opacus' own, and more for very much and very little noise."""

LARGEST = 100.0
"""Epsilon above which losses are not convolved: the grid would not fit in memory, and nothing is protected."""

Step = tuple[float, int]
"""A sampling rate, and how many steps were taken at it."""


def gaussian_epsilon(multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of `releases` Gaussian mechanisms of this noise multiplier (noise over sensitivity), exactly.

    Together they are one Gaussian mechanism of multiplier / sqrt(releases) (Dong, Roth and Su, 2019), whose delta
    for an epsilon is known in closed form (Balle and Wang, 2018). Infinite without noise.
    """
    if releases == 0:
        return 0.0
    if multiplier == 0:
        return math.inf
    mu = math.sqrt(releases) / multiplier

    def excess(epsilon: float) -> float:
        beyond = np.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
        return float(ndtr(mu / 2 - epsilon / mu) - beyond) - delta

    if excess(0.0) <= 0:
        return 0.0
    # Above this the first term alone is below delta (Chernoff).
    most = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(excess, 0.0, most, xtol=1e-12, rtol=1e-12))


def sampled_gaussian_epsilon(
    multiplier: float, steps: Collection[Step], delta: float, accountant: Accountant
) -> tuple[float, Accountant]:
    """Epsilon of Gaussian mechanisms on Poisson samples, by Opacus' accountant, and the accountant that found it.

    `prv` convolves the distributions of the privacy loss, which is tighter; above an epsilon of LARGEST it is
    left to `rdp`. Infinite without noise, and never below zero, where conversions from Renyi divergence can end.
    """
    from opacus.accountants import PRVAccountant, RDPAccountant

    history = [(multiplier, rate, count) for rate, count in steps if count and rate]
    if not history:
        return 0.0, accountant
    if multiplier == 0:
        return math.inf, accountant
    renyi, convolved = RDPAccountant(), PRVAccountant()
    renyi.history = convolved.history = history
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Opacus remarks where more orders might be tighter, and takes log(0) where every example is in every batch.
        warnings.simplefilter("ignore")
        bound = float(renyi.get_epsilon(delta, alphas=ORDERS))
        if accountant == "rdp" or bound > LARGEST:
            return max(0.0, bound), "rdp"
        return max(0.0, float(convolved.get_epsilon(delta))), "prv"


def refuse_batch_statistics(task: Task, name: str) -> None:
    """InputError where a model keeps statistics of its batches: they would leave a client without noise."""
    found = [
        f"{place or 'the model'} ({type(layer).__name__})"
        for place, layer in task.module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
        and (layer.track_running_stats or isinstance(layer, nn.modules.batchnorm._BatchNorm))
    ]
    if found:
        listed = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise InputError(
            f"name: got {name} with a model that has batch statistics in {listed}; differential privacy does not "
            "hold for them: expected a model without, such as one with norm: group"
        )
    buffers = [n for n, kind in zip(task.layout.names, task.layout.kinds, strict=True) if kind == "buffer"]
    if buffers:
        raise InputError(
            f"name: got {name} with a model whose buffers are uploaded ({', '.join(buffers[:3])}); differential "
            "privacy does not hold for them: expected a model without float buffers"
        )
