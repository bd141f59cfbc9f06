"""Attacks that are told of a defence: their fields, titles and refusals, and means over the rounds that count."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsiege.attacks.membership.avg_cosine import AvgCosine
from fedsiege.attacks.membership.base import (
    TRAINED,
    MembershipAttack,
    check_plan,
    recordings,
    resolve_vantage,
)
from fedsiege.attacks.membership.fedmia_i import FedMIAI
from fedsiege.attacks.membership.fedmia_ii import FedMIAII
from fedsiege.attacks.membership.grad_cosine import GradCosine
from fedsiege.attacks.membership.loss_series import LossSeries
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.registry import build, names, register
from fedsiege.streams import stream
from fedsiege.view import ArrayEvidence, Values, Vantage, View

T, K, M, CLASSES = 6, 5, 40, 4


@pytest.mark.parametrize("name", names("membership"))
def test_published_attacks_are_told_nothing(name: str) -> None:
    attack: MembershipAttack = build("membership", name, "test")
    assert not attack.adapted
    assert attack.heading == attack.title
    assert attack.signals == attack.needs
    assert recordings([attack]) == (frozenset({"outputs"}) if name in ("seqmia", "fedpoisonmia") else frozenset())


@pytest.mark.parametrize(
    ("attack", "heading", "signals", "recorded"),
    [
        (GradCosine(coordinates="unshifted"), "Grad-Cosine (shift removed)", {"cosine_unshifted"}, set()),
        (AvgCosine(coordinates="nonzero"), "Avg-Cosine (non-zero coordinates)", {"cosine_nonzero"}, {"support"}),
        (LossSeries(average="trained"), "Loss-Series (trained rounds)", {"loss", "rise", "labels"}, set()),
        (
            FedMIAII(coordinates="nonzero", average="trained"),
            "FedMIA-II (non-zero coordinates, trained rounds)",
            {"cosine_nonzero", "rise", "labels"},
            {"support"},
        ),
        (AvgCosine(coordinates="front"), "Avg-Cosine (before the tail)", {"cosine_front"}, {"front"}),
        (LossSeries(updates="denoised"), "Loss-Series (tail de-noised)", {"loss"}, {"updates:denoised"}),
        (FedMIAI(updates="coalition"), "FedMIA-I (coalition as one)", {"loss"}, {"updates:coalition"}),
        (
            FedMIAII(updates="insider", coordinates="front", average="trained"),
            "FedMIA-II (before the tail, trained rounds, insider)",
            {"cosine_front", "rise", "labels"},
            {"front", "updates:insider"},
        ),
    ],
)
def test_what_an_adapted_attack_says_of_itself(
    attack: MembershipAttack, heading: str, signals: set[str], recorded: set[str]
) -> None:
    assert attack.adapted
    assert attack.heading == heading
    assert attack.signals == signals
    assert recordings([LossSeries(), attack]) == recorded


@register("by_its_own_words")
class ByItsOwnWords(MembershipAttack):
    """A user's attack whose field `average` means something else, and that reads a signal of its own."""

    title = "Own"
    needs = frozenset({"cosine_nonzero"})
    vantage: Vantage = "server"
    average: str = "median"


def test_a_users_field_of_the_same_name_is_the_users() -> None:
    attack = ByItsOwnWords()
    assert not attack.adapted
    assert attack.signals == {"cosine_nonzero"}
    assert recordings([attack]) == {"support"}


