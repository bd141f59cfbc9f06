"""FTA: slopes against NumPy's own fit, one candidate at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedsiege.attacks.membership import base
from fedsiege.attacks.membership.base import TRAINED
from fedsiege.attacks.membership.fta_c import FTAC
from fedsiege.attacks.membership.fta_l import FTAL
from fedsiege.errors import InputError
from fedsiege.scoring import score
from fedsiege.view import ArrayEvidence, Values, View

Row = NDArray[np.float64]
ATTACKS: list[tuple[type[FTAC] | type[FTAL], Callable[[Row], Row]]] = [
    (FTAC, lambda losses: np.exp(-losses)),
    (FTAL, lambda losses: -losses),
]
"""The attacks, and the series whose slope each scores by."""


def sampled(seed: int, rounds: int = 6, clients: int = 4, m: int = 9) -> dict[str, Any]:
    """Losses, classes and who took part; client 0 in at least two rounds."""
    rng = np.random.default_rng(seed)
    present = rng.random((rounds, clients)) < 0.7
    present[[1, 4], 0] = True
    loss = rng.exponential(size=(rounds, clients, m))
    loss[~present] = np.nan
    rise = rng.uniform(0, 2 * TRAINED, size=(rounds, clients, 3))
    return {"loss": loss, "present": present, "labels": rng.integers(0, 3, m), "rise": rise}


def by_polyfit(series: Row, numbers: list[int]) -> list[float]:
    return [float(np.polyfit(numbers, column, 1)[0]) for column in series.T]


@pytest.mark.parametrize(("attack", "of"), ATTACKS)
@given(
    seed=st.integers(0, 2**20),
    numbers=st.lists(st.integers(1, 500), min_size=6, max_size=6, unique=True).map(sorted),
)
def test_slopes_are_those_of_a_fit_over_the_rounds_that_a_target_took_part_in(
    attack: type[FTAC] | type[FTAL], of: Callable[[Row], Row], seed: int, numbers: list[int]
) -> None:
    arrays = sampled(seed)
    taken = np.flatnonzero(arrays["present"][:, 0]).tolist()
    view = View(ArrayEvidence(arrays, rounds=numbers), "server")
    expected = by_polyfit(of(arrays["loss"][taken, 0]), [numbers[t] for t in taken])
    np.testing.assert_allclose(attack().score(view, 0), expected, rtol=1e-7, atol=1e-10)
    assert view.counters == {"rounds_used": len(taken)}


@pytest.mark.parametrize("vantage", ["client", "server_aggregate_only"])
@pytest.mark.parametrize(("attack", "of"), ATTACKS)
def test_elsewhere_the_global_model_is_read_in_every_round(
    attack: type[FTAC] | type[FTAL], of: Callable[[Row], Row], vantage: Any
) -> None:
    losses = np.random.default_rng(0).exponential(size=(5, 7))
    arrays = {"global_loss": losses, "present": np.zeros((5, 2), dtype=bool)}
    scores = attack(vantage=vantage).score(View(ArrayEvidence(arrays, rounds=(3, 4, 8, 20, 21)), vantage), 1)
    np.testing.assert_allclose(scores, by_polyfit(of(losses), [3, 4, 8, 20, 21]), rtol=1e-9)


def test_by_hand() -> None:
    # Confidences .2 .4 .9 in rounds 1 2 3: slope (.9 - .2) / 2; losses likewise.
    p = np.array([0.2, 0.4, 0.9])
    arrays = {"loss": -np.log(p)[:, None, None]}
    np.testing.assert_allclose(score("fta_c", arrays), [0.35], rtol=1e-12)
    np.testing.assert_allclose(score("fta_l", arrays), [(np.log(0.9) - np.log(0.2)) / 2], rtol=1e-12)


def trained_by_definition(arrays: dict[str, Any], numbers: list[int], of: Callable[[Row], Row]) -> list[float]:
    """Per candidate: its class's rounds (all if fewer than two), less the rounds' means; then the means' slope."""
    taken = [t for t in range(len(numbers)) if arrays["present"][t, 0]]
    series = {t: of(arrays["loss"][t, 0]) for t in taken}
    common = np.polyfit([numbers[t] for t in taken], [series[t].mean() for t in taken], 1)[0]
    found = []
    for j, label in enumerate(arrays["labels"]):
        own = [t for t in taken if arrays["rise"][t, 0, label] >= TRAINED]
        own = own if len(own) > 1 else taken
        fit = np.polyfit([numbers[t] for t in own], [series[t][j] - series[t].mean() for t in own], 1)
        found.append(float(fit[0] + common))
    return found


