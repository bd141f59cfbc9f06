"""Runs whose attackers make membership visible: who is asked about, what is refused, and what result.json says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY

from fedsiege.errors import InputError
from fedsiege.experiment.config import load
from fedsiege.experiment.decisions import decisions
from fedsiege.experiment.prepare import Prepared, prepare
from fedsiege.experiment.published import asked_rows
from fedsiege.experiment.remarks import idle_poison
from fedsiege.experiment.run import run
from fedsiege.trace import Trace

PROBED: dict[str, Any] = {
    **TINY,
    "attacks": ["fedpoisonmia", "blackbox_loss"],
    "adversary": {"name": "fedpoisonmia", "fallback": "attack"},
    "compromised": {"clients": [1, 3]},
    "candidates": {"members": 10, "ifl": 15, "ofl": 30},
}


def ready(**changes: Any) -> Prepared:
    return prepare(load({**PROBED, **changes}))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probed") / "run"
    run(PROBED, out, progress=False)
    return out


def test_nobody_asks_about_what_compromised_clients_have() -> None:
    prepared = ready()
    assert prepared.targets == [0, 2, 4]
    asked = set(prepared.candidates.examples.ids.tolist())
    for client, rows in enumerate(prepared.shards):
        own = set(prepared.data.train.ids[rows].tolist())
        assert bool(asked & own) == (client not in (1, 3))


def test_the_attackers_are_told_what_is_asked_and_not_the_truth() -> None:
    prepared = ready()
    assert prepared.campaign is not None
    targets = prepared.campaign.targets
    assert targets is not None
    assert targets.ids.tolist() == sorted(prepared.candidates.asked.ids.tolist())
    assert ready(adversary="label_flip").campaign.targets is None  # type: ignore[union-attr]


def test_other_poisoners_leave_the_candidates_as_they_are() -> None:
    assert ready(adversary="label_flip").targets == [0, 1, 2, 3, 4]
    assert ready(adversary=None).targets == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": [0, 3]}, "targets: got client 3, which is compromised"),
        ({"compromised": {"clients": [0, 1, 2, 3, 4]}}, "targets: got client 0, which is compromised"),
        ({"attacks": []}, "attacks: got none"),
        ({"secure_aggregation": True, "attacks": ["fedpoisonmia"]}, "knowledge"),
    ],
)
def test_runs_that_cannot_be_asked_about_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ready(**changes)


def test_the_result_says_how_often_the_decision_was_right(done: Path) -> None:
    result = json.loads((done / "result.json").read_text())
    found = result["poisoning"]["decisions"]
    assert found["rounds"] == [2, 4, 6]
    assert (found["members"], found["nonmembers"]) == (found["best"]["n"] - 30, 30)
    assert found["last"]["value"] == pytest.approx(np.mean(found["accuracy"]))
    assert found["best"]["value"] == max(found["accuracy"])
    assert result["cost"]["crafting_seconds"] > 0
    assert result["cost"]["combining_seconds"] > 0
    prepared = ready()
    trace = Trace(done / "trace")
    owners = {i for rows in prepared.shards for i in prepared.data.train.ids[rows].tolist()}
    truth = np.array([identity in owners for identity in trace.ids.tolist()])
    assert decisions(prepared, trace) == found
    # With three classes a probability above one half is the largest for sure, and below a third it never is.
    sure = np.exp(-trace.global_loss(2))
    clear = (sure > 0.5) | (sure < 1 / 3)
    right = (sure > 0.5)[clear] == truth[clear]
    assert abs(right.mean() - found["accuracy"][2]) <= (~clear).mean() + 1e-9


def test_the_row_any_is_the_question_that_is_asked(done: Path) -> None:
    rows = json.loads((done / "result.json").read_text())["attacks"]
    found = next(row for row in rows if row["target"] == "any" and row["name"] == "fedpoisonmia")
    assert (found["against"], found["n_nonmembers"]) == ("ofl", 30)


def test_a_null_test_asks_nothing_that_could_be_right(tmp_path: Path) -> None:
    changed = {**PROBED, "data": "digits", "candidates": {"ifl": 500, "ofl": 500, "null": True}, "rounds": 4}
    run(changed, tmp_path / "null", progress=False)
    result = json.loads((tmp_path / "null" / "result.json").read_text())
    assert result["poisoning"]["decisions"] is None
    for row in result["null_test"]:
        assert row["passed"], row


def test_without_probabilities_there_are_no_decisions() -> None:
    prepared = ready(attacks=["blackbox_loss"])
    assert prepared.campaign is not None
    assert prepared.campaign.targets is not None


def test_the_threat_model_says_what_attackers_know(done: Path) -> None:
    said = json.loads((done / "result.json").read_text())["threat_model"]
    assert any("which examples are asked about" in line for line in said["sees"])
    assert any("which of the examples asked about are members" in line for line in said["does_not_see"])


def test_a_run_without_anything_of_nobodys_is_refused() -> None:
    with pytest.raises(InputError, match=r"candidates\.ofl: got 0; .*; expected 1 or more"):
        ready(candidates={"members": 10, "ifl": 10, "ofl": 0})


def test_a_run_warns_of_attackers_who_hardly_ever_poisoned() -> None:
    campaign = ready().campaign
    assert campaign is not None
    (said,) = idle_poison(campaign, {"rounds": 10, "fallbacks": 7, "mask_alone": 1, "poisoned_updates": 2})
    assert "in 80% of its rounds nothing poisoned kept within its bound" in said
    assert idle_poison(campaign, {"rounds": 10, "fallbacks": 5, "poisoned_updates": 5}) == []
    assert idle_poison(campaign, {"rounds": 10, "fallbacks": 9, "poisoned_updates": 10}) == [], "bare poison"


def test_a_sweep_takes_the_row_that_was_asked_for() -> None:
    rows = [
        {"attack": attack, "target": target, "against": against}
        for attack in ("a", "b")
        for target, against in (("pooled", "all"), ("pooled", "ofl"), ("any", "ofl"))
        if (attack, target) != ("b", "any")
    ]
    assert [row["target"] for row in asked_rows(rows, True)] == ["any", "pooled"]
    assert [(row["target"], row["against"]) for row in asked_rows(rows, False)] == [("pooled", "all")] * 2