@pytest.mark.parametrize("vantage", ["server_aggregate_only", "client"])
@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (GradCosine, {"coordinates": "nonzero"}),
        (AvgCosine, {"coordinates": "unshifted"}),
        (AvgCosine, {"average": "trained"}),
        (LossSeries, {"average": "trained"}),
        (LossSeries, {"updates": "denoised"}),
        (AvgCosine, {"updates": "insider"}),
        (AvgCosine, {"coordinates": "front"}),
    ],
)
def test_single_updates_are_needed(cls: Any, told: dict[str, Any], vantage: Vantage) -> None:
    attack = cls(vantage=vantage, **told)
    ((field, value),) = told.items()
    untold = "sent" if field == "updates" else "all"
    message = rf"{field}: {value} reads single clients' updates, which vantage {vantage}.*{field} to {untold}"
    with pytest.raises(ThreatModelError, match=message):
        check_plan(attack, (1, 2), clients=3)
    with pytest.raises(ThreatModelError, match=message):
        check_plan(attack, (1, 2), clients=3, coalitions=[{0, 1}], tail=True)
    view = View(ArrayEvidence({"global_loss": np.ones((2, 3)), "aggregate_cosine": np.ones((2, 3))}), vantage)
    with pytest.raises(ThreatModelError, match=message):
        attack.score(view, 0)


def test_secure_aggregation_refuses_what_is_told_of_single_updates() -> None:
    with pytest.raises(ThreatModelError, match=r"loss_series: average: trained reads .* set average to all"):
        resolve_vantage(LossSeries(average="trained"), secure_aggregation=True)
    with pytest.raises(ThreatModelError, match="grad_cosine: needs single clients' updates") as caught:
        resolve_vantage(GradCosine(coordinates="nonzero"), secure_aggregation=True)
    assert "set its vantage" not in str(caught.value), "it would be refused there too"
    assert resolve_vantage(FedMIAI(average="trained"), secure_aggregation=False) == "server"
    with pytest.raises(ThreatModelError, match=r"loss_series: updates: insider reads .* set updates to sent"):
        resolve_vantage(LossSeries(updates="insider"), secure_aggregation=True)
    with pytest.raises(ThreatModelError, match=r"set average to all and updates to sent"):
        resolve_vantage(LossSeries(updates="coalition", average="trained"), secure_aggregation=True)


PAIR = [frozenset({0, 1})]


@pytest.mark.parametrize("updates", ["coalition", "insider"])
def test_what_is_told_of_a_coalition_needs_one(updates: Any) -> None:
    attack = LossSeries(updates=updates)
    with pytest.raises(InputError, match=rf"loss_series: updates: {updates} is told of a coalition, .* has none"):
        check_plan(attack, (1, 2), clients=5, coalitions=[], tail=True)
    check_plan(attack, (1, 2), clients=5, coalitions=PAIR)
    check_plan(attack, (1, 2), clients=5)


def test_what_is_told_of_a_tail_needs_to_know_where_it_begins() -> None:
    attack = AvgCosine(updates="denoised", coordinates="front")
    message = (
        r"avg_cosine: coordinates: front and updates: denoised needs to know .* the run has no coalition; set "
        "trace.tail to their share, or coordinates to all and updates to sent"
    )
    with pytest.raises(InputError, match=message):
        check_plan(attack, (1, 2), clients=5, coalitions=[])
    check_plan(attack, (1, 2), clients=5, coalitions=[], tail=True)
    check_plan(attack, (1, 2), clients=5, coalitions=PAIR)
    check_plan(LossSeries(average="trained"), (1, 2), clients=5, coalitions=[])


def test_a_coalition_seen_as_one_leaves_fewer_clients() -> None:
    attack = FedMIAI(updates="coalition")
    check_plan(attack, (1, 2), clients=5, coalitions=[{0, 1}, {2, 3}])
    with pytest.raises(
        InputError, match=r"fedmia_i: with updates: coalition the server sees 2 clients, .* least 3"
    ):
        check_plan(attack, (1, 2), clients=5, coalitions=[{0, 1, 4}, {2, 3}])
    check_plan(FedMIAI(updates="insider"), (1, 2), clients=5, coalitions=[{0, 1, 4}, {2, 3}])


