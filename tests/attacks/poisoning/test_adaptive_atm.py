"""The adaptive attack on the angular trimmed mean: its loop written out once more, and what stops it."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plain_scenes import honest_rows, poisoner_of, task_of
from probing_scenes import begun, naive, near, plot, probe, sgd, wrong
from torch import Tensor

from fedsiege.aggregators.angular_trimmed_mean import Statistic
from fedsiege.attacks.poisoning.adaptive_atm import dropped, farthest
from fedsiege.errors import InputError

STATISTICS: tuple[Statistic, ...] = ("mean", "median")


def turned(*degrees: float) -> Tensor:
    """Unit vectors [n, 2] at these angles."""
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


@pytest.mark.parametrize(
    ("at", "among", "gone"),
    [
        # Mean angles 57.5, 50, 47.5, 50 and 155: the last and the first go.
        (170, (0, 10, 20, 30), True),
        (0, (10, 20, 30, 170), True),
        (30, (0, 10, 20, 170), False),
        (20, (0, 10, 30, 170), False),
    ],
)
def test_of_five_by_hand_the_two_outermost_are_dropped(at: float, among: tuple[float, ...], gone: bool) -> None:
    assert dropped(turned(at)[0], turned(*among), 1, 1) == gone


def test_copies_lower_each_others_mean_but_not_their_median() -> None:
    row, rows = turned(33)[0], turned(0, 5, 10, 15, 20)
    # Alone, it lies at (33 + 28 + 23 + 18 + 13) / 5 = 23, the first of the others at (50 + 33) / 5 = 16.6.
    assert dropped(row, rows, 1, 1)
    # As one of three, at 115 / 7 = 16.4; the first at (50 + 99) / 7 = 21.3, the second at (35 + 84) / 7 = 17.
    assert not dropped(row, rows, 3, 1)
    # Medians: 18 for the copies, 20 for the first, 15 for the second.
    assert dropped(row, rows, 3, 1, "median")


def test_one_copy_that_is_dropped_is_enough_and_ties_are_lost() -> None:
    # Two copies at mean angles (90 + 90 + 90 + 0) / 4, the rest at (90 + 90) / 4: both copies are the outermost.
    rows = turned(0, 0, 0)
    assert dropped(turned(90)[0], rows, 2, 1)
    assert dropped(turned(90)[0], rows, 3, 1), "at equal angles those of the copies count as larger"
    assert not dropped(turned(90)[0], rows, 4, 1)
    assert not dropped(turned(90)[0], rows, 2, 0)
    assert not dropped(turned(90)[0], torch.empty(0, 2), 3, 1)


def test_the_farthest_is_that_of_the_largest_angle_whatever_its_length() -> None:
    rows = torch.tensor([[1.0, 0.0], [-0.01, 0.01], [0.0, 5.0], [-3.0, 3.0]])
    assert farthest(torch.tensor([2.0, 0.1]), rows) == 1, "the first of two"
    assert farthest(torch.tensor([-1.0, -1.0]), rows[[0, 2, 1]]) in (0, 1)
    assert farthest(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.2], [0.0, 0.0]])) == 1, (
        "zeros lie at 90 degrees"
    )


def angle(u: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    cosine = float(u @ v) / (math.sqrt(float(u @ u)) * math.sqrt(float(v @ v)))
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def averaged(step: Tensor, rows: Tensor, copies: int, trim: int, most: int = 50) -> tuple[NDArray[np.float64], int]:
    """The vector that is sent and how often it was averaged, as the text has it."""
    g, benign, done = step.double().numpy(), [row.double().numpy() for row in rows], 0
    while done < most:
        everybody = [*benign, *[g] * copies]
        means = [
            sum(angle(one, other) for j, other in enumerate(everybody) if j != i) / (len(everybody) - 1)
            for i, one in enumerate(everybody)
        ]
        order = sorted(range(len(everybody)), key=lambda i: round(means[i], 4))
        if all(i < len(benign) for i in order[len(everybody) - 2 * trim :]):
            break
        apart = [angle(g, row) for row in benign]
        g, done = (g + benign[apart.index(max(apart))]) / 2, done + 1
    return g, done


def benign(n: int = 5, spread: float = 0.8, seed: int = 0) -> Tensor:
    """Honest updates that agree on where to go."""
    direction = torch.randn(len(begun()), generator=torch.Generator().manual_seed(21))
    return near(0.2 * direction / direction.norm(), n, spread, seed)


@pytest.mark.parametrize("trim", [1, 2])
@pytest.mark.parametrize("clients", [(2,), (1, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_averages_as_the_loop_written_out_does(seed: int, clients: tuple[int, ...], trim: int) -> None:
    rows = benign(seed=seed)
    scene = probe(clients, honest_rows=rows)
    sent = poisoner_of("adaptive_atm", trim=trim).poison_updates(scene)
    by_hand, halvings = averaged(naive(begun(), wrong(), sgd(0.1)), rows, len(clients), trim)
    assert halvings > 0
    for row in sent:
        np.testing.assert_allclose(row.numpy(), by_hand, rtol=1e-3, atol=1e-5)
    assert sent.shape == (len(clients), len(begun()))
    assert scene.counters == {
        "rounds": 1,
        "halvings": halvings,
        "unsettled": 0,
        "no_reference": 0,
        "trim_lowered": 0,
        "poisoned_updates": len(clients),
    }


def test_what_is_sent_at_last_is_kept_by_the_rule_and_the_step_itself_was_not() -> None:
    rows = benign()
    sent = poisoner_of("adaptive_atm").poison_updates(probe((2,), honest_rows=rows))[0]
    assert not dropped(sent, rows, 1, 1)
    assert dropped(naive(begun(), wrong(), sgd(0.1)), rows, 1, 1)


def test_against_the_median_three_colluders_average_more_often_than_against_the_mean() -> None:
    rows, halvings = benign(spread=0.5), []
    for statistic in STATISTICS:
        scene = probe((0, 1, 3), honest_rows=rows)
        sent = poisoner_of("adaptive_atm", statistic=statistic).poison_updates(scene)[0]
        assert not dropped(sent, rows, 3, 1, statistic)
        halvings.append(scene.counters["halvings"])
    assert halvings == [1, 2]


def test_a_step_that_the_rule_would_keep_is_sent_as_it_is() -> None:
    step = naive(begun(), wrong(), sgd(0.1))
    for fields, rows in (({}, near(step, 5, 1.0)), ({"trim": 0}, benign())):
        scene = probe((2,), honest_rows=rows)
        sent = poisoner_of("adaptive_atm", **fields).poison_updates(scene)[0]
        torch.testing.assert_close(sent, step, rtol=1e-4, atol=1e-6)
        assert scene.counters["halvings"] == 0


def test_it_ends_after_so_many_averagings_and_says_so() -> None:
    # Benign updates in one direction lie at angle 0, which nothing else ever does.
    rows = benign(1, 0.0).repeat(3, 1) * torch.tensor([1.0, 2.0, 3.0])[:, None]
    step = naive(begun(), wrong(), sgd(0.1))
    expected = step
    for _ in range(3):
        expected = (expected + rows[0]) / 2
    scene = probe((2,), honest_rows=rows)
    sent = poisoner_of("adaptive_atm", iterations=3).poison_updates(scene)[0]
    torch.testing.assert_close(sent, expected, rtol=1e-4, atol=1e-5)
    assert (scene.counters["halvings"], scene.counters["unsettled"]) == (3, 1)


def test_with_too_few_updates_to_drop_so_many_it_goes_by_fewer() -> None:
    rows = benign(2)
    scene = probe((2,), honest_rows=rows)
    sent = poisoner_of("adaptive_atm", trim=2).poison_updates(scene)[0]
    by_hand, halvings = averaged(naive(begun(), wrong(), sgd(0.1)), rows, 1, 1)
    np.testing.assert_allclose(sent.numpy(), by_hand, rtol=1e-3, atol=1e-5)
    assert (scene.counters["trim_lowered"], scene.counters["halvings"]) == (1, halvings)


@pytest.mark.parametrize("clients", [(1,), (1, 3)])
def test_with_partial_knowledge_it_goes_by_what_attackers_would_have_sent(clients: tuple[int, ...]) -> None:
    scene = probe(clients, start=task_of().state.clone())
    made = poisoner_of("adaptive_atm", knowledge="partial")
    sent = made.poison_updates(scene)
    assert scene.counters["went_by_own_updates"] == 1
    assert scene.counters["trim_lowered"] == 0
    if len(clients) == 2:
        known = probe(clients, start=task_of().state.clone(), honest_rows=honest_rows()[[1, 3]])
        assert torch.equal(sent, made.poison_updates(known))


@pytest.mark.parametrize(
    ("fields", "run", "message"),
    [
        ({"trim": 3}, {}, r"^trim: got 3, so that 6 of the 6 updates .*expected 2 at most"),
        ({"trim": 2, "knowledge": "partial"}, {}, r"^trim: got 2, so that 4 of the 4 updates .*expected 1 at most"),
        (
            {"trim": 2, "knowledge": "partial"},
            {"compromised": (1,)},
            r"^trim: got 2, so that 4 of the 4 updates .*expected 1 at most",
        ),
        ({"trim": 1}, {"cohort": 2}, r"^trim: got 1, so that 2 of the 2 updates .*expected 0 at most"),
    ],
)
def test_to_drop_all_that_attackers_compare_is_refused(
    fields: dict[str, int], run: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        poisoner_of("adaptive_atm", **fields).check(plot(**run))
    poisoner_of("adaptive_atm", **{**fields, "trim": fields["trim"] - 1}).check(plot(**run))


def test_the_check_of_all_probers_is_made_too() -> None:
    with pytest.raises(InputError, match=r"^attacks: got none"):
        poisoner_of("adaptive_atm").check(plot(targets=0))


def test_a_trim_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"adversary\.trim: got "):
        poisoner_of("adaptive_atm", trim=-1)


def test_averagings_are_told_by_round() -> None:
    counters: dict[str, float] = {"rounds": 4, "halvings": 6, "unsettled": 1, "poisoned_updates": 8}
    told = poisoner_of("adaptive_atm").told(counters)
    assert told == {"rounds": 4, "mean_halvings": 1.5, "unsettled": 1, "poisoned_updates": 8}
