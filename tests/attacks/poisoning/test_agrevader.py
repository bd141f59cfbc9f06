"""AGREvader: the step, the cover, and their sum."""

from typing import Any

import pytest
import torch
from plain_scenes import TRAINING, poisoner_of
from probing_scenes import begun, naive, own, pass_order, probe, sgd, targets, trained, wrong

from fedsiege.attacks.poisoning.probing import own_of


@pytest.mark.parametrize("cover", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("step", ["plain", "optimiser"])
def test_all_attackers_send_the_step_and_a_share_of_a_pass_over_all_that_they_have(step: str, cover: float) -> None:
    scene = probe((1, 3), number=2, lr=0.05)
    sent = poisoner_of("agrevader", cover=cover, step=step).poison_updates(scene)
    known = sgd(0.05) if step == "plain" else sgd(0.05, momentum=0.9, weight_decay=5e-4)
    by_hand = naive(begun(), wrong(), sgd(0.05)) + cover * naive(begun(), own(), known, pass_order(34, 2))
    for row in sent:
        torch.testing.assert_close(row, by_hand, rtol=1e-3, atol=1e-5)
    assert sent.shape == (2, len(begun()))
    assert scene.counters == {"poisoned_updates": 2}


def test_its_share_is_a_fifth_unless_told_otherwise() -> None:
    sent = [poisoner_of("agrevader", **fields).poison_updates(probe()) for fields in ({}, {"cover": 0.2})]
    assert torch.equal(sent[0], sent[1])


def test_without_cover_it_is_the_raw_step() -> None:
    raw = poisoner_of("label_flip_mia").poison_updates(probe())
    torch.testing.assert_close(poisoner_of("agrevader", cover=0.0).poison_updates(probe()), raw)


def test_a_mask_is_the_part_of_own_data_that_is_drawn_for_the_run() -> None:
    sent = poisoner_of("agrevader", mask=11, cover=1.0, step="plain").poison_updates(probe())[0]
    part = own_of(probe(), 11)
    by_hand = naive(begun(), wrong(), sgd(0.1)) + naive(begun(), part, sgd(0.1), pass_order(11))
    torch.testing.assert_close(sent, by_hand, rtol=1e-3, atol=1e-5)


def test_step_and_pass_have_the_learning_rate_that_it_is_given() -> None:
    sent = poisoner_of("agrevader", lr=0.4, step="plain").poison_updates(probe())[0]
    by_hand = naive(begun(), wrong(), sgd(0.4)) + 0.2 * naive(begun(), own(), sgd(0.4), pass_order(34))
    torch.testing.assert_close(sent, by_hand, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("training", [{}, {"algorithm": "fedsgd"}])
def test_the_model_that_is_sent_learns_own_data_and_the_wrong_labels(training: dict[str, Any]) -> None:
    scene = probe(lr=0.05, training=TRAINING.model_copy(update=training))
    sent = poisoner_of("agrevader").poison_updates(scene)[0]
    sent[trained() :] = 0
    for examples, falls in ((wrong(), True), (targets(), False)):
        before, after = (scene.task.measure(model, examples)[1] for model in (scene.start, scene.start + sent))
        assert (after < before) == falls