def evidence(seed: int) -> dict[str, Any]:
    """Evidence in which classes come and go, and a client never trained class 3."""
    rng = stream(seed, "adapted")
    present = rng.random((T, K)) < 0.9
    present[:4, :3] = True
    level = np.linspace(3, 1, T)[:, None, None]
    rise = rng.uniform(size=(T, K, CLASSES)) ** 2
    rise[:, 0, 3] = 0.9 * TRAINED
    rise[0, 1, 0] = TRAINED
    return {
        "loss": level + rng.gamma(2.0, size=(T, K, M)),
        "cosine": rng.normal(size=(T, K, M)) - level,
        "cosine_nonzero": rng.normal(size=(T, K, M)) - level,
        "cosine_unshifted": rng.normal(size=(T, K, M)) - level,
        "cosine_front": rng.normal(size=(T, K, M)) - level,
        "rise": rise,
        "labels": rng.integers(0, CLASSES, size=M),
        "present": present,
    }


def counting(arrays: dict[str, Any], target: int, j: int) -> list[int]:
    """The target's rounds that count for candidate j, one look at a time."""
    there = [t for t in range(T) if arrays["present"][t, target]]
    trained = [t for t in there if arrays["rise"][t, target, arrays["labels"][j]] >= 0.2]
    return trained or there


def naive_mean(arrays: dict[str, Any], target: int, signal: str) -> list[float]:
    """The mean over rounds that count, less what these rounds' means exceed all rounds' by."""
    there = [t for t in range(T) if arrays["present"][t, target]]
    level = {t: math.fsum(arrays[signal][t, target]) / M for t in there}
    scores = []
    for j in range(M):
        own = counting(arrays, target, j)
        value = math.fsum(arrays[signal][t, target, j] for t in own) / len(own)
        excess = math.fsum(level[t] for t in own) / len(own) - math.fsum(level.values()) / len(there)
        scores.append(value - excess)
    return scores


def naive_fedmia(arrays: dict[str, Any], target: int, signal: str, sign: int, combine: str) -> list[float]:
    scores = []
    for j in range(M):
        rounds = []
        for t in counting(arrays, target, j):
            others = [sign * arrays[signal][t, k, j] for k in range(K) if k != target and arrays["present"][t, k]]
            centre = math.fsum(others) / len(others)
            spread = math.fsum((v - centre) ** 2 for v in others) / len(others) + 1e-8
            z = (sign * arrays[signal][t, target, j] - centre) / math.sqrt(spread)
            rounds.append(z if combine == "sum_z" else 0.5 * math.erfc(-z / math.sqrt(2)))
        there = int(arrays["present"][:, target].sum())
        # Sums over fewer rounds spread less: they are scaled to the spread of a sum over all.
        scores.append(
            math.fsum(rounds) * (math.sqrt(there / len(rounds)) if combine == "sum_z" else 1 / len(rounds))
        )
    return scores


