"""From scores to figures: who is pooled, who is worst, and what stands beside a published figure."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsiege.data.candidates import Audit, CandidateSpec
from fedsiege.experiment.config import Experiment, Paper, Published, load
from fedsiege.experiment.prepare import Planned, plan_attacks
from fedsiege.experiment.remarks import threat_model, warnings_of
from fedsiege.experiment.results import any_client, attack_rows, in_coalition, null_rows, paper_rows
from fedsiege.experiment.scores import Scored
from fedsiege.metrics import audit

GROUPS = np.array(["member"] * 20 + ["ifl"] * 15 + ["ofl"] * 25)


def planned(**fields: Any) -> Planned:
    return plan_attacks(load({"attacks": [{"name": "fedmia_ii", **fields}]}))[0]


def scored(target: int, gap: float, groups: Any = GROUPS, draw: int = 0, rounds: int = 7) -> Scored:
    rng = np.random.default_rng([target, draw])
    ids = np.array([f"{target}.{i:03d}" for i in range(len(groups))])
    values = rng.normal(size=len(groups)) + gap * (groups == "member")
    return Scored("fedmia_ii", Audit(target, draw, ids, groups), values, rounds)


def test_rows_for_each_target_pooled_and_worst_against_each_kind() -> None:
    own = [scored(3, 0.5), scored(5, 3.0, rounds=4), scored(8, 1.0)]
    rows = attack_rows(planned(), [*own, replace(own[0], label="another")])
    assert [(row["against"], row["target"]) for row in rows] == [
        (kind, target) for kind in ("all", "ifl", "ofl") for target in (3, 5, 8, "pooled", "worst")
    ]
    by = {(row["against"], row["target"]): row for row in rows}
    for kind, others in (("all", GROUPS != "member"), ("ifl", GROUPS == "ifl"), ("ofl", GROUPS == "ofl")):
        members = [one.values[GROUPS == "member"] for one in own]
        nonmembers = [one.values[others] for one in own]
        for one, member, nonmember in zip(own, members, nonmembers, strict=True):
            expected = audit(member, nonmember).as_dict()
            assert {key: by[kind, one.audit.target][key] for key in expected} == expected
        pooled = by[kind, "pooled"]
        figures = audit(np.concatenate(members), np.concatenate(nonmembers))
        assert pooled["auc"]["value"] == figures.auc.value
        assert (pooled["n_members"], pooled["n_nonmembers"]) == (60, 3 * int(others.sum()))
        aucs = [by[kind, target]["auc"]["value"] for target in (3, 5, 8)]
        assert pooled["mean_over_targets"]["auc"] == pytest.approx(np.mean(aucs))
        assert by[kind, "worst"]["worst_target"] == 5
        assert by[kind, "worst"]["auc"] == by[kind, 5]["auc"]
        assert (by[kind, 5]["rounds_used"], by[kind, "worst"]["rounds_used"], pooled["rounds_used"]) == (4, 4, 7)
    assert {row["name"] for row in rows} == {"fedmia_ii"}


@pytest.mark.parametrize(
    ("fields", "told"), [({}, False), ({"combine": "sum_z"}, False), ({"average": "trained"}, True)]
)
def test_rows_say_whether_an_attack_was_told_of_the_defence(fields: dict[str, Any], told: bool) -> None:
    plan = planned(**fields)
    rows = attack_rows(plan, [replace(scored(3, 0.5), label=plan.label)])
    assert {row["adapted"] for row in rows} == {told}


def test_a_kind_without_non_members_has_no_rows() -> None:
    rows = attack_rows(planned(), [scored(0, 1.0, np.array(["member"] * 5 + ["ofl"] * 5))])
    assert {row["against"] for row in rows} == {"all", "ofl"}


def test_any_client_sets_everybodys_examples_against_nobodys() -> None:
    ids = np.array(["a", "b", "c", "d"])
    first = Scored(
        "x", Audit(0, 0, ids, np.array(["member", "ifl", "ofl", "ofl"])), np.array([4.0, 3.0, 1.0, 2.0]), 1
    )
    second = Scored("x", Audit(1, 0, ids[:3], np.array(["ifl", "member", "ofl"])), np.array([4.0, 3.0, 1.0]), 1)
    owned, others = any_client([first, second])
    assert (sorted(owned), sorted(others)) == ([3.0, 4.0], [1.0, 2.0]), "each example once"


def test_the_null_test_leaves_out_kinds_with_too_few() -> None:
    def null(target: int, draw: int, sizes: tuple[int, int]) -> Scored:
        names = np.repeat(["pseudo_ifl", "pseudo_ofl", "ifl", "ofl"], [*sizes, *sizes])
        return scored(target, 0.0, names, draw)

    enough = [null(t, d, (500, 500)) for t in range(4) for d in range(5)]
    rows = null_rows([planned()], enough)
    assert [row["against"] for row in rows] == ["all", "ifl", "ofl"]
    assert all(row["nulls"] == 20 for row in rows)
    assert [row["against"] for row in null_rows([planned()], [null(0, d, (90, 410)) for d in range(20)])] == ["all"]
    (few,) = null_rows([planned()], [null(0, d, (50, 50)) for d in range(20)])
    assert (few["against"], few["passed"]) == ("all", False), "too few is a verdict too, and not silence"
    assert "no evidence" in few["reason"]


PAPER = Paper(
    claim="c",
    source="s",
    table="t",
    link="l",
    figures=[
        Published(attack="fedmia_ii", metric="auc", value=0.8, spread=0.01),
        Published(attack="fedmia_ii", metric="tpr@0.001", value=0.5),
        Published(attack="fedmia_i", metric="auc", value=0.8),
    ],
)


def row(attack: str, name: str, auc: float, **changes: Any) -> dict[str, Any]:
    estimate = {"value": auc, "low": auc - 0.02, "high": auc + 0.02, "n": 9}
    rates = {"0.001": {**estimate, "false_positives": 3, "warning": None}}
    return {
        "attack": attack,
        "name": name,
        "target": "pooled",
        "against": "all",
        "auc": estimate,
        "tpr_at_fpr": rates,
        **changes,
    }


def test_a_published_figure_stands_beside_the_attack_as_the_paper_has_it() -> None:
    variant = row("fedmia_ii(combine=sum_z)", "fedmia_ii", 0.1)
    ours = row("fedmia_ii", "fedmia_ii", 0.79)
    elsewhere = [row("fedmia_ii", "fedmia_ii", 0.2, target=3), row("fedmia_ii", "fedmia_ii", 0.3, against="ifl")]
    for rows in ([ours, variant, *elsewhere], [variant, *elsewhere, ours]):
        found = paper_rows(PAPER, rows, Experiment())["figures"]
        assert found[0]["ours"] == {"value": 0.79, "low": 0.77, "high": 0.81, "n": 9}
        assert found[0]["verdict"] == "agrees"
        assert found[2] == {
            "attack": "fedmia_i",
            "metric": "auc",
            "published": 0.8,
            "spread": None,
            "ours": None,
            "verdict": "not measured",
        }
    assert paper_rows(PAPER, [variant], Experiment())["figures"][0]["ours"]["value"] == 0.1, (
        "a variant alone stands in"
    )


@pytest.mark.parametrize(
    ("auc", "changes", "verdict"),
    [
        (0.8, {}, "agrees"),
        (0.839, {}, "agrees"),  # its interval begins at .819, the published one ends at .82
        (0.841, {}, "ours is higher"),
        (0.759, {}, "ours is lower"),
        (0.9, {"changed": ["rounds", "model"]}, "ours is higher (changed setting)"),
        (0.9, {"changed": ["rounds"], "profile": "small"}, "ours is higher (profile small)"),
        (0.8, {"candidates": CandidateSpec(null=True)}, "not compared: a null test"),
    ],
)
def test_verdicts(auc: float, changes: dict[str, Any], verdict: str) -> None:
    found = paper_rows(PAPER, [row("fedmia_ii", "fedmia_ii", auc)], Experiment(**changes))
    assert found["figures"][0]["verdict"] == verdict


def test_a_figure_without_an_interval_is_not_measured() -> None:
    empty = {"value": 0.5, "low": None, "high": None, "n": 0}
    found = paper_rows(PAPER, [{**row("fedmia_ii", "fedmia_ii", 0.5), "auc": empty}], Experiment())
    assert found["figures"][0]["verdict"] == "not measured"


@pytest.mark.parametrize(
    ("attacks", "secure", "adversary", "hidden"),
    [
        (
            ["fedmia_ii", {"name": "loss_series", "vantage": "client"}],
            False,
            "honest-but-curious server that",
            None,
        ),
        (["loss_series"], True, "server behind secure aggregation", "only their sum is visible"),
        (
            [{"name": "loss_series", "vantage": "client"}],
            False,
            "A client that downloads",
            "only the change of the global",
        ),
    ],
)
def test_the_threat_model_in_sentences(
    attacks: list[Any], secure: bool, adversary: str, hidden: str | None
) -> None:
    experiment = load({"attacks": attacks, "secure_aggregation": secure})
    said = threat_model(experiment, plan_attacks(experiment))
    assert adversary in said["adversary"]
    assert (
        any(hidden in sentence for sentence in said["does_not_see"]) if hidden else len(said["does_not_see"]) == 1
    )
    assert any("by client" in sentence for sentence in said["sees"]) == (hidden is None)


def test_warnings_are_said_once() -> None:
    rows = attack_rows(planned(), [scored(0, 1.0)])
    found = warnings_of([*rows, *rows], load({}))
    assert len(found) == len(set(found)) == 4
    assert all("non-members" in text for text in found)


def test_nonmembers_that_targets_share_are_counted_once() -> None:
    first, second = scored(3, 0.5), scored(5, 0.5)
    ids = np.where(GROUPS == "ofl", first.audit.ids, second.audit.ids)  # 25 shared held-out ones
    second = replace(second, audit=replace(second.audit, ids=ids))
    rows = attack_rows(planned(), [first, second])
    counts = {row["against"]: row["n_distinct_nonmembers"] for row in rows if row["target"] == "pooled"}
    assert counts == {"all": 55, "ifl": 30, "ofl": 25}


def test_a_null_test_has_no_row_for_any_client() -> None:
    """Pseudo-members among other clients' examples were trained on: that question is not asked."""
    attack = plan_attacks(load({"attacks": [{"name": "loss_series", "vantage": "client"}]}))[0]
    pseudo = np.array(["pseudo_ifl"] * 15 + ["pseudo_ofl"] * 25 + ["ifl"] * 15 + ["ofl"] * 25)
    for groups, asked in ((GROUPS, True), (pseudo, False)):
        rows = attack_rows(attack, [replace(scored(3, 0.5, groups), label=attack.label)])
        assert ("any" in {row["target"] for row in rows}) == asked


