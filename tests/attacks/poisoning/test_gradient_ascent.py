"""Gradient ascent: a step on the truth, turned around."""

from typing import Any

import pytest
import torch
from plain_scenes import TRAINING, poisoner_of
from probing_scenes import adam, begun, naive, probe, sgd, targets, trained

ADAM = TRAINING.model_copy(update={"optimiser": "adam"})


@pytest.mark.parametrize("factor", [1.0, 15.0, 0.5])
def test_all_attackers_send_the_gradient_times_the_learning_rate_and_the_factor(factor: float) -> None:
    scene = probe((0, 1, 3), lr=0.03)
    sent = poisoner_of("gradient_ascent", factor=factor).poison_updates(scene)
    gradient = -naive(begun(), targets(), sgd(1.0))[: trained()]
    for row in sent:
        torch.testing.assert_close(row[: trained()], factor * 0.03 * gradient, rtol=1e-4, atol=1e-6)
    assert sent.shape == (3, len(begun()))
    assert scene.counters == {"poisoned_updates": 3}


@pytest.mark.parametrize("factor", [1.0, 15.0])
def test_statistics_go_where_the_step_takes_them_and_no_variance_below_zero(factor: float) -> None:
    step = naive(begun(), targets(), sgd(TRAINING.lr))
    sent = poisoner_of("gradient_ascent", factor=factor).poison_updates(probe())[0]
    torch.testing.assert_close(sent[trained() :], step[trained() :])
    assert float(step[trained() :].abs().max()) > 0.01


def test_a_step_of_an_optimiser_is_turned_around_as_it_is() -> None:
    sent = poisoner_of("gradient_ascent", step="optimiser", lr=0.02).poison_updates(probe(training=ADAM))[0]
    step = naive(begun(), targets(), adam(0.02))[: trained()]
    firm = step.abs() > 0.0199
    torch.testing.assert_close(sent[: trained()][firm], -step[firm], rtol=1e-3, atol=1e-6)
    assert firm.float().mean() > 0.8


@pytest.mark.parametrize("fields", [{}, {"step": "optimiser"}, {"factor": 15.0, "lr": 0.01}])
def test_the_loss_of_what_is_asked_about_rises_in_the_model_that_is_sent(fields: dict[str, Any]) -> None:
    scene = probe()
    sent = poisoner_of("gradient_ascent", **fields).poison_updates(scene)[0]
    sent[trained() :] = 0
    before, after = (scene.task.measure(model, targets())[1] for model in (scene.start, scene.start + sent))
    assert after > before + 0.05


def test_the_attackers_own_data_has_no_say() -> None:
    sent = [poisoner_of("gradient_ascent").poison_updates(probe(clients))[0] for clients in ((1,), (0, 5))]
    assert torch.equal(sent[0], sent[1])