@pytest.mark.parametrize("target", [0, 1, 4])
def test_means_over_trained_rounds_are_the_naive_ones(target: int) -> None:
    arrays = evidence(1)
    view = View(ArrayEvidence(arrays), "server")
    found = LossSeries(average="trained").score(view, target)
    np.testing.assert_allclose(-found, naive_mean(arrays, target, "loss"), rtol=1e-12)
    for coordinates, signal in (
        ("all", "cosine"),
        ("nonzero", "cosine_nonzero"),
        ("unshifted", "cosine_unshifted"),
        ("front", "cosine_front"),
    ):
        attack: MembershipAttack = build(
            "membership", {"name": "avg_cosine", "coordinates": coordinates, "average": "trained"}, "test"
        )
        found = attack.score(View(ArrayEvidence(arrays), "server"), target)
        np.testing.assert_allclose(found, naive_mean(arrays, target, signal), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("combine", ["mean_cdf", "sum_z"])
@pytest.mark.parametrize("target", [0, 1, 4])
def test_fedmia_over_trained_rounds_is_the_naive_one(target: int, combine: Any) -> None:
    arrays = evidence(2)

    def view() -> View:
        return View(ArrayEvidence(arrays), "server")

    found = FedMIAI(average="trained", combine=combine).score(view(), target)
    np.testing.assert_allclose(found, naive_fedmia(arrays, target, "loss", -1, combine), rtol=1e-9, atol=1e-12)
    found = FedMIAII(average="trained", coordinates="unshifted", combine=combine).score(view(), target)
    expected = naive_fedmia(arrays, target, "cosine_unshifted", 1, combine)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_what_was_left_out_is_counted() -> None:
    arrays = evidence(3)
    view = View(ArrayEvidence(arrays), "server")
    LossSeries(average="trained").score_targets(view, [0, 1])
    rounds = int(arrays["present"][:, 0].sum())
    assert view.of(0).counters["masked"] == sum(rounds - len(counting(arrays, 0, j)) for j in range(M)) > 0
    assert view.of(0).counters["never_trained"] == (arrays["labels"] == 3).sum() > 0
    assert view.of(1).counters["never_trained"] == 0
    assert view.counters["masked"] == view.of(0).counters["masked"] + view.of(1).counters["masked"]


def scores_of(name: str, arrays: dict[str, Any], **fields: Any) -> Values:
    attack: MembershipAttack = build("membership", {"name": name, **fields}, "test")
    return attack.score_targets(View(ArrayEvidence(arrays), "server"), [0, 1, 2])


@pytest.mark.parametrize("rise", [0.0, 1.0])
@pytest.mark.parametrize("name", ["loss_series", "avg_cosine", "fedmia_i", "fedmia_ii"])
def test_where_all_classes_or_none_were_trained_nothing_changes(name: str, rise: float) -> None:
    arrays = evidence(4)
    arrays["rise"][:] = rise
    np.testing.assert_array_equal(scores_of(name, arrays, average="trained"), scores_of(name, arrays))


@pytest.mark.parametrize(
    ("name", "coordinates"),
    [
        *((name, "nonzero") for name in ("grad_cosine", "avg_cosine", "fedmia_ii")),
        *((name, "unshifted") for name in ("grad_cosine", "avg_cosine", "fedmia_ii")),
        *((name, "front") for name in ("avg_cosine", "fedmia_ii")),
    ],
)
def test_other_coordinates_are_another_cosine_and_nothing_else(name: str, coordinates: str) -> None:
    arrays = evidence(5)
    instead = {**arrays, "cosine": arrays[f"cosine_{coordinates}"]}
    np.testing.assert_array_equal(scores_of(name, arrays, coordinates=coordinates), scores_of(name, instead))


@pytest.mark.parametrize("name", ["loss_series", "avg_cosine", "fedmia_i", "fedmia_ii"])
@pytest.mark.parametrize("updates", ["denoised", "coalition", "insider"])
def test_other_updates_are_other_evidence_and_the_same_attack(name: str, updates: str) -> None:
    """Which evidence an attack gets is the run's part; on plain arrays they are what was given."""
    arrays = evidence(8)
    np.testing.assert_array_equal(scores_of(name, arrays, updates=updates), scores_of(name, arrays))


def test_rounds_of_another_level_say_nothing() -> None:
    """Losses fall from round to round: which rounds a class was trained in must not rank its candidates."""
    arrays = evidence(6)
    arrays["loss"] = np.tile(np.linspace(5, 1, T)[:, None, None], (1, K, M))
    scores: NDArray[np.float64] = scores_of("loss_series", arrays, average="trained")
    np.testing.assert_allclose(scores, scores_of("loss_series", arrays), rtol=1e-12)


def test_labels_beyond_the_outputs_are_refused() -> None:
    arrays = evidence(7)
    arrays["labels"][0] = CLASSES
    with pytest.raises(InputError, match=r"loss_series: labels go from 0 to 4; expected 0\.\.3"):
        LossSeries(average="trained").score(View(ArrayEvidence(arrays), "server"), 0)
