"""LiRA and RMIA: what shadow federations say of candidates, against the formulas as loops."""

import math
from dataclasses import dataclass, replace
from statistics import fmean, variance
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from fedsiege.attacks.membership.lira import SMALLEST, LiRA, confidence
from fedsiege.attacks.membership.reference import reference
from fedsiege.attacks.membership.rmia import RMIA
from fedsiege.errors import InputError
from fedsiege.metrics.roc import roc_curve
from fedsiege.scoring import score
from fedsiege.view import ArrayEvidence, Background, Shadow, Vantage, View

Row = NDArray[np.float64]


@dataclass(frozen=True)
class Made:
    """A federation of 3 clients and some candidates, and shadow federations whose 4 clients were sampled.

    `lists` holds, for each shadow federation, the losses of the real candidates under each of its models of the
    last round, and `seen` those under client 1's real model. The population is the second half of the candidates.
    """

    vantage: Vantage
    evidence: ArrayEvidence
    background: Background
    lists: list[list[list[float]]]
    seen: list[float]

    def view(self, **other: Any) -> View:
        return View(self.evidence, self.vantage, replace(self.background, **other))


def small(seed: int, vantage: Vantage, shadows: int = 3, m: int = 8) -> Made:
    rng = np.random.default_rng(seed)
    made, lists = [], []
    for _ in range(shadows):
        asked = rng.permutation(m + 5)[:m]
        present = rng.random((2, 4)) < 0.6
        present[:, rng.integers(4)] = True
        loss, whole = rng.exponential(size=(2, 4, m + 5)), rng.exponential(size=(2, m + 5))
        loss[~present] = np.nan
        arrays = {"loss": loss, "global_loss": whole, "present": present}
        made.append(Shadow(ArrayEvidence(arrays), asked=asked, known=()))
        rows = loss[1, present[1]] if vantage == "server" else whole[1:]
        lists.append(rows[:, asked].tolist())
    loss, whole = rng.exponential(size=(2, 3, m)), rng.exponential(size=(2, m))
    seen = loss[1, 1] if vantage == "server" else whole[1]
    evidence = ArrayEvidence({"loss": loss, "global_loss": whole})
    background = Background(shadows=tuple(made), population=np.arange(m // 2, m))
    return Made(vantage, evidence, background, lists, seen.tolist())


def logit(loss: float) -> float:
    p = math.exp(-loss)
    return math.log(p / (1 - p))


VANTAGES: tuple[Literal["client", "server_aggregate_only", "server"], ...]
VANTAGES = ("client", "server_aggregate_only", "server")
KINDS: tuple[Literal["global", "candidate"], ...] = ("global", "candidate")


@pytest.mark.parametrize("vantage", VANTAGES)
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**20))
def test_lira_is_the_formula(seed: int, kind: Any, vantage: Any) -> None:
    made = small(seed, vantage)
    view, lists = made.view(), made.lists
    out = [[logit(row[j]) for rows in lists for row in rows] for j in range(8)]
    spreads = [variance(values) for values in out]
    expected = [
        (logit(loss) - fmean(out[j])) / math.sqrt((fmean(spreads) if kind == "global" else spreads[j]) + 1e-12)
        for j, loss in enumerate(made.seen)
    ]
    scores = LiRA(vantage=vantage, shadows=3, variance=kind).score(view, 1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-9)
    assert view.counters == {"rounds_used": 1, "reference_models": len(out[0]), "rounds_apart": 0}


