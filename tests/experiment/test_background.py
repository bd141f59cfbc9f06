"""What an attack is shown besides the evidence: what it asks for, and no word more."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from curious import SEEN, curious, seen

from fedsiege.errors import InputError
from fedsiege.experiment import run
from fedsiege.experiment.config import load
from fedsiege.experiment.prepare import prepare
from fedsiege.experiment.scores import Narrowed
from fedsiege.experiment.sharing import training
from fedsiege.report.schema import ResultFile
from fedsiege.trace import Trace
from fedsiege.view import ArrayEvidence

DIGITS: dict[str, Any] = {
    "data": "digits",
    "model": {"name": "mlp", "hidden": [8]},
    "clients": 3,
    "examples_per_client": 40,
    "rounds": 4,
    "training": {"epochs": 2, "batch": 20},
    "record_every": 2,
    "candidates": {"ifl": 30, "ofl": 50},
    "threads": 1,
}

ALL = {"examples_per_client": None}
PERTURB = {"name": "perturb", "sigma": 0.1, "clients": [2]}


@pytest.fixture(autouse=True)
def _emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setenv("FEDSIEGE_CACHE", str(tmp_path / "cache"))


def made(out: Path, *attacks: Any, **changes: Any) -> dict[str, Any]:
    """The result of a run with these attacks."""
    return run({**DIGITS, "attacks": list(attacks), **changes}, out, progress=False).data


def truth(**changes: Any) -> dict[int, dict[str, str]]:
    """Target -> candidate -> its group."""
    audits = prepare(load({**DIGITS, "attacks": ["loss_series"], **changes})).candidates.audits
    return {a.target: dict(zip(a.ids.tolist(), a.groups.tolist(), strict=True)) for a in audits}


def test_an_attack_that_wants_nothing_is_shown_nothing(tmp_path: Path) -> None:
    made(tmp_path / "out", curious(), curious(shadows=1, population=9, told=True))
    assert len(seen()) == 3
    for view, _ in seen():
        assert view.background.shadows == ()
        assert view.background.population.tolist() == []
        assert view.background.known == ()


def test_the_truth_is_half_of_the_targets_own_and_no_other_attacks(tmp_path: Path) -> None:
    made(tmp_path / "out", curious(told=True), curious(population=1))
    groups, ids = truth(), Trace(tmp_path / "out" / "trace").ids
    assert [view.background.known for view, _ in seen(population=1)] == [(), (), ()]
    scores = pq.read_table(tmp_path / "out" / "scores.parquet").to_pandas()
    population = set(ids.tolist()) - {one for audit in groups.values() for one in audit}
    assert len(population) == 1
    columns = np.array([one for one in ids.tolist() if one not in population])
    for view, target in seen(told=True):
        (known,) = view.background.known
        assert known.target == target
        told = columns[known.columns].tolist()
        assert [groups[target][one] == "member" for one in told] == known.members.tolist()
        own = scores[scores["attack"].str.contains("told") & (scores["target"] == target)]
        assert sorted([*told, *own["candidate"]]) == sorted(groups[target]), "told or judged, never both"
        assert all(groups[target][one] == group for one, group in zip(own["candidate"], own["group"], strict=True))
        for group, count in (("member", 40), ("ifl", 30), ("ofl", 50)):
            assert (own["group"] == group).sum() == count // 2
    others = scores[~scores["attack"].str.contains("told")]
    assert len(others) == 3 * 120, "other attacks are judged on all"


def test_what_an_attack_is_told_is_worth_nothing_where_it_is_judged(tmp_path: Path) -> None:
    result = made(tmp_path / "out", curious(told=True, cheat=True), "loss_series")
    cheats = [row for row in result["attacks"] if "cheat" in row["attack"]]
    assert {row["auc"]["value"] for row in cheats} == {0.5}
    assert {(row["n_members"], row["n_nonmembers"]) for row in cheats if row["target"] == 0} == {
        (20, 40),
        (20, 15),
        (20, 25),
    }
    ResultFile.model_validate(result)
    label = next(row["attack"] for row in cheats)
    assert any(label in said and "upper bound" in said for said in result["warnings"])
    assert any(label in said for said in result["threat_model"]["sees"])


def test_scores_stand_beside_the_candidates_they_are_of(tmp_path: Path) -> None:
    """An attack told the truth and one shown a population are given fewer or more columns than others."""
    attacks = [curious(), curious(told=True), curious(population=7), curious(population=20, told=True)]
    made(tmp_path / "out", *attacks)
    scores = pq.read_table(tmp_path / "out" / "scores.parquet").to_pandas()
    assert scores["attack"].nunique() == 4
    trace = Trace(tmp_path / "out" / "trace")
    mean = np.mean([trace.loss(t).astype(np.float64) for t in range(2)], axis=0)
    place = {one: i for i, one in enumerate(trace.ids.tolist())}
    expected = [-mean[row.target, place[row.candidate]] for row in scores.itertuples()]
    np.testing.assert_allclose(scores["score"], expected, rtol=1e-6)


def test_each_attack_has_a_population_of_the_size_it_wants(tmp_path: Path) -> None:
    result = made(tmp_path / "out", curious(population=7), curious(population=20), curious())
    trace = Trace(tmp_path / "out" / "trace")
    candidates = pq.read_table(tmp_path / "out" / "candidates.parquet")["candidate"].to_pylist()
    prepared = prepare(load({**DIGITS, "attacks": [curious(population=20)]}))
    owned = {str(prepared.data.train.ids[row]) for rows in prepared.shards for row in rows}
    assert len(trace.ids) == len(candidates) + 20
    assert result["data"]["candidates"]["union"] == len(candidates)
    assert result["data"]["candidates"]["population"] == 20
    drawn = prepared.candidates.population.tolist()
    for size in (7, 20):
        own = set(drawn[:size])
        assert not own & (owned | set(candidates))
        columns = [one for one in trace.ids.tolist() if one in own or one in set(candidates)]
        for view, _ in seen(population=size):
            assert {columns[place] for place in view.background.population.tolist()} == own
            assert len(view.labels) == len(candidates) + size
    assert {len(view.labels) for view, _ in seen()} == {len(candidates)}


def test_what_others_want_changes_no_attacks_scores(tmp_path: Path) -> None:
    """Means over all candidates enter these scores: examples of a population must not be among them."""
    plain = ["fedmia_ii", {"name": "loss_series", "average": "trained"}]
    made(tmp_path / "alone", *plain)
    made(tmp_path / "beside", *plain, curious(population=60, shadows=1))
    tables = [pq.read_table(tmp_path / name / "scores.parquet").to_pandas() for name in ("alone", "beside")]
    beside = tables[1][~tables[1]["attack"].str.startswith("curious")].reset_index(drop=True)
    assert tables[0].equals(beside)


def test_narrowed_evidence_has_some_columns_of_everything() -> None:
    rng = np.random.default_rng(0)
    given = {"loss": rng.normal(size=(2, 3, 5)), "norm2": rng.random((2, 5)), "labels": np.arange(5) % 3}
    plain = ArrayEvidence({**given, "head": rng.normal(size=(2, 3, 3)), "rise": rng.random((2, 3, 3))})
    columns = np.array([0, 2, 3])
    narrowed: Any = Narrowed(plain, columns)
    np.testing.assert_array_equal(narrowed.loss(1), plain.loss(1)[:, [0, 2, 3]])
    np.testing.assert_array_equal(narrowed.norm2(0), plain.norm2(0)[[0, 2, 3]])
    for name in ("head", "rise", "present"):
        np.testing.assert_array_equal(getattr(narrowed, name)(1), getattr(plain, name)(1))
    assert narrowed.labels.tolist() == [0, 2, 0]
    assert (narrowed.rounds, narrowed.clients) == (plain.rounds, plain.clients)


def test_cells_with_other_populations_do_not_share_a_trace() -> None:
    texts = [training(load({**DIGITS, "attacks": [curious(population=n)]})) for n in (0, 5, 5)]
    assert texts[1] == texts[2] != texts[0]
    other = load({**DIGITS, "attacks": [curious(shadows=3)], "shadows": {"clients": 2}})
    assert training(other) == texts[0], "shadow federations change nothing about the run's own training"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attacks": [curious(shadows=1)], "candidates": {"ifl": 30, "ofl": 50, "compat": "fedmia"}},
            r"attack curious.*candidates\.compat fedmia .* expected compat: none",
        ),
        (
            {"attacks": [curious(told=True)], "candidates": {"ifl": 30, "ofl": 50, "compat": "fedmia"}},
            r"attack curious\(told=True\): needs .* known candidates",
        ),
        (
            {"attacks": [curious(population=1700)]},
            r"attacks: got a population of 1700 .*; there are 1627 \(1138 train.*, 489 held out\)",
        ),
        (
            {"attacks": [curious(shadows=2)], "examples_per_client": None, "candidates": {"ifl": 30, "ofl": 536}},
            r"shadows: attack curious\(shadows=2\) wants 2 shadow federations of 3 clients, .* has 3 examples",
        ),
        (
            {"attacks": [curious(shadows=2)], "examples_per_client": None, "candidates": {"ifl": 30, "ofl": 530}},
            r"shadows: the adversary's 9 examples cannot be dealt as the clients' were: partition: after iid, no",
        ),
        (
            {"attacks": [curious(shadows=1), "fedmia_ii"], "shadows": {"clients": 1}, "defences": [PERTURB]},
            r"shadows\.clients: got 1; with so many clients, .*clients",
        ),
        (
            {"attacks": [curious(told=True)], "candidates": {"members": 1, "ifl": 30, "ofl": 50}},
            r"attack curious\(told=True\): is told .* client 0's one half has 0 members and 40 others; expected 1",
        ),
        (
            {"attacks": [curious(told=True)], "candidates": {"ifl": 500, "ofl": 530, "null": True}, **ALL},
            r"attack curious\(told=True\): is told .* half has 258 members and 258 others; expected 500 of both",
        ),
        ({"attacks": [curious()], "shadows": {"clients": 0}}, r"shadows\.clients: got 0"),
        (
            {"attacks": [curious()], "shadows": {"client": 2}},
            r"shadows\.client: unknown field .*did you mean 'clients'",
        ),
    ],
)
def test_what_cannot_be_provided_is_refused_before_the_first_round(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(load({**DIGITS, **changes}))


def test_a_run_without_such_attacks_leaves_what_it_always_left(tmp_path: Path) -> None:
    made(tmp_path / "out", "loss_series")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["data"]["shadows"] is None
    assert "population" not in result["data"]["candidates"]
    assert not (tmp_path / "cache").exists()
