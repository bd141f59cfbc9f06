"""Scores of the official functions (shared/golden/README.md says how they were made)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from fedsiege.attacks.membership.likelihood import OneTailedTest
from fedsiege.scoring import score
from fedsiege.view import ArrayEvidence, View

SETS = ["scores_K10_iid", "scores_K10_noniid", "micro_K10_iid", "micro_K10_noniid"]
SINGLE = {
    "grad_cosine": "cos_attack",
    "grad_diff": "diff_attack",
    "blackbox_loss": "loss_attack",
    "grad_norm": "grad_norm_attack",
}
MULTI = {
    "loss_series": "avg_averaged_loss",
    "avg_cosine": "avg_cosine_attack",
    "fedmia_i": "avg_averaged_lira_loss",
    "fedmia_ii": "avg_averaged_lira",
}


class Golden:
    """The signals [T, K, members then non-members] of a set and the official scores."""

    def __init__(self, folder: Path, name: str) -> None:
        suffix = "_scores" if name.startswith("micro") else ""
        with np.load(folder / f"{name}{suffix}.npz", allow_pickle=False) as stored:
            self.scores = dict(stored)
        self.signals = _micro(folder) if suffix else _random(self.scores)
        self.rounds, self.clients, _ = self.signals["loss"].shape
        self.filtered = {"fedmia_i": None, "fedmia_ii": 3.0 if "noniid" in name else None}

    def pair(self, key: str, end: str = "") -> NDArray[Any]:
        """The official values of members, then non-members."""
        return np.concatenate([self.scores[f"{key}member{end}"], self.scores[f"{key}nonmember{end}"]])


def _random(stored: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    signals = {
        ours: np.concatenate([stored[f"in_{theirs}_member"], stored[f"in_{theirs}_nonmember"]], axis=2)
        for ours, theirs in {"loss": "loss", "cosine": "cos", "diff": "diff", "norm2": "norm2"}.items()
    }
    # The gradient's norm is the same in every client's column: it is taken at the global model.
    return {**signals, "norm2": signals["norm2"][:, 0]}


def _micro(folder: Path) -> dict[str, NDArray[Any]]:
    with np.load(folder / "micro_K10_iid_mdm.npz", allow_pickle=False) as stored:
        rounds, clients = len(stored["lr"]), len(stored["client_idx"])

        def column(signal: str, t: int, k: int) -> NDArray[Any]:
            end = f"_r{t}_c{k}"
            if signal == "loss":
                test = stored[f"loss_testall{end}"][stored["test_idx"]]
                return np.concatenate([stored[f"loss_member{end}"], test, stored[f"loss_mix{end}"]])
            return np.concatenate([stored[f"{signal}_{group}{end}"] for group in ("member", "test", "mix")])

        def cube(signal: str) -> NDArray[Any]:
            return np.array([[column(signal, t, k) for k in range(clients)] for t in range(rounds)])

        return {"loss": cube("loss"), "cosine": cube("cos"), "diff": cube("diff"), "norm2": cube("norm2")[:, 0]}


@pytest.fixture(scope="module", params=SETS)
def golden(request: pytest.FixtureRequest, shared_golden: Path) -> Golden:
    return Golden(shared_golden, request.param)


def close(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    # Losses and norms were stored as float32, which holds 6e-8 of their own size.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attack", SINGLE)
def test_single_round_scores(golden: Golden, attack: str) -> None:
    for t in range(golden.rounds):
        close(score(attack, golden.signals, round=t + 1), golden.pair(f"{SINGLE[attack]}_r{t}/"))


@pytest.mark.parametrize("attack", MULTI)
def test_multi_round_scores(golden: Golden, attack: str) -> None:
    theirs = golden.pair(f"{MULTI[attack]}/")
    fields: dict[str, Any] = {"sigma_filter": golden.filtered[attack]} if attack in golden.filtered else {}
    close(score(attack, golden.signals, **fields), theirs)
    # With ten clients the filter cannot fire, so our default agrees as well.
    close(score(attack, golden.signals), theirs)


@pytest.mark.parametrize(
    ("attack", "title", "signal", "sign"), [("fedmia_i", "I", "loss", -1), ("fedmia_ii", "II", "cosine", 1)]
)
def test_distribution_function_of_every_round(
    golden: Golden, attack: str, title: str, signal: Any, sign: int
) -> None:
    test = OneTailedTest(golden.filtered[attack], "moments", "mean_cdf")
    view = View(ArrayEvidence(golden.signals), "server")
    for t in range(golden.rounds):
        z, dropped = test.standardise(sign * view.own(signal, 0, t), sign * view.others(signal, 0, t))
        assert dropped == 0
        close(ndtr(z), golden.pair(f"FedMIA-{title}_cdf_", f"_r{t}"))
