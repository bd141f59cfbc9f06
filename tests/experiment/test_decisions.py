"""Decisions of poisoning membership inference: hand-made rounds, and which examples count as whose."""

import numpy as np
import pytest

from fedsiege.attacks.poisoning.probing import correct
from fedsiege.data.candidates import Audit, anybodys
from fedsiege.experiment.decisions import LAST, judged


def test_a_member_is_whom_the_model_gets_right() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6], [0.5, 0.5, 0.0]])
    y = np.array([0, 0, 2, 1])
    loss = -np.log(probabilities[np.arange(4), y])
    assert correct(loss, probabilities.max(1)).tolist() == [True, False, True, True]


def test_rounding_of_float32_makes_no_answer_wrong() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 10)).astype(np.float32) * 4
    shifted = logits - logits.max(1, keepdims=True)
    logs = (shifted - np.log(np.exp(shifted).sum(1, keepdims=True))).astype(np.float32)
    y = rng.integers(0, 10, size=len(logits))
    found = correct(-logs[np.arange(len(y)), y], np.exp(logs.max(1)))
    assert (found == (logits.argmax(1) == y)).mean() > 0.9999
    right = logits.argmax(1)
    assert correct(-logs[np.arange(len(y)), right], np.exp(logs.max(1))).all()


def test_the_best_round_and_the_last_ones_by_hand() -> None:
    truth = np.array([True, True, False, False])
    right = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    found = judged(right, [4, 6, 8], truth)
    assert found["accuracy"] == [1.0, 0.25, 0.5]
    assert (found["best"]["round"], found["best"]["value"], found["best"]["n"]) == (4, 1.0, 4)
    assert (found["last"]["rounds"], found["last"]["value"]) == (3, pytest.approx(7 / 12))
    assert found["last"]["low"] < 7 / 12 < found["last"]["high"]
    assert (found["members"], found["nonmembers"], found["chance"]) == (2, 2, 0.5)


def test_the_last_rounds_are_twenty_and_the_first_of_equally_good_rounds_is_the_best() -> None:
    right = np.zeros((50, 2), dtype=bool)
    right[:30] = True
    right[40:, 0] = True
    found = judged(right, list(range(1, 51)), np.array([True, False]))
    assert LAST == 20
    assert found["last"]["value"] == 0.25
    assert found["best"]["round"] == 1


def test_chance_is_the_larger_group() -> None:
    assert judged(np.ones((1, 4), dtype=bool), [1], np.array([True, False, False, False]))["chance"] == 0.75


def test_an_example_of_several_targets_counts_once_and_is_anybodys_if_some_client_has_it() -> None:
    first = Audit(0, 0, np.array(["a", "b", "c"]), np.array(["member", "ifl", "ofl"]))
    second = Audit(1, 0, np.array(["a", "b", "c"]), np.array(["ifl", "member", "ofl"]))
    assert dict(anybodys((first, second))) == {"a": True, "b": True, "c": False}


def test_members_and_nonmembers_are_counted_and_decided_about_apart() -> None:
    truth = np.array([True, False, False, False])
    right = np.array([[1, 0, 0, 1], [0, 0, 0, 1]], dtype=bool)
    found = judged(right, [3, 4], truth)
    assert (found["members"], found["nonmembers"], found["chance"]) == (1, 3, 0.75)
    assert (found["last"]["of_members"], found["last"]["of_nonmembers"]) == (0.5, pytest.approx(1 / 3))
    assert (found["last"]["n"], found["best"]["low"], found["best"]["high"]) == (4, None, None)
    everybody = judged(right, [3, 4], np.ones(4, dtype=bool))["last"]
    assert (everybody["of_members"], everybody["of_nonmembers"]) == (0.375, None)
    nobody = judged(right, [3, 4], np.zeros(4, dtype=bool))["last"]
    assert (nobody["of_members"], nobody["of_nonmembers"]) == (None, 0.375)


def test_in_a_null_test_nobodys_examples_stay_nobodys_on_either_side() -> None:
    groups = np.array(["pseudo_ifl", "ifl", "pseudo_ofl", "ofl"])
    found = anybodys([Audit(0, 3, np.array(["a", "b", "c", "d"]), groups)])
    assert found == {"a": True, "b": True, "c": False, "d": False}
