from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest

from fedsiege.errors import InputError, ThreatModelError
from fedsiege.view import AXES, ArrayEvidence, Signal, View, apart, as_one

T, K, M, C = 3, 4, 5, 2
OF_CANDIDATES: tuple[Signal, ...] = (
    "loss",
    "top",
    "spread",
    "entropy",
    "modified_entropy",
    "cosine",
    "cosine_nonzero",
    "cosine_unshifted",
    "cosine_front",
    "diff",
)
"""Signals of each client and candidate."""
GLOBAL_VANTAGES = ["client", "malicious_clients", "coalition_member", "server_aggregate_only"]


@pytest.fixture
def arrays() -> dict[str, Any]:
    """Every array; client 2 is absent from the second round, where its rows are NaN."""
    sizes = {"T": T, "K": K, "m": M, "C": C}
    made: dict[str, Any] = {}
    for start, (name, axes) in enumerate(AXES.items()):
        shape = tuple(sizes[axis] for axis in axes)
        made[name] = (1000 * start + np.arange(np.prod(shape)).reshape(shape)).astype(np.float32)
    made["labels"] = np.array([0, 1, 1, 0, 1])
    made["present"] = np.ones((T, K), dtype=bool)
    made["present"][1, 2] = False
    for name in (*OF_CANDIDATES, "head", "rise"):
        made[name][1, 2] = np.nan
    return made


def test_server_sees_the_targets_column_and_the_others_that_were_present(arrays: dict[str, Any]) -> None:
    view = View(ArrayEvidence(arrays), "server")
    for signal in (*OF_CANDIDATES, "rise"):
        np.testing.assert_array_equal(view.own(signal, 1, 1), arrays[signal][1, 1])
        np.testing.assert_array_equal(view.others(signal, 1, 1), arrays[signal][1, [0, 3]])
        np.testing.assert_array_equal(view.others(signal, 1, 0), arrays[signal][0, [0, 2, 3]])
    np.testing.assert_array_equal(view.own("head", 3, 2), arrays["head"][2, 3])
    np.testing.assert_array_equal(view.others("head", 3, 2), arrays["head"][2, :3])
    np.testing.assert_array_equal(view.own("norm2", 0, 2), arrays["norm2"][2])
    np.testing.assert_array_equal(view.labels, arrays["labels"])
    assert view.company(1, 1) == 2
    assert view.company(1, 0) == 3


def test_several_targets_and_everyone_at_once(arrays: dict[str, Any]) -> None:
    view = View(ArrayEvidence(arrays), "server")
    for signal in ("loss", "cosine", "diff", "head"):
        np.testing.assert_array_equal(view.each(signal, [3, 1], 1), arrays[signal][1, [3, 1]])
        np.testing.assert_array_equal(view.each(signal, [2], 0, slice(1, 3)), arrays[signal][0, [2], 1:3])
        np.testing.assert_array_equal(view.everyone(signal, 1), arrays[signal][1, [0, 1, 3]])
        np.testing.assert_array_equal(view.everyone(signal, 0, slice(1, 2)), arrays[signal][0, :, 1:2])
    np.testing.assert_array_equal(view.each("norm2", [3, 1], 1), arrays["norm2"][[1, 1]])
    assert view.present(1).tolist() == [0, 1, 3]
    assert view.present(0).tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="client 2 did not take part in round 2; there is no loss of it"):
        view.each("loss", [0, 2], 1)
    with pytest.raises(InputError, match=r"target: got 4; expected a client number, 0\.\.3"):
        view.each("loss", [0, 4], 1)
    globally = View(ArrayEvidence(arrays), "client")
    np.testing.assert_array_equal(globally.each("loss", [0, 2], 1, slice(2)), arrays["global_loss"][[1, 1], :2])


def test_a_part_of_the_view_counts_for_its_target_and_for_the_whole(arrays: dict[str, Any]) -> None:
    view = View(ArrayEvidence(arrays), "server")
    view.of(1).count("filtered", 2)
    view.of(3).of(3).count("filtered", 3)
    view.of(1).count("filtered")
    view.of(1).own("loss", 1, 2)
    view.of(3).of(3).own("loss", 3, 0)
    assert view.of(1).counters == view.of(3).counters == {"filtered": 3}
    assert view.counters == {"filtered": 6}
    assert (view.of(1).rounds_read, view.of(3).rounds_read, view.rounds_read) == ({2}, {0}, {0, 2})
    assert view.of(0).counters == {}
    assert view.of(1).vantage == "server"


def test_what_comes_out_is_float64_and_not_the_evidence_itself(arrays: dict[str, Any]) -> None:
    view = View(ArrayEvidence(arrays), "server")
    before = arrays["loss"].copy()
    own, others = view.own("loss", 0, 0), view.others("loss", 0, 0)
    assert own.dtype == others.dtype == np.float64
    everyone, each = view.everyone("loss", 0), view.each("loss", [0, 1], 0)
    for values in (own, others, everyone, each):
        values += 1
    np.testing.assert_array_equal(arrays["loss"], before)
    np.testing.assert_array_equal(view.own("loss", 0, 0), before[0, 0])


