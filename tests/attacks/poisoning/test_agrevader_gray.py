"""AGREvader's gray-box attack: three passes, and which wrong labels the third one is over."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from plain_scenes import SEED, poisoner_of
from probing_scenes import Optimiser, begun, naive, own, pass_order, probe, sgd, targets, trained, wrong
from torch import Tensor

PLAIN = sgd(0.1)
HONEST = sgd(0.1, momentum=0.9, weight_decay=5e-4)


def passes(known: Optimiser = PLAIN, number: int = 1, seed: int = SEED) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Descent, ascent and what each of five draws of wrong labels makes, by hand."""
    order = pass_order(9, number)
    drawn = [naive(begun(), wrong(k, seed=seed), known, order) for k in range(5)]
    return (
        naive(begun(), own(), known, pass_order(34, number)),
        naive(begun(), targets(), known, order),
        drawn,
    )


def chosen(ascent: Tensor, drawn: Sequence[Tensor]) -> int:
    """Which draw is farthest from the ascent."""
    lengths = [sum((float(v) ** 2 for v in one - ascent), 0.0) for one in drawn]
    return lengths.index(max(lengths))


@pytest.mark.parametrize("step", ["plain", "optimiser"])
@pytest.mark.parametrize("fields", [{}, {"descent": 0.65, "misled": 1.0}, {"descent": 0.0, "misled": 0.0}])
def test_all_attackers_send_half_the_descent_less_the_ascent_and_most_of_what_misleads(
    step: str, fields: dict[str, Any]
) -> None:
    scene = probe((1, 3), number=2)
    sent = poisoner_of("agrevader_gray", step=step, **fields).poison_updates(scene)
    descent, ascent, drawn = passes(PLAIN if step == "plain" else HONEST, number=2)
    by_hand = (
        fields.get("descent", 0.5) * descent - ascent + fields.get("misled", 0.8) * drawn[chosen(ascent, drawn)]
    )
    by_hand[trained() :] = descent[trained() :]
    for row in sent:
        torch.testing.assert_close(row, by_hand, rtol=1e-3, atol=1e-5)
    assert sent.shape == (2, len(begun()))
    assert scene.counters == {"poisoned_updates": 2}


@pytest.mark.parametrize("shuffles", [1, 2, 3, 5])
def test_of_so_many_draws_it_takes_the_one_that_is_farthest_from_the_ascent(shuffles: int) -> None:
    _, ascent, drawn = passes()
    sent = poisoner_of("agrevader_gray", shuffles=shuffles, descent=0.0, misled=1.0).poison_updates(probe())[0]
    distances = [float((sent + ascent - one)[: trained()].norm()) for one in drawn]
    assert distances.index(min(distances)) == chosen(ascent, drawn[:shuffles])


def test_in_these_rounds_the_choice_is_neither_the_first_nor_always_the_same() -> None:
    _, ascent, drawn = passes()
    assert len({chosen(ascent, drawn[:shuffles]) for shuffles in (1, 2, 3, 5)}) > 1


def test_the_loss_of_what_is_asked_about_rises_and_that_of_the_wrong_labels_falls() -> None:
    scene = probe(lr=0.02)
    sent = poisoner_of("agrevader_gray").poison_updates(scene)[0]
    _, ascent, drawn = passes(sgd(0.02))
    sent[trained() :] = 0
    taken = wrong(chosen(ascent, drawn))
    for examples, rises in ((targets(), True), (taken, False)):
        before, after = (scene.task.measure(model, examples)[1] for model in (scene.start, scene.start + sent))
        assert (after > before) == rises


@pytest.mark.parametrize("fields", [{}, {"descent": 0.0}, {"descent": 5.0, "misled": 9.0}])
def test_statistics_go_where_the_pass_over_own_data_takes_them_and_no_variance_below_zero(
    fields: dict[str, float],
) -> None:
    sent = poisoner_of("agrevader_gray", **fields).poison_updates(probe())[0]
    torch.testing.assert_close(sent[trained() :], passes(HONEST)[0][trained() :], rtol=1e-3, atol=1e-5)
    for variance in (0.01, 100.0):
        scene = probe()
        variances = dict(scene.task.layout.slices())["1.running_var"]
        scene.start[variances] = variance
        sent = poisoner_of("agrevader_gray", **fields).poison_updates(scene)[0]
        assert float((scene.start + sent)[variances].min()) > 0


def test_a_mask_and_a_learning_rate_of_its_own_are_heeded() -> None:
    plain = poisoner_of("agrevader_gray").poison_updates(probe())
    assert not torch.allclose(poisoner_of("agrevader_gray", mask=9).poison_updates(probe()), plain)
    quick = poisoner_of("agrevader_gray", lr=0.4).poison_updates(probe())
    torch.testing.assert_close(quick, poisoner_of("agrevader_gray").poison_updates(probe(lr=0.4)))
