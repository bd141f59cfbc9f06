"""The angular trimmed mean by hand, naively, against its theorem, and where directions alone do not help."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import bench_of, cohort_of, layout_of, normal, rule_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsiege import aggregate
from fedsiege.aggregators.angular_trimmed_mean import (
    AngularTrimmedMean,
    Statistic,
    angles_to_others,
    kept_by_angle,
)
from fedsiege.aggregators.base import Server
from fedsiege.aggregators.geometry import angles, weighted_sum
from fedsiege.errors import InputError

STATISTICS: list[Statistic] = ["mean", "median"]


def pointing(*degrees: float) -> Tensor:
    """Rows of length 1 in the plane."""
    at = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([at.cos(), at.sin()], 1)


FAN = pointing(0, 10, 20, 30, 170)


def naive_angles(rows: Tensor, statistic: Statistic) -> list[float]:
    """The definition, pair by pair; for rows without zeros."""
    exact = rows.double().numpy()
    found = []
    for i, a in enumerate(exact):
        others = [
            math.degrees(math.acos(max(-1.0, min(1.0, a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)))))
            for j, b in enumerate(exact)
            if j != i
        ]
        found.append(float(np.mean(others) if statistic == "mean" else np.median(others)))
    return found


def rotated(d: int, seed: int) -> Tensor:
    """An orthogonal matrix [d, d]."""
    orthogonal: Tensor = torch.linalg.qr(normal(d, d, seed).double())[0]
    return orthogonal


def test_the_rows_at_the_largest_mean_angles_are_dropped() -> None:
    np.testing.assert_allclose(angles_to_others(FAN), [57.5, 50, 47.5, 50, 155], rtol=0, atol=1e-9)
    update, treatment = aggregate("angular_trimmed_mean", FAN)
    assert treatment.kept.tolist() == [0, 1, 1, 1, 0]
    assert treatment.scale.tolist() == [1.0] * 5
    assert treatment.counters == {"rows": 5, "rejected": 2, "trim_lowered": 0, "dropped_nonfinite": 0}
    np.testing.assert_allclose(update, FAN[1:4].mean(0), rtol=1e-14)
    assert math.degrees(math.atan2(float(update[1]), float(update[0]))) == pytest.approx(20)
    update, treatment = aggregate("angular_trimmed_mean", FAN, trim=2)
    assert treatment.kept.tolist() == [0, 0, 1, 0, 0]
    assert treatment.counters["rejected"] == 4
    assert torch.equal(update, FAN[2])


def test_the_median_angle_is_of_the_other_rows_by_hand() -> None:
    """Four others each: 10 20 30 170; 10 10 20 160; 10 10 20 150; 10 20 30 140; 140 150 160 170."""
    np.testing.assert_allclose(angles_to_others(FAN, "median"), [25, 15, 15, 25, 155], rtol=0, atol=1e-9)
    # Three others each: 10 20 30; 10 10 20; 10 10 20; 10 20 30.
    np.testing.assert_allclose(angles_to_others(FAN[:4], "median"), [20, 10, 10, 20], rtol=0, atol=1e-9)
    assert kept_by_angle(FAN, 1, "median").tolist() == [0, 1, 2]
    assert kept_by_angle(FAN, 2, "median").tolist() == [1]


def test_without_anything_to_drop_it_is_the_plain_mean_whatever_the_weights() -> None:
    rows = normal(7, 31)
    update, treatment = aggregate("angular_trimmed_mean", rows, range(1, 8), trim=0)
    assert torch.equal(update, rows.double().mean(0).float())
    assert treatment.kept.tolist() == [1.0] * 7
    assert treatment.counters["rejected"] == 0
    few = kept_by_angle(rows, 2)
    weighted, _ = aggregate("angular_trimmed_mean", rows, range(1, 8), trim=2)
    assert torch.equal(weighted, rows[few].double().mean(0).float())


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(("n", "trim"), [(2, 0), (3, 1), (8, 2), (9, 4), (20, 3)])
def test_it_is_the_naive_one(n: int, trim: int, statistic: Statistic) -> None:
    for seed in range(5):
        rows = (normal(n, 17, seed) + 0.5 * normal(1, 17, seed + 100)) * torch.linspace(0.1, 5, n)[:, None]
        expected = naive_angles(rows, statistic)
        np.testing.assert_allclose(angles_to_others(rows, statistic), expected, rtol=1e-9)
        kept = sorted(np.argsort(expected, kind="stable")[: n - 2 * trim].tolist())
        assert kept_by_angle(rows, trim, statistic).tolist() == kept
        rule = rule_of("angular_trimmed_mean", trim=trim, statistic=statistic)
        update, treatment = rule(cohort_of(rows), Server())
        assert treatment.kept.nonzero()[:, 0].tolist() == kept
        np.testing.assert_allclose(update, rows.double().numpy()[kept].mean(0), rtol=1e-6, atol=1e-9)


def test_angles_are_of_float64_sums_in_degrees() -> None:
    """Rows that are a thousandth of a degree apart: in float32 their cosine is 1."""
    close = pointing(0, 1e-3)
    assert float(angles(close)[0, 1]) == pytest.approx(1e-3, rel=1e-6)
    wide = torch.cat([torch.full((1, 90_000), 1.0), torch.full((1, 90_000), 1.0)])
    wide[1, :45_000] += 1e-4
    (here,) = naive_angles(wide, "mean")[:1]
    assert float(angles_to_others(wide)[0]) == pytest.approx(here, rel=1e-6)
    assert angles(close).diagonal().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_row_of_zeros_lies_at_90_degrees_to_every_other(statistic: Statistic) -> None:
    rows = torch.cat([pointing(0, 10, 20), torch.zeros(2, 2).double()])
    found = angles_to_others(rows, statistic).tolist()
    assert found[3:] == pytest.approx([90, 90])
    if statistic == "mean":
        assert found[:3] == pytest.approx([(10 + 20 + 180) / 4, (10 + 10 + 180) / 4, (10 + 20 + 180) / 4])
    assert kept_by_angle(rows, 1, statistic).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_rows_that_are_not_finite_come_last_and_move_no_other(
    statistic: Statistic, bad: float, dtype: torch.dtype
) -> None:
    rows = normal(7, 5).to(dtype)
    rows[2, 3] = rows[5, 0] = bad
    good = [0, 1, 3, 4, 6]
    found = angles_to_others(rows, statistic)
    assert found[[2, 5]].tolist() == [math.inf] * 2
    assert torch.equal(found[good], angles_to_others(rows[good], statistic))
    assert kept_by_angle(rows, 1, statistic).tolist() == good
    update, treatment = AngularTrimmedMean(statistic=statistic)(cohort_of(rows), Server())
    assert treatment.kept.tolist() == [1, 1, 0, 1, 1, 0, 1]
    np.testing.assert_allclose(update, rows[good].mean(0), rtol=1e-5, atol=1e-7)


def test_one_row_and_the_mean_of_one_row() -> None:
    row = normal(1, 9)
    assert angles_to_others(row).tolist() == [0.0]
    update, treatment = aggregate("angular_trimmed_mean", row)
    assert torch.equal(update, row[0])
    assert treatment.counters["trim_lowered"] == 1
    assert torch.equal(weighted_sum(normal(4, 9), torch.tensor([0, 0, 1, 0])), normal(4, 9)[2])


@pytest.mark.parametrize("statistic", STATISTICS)
@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 10), seed=st.integers(0, 10_000), shuffle=st.randoms(use_true_random=False))
def test_lengths_order_and_the_axes_decide_nothing_about_who_stays(
    statistic: Statistic, n: int, seed: int, shuffle: random.Random
) -> None:
    rows, trim = normal(n, 6, seed).double(), shuffle.randint(0, (n - 1) // 2)
    kept = kept_by_angle(rows, trim, statistic).tolist()
    assert len(kept) == n - 2 * trim
    lengths = torch.tensor([10 ** shuffle.uniform(-12, 12) for _ in range(n)])
    assert kept_by_angle(rows * lengths[:, None].double(), trim, statistic).tolist() == kept
    turned = rows @ rotated(6, seed)
    assert kept_by_angle(turned, trim, statistic).tolist() == kept
    rule = AngularTrimmedMean(trim=trim, statistic=statistic)
    update, _ = rule(cohort_of(rows), Server())
    torch.testing.assert_close(rule(cohort_of(turned), Server())[0], update @ rotated(6, seed))
    order = list(range(n))
    shuffle.shuffle(order)
    moved = kept_by_angle(rows[order], trim, statistic, clients=order).tolist()
    assert sorted(order[row] for row in moved) == kept


def test_lengths_do_decide_how_far_the_result_goes() -> None:
    update, _ = aggregate("angular_trimmed_mean", FAN)
    longer, _ = aggregate("angular_trimmed_mean", FAN * 3)
    np.testing.assert_allclose(longer, 3 * update, rtol=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_of_equal_angles_the_lowest_client_numbers_stay_in_whatever_row(statistic: Statistic) -> None:
    # A regular pentagon: every row has the same angles to the others, up to rounding.
    rows = pointing(0, 72, 144, 216, 288)
    for clients in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (12, 5, 9, 7, 30)):
        kept = kept_by_angle(rows, 1, statistic, clients).tolist()
        assert sorted(clients[row] for row in kept) == sorted(clients)[:3]
        _, treatment = AngularTrimmedMean(statistic=statistic)(cohort_of(rows, clients=clients), Server())
        assert treatment.kept.nonzero()[:, 0].tolist() == kept
    assert kept_by_angle(rows, 1, statistic).tolist() == [0, 1, 2]


def test_angles_count_as_equal_when_they_differ_by_no_more_than_rounding_may() -> None:
    """Axes, of which two lean towards each other, or apart, by a millionth or a thousandth of a degree."""
    for one, other, lean, kept in (
        (3, 4, 1e-6, [0, 1, 2]),
        (3, 4, 1e-3, [0, 3, 4]),
        (0, 1, -1e-6, [0, 1, 2]),
        (0, 1, -1e-3, [2, 3, 4]),
    ):
        rows = torch.eye(5, dtype=torch.float64)
        rows[one, other] = math.tan(math.radians(lean))
        assert kept_by_angle(rows, 1).tolist() == kept


@pytest.mark.parametrize(("n", "b"), [(10, 1), (10, 2), (15, 3)])
@pytest.mark.parametrize("how", ["against", "across", "nowhere", "copies across"])
def test_the_result_is_as_near_the_true_mean_as_the_theorem_says(n: int, b: int, how: str) -> None:
    """Outliers no longer than the true mean: they drag the plain mean further than the bound."""
    d, trials, errors, plain = 30, 200, 0.0, 0.0
    true = torch.zeros(d, dtype=torch.float64)
    true[0] = 10.0
    for trial in range(trials):
        rows = true + normal(n, d, 1000 * n + trial).double() / math.sqrt(d)
        across = normal(b, d, 77 + trial).double() * (torch.arange(d) > 0)
        across = 10 * across / across.norm(dim=1, keepdim=True)
        rows[:b] = {
            "against": -rows[:b],
            "across": across,
            "nowhere": torch.zeros(b, d).double(),
            "copies across": across[:1].expand(b, d),
        }[how]
        found, _ = AngularTrimmedMean(trim=b)(cohort_of(rows), Server())
        errors += float((found - true).square().sum()) / trials
        plain += float((rows.mean(0) - true).square().sum()) / trials
    # sigma^2 = 1, m = b.
    bound = 2 * (n - b) * (b + 1) / (n - 2 * b) ** 2
    assert errors < bound
    assert plain > bound


def colluding(m: int, n: int = 10) -> Tensor:
    """m copies of a row at 80 degrees to each of n - m others, which are 70 degrees apart."""
    along = math.sqrt(math.cos(math.radians(70)))
    towards = math.cos(math.radians(80)) / along
    rows = torch.zeros(n, n + 2, dtype=torch.float64)
    rows[:m, 0], rows[:m, 1] = towards, math.sqrt(1 - towards**2)
    rows[m:, 0] = along
    rows[m:, 2:][:, : n - m] = math.sqrt(1 - along**2) * torch.eye(n - m, dtype=torch.float64)
    return rows


def test_two_copies_of_a_row_survive_by_their_mean_angle_and_not_by_their_median() -> None:
    alone, pair = colluding(1), colluding(2)
    assert float(angles_to_others(alone)[0]) == pytest.approx(80)
    assert kept_by_angle(alone, 1).tolist() == list(range(1, 9)), "alone it is the first to go"
    assert angles_to_others(pair)[:2].tolist() == pytest.approx([(8 * 80) / 9] * 2)
    assert angles_to_others(pair)[2:].tolist() == pytest.approx([(7 * 70 + 2 * 80) / 9] * 8)
    for trim in (1, 2, 3, 4):
        assert {0, 1} & set(kept_by_angle(pair, trim).tolist()) == {0, 1}
        assert not {0, 1} & set(kept_by_angle(pair, trim, "median").tolist())


def test_the_median_sees_through_copies_as_long_as_they_are_fewer_than_half() -> None:
    for n in (5, 6, 9, 10):
        for m in range(1, (n - 1) // 2 + 1):
            found = angles_to_others(colluding(m, n), "median")
            assert found[:m].tolist() == pytest.approx([80] * m)
            assert float(found[m:].max()) < 80
    assert float(angles_to_others(colluding(6, 10), "median")[0]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_attacker_that_points_where_the_others_do_takes_the_result_anywhere(statistic: Statistic) -> None:
    rows = normal(9, 20) + 1
    rows[4] = 1e9 * rows[torch.arange(9) != 4].mean(0)
    update, treatment = aggregate("angular_trimmed_mean", rows, trim=3, statistic=statistic)
    assert treatment.kept[4] == 1
    assert float(update.norm()) > 1e8
    assert AngularTrimmedMean().withstands(9) == 0


@pytest.mark.parametrize("statistic", STATISTICS)
def test_angles_of_trained_parameters_leave_buffers_out(statistic: Statistic) -> None:
    rows = torch.cat([FAN, torch.tensor([[9.0, 0], [0, 9], [0, -9], [-9, 0], [0, 0]]).double()], 1)
    server = Server(layout=layout_of(2, 2))
    kept = {
        scope: AngularTrimmedMean(scope=scope, statistic=statistic)(cohort_of(rows), server)
        for scope in ("all", "trained")
    }
    assert (
        kept["trained"][1].kept.tolist()
        == AngularTrimmedMean(statistic=statistic)(cohort_of(FAN), Server())[1].kept.tolist()
    )
    assert not torch.equal(kept["all"][1].kept, kept["trained"][1].kept)
    for update, treatment in kept.values():
        torch.testing.assert_close(update, rows[treatment.kept.bool()].mean(0))


def test_where_fewer_rows_arrive_it_drops_as_many_as_it_can_and_counts_that() -> None:
    update, treatment = aggregate("angular_trimmed_mean", FAN, trim=3)
    assert torch.equal(update, FAN[2])
    assert treatment.counters == {"rows": 5, "rejected": 4, "trim_lowered": 1, "dropped_nonfinite": 0}
    for n, rejected in ((1, 0), (2, 0), (3, 2), (4, 2)):
        counters = aggregate("angular_trimmed_mean", FAN[:n], trim=3)[1].counters
        assert (counters["rejected"], counters["trim_lowered"]) == (rejected, 1)


def test_dropping_all_is_refused_before_the_run_naming_the_field() -> None:
    AngularTrimmedMean(trim=3).check(bench_of(7))
    with pytest.raises(
        InputError, match=r"^trim: got 3; angular_trimmed_mean drops twice as many.*and 6 clients .* 2 at most"
    ):
        AngularTrimmedMean(trim=3).check(bench_of(6))
    AngularTrimmedMean(trim=0).check(bench_of(1))
    with pytest.raises(InputError, match=r"1 clients .* expected 0 at most"):
        AngularTrimmedMean(trim=1).check(bench_of(1))
    for trim in (3, -1):
        with pytest.raises(InputError, match=rf"trim: got {trim} for 5 rows; expected 0 to 2"):
            kept_by_angle(FAN, trim)


@pytest.mark.parametrize(
    ("field", "value"), [("trim", -1), ("trim", 1.5), ("statistic", "mode"), ("scope", "none")]
)
def test_bad_fields_of_the_angular_trimmed_mean_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"test\.{field}: got {value!r}"):
        rule_of("angular_trimmed_mean", **{field: value})
