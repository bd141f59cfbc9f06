"""The scapegoats and alpha from products alone, against loops over the vectors, grids and brute force."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsiege.attacks.poisoning.scapegoat import Gram, exact_alpha, farthest, greedy, mixture, widest
from fedsiege.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Vectors:
    """An attack's step [d], steps to hide behind [M, d] and honest updates [n, d]."""

    attack: Array
    steps: Array
    references: Array

    @property
    def gram(self) -> Gram:
        return Gram.of(*(torch.from_numpy(rows) for rows in (self.attack, self.steps, self.references)))

    @property
    def bound(self) -> float:
        return max(angle(one, other) for one, other in combinations(self.references, 2))

    def largest(self, row: Array) -> float:
        return max(angle(row, reference) for reference in self.references)

    def sent(self, alpha: float, chosen: tuple[int, ...]) -> Array:
        made: Array = alpha * self.attack + sum(self.steps[j] for j in chosen) / len(chosen)
        return made


def angle(one: Array, other: Array) -> float:
    lengths = np.sqrt((one**2).sum()) * np.sqrt((other**2).sum())
    if lengths == 0:
        return 90.0
    return float(np.degrees(np.arccos(np.clip((one * other).sum() / lengths, -1, 1))))


def vectors(seed: int, m: int = 12, n: int = 4, d: int = 30, pull: float = 1.0, spread: float = 1.0) -> Vectors:
    """Honest updates around a direction; the attack against it by `pull`, own steps along it, more or less."""
    rng = np.random.default_rng(seed)
    way = rng.normal(size=d)
    return Vectors(
        attack=rng.normal(size=d) - pull * way,
        steps=rng.uniform(0, 3, size=(m, 1)) * way + 2 * rng.normal(size=(m, d)),
        references=way + spread * rng.normal(size=(n, d)),
    )


def flat(*degrees: float) -> Array:
    """Unit vectors of a plane."""
    turned = np.radians(degrees)
    found: Array = np.stack([np.cos(turned), np.sin(turned)], axis=1)
    # cos(90 degrees) is not quite zero in binary.
    found[np.abs(found) < 1e-15] = 0.0
    return found


def chosen_naively(
    v: Vectors, count: int, prefer: str, feasible_first: bool
) -> tuple[tuple[int, ...], list[float]]:
    """The pseudo-code, word by word."""
    chosen: list[int] = []
    angles = []
    for _ in range(count):
        rows = {j: v.sent(1.0, (*chosen, j)) for j in range(len(v.steps)) if j not in chosen}
        far = {j: v.largest(row) for j, row in rows.items()}
        fits = [j for j in rows if far[j] <= v.bound]
        if not fits and not feasible_first:
            break
        if not fits:
            best = min(rows, key=lambda j: (far[j], j))
        elif prefer == "angle":
            best = max(fits, key=lambda j: (far[j], -j))
        else:
            best = max(fits, key=lambda j: (float((rows[j] ** 2).sum()), -j))
        chosen.append(best)
        angles.append(far[best])
    return tuple(chosen), angles


CASES = [
    (seed, pull, spread, prefer, feasible_first)
    for seed in range(5)
    for pull, spread in ((0.2, 1.0), (1.0, 0.7), (3.0, 0.5))
    for prefer in ("angle", "norm")
    for feasible_first in (True, False)
]


@pytest.mark.parametrize(("seed", "pull", "spread", "prefer", "feasible_first"), CASES)
def test_it_chooses_what_the_pseudo_code_chooses_and_tells_the_angles(
    seed: int, pull: float, spread: float, prefer: str, feasible_first: bool
) -> None:
    v = vectors(seed, pull=pull, spread=spread)
    found = greedy(v.gram, 3, prefer, feasible_first)  # type: ignore[arg-type]
    chosen, angles = chosen_naively(v, 3, prefer, feasible_first)
    assert found.chosen == chosen
    assert found.angles == pytest.approx(angles, abs=1e-6)
    for k, told in enumerate(found.angles, start=1):
        assert told == pytest.approx(v.largest(v.sent(1.0, found.chosen[:k])), abs=1e-6)


def test_those_cases_have_all_kinds_of_choices() -> None:
    lengths: set[int] = set()
    kinds: set[object] = set()
    for seed, pull, spread, prefer, feasible_first in CASES:
        v = vectors(seed, pull=pull, spread=spread)
        chosen, angles = chosen_naively(v, 3, prefer, feasible_first)
        lengths.add(len(chosen))
        kinds |= {told <= v.bound for told in angles}
        kinds |= {"differs"} if chosen != chosen_naively(v, 3, "angle", feasible_first)[0] else set()
    assert {0, 3} <= lengths
    assert kinds == {True, False, "differs"}