LABELLED = {"name": "seqmia", "trained_on": "labelled"}


@pytest.mark.parametrize(("attack", "told"), [(LABELLED, True), ("seqmia", False), ("loss_series", False)])
def test_rows_say_whether_an_attack_is_an_upper_bound(attack: Any, told: bool) -> None:
    plan = plan_attacks(load({"attacks": [attack]}))[0]
    rows = attack_rows(plan, [replace(scored(3, 0.5), label=plan.label)])
    assert {row["upper_bound"] for row in rows} == {told}


def test_scores_that_were_learnt_for_one_target_each_are_not_ranked_for_any_client() -> None:
    for mode, asked in (("shadow", True), ("labelled", False)):
        spec = {"name": "seqmia", "trained_on": mode, "vantage": "client"}
        plan = plan_attacks(load({"attacks": [spec]}))[0]
        rows = attack_rows(plan, [replace(scored(3, 0.5), label=plan.label)])
        assert ("any" in {row["target"] for row in rows}) == asked


def test_a_coalitions_data_is_any_members() -> None:
    def seen(target: int, given: dict[str, tuple[str, float]]) -> Scored:
        ids = np.array(list(given))
        groups = np.array([group for group, _ in given.values()])
        return Scored("x", Audit(target, 0, ids, groups), np.array([value for _, value in given.values()]), 3)

    first = seen(0, {"a": ("member", 5.0), "b": ("ifl", 4.0), "c": ("ifl", 3.0), "e": ("ofl", 1.0)})
    second = seen(2, {"a": ("ifl", 7.0), "b": ("member", 4.0), "d": ("ifl", 2.0), "e": ("ofl", 1.0)})
    other = seen(1, {"c": ("member", 90.0), "a": ("ifl", 90.0)})
    owned = [np.array(["a"]), np.array(["c"]), np.array(["b"]), np.array(["d"])]
    for kind, expected in (("all", [1.0, 2.0, 3.0]), ("ifl", [2.0, 3.0]), ("ofl", [1.0])):
        (inside, outside), ids = in_coalition([first, second, other], frozenset({0, 2}), owned, kind)
        assert (sorted(inside), sorted(outside)) == ([4.0, 6.0], expected)
        assert len(ids) == len(expected)
    (inside, outside), _ = in_coalition([first, second], frozenset({0, 2, 3}), owned, "all")
    assert sorted(inside) == [2.0, 4.0, 6.0], "a member that was not audited is one too"
    assert sorted(outside) == [1.0, 3.0]


def test_what_an_insider_tells_is_not_said_to_be_unknown() -> None:
    pair = {"name": "cofedmid", "members": [0, 1]}
    for updates, known in (("sent", False), ("coalition", False), ("insider", True)):
        e = load({"coalition": pair, "attacks": [{"name": "seqmia", "updates": updates}]})
        said = " ".join(threat_model(e, plan_attacks(e))["sees"])
        assert ("stays unknown, but for the noise that an insider tells." in said) == known
        assert ("stays unknown." in said) != known
        assert ("every member's noise in every round" in said) == known
        assert ("which clients are in a coalition" in said) == (updates == "coalition")
