"""A defended cell beside the undefended one: what is compared, and when a fall is more than luck."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsiege.report.grid.comparison import Comparison, beats_guessing, bounds, compare, demonstrable
from fedsiege.report.grid.findings import headline
from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.schema import Attacked, SweepFile

from .made_sweep import grid, run

SIMULATIONS = 40
USELESS = 36


def sweep(*cells: dict[str, Any], **more: Any) -> FinishedSweep:
    data = grid(*cells, **more)
    return FinishedSweep(Path("made"), data, SweepFile.model_validate(data))


def compared(*cells: dict[str, Any]) -> Comparison | None:
    none, defended = sweep(*cells).points
    return compare(none, defended)


def over_seeds(name: str, tprs: dict[int, float], *defences: str) -> list[dict[str, Any]]:
    return [run(name, seed, 0.5, {"x": tpr}, *defences) for seed, tpr in tprs.items()]


def attacked(value: float, n: int, spent: int, nonmembers: int, next_value: float | None = None) -> Attacked:
    rates: dict[str, Any] = {
        "0.001": {"value": value, "low": None, "high": None, "n": n, "false_positives": spent, "warning": None}
    }
    if next_value is not None:
        rates["0.01"] = {"value": next_value, "low": None, "high": None, "n": n, "warning": None}
    return Attacked.model_validate(
        {"attack": "x", "name": "x", "title": "X", "auc": {"value": 0.5, "low": None, "high": None},
         "n_nonmembers": nonmembers, "n_distinct_nonmembers": nonmembers, "tpr_at_fpr": rates}
    )  # fmt: skip


def drawn(
    rng: np.random.Generator, shift: float, members: int, nonmembers: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """TPRs at 0.1 % and 1 % of normal scores that members have `shift` higher, and of thresholds by chance."""
    few, more = nonmembers // 1000, nonmembers // 100
    first = rng.beta(few + 1, nonmembers - few)  # the true FPR of the threshold that lets `few` pass
    second = first + (1 - first) * rng.beta(more - few, nonmembers - more + 1)
    low, high = (float(stats.norm.sf(stats.norm.isf(fpr) - shift)) for fpr in (first, second))
    found = int(rng.binomial(members, low))
    both = found + int(rng.binomial(members - found, (high - low) / (1 - low)))
    rates = [
        {
            "value": number / members,
            "low": None,
            "high": None,
            "n": members,
            "false_positives": spent,
            "warning": None,
        }
        for number, spent in ((found, few), (both, more))
    ]
    return rates[0], rates[1]


def simulated(
    rng: np.random.Generator, shifts: list[float], seeds: int, members: int, between: float
) -> bool | None:
    """The verdict on cells whose scores differ by these shifts; `between` is how far training runs differ."""
    cells = []
    for place, shift in enumerate(shifts):
        for seed in range(seeds):
            cell = run(f"c{place}", seed, 0.5, {"x": 0.0}, *(["p"] if place else []))
            rates = drawn(rng, shift + between * rng.normal(), members, 10_000)
            cell["attacks"][0]["tpr_at_fpr"] = dict(zip(("0.001", "0.01"), rates, strict=True))
            cells.append(cell)
    return headline(sweep(*cells)).helps


@pytest.mark.parametrize(("seeds", "members", "between"), [(1, 500, 0.0), (1, 5000, 0.1), (3, 200, 0.1)])
def test_many_useless_defences_seldom_pass_for_one_that_helps(seeds: int, members: int, between: float) -> None:
    rng = np.random.default_rng(7)
    helped = [simulated(rng, [2.0] * (1 + USELESS), seeds, members, between) for _ in range(SIMULATIONS // seeds)]
    assert sum(one is True for one in helped) <= 0.1 * len(helped)
    assert any(one is None for one in helped)  # some cell is always measured lower


@pytest.mark.parametrize(("seeds", "members"), [(1, 500), (1, 5000), (3, 5000)])
def test_a_defence_that_works_is_found_among_them(seeds: int, members: int) -> None:
    rng = np.random.default_rng(8)
    shifts = [2.0] * USELESS + [0.3]
    helped = [simulated(rng, shifts, seeds, members, 0.05) for _ in range(10)]
    assert sum(one is True for one in helped) >= 9


def test_the_interval_of_a_run_counts_members_and_threshold() -> None:
    many = attacked(0.2, 1000, 1_000_000, 10**9, 0.2)  # the threshold is known, and the curve is flat
    assert bounds(many, 0.95) == pytest.approx((0.17562, 0.22617), abs=1e-4)  # Clopper-Pearson of 200 in 1,000
    flat = attacked(0.2, 1000, 10, 10_000, 0.2)
    assert bounds(flat, 0.95) == pytest.approx(bounds(many, 0.95))
    # in proportion: the TPR moves with the FPR, whose interval is that of 10 in 10,000
    least, most = stats.beta.ppf(0.025, 10, 9991), stats.beta.ppf(0.975, 11, 9990)
    low, high = bounds(attacked(0.2, 10**9, 10, 10_000), 0.95)
    assert (low, high) == pytest.approx((0.2 * 0.001 / most, 0.2 * 0.001 / least), rel=1e-3)
    assert bounds(attacked(0.0, 1000, 10, 10_000), 0.95)[0] == 0.0
    assert (
        bounds(attacked(0.5, 1000, 0, 500), 0.95)[1] == 1.0
    )  # no false positive: the threshold may be far too high


def test_a_run_that_says_little_of_its_non_members_has_as_few_as_its_warning_says() -> None:
    rate = {"value": 0.2, "low": None, "high": None, "n": 1000}
    about = {"attack": "x", "name": "x", "title": "X", "auc": {"value": 0.5, "low": None, "high": None}}
    silent, warned = (
        Attacked.model_validate({**about, "tpr_at_fpr": {"0.001": {**rate, "warning": warning}}})
        for warning in (None, "too few")
    )
    assert bounds(silent, 0.95) == bounds(attacked(0.2, 1000, 10, 10_000), 0.95)
    assert bounds(warned, 0.95) == bounds(attacked(0.2, 1000, 1, 1000), 0.95)
    nothing = Attacked.model_validate({**about, "tpr_at_fpr": {"0.001": {**rate, "n": None, "warning": None}}})
    assert bounds(nothing, 0.95) == (0.0, 1.0)


def test_only_seeds_of_both_cells_are_compared() -> None:
    found = compared(*over_seeds("none", {0: 0.1, 1: 0.4, 2: 0.4}), *over_seeds("p", {0: 0.2}, "p"))
    assert found is not None
    assert (found.seeds, found.before.tprs, found.after.tprs) == ((0,), (0.1,), (0.2,))
    assert found.fall.value == pytest.approx(-0.1)
    assert found.partly
    assert compared(*over_seeds("none", {0: 0.1}), *over_seeds("p", {1: 0.2}, "p")) is None


def test_only_attacks_of_both_cells_are_compared_and_those_told_of_the_defence() -> None:
    none = run("none", 0, 0.5, {"x": 0.4, "y": 0.6})
    other = run("p", 0, 0.5, {"x": 0.1, "z": 0.3}, "p")
    found = compared(none, other)
    assert found is not None
    assert (found.before.attack, found.after.attack, found.absent) == ("x", "x", "y")
    assert not demonstrable(found, 1)
    other["attacks"][1]["adapted"] = True
    found = compared(none, other)
    assert found is not None
    assert found.after.attack == "z"
    assert compared(none, run("p", 0, 0.5, {"z": 0.1}, "p")) is None


def test_seeds_that_agree_by_chance_prove_nothing() -> None:
    none, defended = over_seeds("none", {0: 0.015, 1: 0.02}), over_seeds("p", {0: 0.01, 1: 0.015}, "p")
    for one in (*none, *defended):
        one["attacks"][0]["tpr_at_fpr"]["0.001"]["n"] = 200
    found = compared(*none, *defended)
    assert found is not None
    # both falls are 0.005, one member of 200, and the runs reach from half to twice their TPRs: on average
    # hypot(0.0075, 0.01) and hypot(0.01, 0.015) below, hypot(0.015, 0.005) and hypot(0.02, 0.0075) above
    assert found.fall.value == pytest.approx(0.005)
    below, above = (0.0125 + 0.0180278) / 2, (0.0158114 + 0.0213600) / 2
    assert found.fall.low == pytest.approx(0.005 - below / 2**0.5, abs=1e-6)
    assert found.fall.high == pytest.approx(0.005 + above / 2**0.5, abs=1e-6)
    assert not demonstrable(found, 1)


def test_more_cells_to_pick_from_ask_for_a_larger_fall() -> None:
    none, defended = over_seeds("none", {0: 0.6, 1: 0.61, 2: 0.6}), over_seeds("p", {0: 0.5, 1: 0.5, 2: 0.51}, "p")
    found = compared(*none, *defended)
    assert found is not None
    assert demonstrable(found, 1)
    assert not demonstrable(found, 1000)


def test_guessing_is_beaten_by_all_seeds_and_not_by_the_luckiest() -> None:
    lucky = over_seeds("none", {0: 0.02, 1: 0.001, 2: 0.001})
    assert not beats_guessing(sweep(*lucky).points[0])
    assert beats_guessing(sweep(*over_seeds("none", {0: 0.02, 1: 0.03, 2: 0.02})).points[0])
    assert beats_guessing(sweep(*over_seeds("none", {0: 0.02})).points[0])
    assert not beats_guessing(sweep(run("none", 0, 0.5, {})).points[0])