@pytest.mark.parametrize("vantage", VANTAGES)
@pytest.mark.parametrize(("a", "gamma"), [(0.3, 2.0), (1.0, 1.0), (0.0, 1.5)])
@given(seed=st.integers(0, 2**20))
def test_rmia_is_the_formula_with_ties_broken(seed: int, a: float, gamma: float, vantage: Any) -> None:
    made = small(seed, vantage)
    view, lists = made.view(), made.lists
    ratios = []
    for j, loss in enumerate(made.seen):
        out = fmean(math.exp(-row[j]) for rows in lists for row in rows)
        ratios.append(math.exp(-loss) / (((1 + a) * out + (1 - a)) / 2))
    counts = [sum(ratio / ratios[z] >= gamma for z in range(4, 8)) for ratio in ratios]
    scores = RMIA(vantage=vantage, shadows=3, population=99, gamma=gamma, offline_a=a).score(view, 1)
    expected = [(count + ratio / (1 + ratio)) / 5 for count, ratio in zip(counts, ratios, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert np.argsort(scores).tolist() == np.argsort(ratios).tolist()


def test_federations_beyond_those_asked_for_are_not_read() -> None:
    made = small(2, "client", shadows=4)
    for attack in (LiRA(shadows=2), RMIA(shadows=2)):
        two = made.view(shadows=made.background.shadows[:2])
        np.testing.assert_array_equal(attack.score(made.view(), 0), attack.score(two, 0))


def test_rmia_compares_with_the_first_examples_of_the_population() -> None:
    made = small(5, "client")
    few = RMIA(shadows=3, population=2, gamma=1.0).score(made.view(), 0)
    cut = made.view(population=np.array([4, 5]))
    np.testing.assert_array_equal(few, RMIA(shadows=3, population=3, gamma=1.0).score(cut, 0))
    assert np.all(few <= 1)
    assert few.max() > 0.5


def test_rmia_by_hand() -> None:
    # p_out = .5 everywhere, a = .3: p(x) = (1.3 * .5 + .7) / 2 = .675. Population (last two): p .4 and .1.
    p = np.array([0.9, 0.15, 0.4, 0.1])
    shadow = Shadow(ArrayEvidence({"global_loss": np.full((1, 4), math.log(2))}), np.arange(4), ())
    background = Background((shadow,), np.array([2, 3]))
    view = View(ArrayEvidence({"global_loss": -np.log(p)[None]}), "client", background)
    ratios = p / 0.675
    counts = np.array([2, 0, 1, 0])  # at gamma = 2: .9 exceeds .8 and .2; .15 neither; .4 exceeds .2; .1 neither
    np.testing.assert_allclose(RMIA(shadows=1).score(view, 0), (counts + ratios / (1 + ratios)) / 3, rtol=1e-12)


def test_rmia_of_hopeless_candidates_is_finite() -> None:
    shadow = Shadow(ArrayEvidence({"global_loss": np.full((1, 3), 2000.0)}), np.arange(3), ())
    view = View(
        ArrayEvidence({"global_loss": [[900.0, 1.0, 3000.0]]}), "client", Background((shadow,), np.array([0]))
    )
    scores = RMIA(shadows=1, offline_a=1.0).score(view, 0)
    assert np.isfinite(scores).all()
    assert scores[1] > scores[0] > scores[2]


def test_confidence_near_certainty() -> None:
    losses = np.array([1e-6, 1e-3, 0.7, 30.0, 800.0])
    exact = [-math.log(math.expm1(loss)) if loss < 700 else -loss for loss in losses]
    np.testing.assert_allclose(confidence(losses), exact, rtol=1e-12)
    limit = confidence(np.array([0.0, SMALLEST]))
    assert limit[0] == limit[1]
    np.testing.assert_allclose(limit, 24 * math.log(2), rtol=1e-6)


def test_lira_ranks_as_the_papers_distribution_function_without_its_ties() -> None:
    scores = LiRA().score(small(11, "client", shadows=8, m=40).view(), 0)
    np.testing.assert_array_equal(np.argsort(norm.cdf(scores), kind="stable"), np.argsort(scores, kind="stable"))


@given(seed=st.integers(0, 2**20))
def test_mean_and_variance_over_the_models_of_all_federations(seed: int) -> None:
    made = small(seed, "server", shadows=4)
    found = reference(made.view(), 2, 4, lambda losses: losses)
    stacked = np.concatenate([np.array(rows) for rows in made.lists])
    assert found.models == len(stacked)
    np.testing.assert_allclose(found.mean, stacked.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, stacked.var(axis=0, ddof=1), rtol=1e-10)


def shadow_of(rounds: list[int], present: list[bool]) -> Shadow:
    """A shadow federation of one client whose losses are the rounds' numbers."""
    losses = np.array(rounds, dtype=float)[:, None, None]
    taken = np.array(present)[:, None]
    return Shadow(ArrayEvidence({"loss": losses, "present": taken}, rounds=rounds), np.array([0]), ())


@pytest.mark.parametrize(
    ("rounds", "present", "read", "apart"),
    [
        ([1, 5, 10], [True, True, True], 5, 0),
        ([1, 3, 7], [True, True, True], 3, 2),
        ([8, 30], [True, True], 8, 3),
        ([5, 9], [False, True], 9, 4),
    ],
)
def test_the_round_next_to_the_one_attacked(rounds: list[int], present: list[bool], read: int, apart: int) -> None:
    other = shadow_of([5], [True])
    losses = {"loss": np.full((1, 1, 1), 2.0)}
    background = Background((shadow_of(rounds, present), other))
    view = View(ArrayEvidence(losses, rounds=[5]), "server", background)
    found = reference(view, 5, 2, lambda values: values)
    assert found.mean[0] == (read + 5) / 2
    assert found.apart == apart
    LiRA(vantage="server", shadows=2).score(view, 0)
    assert view.counters["rounds_apart"] == apart


def test_the_round_asked_for_is_the_one_compared() -> None:
    rng = np.random.default_rng(0)
    real, own = rng.exponential(size=(3, 6)), rng.exponential(size=(2, 3, 6))
    shadows = tuple(Shadow(ArrayEvidence({"global_loss": one}), np.arange(6), ()) for one in own)
    view = View(ArrayEvidence({"global_loss": real}), "client", Background(shadows))
    z = LiRA(shadows=2, round=2, variance="candidate").score(view, 0)
    logits = -np.log(np.expm1(own[:, 1]))
    expected = (-np.log(np.expm1(real[1])) - logits.mean(axis=0)) / np.sqrt(logits.var(axis=0, ddof=1) + 1e-12)
    np.testing.assert_allclose(z, expected, rtol=1e-9)


def test_targets_with_other_last_rounds_get_other_references() -> None:
    rng = np.random.default_rng(1)
    present = np.array([[True, True], [True, False]])
    evidence = ArrayEvidence({"loss": rng.exponential(size=(2, 2, 5)), "present": present})
    own = [ArrayEvidence({"loss": rng.exponential(size=(2, 3, 5))}) for _ in range(2)]
    background = Background(tuple(Shadow(one, np.arange(5), ()) for one in own))
    attack, view = LiRA(vantage="server", shadows=2), View(evidence, "server", background)
    together = attack.score_targets(view, [1, 0])
    for row, target, t in zip(together, [1, 0], [0, 1], strict=True):
        alone = View(evidence, "server", background)
        np.testing.assert_array_equal(attack.score(alone, target), row)
        assert alone.counters == view.of(target).counters
        out = np.concatenate([confidence(np.asarray(one.loss(t))) for one in own])
        gap = confidence(np.asarray(evidence.loss(t)))[target] - out.mean(axis=0)
        np.testing.assert_allclose(row, gap / np.sqrt(out.var(axis=0, ddof=1).mean()), rtol=1e-9)


@pytest.mark.parametrize(("attack", "wanted"), [("lira", 8), ("rmia", 8)])
def test_plain_arrays_have_no_shadow_federations(attack: str, wanted: int) -> None:
    message = rf"shadows: got 0 shadow federations; expected {wanted} or more, which a run trains"
    with pytest.raises(InputError, match=message):
        score(attack, {"global_loss": np.ones((2, 3))})


def test_what_is_missing_is_named() -> None:
    made = small(0, "client")
    with pytest.raises(InputError, match="got 3 shadow federations; expected 4 or more"):
        LiRA(shadows=4).score(made.view(), 0)
    with pytest.raises(InputError, match="population: got no examples"):
        RMIA(shadows=3).score(made.view(population=np.zeros(0, dtype=np.int64)), 0)
    short = Shadow(made.background.shadows[0].evidence, np.arange(3), ())
    with pytest.raises(InputError, match="rmia: its shadow federations recorded 3 of the candidates; expected all"):
        RMIA(shadows=1).score(made.view(shadows=(short,)), 0)


def test_what_they_ask_a_run_for() -> None:
    assert (LiRA().shadows_wanted, LiRA(shadows=2).shadows_wanted, LiRA().population_wanted) == (8, 2, 0)
    assert (RMIA(shadows=1).shadows_wanted, RMIA(population=7).population_wanted) == (1, 7)
    assert not LiRA().truth_wanted
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        LiRA(shadows=1)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        RMIA(offline_a=1.1)


def simulated(leak: float, seed: int, vantage: Vantage) -> View:
    """5,000 members, 5,000 others, 1,000 of the population; examples differ in difficulty, models in level."""
    rng = np.random.default_rng(seed)
    half, m = 5000, 11000
    hard = rng.normal(0, 2, size=m)
    learnt: Row = leak * (np.arange(m) < half).astype(np.float64)

    def losses(models: int, gain: Row | float) -> Row:
        logits = 1.0 - hard + gain + 0.3 * rng.normal(size=(models, 1)) + rng.normal(size=(models, m))
        return np.log1p(np.exp(-logits))

    def evidence(gain: Row | float) -> ArrayEvidence:
        return ArrayEvidence({"loss": losses(3, gain)[None], "global_loss": losses(1, gain)})

    shadows = tuple(Shadow(evidence(0.0), np.arange(m), ()) for _ in range(8))
    return View(evidence(learnt), vantage, Background(shadows, np.arange(2 * half, m)))


ATTACKS: list[LiRA | RMIA] = [
    *(LiRA(vantage=vantage, variance=kind) for vantage in VANTAGES for kind in KINDS),
    *(RMIA(vantage=vantage) for vantage in VANTAGES),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_null_no_member_is_found_where_nobody_trained(attack: LiRA | RMIA) -> None:
    scores = attack.score(simulated(0.0, 3, attack.vantage), 0)
    members, others = scores[:5000], scores[5000:10000]
    curve = roc_curve(members, others)
    assert abs(float(roc_auc_score(np.arange(10000) < 5000, scores[:10000])) - 0.5) < 0.02
    assert max(tpr for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True) if fpr <= 0.001) < 0.004


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_members_are_found_better_than_by_the_loss_alone(attack: LiRA | RMIA) -> None:
    view = simulated(1.5, 4, attack.vantage)
    truth = np.arange(10000) < 5000
    scores = attack.score(view, 0)[:10000]
    plain = -view.own("loss", 0, 0)[:10000]
    found, alone = float(roc_auc_score(truth, scores)), float(roc_auc_score(truth, plain))
    assert found > 0.75
    assert found > alone + 0.06