@pytest.mark.parametrize(("attack", "of"), ATTACKS)
@given(seed=st.integers(0, 2**20))
def test_with_trained_rounds_a_candidates_own_rounds_enter_its_fit(
    attack: type[FTAC] | type[FTAL], of: Callable[[Row], Row], seed: int
) -> None:
    arrays, numbers = sampled(seed), [2, 3, 7, 8, 13, 30]
    view = View(ArrayEvidence(arrays, rounds=numbers), "server")
    scores = attack(average="trained").score(view, 0)
    np.testing.assert_allclose(scores, trained_by_definition(arrays, numbers, of), rtol=1e-7, atol=1e-10)
    taken = np.flatnonzero(arrays["present"][:, 0])
    counts = (arrays["rise"][taken, 0] >= TRAINED).sum(axis=0)[arrays["labels"]]
    assert view.counters == {
        "rounds_used": len(taken),
        "never_trained": np.sum(counts == 0),
        "trained_once": np.sum(counts == 1),
        "masked": np.sum(np.where(counts > 1, len(taken) - counts, 0)),
    }


def test_classes_with_other_rounds_have_the_same_slopes_where_all_losses_fall_alike() -> None:
    # Class 0 is trained in the early, steep rounds, class 1 in the late, flat ones; no candidate is special.
    curve = 4 * 0.5 ** np.arange(8.0)
    offsets = np.random.default_rng(0).normal(size=40)
    rise = np.zeros((8, 1, 2))
    rise[:4, 0, 0] = rise[4:, 0, 1] = 1.0
    arrays = {"loss": (curve[:, None] + offsets)[:, None], "rise": rise, "labels": np.arange(40) % 2}
    scores = score("fta_l", arrays, average="trained")
    np.testing.assert_allclose(scores, -np.polyfit(np.arange(8), curve, 1)[0], rtol=1e-9)


@pytest.mark.parametrize("average", ["all", "trained"])
def test_several_targets_as_alone_whatever_is_worked_on_together(
    average: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = sampled(3, rounds=7, clients=5, m=31)
    arrays["present"][:3] = True
    arrays["loss"] = np.random.default_rng(4).exponential(size=arrays["loss"].shape)
    attack = FTAC(average=average)
    alone = [attack.score(View(ArrayEvidence(arrays), "server"), target) for target in (3, 0, 2)]
    for block in (base.BLOCK, 20):
        monkeypatch.setattr(base, "BLOCK", block)
        together: Values = attack.score_targets(View(ArrayEvidence(arrays), "server"), [3, 0, 2])
        np.testing.assert_array_equal(together, alone)


def test_a_round_is_read_once_for_all_targets() -> None:
    reads: list[int] = []

    class Counting(ArrayEvidence):
        def loss(self, t: int) -> Any:
            reads.append(t)
            return super().loss(t)

    losses = np.random.default_rng(1).exponential(size=(4, 3, 5))
    FTAC().score_targets(View(Counting({"loss": losses}), "server"), [0, 1, 2])
    # The number of candidates is asked of the first round.
    assert reads == [0, 1, 2, 3]


def test_a_line_needs_two_rounds() -> None:
    with pytest.raises(InputError, match="fta_c: got 1 recorded round"):
        score("fta_c", {"loss": np.ones((1, 2, 3))})
    with pytest.raises(InputError, match=r"evidence: loss \[T, K, m\] is needed"):
        score("fta_l", {"cosine": np.ones((2, 2, 3))})


@pytest.mark.parametrize("attack", ["fta_c", "fta_l"])
def test_members_are_found_where_they_learn_faster_and_only_there(attack: str) -> None:
    rng = np.random.default_rng(7)
    half, rounds = 5000, 10
    start = rng.normal(3.0, 0.6, size=2 * half)
    speed = rng.normal(0.10, 0.04, size=2 * half)
    is_member = np.arange(2 * half) < half

    def auc(speeds: Row) -> float:
        logits = -start + speeds * np.arange(rounds)[:, None] + 0.2 * rng.normal(size=(rounds, 2 * half))
        return float(roc_auc_score(is_member, score(attack, {"loss": np.log1p(np.exp(-logits))[:, None]})))

    assert auc(speed + 0.1 * is_member) > 0.85
    assert abs(auc(speed) - 0.5) < 0.02