def test_rounds_are_those_the_target_took_part_in(arrays: dict[str, Any]) -> None:
    view = View(ArrayEvidence(arrays, rounds=(10, 20, 30)), "server")
    assert view.rounds(2) == [0, 2]
    assert view.rounds(1) == [0, 1, 2]
    assert view.recorded == (10, 20, 30)
    arrays["present"][:, 3] = False
    with pytest.raises(InputError, match="client 3 took part in none of the recorded rounds 10, 20, 30"):
        View(ArrayEvidence(arrays, rounds=(10, 20, 30)), "server").rounds(3)


@pytest.mark.parametrize("vantage", GLOBAL_VANTAGES)
def test_other_vantages_see_the_global_model_in_every_round(arrays: dict[str, Any], vantage: Any) -> None:
    view = View(ArrayEvidence(arrays), vantage)
    assert view.rounds(2) == [0, 1, 2]
    for target in (0, 2):
        np.testing.assert_array_equal(view.own("loss", target, 1), arrays["global_loss"][1])
        for signal in ("top", "spread", "entropy", "modified_entropy"):
            np.testing.assert_array_equal(view.own(signal, target, 1), arrays[f"global_{signal}"][1])
        np.testing.assert_array_equal(view.own("cosine", target, 1), arrays["aggregate_cosine"][1])
        np.testing.assert_array_equal(view.own("diff", target, 1), arrays["aggregate_diff"][1])
        np.testing.assert_array_equal(view.own("norm2", target, 1), arrays["norm2"][1])


@pytest.mark.parametrize("vantage", GLOBAL_VANTAGES)
def test_other_vantages_are_refused_single_updates(arrays: dict[str, Any], vantage: Any) -> None:
    view = View(ArrayEvidence(arrays), vantage)
    with pytest.raises(ThreatModelError, match=rf"vantage {vantage}.*others\('cosine'\).*single clients.*hidden"):
        view.others("cosine", 0, 0)
    for signal in ("head", "rise", "cosine_nonzero", "cosine_unshifted", "cosine_front"):
        with pytest.raises(ThreatModelError, match=rf"own\('{signal}'\)"):
            view.own(signal, 0, 0)
    with pytest.raises(ThreatModelError, match="hidden"):
        view.company(0, 0)
    with pytest.raises(ThreatModelError, match=r"everyone\('loss'\)"):
        view.everyone("loss", 0)
    with pytest.raises(ThreatModelError, match="hidden"):
        view.present(0)
    with pytest.raises(ThreatModelError, match=r"own\('head'\)"):
        view.each("head", [0, 1], 0)


def test_a_coalition_as_one_client() -> None:
    present = np.array([True, True, False, True, True, True])
    coalitions = [{0, 2, 3}, {1, 5}]
    seen = {
        None: [True, True, False, False, True, False],
        0: [True, True, False, False, True, False],
        3: [False, True, False, True, True, False],
        2: [False, True, False, False, True, False],
        5: [True, False, False, False, True, True],
        4: [True, True, False, False, True, False],
    }
    for target, expected in seen.items():
        assert as_one(present, coalitions, target).tolist() == expected, target
    assert present.sum() == 5, "what was given is left as it is"
    assert as_one(present, [], 0).tolist() == present.tolist()


def test_members_do_not_see_their_own_coalition_among_the_others(arrays: dict[str, Any]) -> None:
    sides = list(apart(ArrayEvidence(arrays), [{0, 1}], [3, 1, 2, 0]))
    assert [targets for _, targets in sides] == [[3, 2], [1], [0]]
    for evidence, (target, *_) in sides:
        view = View(evidence, "server")
        others = {3: [0, 2], 1: [2, 3], 0: [2, 3]}[target]
        np.testing.assert_array_equal(view.others("loss", target, 0), arrays["loss"][0, others])
        np.testing.assert_array_equal(view.own("top", target, 0), arrays["top"][0, target])
        assert view.present(0).tolist() == sorted([target, *others])
        assert view.recorded == (1, 2, 3)
        assert view.clients == K
        np.testing.assert_array_equal(view.labels, arrays["labels"])
    evidence = ArrayEvidence(arrays)
    assert list(apart(evidence, [], [1, 0])) == [(evidence, [1, 0])]
    assert [targets for _, targets in apart(evidence, [{0, 1}], [1])] == [[1]]


def test_every_vantage_is_one_or_the_other(arrays: dict[str, Any]) -> None:
    from fedsiege.view import Vantage

    seeing = {v for v in get_args(Vantage) if View(ArrayEvidence(arrays), v).sees_updates}
    assert seeing == {"server", "server_and_insider"}
    assert set(get_args(Vantage)) - seeing == set(GLOBAL_VANTAGES)
    with pytest.raises(InputError, match="vantage: got 'god'; expected one of client"):
        View(ArrayEvidence(arrays), "god")  # type: ignore[arg-type]


def test_an_absent_clients_rows_never_come_out(arrays: dict[str, Any]) -> None:
    view = View(ArrayEvidence(arrays), "server")
    with pytest.raises(InputError, match="client 2 did not take part in round 2"):
        view.own("loss", 2, 1)
    assert np.isfinite(view.others("loss", 0, 1)).all()


