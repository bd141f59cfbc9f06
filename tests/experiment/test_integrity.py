"""What a run says of poisoning, by hand: what was sent, at which moments, how long it lasted, who was rejected."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsiege.data.triggers.base import Backdoor
from fedsiege.data.triggers.pixel import Pixel
from fedsiege.experiment.integrity import Watch, mean_of, moments, rate, shares, success
from fedsiege.experiment.train import Notes
from fedsiege.records import Cohort, Examples, Fate, Round
from fedsiege.task import Task

NAN = float("nan")


class Answers(nn.Module):
    """The logits of an example are two entries of the model: those that its first input is the number of."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x[:, 0].long()]


def numbered(which: list[int], y: list[int]) -> Examples:
    return Examples(np.arange(len(y)).astype(np.str_), torch.tensor(which).float()[:, None], torch.tensor(y))


def watch(target: int | None = 1) -> Watch:
    """Four held-out examples, the last with the logits of row 1; five with a trigger, the first three of row 0."""
    backdoor = None if target is None else Backdoor(Pixel(), target, None, numbered([0, 0, 0, 1, 1], [target] * 5))
    return Watch(Task(Answers()), numbered([0, 0, 0, 1], [0, 0, 1, 1]), backdoor, ())


def round_of(rows: Mapping[int, list[float]], attackers: tuple[int, ...], **given: Any) -> Round:
    """A round at the model (1, 0, 1, 0), which answers 0 to everything."""
    start, n = torch.tensor([1.0, 0.0, 1.0, 0.0]), len(rows)
    updates = torch.tensor(list(rows.values())).reshape(n, 4)
    cohort = Cohort(tuple(rows), updates, torch.ones(n, dtype=torch.float64), (0,) * n, {0: start})
    fates = given.get("fates", dict.fromkeys(rows, Fate(1.0, 1.0)))
    return Round(7, start, start, cohort if n else None, fates=fates, attackers=attackers)


# What was sent.


def test_what_was_sent_is_the_longest_update_of_an_attacker_beside_the_honest_ones() -> None:
    rows = {0: [3.0, 4.0, 0.0, 0.0], 1: [0.0, 0.0, 0.0, 1.0], 2: [0.0, 2.0, 0.0, 0.0], 3: [0.0, 0.0, -6.0, 8.0],
            4: [0.0, 0.0, 0.0, 12.0], 5: [0.0, 2.0, 1.0, 0.0]}  # fmt: skip
    fates = {**dict.fromkeys(range(6), Fate(1.0, 1.0)), 1: Fate(0.25, 0.5), 3: Fate(0.5, 1.0)}
    (found,) = watch().submitted(round_of(rows, (1, 3), fates=fates))
    mean = np.array([3.0, 8.0, 1.0, 12.0]) / 4  # of clients 0, 2, 4, 5
    longest = np.array([0.0, 0.0, -6.0, 8.0])
    usual = (5.0 + np.sqrt(5.0)) / 2  # between the middle two of 2, sqrt(5), 5, 12
    assert found == {
        "round": 7,
        "attackers": 2,
        "kept": 0.75,
        "norm": 10.0,
        "norm_ratio": pytest.approx(10 / usual),
        "norm_rank": 2,
        "of": 6,
        "cosine": pytest.approx(float(longest @ mean / np.linalg.norm(mean) / 10)),
        # The model that was sent is (1, 0, -5, 8): it answers 0 in row 0 and 1 in row 1.
        "accuracy": 0.75,
        "success": 0.4,
    }


def test_without_an_honest_update_there_is_nothing_to_compare_with() -> None:
    (found,) = watch(None).submitted(round_of({2: [0.0, 2.0, 0.0, 2.0]}, (2,)))
    assert (found["norm_ratio"], found["cosine"], found["success"]) == (None, None, None)
    assert (found["norm"], found["norm_rank"], found["of"]) == (pytest.approx(8**0.5), 1, 1)
    assert found["accuracy"] == 0.5, "it answers 1 to everything"
    (still,) = watch(None).submitted(round_of({1: [0.0] * 4, 2: [0.0, 2.0, 0.0, 2.0]}, (2,)))
    assert still["norm_ratio"] is None, "honest clients that do not move have no usual length"


def test_nothing_was_sent_where_no_answer_of_an_attacker_can_be_used() -> None:
    assert watch().submitted(round_of({1: [0.0] * 4, 2: [1.0] * 4}, ())) == []
    assert watch().submitted(round_of({1: [0.0] * 4, 2: [1.0] * 4}, (0, 3))) == []
    assert watch().submitted(round_of({}, (0,))) == []
    (found,) = watch().submitted(round_of({1: [0.0] * 4, 2: [1.0] * 4}, (0, 2)))
    assert found["attackers"] == 1, "of two the one that could be used"


def test_a_sent_model_whose_outputs_are_no_numbers_is_wrong_and_not_the_first_class() -> None:
    class Diverging(Answers):
        """A large weight makes the outputs of its row no numbers."""

        def forward(self, x: Tensor) -> Tensor:
            rows = super().forward(x)
            return rows * torch.where(rows.abs().amax(1, keepdim=True) > 100, NAN, 1.0)

    task = Task(Diverging())
    heldout, tested = numbered([0, 0, 0, 1], [0, 0, 1, 0]), numbered([0, 0, 1], [0] * 3)
    seen = Watch(task, heldout, Backdoor(Pixel(), 0, None, tested), ())
    (found,) = seen.submitted(round_of({0: [0.0] * 4, 2: [1e3, 0.0, 0.0, 0.0]}, (2,)))
    assert (found["accuracy"], found["success"]) == (1 / 4, 1 / 3), "row 1 alone is answered"


