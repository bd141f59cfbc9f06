"""AGREvader within bounds: the condition by hand and at its boundary, and what is sent on either side of it."""

import numpy as np
import pytest
import torch
from plain_scenes import honest_rows, poisoner_of, shards, task_of
from probing_scenes import begun, naive, own, pass_order, probe, sgd, wrong
from torch import Tensor

from fedsiege.attacks.poisoning.agrevader_euclidean import within
from fedsiege.attacks.poisoning.probing import passed_over


@pytest.mark.parametrize(
    ("point", "holds"),
    [
        ([0.0, 5.0], True),  # 5 from the origin, which is exactly the distance of the two
        ([0.0, 5.000001], False),
        ([3.0, -1.0], True),  # exactly 5 from (3, 4)
        ([3.0, -1.000001], False),
        ([1.0, 1.0], True),
        ([-2.0, 4.0], True),  # exactly 5 from (3, 4) again
        ([100.0, 0.0], False),
        ([float("nan"), 0.0], False),
        ([float("inf"), 0.0], False),
    ],
)
def test_a_point_may_be_as_far_from_any_as_two_are_from_each_other_and_no_farther(
    point: list[float], holds: bool
) -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
    assert within(torch.tensor(point, dtype=torch.float64), rows) == holds


def test_it_is_the_farthest_benign_update_that_counts() -> None:
    rows = torch.tensor([[0.0], [10.0], [10.5]])
    assert within(torch.tensor([10.5]), rows)
    assert within(torch.tensor([0.0]), rows)
    assert not within(torch.tensor([-0.1]), rows)
    assert not within(torch.tensor([10.6]), rows)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_updates_set_no_bound(n: int) -> None:
    assert not within(torch.zeros(3), torch.zeros(n, 3))
    assert within(torch.zeros(3), torch.zeros(2, 3)), "equal ones do"


@pytest.mark.parametrize("seed", range(20))
def test_the_condition_is_that_of_two_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, point = rng.normal(size=(4, 6)), 1.3 * rng.normal(size=6)
    bound = max(np.sqrt(((a - b) ** 2).sum()) for a in rows for b in rows)
    far = max(np.sqrt(((a - point) ** 2).sum()) for a in rows)
    assert within(torch.from_numpy(point), torch.from_numpy(rows)) == (far <= bound)


def covered(cover: float = 0.5) -> tuple[Tensor, Tensor]:
    """The covered step and the cover alone, by hand."""
    alone = naive(begun(), own(), sgd(0.1), pass_order(34))
    return naive(begun(), wrong(), sgd(0.1)) + cover * alone, alone


def around(point: Tensor, by: float) -> Tensor:
    """Two benign updates [2, d] that are 2 `by` from each other, and a point between them."""
    step = torch.zeros_like(point)
    step[0] = by
    return torch.stack([point - step, point + step])


@pytest.mark.parametrize("cover", [0.5, 0.2])
def test_within_the_bound_all_attackers_send_the_covered_step(cover: float) -> None:
    hidden, _ = covered(cover)
    scene = probe(honest_rows=around(hidden, 1.0))
    sent = poisoner_of("agrevader_euclidean", cover=cover, step="plain").poison_updates(scene)
    for row in sent:
        torch.testing.assert_close(row, hidden, rtol=1e-3, atol=1e-5)
    assert sent.shape == (2, len(begun()))
    assert scene.counters == {
        "rounds": 1,
        "within": 1,
        "fallbacks": 0,
        "no_reference": 0,
        "poisoned_updates": 2,
    }


def test_beyond_the_bound_they_send_the_cover_alone_which_is_no_poisoned_update() -> None:
    hidden, alone = covered()
    scene = probe(honest_rows=around(hidden, 0.1) + 1)
    sent = poisoner_of("agrevader_euclidean", step="plain").poison_updates(scene)
    for row in sent:
        torch.testing.assert_close(row, alone, rtol=1e-3, atol=1e-5)
    assert scene.counters == {
        "rounds": 1,
        "within": 0,
        "fallbacks": 1,
        "no_reference": 0,
        "poisoned_updates": 0,
    }


def test_with_one_update_to_go_by_they_send_the_cover_and_say_so() -> None:
    scene = probe(honest_rows=covered()[0][None])
    sent = poisoner_of("agrevader_euclidean", step="plain").poison_updates(scene)
    torch.testing.assert_close(sent[0], covered()[1], rtol=1e-3, atol=1e-5)
    assert (scene.counters["no_reference"], scene.counters["fallbacks"]) == (1, 1)


def test_the_cover_is_an_honest_pass_over_as_much_as_the_mask_says() -> None:
    scene = probe((1,), honest_rows=torch.ones(2, len(begun())))
    honest = poisoner_of("agrevader_euclidean", step="optimiser").poison_updates(scene)[0]
    assert torch.equal(honest, passed_over(probe((1,)), shards()[1], "optimiser"))
    assert not torch.equal(
        honest, poisoner_of("agrevader_euclidean", mask=9, step="plain").poison_updates(scene)[0]
    )


@pytest.mark.parametrize("clients", [(1,), (1, 3)])
def test_with_partial_knowledge_it_goes_by_what_attackers_would_have_sent(clients: tuple[int, ...]) -> None:
    scene = probe(clients, start=task_of().state.clone())
    made = poisoner_of("agrevader_euclidean", knowledge="partial")
    sent = made.poison_updates(scene)
    assert scene.counters["went_by_own_updates"] == 1
    assert scene.counters["no_reference"] == 0
    if len(clients) == 2:
        known = probe(clients, start=task_of().state.clone(), honest_rows=honest_rows()[[1, 3]])
        assert torch.equal(sent, made.poison_updates(known))


def test_shares_of_rounds_are_told() -> None:
    counters: dict[str, float] = {
        "rounds": 4,
        "within": 1,
        "fallbacks": 3,
        "no_reference": 0,
        "poisoned_updates": 2,
    }
    told = poisoner_of("agrevader_euclidean").told(counters)
    assert told == {
        "rounds": 4,
        "within_share": 0.25,
        "fallback_share": 0.75,
        "no_reference": 0,
        "poisoned_updates": 2,
    }
    assert counters["within"] == 1