@pytest.mark.parametrize("seed", range(6))
def test_greedy_choice_is_never_better_than_all_subsets(seed: int) -> None:
    v = vectors(seed, m=9, pull=0.5)
    found = greedy(v.gram, 3)
    fits = [s for s in combinations(range(9), 3) if v.largest(v.sent(1.0, s)) <= v.bound]
    if found.angles[-1] <= v.bound:
        best = max(v.largest(v.sent(1.0, some)) for some in fits)
        assert found.angles[-1] <= best + 1e-6
        assert tuple(sorted(found.chosen)) in fits


def test_as_many_are_chosen_as_asked_for_each_once_and_no_more_than_there_are() -> None:
    v = vectors(0)
    assert len(greedy(v.gram, 5).chosen) == 5
    every = greedy(v.gram, 99).chosen
    assert sorted(every) == list(range(12))


def test_of_equal_examples_the_first_is_taken() -> None:
    v = vectors(1)
    same = Vectors(v.attack, np.repeat(v.steps[:1], 4, axis=0), v.references)
    gram = same.gram
    # Products of equal rows may differ in their last digits; the choice must not hang on these here.
    exact = Gram(
        gram.attack2,
        np.full(4, gram.attack_steps[0]),
        np.full((4, 4), gram.steps[0, 0]),
        gram.attack_rays,
        np.repeat(gram.steps_rays[:1], 4, axis=0),
        gram.bound,
    )
    assert greedy(exact, 3).chosen == (0, 1, 2)
    assert greedy(exact, 3, "norm").chosen == (0, 1, 2)


def test_what_is_not_a_number_is_taken_last() -> None:
    for pull in (0.2, 30.0):
        v = vectors(2, pull=pull)
        steps = v.steps.copy()
        steps[[0, 5]] = np.nan
        found = greedy(Vectors(v.attack, steps, v.references).gram, 10)
        assert set(found.chosen) == set(range(12)) - {0, 5}
        assert (found.angles[0] <= v.bound) == (pull < 1), "one of the cases is of examples that do not fit"


def test_a_right_angle_is_what_zeros_have() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert widest(rows) == pytest.approx(90)
    assert widest(rows[1:]) == pytest.approx(45)
    assert widest(torch.zeros(2, 3)) == pytest.approx(90)
    assert farthest(torch.zeros(2), rows[1:]) == pytest.approx(90)
    assert farthest(rows[1], rows[:1]) == pytest.approx(90)
    assert farthest(rows[1], rows[2:]) == pytest.approx(45)
    assert farthest(-rows[1], rows[1:2]) == pytest.approx(180)


def test_the_bound_takes_two_updates() -> None:
    with pytest.raises(InputError, match=r"references: got 1 update.*expected 2 or more"):
        widest(torch.ones(1, 4))
    with pytest.raises(InputError, match="references: got 0 update"):
        Gram.of(torch.ones(4), torch.ones(3, 4), torch.ones(0, 4))


@pytest.mark.parametrize("d", [30, 5000])
def test_products_are_those_of_the_vectors_however_many_coordinates_there_are(d: int) -> None:
    v = vectors(3, d=d)
    gram = v.gram
    units = v.references / np.linalg.norm(v.references, axis=1, keepdims=True)
    assert gram.attack2 == pytest.approx(v.attack @ v.attack)
    np.testing.assert_allclose(gram.attack_steps, v.steps @ v.attack, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gram.steps, v.steps @ v.steps.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gram.attack_rays, units @ v.attack, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gram.steps_rays, v.steps @ units.T, rtol=1e-9, atol=1e-9)
    assert gram.bound == pytest.approx(v.bound, abs=1e-6)


def test_rows_of_float32_are_multiplied_in_float64() -> None:
    # 1 + 1e-4 squared has more digits than float32 holds.
    row = torch.full((1, 1000), 1.0001, dtype=torch.float32)
    exact = float((row.double() @ row.double().T).item())
    assert Gram.of(row[0], row, row.expand(2, -1)).attack2 == pytest.approx(exact, rel=1e-12)


GRID = np.linspace(0, 10, 20_001)


def on_grid(v: Vectors, chosen: tuple[int, ...], grid: Array = GRID) -> Array:
    """The largest angle for each alpha of a grid, from the vectors."""
    mask = v.sent(0.0, chosen)
    rows = grid[:, None] * v.attack + mask
    units = v.references / np.linalg.norm(v.references, axis=1, keepdims=True)
    found: Array = np.degrees(np.arccos((rows @ units.T / np.linalg.norm(rows, axis=1, keepdims=True)).min(1)))
    return found


