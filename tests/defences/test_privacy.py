"""Epsilons against numerical integration, hand formulas and other accountants."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from opacus.accountants import RDPAccountant
from scipy import integrate
from scipy.stats import norm
from torch import nn

from fedsiege.defences.privacy import (
    LARGEST,
    ORDERS,
    Accountant,
    gaussian_epsilon,
    refuse_batch_statistics,
    sampled_gaussian_epsilon,
)
from fedsiege.errors import InputError
from fedsiege.task import Task

DELTA = 1e-5


def delta_of(epsilon: float, p: Callable[[float], float], q: Callable[[float], float], around: float) -> float:
    """The largest excess of P's probability over e^epsilon times Q's, by quadrature."""
    found, _ = integrate.quad(
        lambda t: max(0.0, p(t) - math.exp(epsilon) * q(t)), -around, around, limit=2000, epsabs=1e-12
    )
    return float(found)


@pytest.mark.parametrize(("multiplier", "releases"), [(0.5, 1), (1.0, 1), (1.0, 4), (4.0, 30), (10.0, 1)])
def test_gaussian_epsilon_gives_back_delta(multiplier: float, releases: int) -> None:
    epsilon = gaussian_epsilon(multiplier, releases, DELTA)
    mu = math.sqrt(releases) / multiplier
    found = delta_of(epsilon, norm(mu, 1).pdf, norm(0, 1).pdf, 12 + mu)
    assert found == pytest.approx(DELTA, rel=1e-3)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_epsilon_is_never_negative(accountant: Accountant) -> None:
    epsilon, _ = sampled_gaussian_epsilon(1000.0, [(0.01, 10)], 0.1, accountant)
    assert epsilon == 0


def test_gaussian_epsilon_of_the_textbook() -> None:
    # Balle and Wang's analytic Gaussian mechanism at sigma 1; the classical bound would say 4.8.
    assert gaussian_epsilon(1.0, 1, 1e-5) == pytest.approx(4.3772, abs=1e-4)
    assert gaussian_epsilon(2.0, 4, 1e-5) == gaussian_epsilon(1.0, 1, 1e-5)


def test_gaussian_epsilon_at_its_ends() -> None:
    assert gaussian_epsilon(1.0, 0, DELTA) == 0
    assert gaussian_epsilon(0.0, 3, DELTA) == math.inf
    assert gaussian_epsilon(1e7, 1, DELTA) == 0
    weak = gaussian_epsilon(0.01, 300, DELTA)
    mu = math.sqrt(300) / 0.01
    assert mu**2 / 2 < weak < mu**2 / 2 + 5 * mu


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 5.0])
def test_gaussian_epsilon_is_below_the_other_accountants_and_close(multiplier: float) -> None:
    exact = gaussian_epsilon(multiplier, 10, DELTA)
    renyi, _ = sampled_gaussian_epsilon(multiplier, [(1.0, 10)], DELTA, "rdp")
    assert exact < renyi < 1.12 * exact
    if renyi < LARGEST:
        convolved, _ = sampled_gaussian_epsilon(multiplier, [(1.0, 10)], DELTA, "prv")
        assert exact < convolved < exact + 0.03


def test_renyi_epsilon_by_hand_when_every_example_is_in_every_step() -> None:
    multiplier, steps = 2.0, 7
    expected = min(
        steps * order / (2 * multiplier**2)
        + math.log((order - 1) / order)
        - (math.log(DELTA) + math.log(order)) / (order - 1)
        for order in ORDERS
    )
    found, accountant = sampled_gaussian_epsilon(multiplier, [(1.0, steps)], DELTA, "rdp")
    assert found == pytest.approx(expected, rel=1e-12)
    assert accountant == "rdp"


@pytest.mark.parametrize(("multiplier", "rate"), [(0.7, 0.1), (1.0, 0.5), (2.0, 0.02)])
def test_one_poisson_step_against_quadrature(multiplier: float, rate: float) -> None:
    without, there = norm(0, multiplier).pdf, norm(1, multiplier).pdf

    def mixed(t: float) -> float:
        return float((1 - rate) * without(t) + rate * there(t))

    convolved, _ = sampled_gaussian_epsilon(multiplier, [(rate, 1)], DELTA, "prv")
    renyi, _ = sampled_gaussian_epsilon(multiplier, [(rate, 1)], DELTA, "rdp")
    assert convolved < renyi
    around = 12 * multiplier
    for bound in (convolved, renyi):  # one example added, and one removed
        assert delta_of(bound, mixed, without, around) <= DELTA
        assert delta_of(bound, without, mixed, around) <= DELTA
    assert delta_of(convolved - 0.03, mixed, without, around) > DELTA


def test_steps_at_several_rates_add_up() -> None:
    parts = [[(0.1, 20)], [(0.3, 5)]]
    for accountant in ("rdp", "prv"):
        together, _ = sampled_gaussian_epsilon(1.5, [(0.1, 20), (0.3, 5)], DELTA, accountant)
        alone = [sampled_gaussian_epsilon(1.5, part, DELTA, accountant)[0] for part in parts]
        assert max(alone) < together < sum(alone)


@pytest.mark.parametrize("multiplier", [0.05, 0.2, 0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize(("rate", "steps"), [(0.02, 15000), (0.2, 500), (1.0, 300)])
def test_more_orders_are_never_looser_than_opacus_own(multiplier: float, rate: float, steps: int) -> None:
    found, _ = sampled_gaussian_epsilon(multiplier, [(rate, steps)], DELTA, "rdp")
    opacus = RDPAccountant()
    opacus.history = [(multiplier, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = opacus.get_epsilon(DELTA)
    assert 0 < found <= theirs * (1 + 1e-12)


def test_orders_close_to_one_serve_very_little_noise() -> None:
    found, _ = sampled_gaussian_epsilon(0.05, [(1.0, 300)], DELTA, "rdp")
    assert found < 1.01 * gaussian_epsilon(0.05, 300, DELTA)


def test_where_nothing_is_protected_the_cheap_accountant_answers_and_says_so() -> None:
    found, accountant = sampled_gaussian_epsilon(0.1, [(0.1, 1000)], DELTA, "prv")
    assert accountant == "rdp"
    assert found == sampled_gaussian_epsilon(0.1, [(0.1, 1000)], DELTA, "rdp")[0] > LARGEST


def test_without_steps_or_without_noise() -> None:
    assert sampled_gaussian_epsilon(1.0, [], DELTA, "prv") == (0.0, "prv")
    assert sampled_gaussian_epsilon(1.0, [(0.5, 0)], DELTA, "rdp") == (0.0, "rdp")
    assert sampled_gaussian_epsilon(0.0, [(0.5, 1)], DELTA, "rdp") == (math.inf, "rdp")


class Positioned(nn.Module):
    """A model with constants that travel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.register_buffer("places", torch.arange(3.0))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), r"statistics in 1 \(BatchNorm1d\);"),
        (
            nn.Sequential(nn.Linear(3, 4), *[nn.BatchNorm1d(4) for _ in range(5)]),
            r"1 \(BatchNorm1d\), 2 \(BatchNorm1d\), 3 \(BatchNorm1d\) and 2 more;.*norm: group",
        ),
        (Positioned(), r"buffers are uploaded \(places\)"),
    ],
)
def test_models_whose_statistics_leave_a_client_are_refused(module: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=rf"^name: got dp_fedavg with a model .*{words}"):
        refuse_batch_statistics(Task(module), "dp_fedavg")


def test_models_without_statistics_are_taken() -> None:
    plain = [nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm1d(4), nn.Linear(4, 2)]
    refuse_batch_statistics(Task(nn.Sequential(*plain)), "dp_fedavg")
