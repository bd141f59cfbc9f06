"""From evidence to scores: who is compared with whom, and the published way of drawing non-members."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import TINY

from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.data.candidates import Audit
from fedsiege.errors import InputError
from fedsiege.experiment import run, scores
from fedsiege.experiment.config import load
from fedsiege.experiment.prepare import Planned, plan_attacks, prepare
from fedsiege.experiment.scores import Redrawn, Scored, score_all, write_scores
from fedsiege.registry import register
from fedsiege.trace import Trace
from fedsiege.view import ArrayEvidence, Values, View

GROUPS = np.array(["member", "ifl", "ofl", "member", "ofl"])


def audit(target: int, groups: Any = GROUPS, draw: int = 0) -> Audit:
    return Audit(target, draw, np.array([f"{i:02d}" for i in range(len(groups))]), np.array(groups))


@pytest.mark.parametrize(
    ("kind", "members", "others"),
    [("all", [0, 3], [1, 2, 4]), ("ifl", [0, 3], [1]), ("ofl", [0, 3], [2, 4])],
)
def test_members_stand_against_a_kind_of_non_members(kind: str, members: list[float], others: list[float]) -> None:
    found = Scored("x", audit(0), np.arange(5.0), 1).against(kind)
    assert [side.tolist() for side in found] == [members, others]


@pytest.mark.parametrize(
    ("kind", "members", "others"),
    [("all", [0, 1], [2, 3]), ("ifl", [0], [2]), ("ofl", [1], [3])],
)
def test_pseudo_members_stand_against_their_own_kind(kind: str, members: list[float], others: list[float]) -> None:
    groups = ["pseudo_ifl", "pseudo_ofl", "ifl", "ofl"]
    found = Scored("x", audit(0, groups), np.arange(4.0), 1).against(kind)
    assert [side.tolist() for side in found] == [members, others]


def test_scores_are_written_sorted(tmp_path: Path) -> None:
    scored = [
        Scored("b", audit(1), np.arange(5.0), 1),
        Scored("b", audit(0, draw=1), np.arange(5.0) + 10, 1),
        Scored("a", audit(1), np.arange(5.0) + 20, 1),
        Scored("b", audit(0), np.arange(5.0) + 30, 1),
    ]
    write_scores(tmp_path / "s.parquet", scored)
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    expected = sorted(
        (one.audit.target, one.audit.draw, str(identity), one.label, str(group), float(value))
        for one in scored
        for identity, group, value in zip(one.audit.ids, one.audit.groups, one.values, strict=True)
    )
    assert [(r["target"], r["draw"], r["candidate"], r["attack"], r["group"], r["score"]) for r in rows] == expected
    write_scores(tmp_path / "t.parquet", scored[::-1])
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "s.parquet").read_bytes()


T, K, M = 3, 4, 30


def evidence() -> ArrayEvidence:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {name: rng.normal(size=(T, K, M)) for name in ("loss", "cosine", "diff")}
    arrays |= {"norm2": rng.random((T, M)), "head": rng.normal(size=(T, K, 3)), "labels": np.arange(M) % 3}
    return ArrayEvidence(arrays)


def test_redrawing_permutes_non_members_within_their_kind_per_client_and_round() -> None:
    plain, pools = evidence(), [np.arange(5, 15), np.arange(15, 30)]
    redrawn: Any = Redrawn(plain, 2, pools, 0)
    orders = set()
    for t in range(T):
        found, before = redrawn.loss(t), plain.loss(t)
        np.testing.assert_array_equal(found[:, :5], before[:, :5])
        for pool in pools:
            np.testing.assert_array_equal(np.sort(found[:, pool]), np.sort(before[:, pool]))
        for client in range(K):
            orders.add(tuple(np.argsort(before[client])[np.argsort(np.argsort(found[client]))].tolist()))
        np.testing.assert_array_equal(np.sort(redrawn.norm2(t)[5:15]), np.sort(plain.norm2(t)[5:15]))
        assert not np.array_equal(redrawn.norm2(t), plain.norm2(t))
        np.testing.assert_array_equal(redrawn.head(t), plain.head(t))
    assert len(orders) == T * K, "every client and round has a draw of its own"
    again: Any = Redrawn(plain, 2, pools, 0)
    np.testing.assert_array_equal(again.cosine(1), redrawn.cosine(1))
    other: Any = Redrawn(plain, 2, pools, 1)
    assert not np.array_equal(other.cosine(1), redrawn.cosine(1))


def test_the_published_way_runs_with_every_attack_and_is_marked(tmp_path: Path) -> None:
    experiment = {**TINY, "candidates": {"ifl": 40, "ofl": 50, "compat": "fedmia"}}
    frozen = run({**TINY, "candidates": {"ifl": 40, "ofl": 50}}, tmp_path / "frozen", progress=False)
    redrawn = run(experiment, tmp_path / "redrawn", progress=False)
    assert "do not quote these figures" in redrawn.data["warnings"][0]
    tables = [pq.read_table(one.folder / "scores.parquet").to_pandas() for one in (frozen, redrawn)]
    merged = tables[0].merge(tables[1], on=["target", "draw", "candidate", "group", "attack"])
    same = merged["score_x"] == merged["score_y"]
    members = merged["group"] == "member"
    label_only = merged["attack"] == "label_only"
    assert same[members].all()
    assert same[label_only].all()
    assert not same[~members & ~label_only].all()


PRESENT = {10: [1, 1, 1, 0], 20: [1, 0, 1, 1], 30: [1, 1, 0, 0]}


@pytest.mark.parametrize(
    ("attack", "served"),
    [
        ("loss_series", {0, 1, 2}),
        ("blackbox_loss", {0, 1, 2, 3}),
        ({"name": "grad_norm", "round": 20}, {0, 2, 3}),
        ("fedmia_ii", {0, 2}),  # needs two rounds with two others: round 30 has only two clients
        ({"name": "loss_series", "vantage": "client"}, {0, 1, 2, 3}),
    ],
)
def test_which_targets_an_attack_can_serve(attack: Any, served: set[int]) -> None:
    (planned,) = plan_attacks(load({"attacks": [attack], "rounds": 30, "clients": 4}))
    attendance = {number: np.array(who, dtype=bool) for number, who in PRESENT.items()}
    assert {target for target in range(4) if planned.serves(target, attendance)} == served


def test_every_audit_gets_its_own_candidates_scores(tmp_path: Path) -> None:
    """The union is scored once per target; an audit takes its rows by id."""
    folder = run({**TINY, "attacks": ["grad_norm"]}, tmp_path / "out", progress=False).folder
    prepared = prepare(load({**TINY, "attacks": ["grad_norm"]}))
    trace = Trace(folder / "trace")
    steps: list[int] = []
    scored, counters = score_all(prepared, trace, lambda: steps.append(1))
    assert len(steps) == len(scored) == 5
    assert counters == {"grad_norm": {"rounds_used": 5}}
    place = {identity: row for row, identity in enumerate(trace.ids.tolist())}
    for one in scored:
        expected = [-float(trace.norm2(2)[place[identity]]) for identity in one.audit.ids.tolist()]
        np.testing.assert_allclose(one.values, expected, rtol=1e-6)
        own = set(prepared.data.train.ids[prepared.shards[one.audit.target]].tolist())
        assert {str(i) for i in one.audit.ids[one.audit.groups == "member"]} == own


SAMPLED = {**TINY, "participation": 0.7, "record_every": 1, "attacks": ["fedmia_ii", "loss_series", "label_only"]}


def test_targets_in_chunks_or_together_score_the_same_and_read_a_round_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(SAMPLED, tmp_path / "out", progress=False).folder
    prepared = prepare(load(SAMPLED))
    reads: list[tuple[int, str]] = []
    compute = Trace._compute

    def counted(self: Trace, t: int, signal: str, groups: Any = None) -> Any:
        reads.append((t, signal))
        return compute(self, t, signal, groups)

    monkeypatch.setattr(Trace, "_compute", counted)
    scored, counters = score_all(prepared, Trace(folder / "trace"), lambda: None)
    assert len(reads) == len(set(reads))
    assert len({one.audit.target for one in scored}) > 1
    for one in scored:
        assert one.rounds == sum(Trace(folder / "trace").present(t)[one.audit.target] for t in range(6))
    monkeypatch.setattr(scores, "CHUNK", 1)
    again, again_counters = score_all(prepared, Trace(folder / "trace"), lambda: None)
    assert again_counters == counters
    for one, other in zip(scored, again, strict=True):
        assert (one.label, one.audit, one.rounds) == (other.label, other.audit, other.rounds)
        np.testing.assert_array_equal(one.values, other.values)


@register("batched")
class Batched(MembershipAttack):
    """Scores several targets in its own way, reads what it likes and counts nothing."""

    title = "Batched"
    needs = frozenset({"norm2"})
    vantage: Literal["server"] = "server"
    rows: int | None = None

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        found = [view.of(target).own("norm2", target, 0) for target in targets]
        view.of(targets[0]).own("norm2", targets[0], 1)
        return np.array(found[: self.rows])


def test_an_attack_that_scores_several_targets_need_not_count(tmp_path: Path) -> None:
    folder = run({**TINY, "attacks": ["grad_norm"]}, tmp_path / "out", progress=False).folder
    prepared = replace(prepare(load(TINY)), attacks=[Planned(Batched(), "batched", "server")])
    trace = Trace(folder / "trace")
    scored, counters = score_all(prepared, trace, lambda: None)
    assert [one.rounds for one in scored] == [2, 1, 1, 1, 1]
    assert counters == {"batched": {"rounds_used": 6}}
    short = replace(prepared, attacks=[Planned(Batched(rows=2), "batched", "server")])
    with pytest.raises(InputError, match=r"batched: made scores of shape \(2, \d+\) for 5 targets; expected \(5, "):
        score_all(short, trace, lambda: None)


@register("mixed_up")
class MixedUp(Batched):
    """Gives several targets' scores in the wrong order, or counts in the wrong place."""

    slip: str = "order"
    """What is wrong."""

    def score(self, view: View, target: int) -> Values:
        view.count("rounds_used")
        return view.own("loss", target, view.rounds(target)[-1])

    def score_targets(self, view: View, targets: Sequence[int]) -> Values:
        if self.slip == "counter":
            return np.array([self.score(view, target) for target in targets])
        return np.array([self.score(view.of(target), target) for target in targets])[::-1]


@pytest.mark.parametrize(
    ("slip", "words"),
    [("order", "gives client . other scores than score does"), ("counter", "counted in view.of")],
)
def test_an_attack_of_ones_own_that_mixes_up_its_targets_is_refused(slip: str, words: str, tmp_path: Path) -> None:
    folder = run({**TINY, "attacks": ["loss_series"]}, tmp_path / "out", progress=False).folder
    mine = Planned(MixedUp(slip=slip), "mixed_up", "server")
    with pytest.raises(InputError, match=words):
        score_all(replace(prepare(load(TINY)), attacks=[mine]), Trace(folder / "trace"), lambda: None)


def test_planned_is_a_plain_value() -> None:
    (planned,) = plan_attacks(load({"attacks": ["fedmia_ii"]}))
    assert planned == Planned(planned.attack, "fedmia_ii", "server")