ALPHA_CASES = [(seed, pull, spread) for seed in range(25) for pull, spread in ((-1.0, 0.5), (0.3, 1.0), (1.0, 1.5))]


@pytest.mark.parametrize(("seed", "pull", "spread"), ALPHA_CASES)
def test_no_alpha_of_a_dense_grid_is_better(seed: int, pull: float, spread: float) -> None:
    v, chosen = vectors(seed, d=6, pull=pull, spread=spread), (1, 4, 7)
    far, alpha = on_grid(v, chosen), exact_alpha(v.gram, chosen, 10.0)
    within = far <= v.bound
    if alpha is None:
        assert not within.any()
        return
    reached = v.largest(v.sent(alpha, chosen))
    assert 0 <= alpha <= 10
    assert reached <= v.bound + 1e-6
    if within.any():
        assert reached >= far[within].max() - 1e-6
        assert alpha >= GRID[within & (far >= reached - 1e-7)].max(initial=0.0) - 1e-3
    if reached < v.bound - 0.01:
        # The bound is not used up: then no alpha in reach comes to it from within.
        assert not ((far[1:] > v.bound) & (far[:-1] <= v.bound)).any()


def test_those_cases_have_all_kinds_of_ends() -> None:
    kinds: set[object] = set()
    for seed, pull, spread in ALPHA_CASES:
        v = vectors(seed, d=6, pull=pull, spread=spread)
        alpha = exact_alpha(v.gram, (1, 4, 7), 10.0)
        if alpha is None or alpha in (0.0, 10.0):
            kinds.add(alpha)
        else:
            kinds.add("bound" if v.largest(v.sent(alpha, (1, 4, 7))) > v.bound - 1e-6 else "within")
    assert kinds == {None, 0.0, 10.0, "bound"}


@pytest.mark.parametrize("seed", range(25))
def test_more_than_alpha_breaks_the_bound_or_has_smaller_angles(seed: int) -> None:
    v, chosen = vectors(seed, pull=1.0, spread=1.5), (1, 4, 7)
    alpha = exact_alpha(v.gram, chosen, 10.0)
    if alpha is None or alpha == 10.0:
        return
    reached = v.largest(v.sent(alpha, chosen))
    for more in np.geomspace(1e-4, 10.0 - alpha, 200):
        far = v.largest(v.sent(alpha + more, chosen))
        assert far > v.bound or far < reached
    if reached > v.bound - 1e-6:
        assert v.largest(v.sent(alpha * 1.001, chosen)) > v.bound


def test_in_a_plane_alpha_is_that_by_hand() -> None:
    # Honest updates at -30 and 30 degrees: at most 60 from both of them, so at most 30 up. The mask at 0 degrees,
    # the attack straight up: alpha = tan(30 degrees).
    v = Vectors(flat(90)[0], flat(0), flat(-30, 30))
    assert exact_alpha(v.gram, (0,), 10.0) == pytest.approx(np.tan(np.radians(30)), rel=1e-9)
    assert exact_alpha(v.gram, (0,), 0.25) == 0.25
    steeper = Vectors(flat(120)[0], flat(0), flat(-30, 30))
    # sin 120 alpha / (1 + cos 120 alpha) = tan 30.
    expected = np.tan(np.radians(30)) / (np.sin(np.radians(120)) + 0.5 * np.tan(np.radians(30)))
    assert exact_alpha(steeper.gram, (0,), 10.0) == pytest.approx(expected, rel=1e-9)


def test_where_an_angle_has_its_extreme_within_the_bound_alpha_is_there() -> None:
    # Away from the first honest update, mask and attack by as much, and most of all between them.
    references = np.array([[1.0, 0.0, 0.0], [-0.5, 0.0, np.sqrt(0.75)], [-0.5, 0.0, -np.sqrt(0.75)]])
    v = Vectors(np.array([-0.3, 1.0, 0.2]), np.array([[-0.3, 1.0, -0.2]]), references)
    alpha = exact_alpha(v.gram, (0,), 10.0)
    assert v.bound == pytest.approx(120)
    assert alpha == pytest.approx(1.0, rel=1e-9)
    assert v.largest(v.sent(1.0, (0,))) == pytest.approx(on_grid(v, (0,)).max(), abs=1e-9)


def test_of_equal_angles_the_largest_alpha_is_taken() -> None:
    # A step along the mask turns it nowhere.
    along = Vectors(flat(10)[0], flat(10), flat(-30, 30))
    assert exact_alpha(along.gram, (0,), 7.0) == 7.0