def test_a_hole_in_the_row_of_a_present_client_is_an_error(arrays: dict[str, Any]) -> None:
    arrays["cosine"][2, 1, 3] = np.inf
    view = View(ArrayEvidence(arrays, rounds=(5, 6, 9)), "server")
    with pytest.raises(InputError, match="1 of 5 values of cosine in round 9 are not finite"):
        view.own("cosine", 1, 2)
    with pytest.raises(InputError, match="1 of 15 values of cosine in round 9"):
        view.others("cosine", 0, 2)
    with pytest.raises(InputError, match="1 of 20 values of cosine in round 9"):
        view.everyone("cosine", 2)
    with pytest.raises(InputError, match="1 of 10 values of cosine in round 9"):
        view.each("cosine", [1, 3], 2)
    arrays["global_loss"][0] = np.nan
    with pytest.raises(InputError, match="5 of 5 values of global_loss in round 1"):
        View(ArrayEvidence(arrays), "client").own("loss", 1, 0)


@pytest.mark.parametrize("target", [-1, K])
def test_target_outside_the_federation(arrays: dict[str, Any], target: int) -> None:
    for ask in ("rounds", "own", "others"):
        view = View(ArrayEvidence(arrays), "server")
        with pytest.raises(InputError, match=rf"target: got {target}; expected a client number, 0..3"):
            view.rounds(target) if ask == "rounds" else getattr(view, ask)("loss", target, 0)


def test_counters_add_up(arrays: dict[str, Any]) -> None:
    view = View(ArrayEvidence(arrays), "server")
    view.count("skipped")
    view.count("skipped", 2)
    view.count("filtered", 0)
    assert view.counters == {"skipped": 3, "filtered": 0}


def test_a_round_is_read_once_for_own_and_others(arrays: dict[str, Any]) -> None:
    reads: list[int] = []

    class Counting(ArrayEvidence):
        def loss(self, t: int) -> Any:
            reads.append(t)
            return super().loss(t)

    view = View(Counting(arrays), "server")
    for t in range(T):
        view.own("loss", 0, t)
        view.others("loss", 0, t)
    assert reads == [0, 1, 2]


def test_asking_for_what_was_not_given_names_it(arrays: dict[str, Any]) -> None:
    evidence = ArrayEvidence({"loss": arrays["loss"], "present": arrays["present"]})
    with pytest.raises(InputError, match=r"cosine \[T, K, m\] is needed and was not given; given: loss, present"):
        View(evidence, "server").own("cosine", 0, 0)
    with pytest.raises(InputError, match=r"global_loss \[T, m\] is needed"):
        View(evidence, "client").own("loss", 0, 0)
    with pytest.raises(InputError, match=r"labels \[m\] is needed"):
        _ = View(evidence, "server").labels


def test_defaults_of_plain_arrays(arrays: dict[str, Any]) -> None:
    evidence = ArrayEvidence({"norm2": arrays["norm2"].tolist()})
    assert evidence.rounds == (1, 2, 3)
    assert evidence.clients == 1
    assert evidence.present(0).tolist() == [True]
    assert ArrayEvidence({"loss": arrays["loss"]}).present(1).tolist() == [True] * K


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cosine": np.zeros((T, K + 1, M))}, r"cosine: got shape \(3, 5, 5\); expected .* with K = 4 as in loss"),
        ({"norm2": np.zeros((T + 1, M))}, r"norm2: got shape \(4, 5\); expected \[T, m\] with T = 3 as in loss"),
        ({"labels": np.zeros(M + 1, dtype=int)}, r"labels: got shape \(6,\); expected \[m\] with m = 5 as in loss"),
        ({"norm2": np.zeros((T, K, M))}, r"norm2: got shape \(3, 4, 5\); expected \[T, m\]"),
        ({"diff": np.zeros((T, K, 0))}, r"diff: got shape \(3, 4, 0\); expected \[T, K, m\], none of them 0"),
        ({"cosin": np.zeros((T, K, M))}, r"unknown array 'cosin' \(did you mean 'cosine'\?\)"),
        ({"labels": np.zeros(M)}, r"labels: got type float64; expected integers \[m\]"),
        ({"present": np.ones((T, K))}, r"present: got type float64; expected booleans \[T, K\]"),
        ({"diff": [[["a"] * M] * K] * T}, r"diff: got type <U1; expected numbers \[T, K, m\]"),
        ({"diff": [[1.0], [1.0, 2.0]]}, r"diff: not an array"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, Any], change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArrayEvidence({"loss": arrays["loss"], **change})


def test_round_numbers_that_do_not_fit(arrays: dict[str, Any]) -> None:
    for rounds in ((1, 2), (1, 3, 2), (1, 1, 2)):
        with pytest.raises(InputError, match="expected 3 increasing round numbers"):
            ArrayEvidence(arrays, rounds=rounds)
    with pytest.raises(InputError, match="got labels; expected at least one array over rounds"):
        ArrayEvidence({"labels": arrays["labels"]})
