"""A step on wrong labels, and nothing else."""

from typing import Any

import pytest
import torch
from plain_scenes import TRAINING, poisoner_of
from probing_scenes import adam, begun, naive, probe, sgd, targets, trained, wrong


@pytest.mark.parametrize(("lr", "expected"), [(None, 0.03), (0.4, 0.4)])
def test_all_attackers_send_a_step_on_the_runs_wrong_labels(lr: float | None, expected: float) -> None:
    scene = probe((0, 1, 3), lr=0.03, number=2)
    sent = poisoner_of("label_flip_mia", lr=lr).poison_updates(scene)
    by_hand = naive(begun(), wrong(), sgd(expected))
    for row in sent:
        torch.testing.assert_close(row, by_hand, rtol=1e-4, atol=1e-6)
    assert sent.shape == (3, len(begun()))
    assert scene.counters == {"poisoned_updates": 3}


def test_a_step_of_an_optimiser_is_its_first_one_on_wrong_labels() -> None:
    scene = probe(training=TRAINING.model_copy(update={"optimiser": "adam"}), lr=0.02)
    sent = poisoner_of("label_flip_mia", step="optimiser").poison_updates(scene)[0]
    step = naive(begun(), wrong(), adam(0.02))
    firm = step[: trained()].abs() > 0.0199
    torch.testing.assert_close(sent[: trained()][firm], step[: trained()][firm], rtol=1e-3, atol=1e-6)
    assert firm.float().mean() > 0.8


@pytest.mark.parametrize("fields", [{}, {"step": "optimiser"}, {"lr": 0.02}])
def test_the_model_that_is_sent_believes_more_in_the_wrong_labels_and_less_in_the_right_ones(
    fields: dict[str, Any],
) -> None:
    scene = probe(lr=0.05)
    sent = poisoner_of("label_flip_mia", **fields).poison_updates(scene)[0]
    sent[trained() :] = 0
    poisoned = scene.start + sent
    assert scene.task.measure(poisoned, wrong())[1] < scene.task.measure(scene.start, wrong())[1]
    assert scene.task.measure(poisoned, targets())[1] > scene.task.measure(scene.start, targets())[1]


def test_neither_the_round_nor_own_data_has_a_say() -> None:
    rows = [poisoner_of("label_flip_mia").poison_updates(probe((c,), number=c + 1))[0] for c in (0, 3)]
    torch.testing.assert_close(rows[0], rows[1])