def test_a_right_angle_for_a_bound_loses_no_digits() -> None:
    # cos 90 = 0 makes both roots of the squared equation one, which rounding would split or lose.
    for seed in range(30):
        rng = np.random.default_rng(seed)
        turned, _ = np.linalg.qr(rng.normal(size=(6, 6)))
        mask = np.array([rng.uniform(0.5, 2), 0.0, *rng.normal(size=4)])
        attack = np.array([-rng.uniform(0.3, 1.0), 0.0, *rng.normal(size=4)])
        v = Vectors(attack @ turned, mask[None] @ turned, 3 * turned[:2])
        assert v.bound == pytest.approx(90)
        assert exact_alpha(v.gram, (0,), 10.0) == pytest.approx(-mask[0] / attack[0], rel=1e-10)


def test_zeros_as_honest_updates_make_the_bound_a_right_angle() -> None:
    v = Vectors(flat(120)[0], flat(0), np.concatenate([np.zeros((1, 2)), flat(-20)]))
    assert v.bound == 90
    # At 70 degrees what is sent is at a right angle to the update at -20.
    alpha = exact_alpha(v.gram, (0,), 10.0)
    assert alpha is not None
    assert angle(v.sent(alpha, (0,)), flat(-20)[0]) == pytest.approx(90)
    assert greedy(v.gram, 1).angles[0] == pytest.approx(v.largest(v.sent(1.0, (0,))))


def test_a_mask_that_cancels_the_attack_leaves_zeros_at_a_right_angle() -> None:
    away = Vectors(flat(180)[0], 3 * flat(0), flat(-50, 50))
    # Up to 3 the mask prevails, at 50 degrees; at 3 nothing is left, at 90; beyond, 130 degrees break the bound.
    assert away.bound == pytest.approx(100)
    assert exact_alpha(away.gram, (0,), 10.0) == pytest.approx(3, abs=1e-6)
    row = np.random.default_rng(0).normal(size=40)
    exact = Vectors(-row, np.stack([row] * 5), np.random.default_rng(1).normal(size=(3, 40)))
    assert greedy(exact.gram, 5).angles == pytest.approx([90] * 5), "whatever rounding leaves of nothing"
    equal = Vectors(flat(180)[0], flat(0, 180), flat(-50, 50))
    assert greedy(equal.gram, 1).chosen == (0,), "zeros, at 90, keep the bound; 180 do not"
    assert greedy(equal.gram, 1).angles == pytest.approx([90])


def test_a_mask_of_zeros_leaves_the_attack_to_itself() -> None:
    inside = Vectors(flat(10)[0], np.zeros((1, 2)), flat(-30, 30))
    assert exact_alpha(inside.gram, (0,), 4.0) == 4.0
    outside = Vectors(flat(100)[0], np.zeros((1, 2)), flat(-30, 30))
    assert exact_alpha(outside.gram, (0,), 4.0) is None
    wide = Vectors(flat(200)[0], np.zeros((1, 2)), flat(-60, 60))
    assert exact_alpha(wide.gram, (0,), 4.0) == 0.0, "zeros are at 90 degrees, which 120 allow"


def test_an_attack_of_zeros_leaves_the_mask() -> None:
    inside = Vectors(np.zeros(2), flat(10), flat(-30, 30))
    assert exact_alpha(inside.gram, (0,), 4.0) == 4.0
    outside = Vectors(np.zeros(2), flat(100), flat(-30, 30))
    assert exact_alpha(outside.gram, (0,), 4.0) is None


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 6),
    st.integers(2, 8),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from([-2.0, 0.0, 2.0]),
)
def test_alpha_keeps_the_bound_whatever_the_vectors(seed: int, n: int, d: int, size: float, pull: float) -> None:
    v = vectors(seed, m=5, n=n, d=d, pull=pull)
    scaled = Vectors(size * v.attack, v.steps, v.references / size)
    chosen = greedy(scaled.gram, 2).chosen
    alpha = exact_alpha(scaled.gram, chosen, 10.0)
    far = [scaled.largest(scaled.sent(tried, chosen)) for tried in np.linspace(0, 10, 101)]
    if alpha is None:
        assert min(far) > scaled.bound - 1e-3
    else:
        reached = scaled.largest(scaled.sent(alpha, chosen))
        assert reached <= scaled.bound + 1e-3
        assert reached >= max([one for one in far if one <= scaled.bound], default=0.0) - 1e-3


def test_the_mixture_is_rounded_once() -> None:
    v = vectors(4, d=5000)
    attack, steps = torch.from_numpy(v.attack).float(), torch.from_numpy(v.steps).float()
    made = mixture(attack, steps, (3, 0, 9), 0.7)
    exact = 0.7 * attack.double() + (steps[3].double() + steps[0].double() + steps[9].double()) / 3
    assert made.dtype == torch.float32
    assert ((made.double() - exact).abs() <= (1 + 1e-6) * 2.0**-24 * exact.abs()).all()
