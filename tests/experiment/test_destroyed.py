"""An attack that destroys the model is a result: the run ends there, says so, and keeps what it has."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsiege.data.triggers.base import Backdoor
from fedsiege.data.triggers.pixel import Pixel
from fedsiege.errors import TrainingDivergedError
from fedsiege.experiment.integrity import Watch
from fedsiege.experiment.run import run
from fedsiege.experiment.wreck import answered, wreck
from fedsiege.federation.checkpoint import read
from fedsiege.federation.local import LocalEngine
from fedsiege.records import Examples
from fedsiege.task import UNCOUNTED, Task

SMALL: dict[str, Any] = {
    "data": "digits",
    "model": {"name": "mlp", "hidden": [16]},
    "clients": 5,
    "examples_per_client": 40,
    "rounds": 6,
    "training": {"epochs": 1, "batch": 20, "lr": 0.05},
    "attacks": [],
    "compromised": {"clients": [3], "rounds": [3]},
    "checkpoint_every": 4,
    "threads": 1,
}
NOISE: dict[str, Any] = {"name": "gaussian", "sigma": 1e37}
USELESS: dict[str, Any] = {"adversary": NOISE}
OVERFLOWING: dict[str, Any] = {"adversary": NOISE, "server_step": 1e3}
UNTRAINABLE: dict[str, Any] = {"adversary": {**NOISE, "sigma": 1e8}, "model": {"name": "mlp", "hidden": [16, 16]}}


def result(folder: Path, **changes: Any) -> dict[str, Any]:
    run({**SMALL, **changes}, folder, progress=False)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize(
    ("changes", "number", "how"),
    [
        (USELESS, 3, "the global model's loss on held-out data is not finite"),
        (OVERFLOWING, 3, "the global model became non-finite after aggregation"),
        (UNTRAINABLE, 4, "client 0's training gave non-finite weights"),
    ],
    ids=["useless", "overflowing", "untrainable"],
)
def test_the_run_ends_in_the_round_in_which_the_model_is_lost(
    changes: dict[str, Any], number: int, how: str, tmp_path: Path
) -> None:
    found = result(tmp_path / "a", **changes)
    history = found["task"]["history"]
    assert [one["round"] for one in history] == list(range(number + 1))
    assert [one["loss"] is None for one in history] == [False] * number + [True]
    assert 0 <= history[-1]["accuracy"] < 0.35
    assert history[-1]["attackers"] == (number == 3)
    assert found["task"]["accuracy"] == history[-1]["accuracy"]
    assert found["warnings"][0].startswith(f"The model was destroyed in round {number}: {how}. The run ends there")
    assert [one["round"] for one in found["poisoning"]["attacks"]] == [3]
    assert found["poisoning"]["detection"]["attackers"]["answers"] == 1
    assert found["poisoning"]["detection"]["honest"]["answers"] == 5 * 2 + 4
    assert (tmp_path / "a" / "report.html").is_file()
    kept = read(tmp_path / "a" / "checkpoint.safetensors")
    assert kept.state.number == number - 1, "the last round before it"
    assert bool(torch.isfinite(kept.state.models[0]).all())
    assert kept.notes["destroyed"] == number
    assert kept.notes["destruction"] == how


def test_a_run_that_lost_its_model_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = result(tmp_path / "a", **USELESS)

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fedsiege.experiment.run"], "assemble", dying)
        with pytest.raises(KeyboardInterrupt):
            result(tmp_path / "b", **USELESS)
    assert not (tmp_path / "b" / "result.json").exists()
    monkeypatch.setattr(LocalEngine, "answers", dying)
    run({**SMALL, **USELESS}, tmp_path / "b", progress=False, resume=True)
    again = json.loads((tmp_path / "b" / "result.json").read_text())
    for part in ("task", "poisoning", "warnings", "components"):
        assert again[part] == whole[part]


def test_honest_training_that_diverges_stays_an_error(tmp_path: Path) -> None:
    wild = {**SMALL, "training": {"epochs": 1, "batch": 20, "lr": 1e30}}
    for name, changes in (("nobody", {"adversary": None}), ("later", {"adversary": "sign_flip"})):
        with pytest.raises(TrainingDivergedError, match=r"round 1.*lower training\.lr"):
            run({**wild, **changes}, tmp_path / name, progress=False)
        kept = read(tmp_path / name / "checkpoint.safetensors")
        assert kept.notes["destroyed"] is None
        assert kept.state.number == 0


def test_an_attacker_without_a_say_destroys_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 4 diverges by itself, after a round in which the rule had rejected the attacker."""
    from fedsiege.training import Training

    monkeypatch.setattr(Training, "rate", lambda self, number, rounds: 1e38 if number == 4 else 0.05)
    rejecting = {"adversary": NOISE, "aggregator": {"name": "krum", "f": 1}}
    with pytest.raises(TrainingDivergedError, match="round 4, client 0: training gave non-finite weights"):
        result(tmp_path / "a", **rejecting)
    kept = read(tmp_path / "a" / "checkpoint.safetensors")
    assert kept.notes["detection"]["attackers"] == {
        **{"answers": 1, "unusable": 0, "rejected": 1},
        **{"kept": 0, "scale": 1},
    }
    assert kept.notes["destroyed"] is None