# At which moments.

COURSE = [
    {"round": 0, "accuracy": 0.2, "backdoor": 0.1},
    {"round": 3, "accuracy": 0.5, "backdoor": 0.3},
    {"round": 4, "accuracy": 0.4, "backdoor": 0.9},
    {"round": 5, "accuracy": 0.3, "backdoor": 0.7},
    {"round": 10, "accuracy": 0.6, "backdoor": 0.5},
    {"round": 12, "accuracy": 0.7, "backdoor": 0.4},
]


def test_moments_are_before_the_first_attack_after_it_the_lowest_since_and_the_last() -> None:
    found = moments(COURSE, "accuracy", 10, (4, 9))
    assert {name: one["value"] for name, one in found.items()} == {
        "before": 0.5,
        "attacked": 0.4,
        "lowest": 0.3,
        "last": 0.7,
    }
    assert found["before"] == rate(0.5, 10)
    assert (found["last"]["n"], found["last"]["low"] < 0.7 < found["last"]["high"]) == (10, True)


def test_an_attack_in_the_first_round_comes_after_what_was_measured_before_it() -> None:
    found = moments(COURSE[:3], "accuracy", 10, (1,))
    assert [found[name]["value"] for name in ("before", "attacked", "lowest", "last")] == [0.2, 0.5, 0.4, 0.4]


def test_without_an_attack_the_first_and_the_last_measurement_stand() -> None:
    found = moments(COURSE, "accuracy", 10, ())
    assert (found["before"]["value"], found["last"]["value"]) == (0.2, 0.7)
    assert (found["attacked"], found["lowest"]) == (None, None)
    unmeasured: list[dict[str, Any]] = [{"round": 0, "accuracy": None}, *COURSE[1:]]
    assert moments(unmeasured, "accuracy", 10, ())["before"]["value"] == 0.5
    assert moments(COURSE[2:], "accuracy", 10, (4,))["before"] is None


# How well the backdoor works.


def test_the_mean_since_the_attack_weighs_each_measurement_by_the_rounds_until_the_next() -> None:
    found = success(COURSE, 10, (4,))
    # 0.9 in round 4, 0.7 in 5 to 9, 0.5 in 10 and 11, 0.4 in 12.
    assert found["mean"] == pytest.approx((0.9 + 5 * 0.7 + 2 * 0.5 + 0.4) / 9)
    assert success(COURSE, 10, (10,))["mean"] == pytest.approx((2 * 0.5 + 0.4) / 3)
    assert success(COURSE, 10, ())["mean"] is None
    assert success(COURSE, 10, (13,))["mean"] is None


def test_a_mean_of_every_round_is_a_plain_one() -> None:
    assert mean_of([(3, 0.1), (4, 0.2), (5, 0.6)]) == pytest.approx(0.3)
    assert mean_of([(3, 0.25)]) == 0.25
    assert mean_of([(1, 1.0), (5, 0.0)]) == pytest.approx(0.8)


def test_success_has_its_moments_and_how_long_it_lasted_after_the_last_attack() -> None:
    found = success(COURSE, 10, (4, 5))
    assert {name: found[name]["value"] for name in ("before", "attacked", "last")} == {
        "before": 0.3,
        "attacked": 0.9,
        "last": 0.4,
    }
    assert found["persistence"] == {"rounds": 7, "censored": False}, "below a half in round 12, after round 5"
    assert success(COURSE[:-1], 10, (4, 5))["persistence"] == {"rounds": 5, "censored": True}
    assert success(COURSE, 10, (12,))["persistence"] is None, "it never worked since"
    assert success(COURSE, 10, ())["persistence"] is None
    assert "lowest" not in found


# What the server made of answers.


def test_shares_are_of_the_answers_that_could_be_used() -> None:
    sums = {"answers": 10.0, "unusable": 2.0, "rejected": 4.0, "kept": 3.0, "scale": 6.0}
    assert shares(sums) == {"answers": 10, "unusable": 2, "rejected": rate(0.5, 8), "kept": 0.375, "scale": 0.75}
    nothing = {"rejected": None, "kept": None, "scale": None}
    assert shares({}) == {"answers": 0, "unusable": 0, **nothing}
    none = {"answers": 3.0, "unusable": 3.0, "rejected": 0.0, "kept": 0.0, "scale": 0.0}
    assert shares(none) == {"answers": 3, "unusable": 3, **nothing}


def test_answers_that_could_not_be_used_are_not_counted_as_rejected() -> None:
    notes, lost = Notes("of the data"), Fate(0.0, 1.0, usable=False)
    fates = {0: Fate(0.0, 1.0), 1: Fate(0.5, 0.25), 2: lost, 3: Fate(1.0, 1.0), 4: lost, 5: Fate(0.0, 0.5)}
    for _ in range(2):
        notes.verdicts(round_of({}, (1, 2, 5), fates=fates))
    assert notes.detection == {
        "attackers": {"answers": 6, "unusable": 2, "rejected": 2, "kept": 1, "scale": 1.5},
        "honest": {"answers": 6, "unusable": 2, "rejected": 2, "kept": 2, "scale": 4},
    }