def test_answers_that_no_server_can_use_are_no_attack_and_are_not_rejected(tmp_path: Path) -> None:
    infinite = {"adversary": {"name": "gaussian", "sigma": 1e300}}
    found = result(tmp_path / "a", **infinite, compromised={"clients": [3], "rounds": [3, 5]})
    assert [one["round"] for one in found["task"]["history"]] == list(range(7))
    part = found["poisoning"]
    assert (part["adversary"]["planned_rounds"], part["adversary"]["attack_rounds"], part["attacks"]) == (2, [], [])
    unjudged = {"rejected": None, "kept": None, "scale": None}
    assert part["detection"]["attackers"] == {"answers": 2, "unusable": 2, **unjudged}
    honest = part["detection"]["honest"]
    assert (honest["answers"], honest["unusable"], honest["kept"]) == (5 * 6 - 2, 0, 1)
    text = (tmp_path / "a" / "report.html").read_text()
    assert "no answer of an attacking client could be used (2 arrived)" in text


@pytest.mark.parametrize("secure", [True, False])
def test_membership_is_judged_by_the_rounds_before_the_end(secure: bool, tmp_path: Path) -> None:
    late = {"name": "grad_diff", "round": 4, "vantage": "server_aggregate_only" if secure else "server"}
    attacks = ["blackbox_loss", late, "loss_series"]
    audited: dict[str, Any] = {"attacks": attacks, "record_every": 1, "candidates": {"ifl": 40, "ofl": 40}}
    found = result(tmp_path / "a", **USELESS, **audited, secure_aggregation=secure)
    assert {row["attack"] for row in found["attacks"]} == {"blackbox_loss", "loss_series"}
    said = found["warnings"][0]
    assert "Attacks on membership are judged by the rounds before it." in said
    assert "Too little was recorded before it for grad_diff(" in said
    assert (tmp_path / "a" / "scores.parquet").is_file()
    assert not list((tmp_path / "a" / "trace").glob("*000003*"))


def test_without_a_recorded_round_before_the_end_nothing_is_audited(tmp_path: Path) -> None:
    audited: dict[str, Any] = {"attacks": ["loss_series"], "record_every": 3}
    found = result(tmp_path / "a", **USELESS, **audited, candidates={"ifl": 40, "ofl": 40})
    assert found["attacks"] == []
    assert found["warnings"][0].endswith("Too little was recorded before it for loss_series: no figures of these.")
    assert (tmp_path / "a" / "report.html").is_file()
    assert not (tmp_path / "a" / "scores.parquet").exists()


def test_uploads_without_a_finite_loss_stay_out_of_the_evidence(tmp_path: Path) -> None:
    audited: dict[str, Any] = {"attacks": ["loss_series"], "record_every": 1, "aggregator": "median"}
    found = result(tmp_path / "a", **USELESS, **audited, candidates={"ifl": 40, "ofl": 40}, targets=[0, 1])
    assert [one["round"] for one in found["task"]["history"]] == list(range(7))
    assert not any("destroyed" in said for said in found["warnings"])
    (adversary,) = [one for one in found["components"] if one["kind"] == "poisoning"]
    assert adversary["counters"]["left_out_of_evidence"] == 1
    from fedsiege.trace import Trace

    trace = Trace(tmp_path / "a" / "trace")
    assert [trace.present(t).tolist() for t in range(6)] == [
        [True, True, True, number != 3, True] for number in range(1, 7)
    ]


class Fixed(nn.Module):
    """Answers an example by the logits that its first input is the number of."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x.reshape(len(x), -1)[:, 0].long()]


NAN, INF = float("nan"), float("inf")
ROWS = torch.tensor([[3.0, 1.0, 0.0], [NAN, 1.0, 0.0], [0.0, NAN, 9.0], [0.0, 1.0, INF], [NAN, NAN, NAN]])


def numbered(which: list[int], y: list[int]) -> Examples:
    import numpy as np

    return Examples(np.arange(len(y)).astype(np.str_), torch.tensor(which).float()[:, None], torch.tensor(y))


def test_what_is_no_number_is_no_answer_and_wrong() -> None:
    task, model = Task(Fixed(torch.zeros_like(ROWS))), ROWS.reshape(-1)
    heldout = numbered([0, 1, 2, 3, 4, 0, 3], [0, 0, 2, 2, 0, 1, 1])
    assert answered(task, model, heldout).tolist() == [0, -1, -1, 2, -1, 0, 2]
    assert wreck(Watch(task, heldout, None, ()), model) == {"accuracy": 2 / 7, "loss": None}
    backdoor = Backdoor(Pixel(), 2, None, numbered([3, 2, 0], [2, 2, 2]))
    assert wreck(Watch(task, heldout, backdoor, ()), model) == {
        "accuracy": 2 / 7,
        "loss": None,
        "backdoor": 1 / 3,
        "mistaken": 1 / 5,
    }


def test_positions_that_do_not_count_are_no_answers_either(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from fedsiege.experiment import wreck as module

    class Words(nn.Module):
        """Logits [m, C, T]: of each word, the row of its number."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.zeros_like(ROWS))

        def forward(self, x: Tensor) -> Tensor:
            return self.rows[x].transpose(1, 2)

    task, x = Task(Words(), sequences=True), torch.tensor([[0, 3, 1], [4, 2, 0], [0, 0, 0]])
    y = torch.tensor([[0, 2, 0], [0, 2, UNCOUNTED], [1, 0, UNCOUNTED]])
    heldout = Examples(np.array(["a", "b", "c"]), x, y)
    watch = Watch(task, heldout, Backdoor(Pixel(), 2, None, heldout), ())
    found = wreck(watch, ROWS.reshape(-1))
    assert found == {"accuracy": 3 / 7, "loss": None, "backdoor": 3 / 7, "mistaken": None}
    seen: list[int] = []
    task.module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(module, "ROOM", 18)
    assert wreck(watch, ROWS.reshape(-1)) == found
    assert max(seen) == 2, "as many sequences at once as there is room for"
