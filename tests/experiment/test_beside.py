"""Published figures beside ours: verdicts by hand-made rows, and what counts as another setting."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import pytest
from tiny import TINY

from fedsiege.experiment.grid import Grid
from fedsiege.experiment.published import Beside, attack_row, changed_by, metric_of, verdict

T_2 = 4.302652729696142
"""Student's 97.5 % point with two degrees of freedom, from a table."""

OURS = {"value": 0.6, "low": 0.58, "high": 0.62, "n": 3}
PAPER: dict[str, Any] = {
    "claim": "c",
    "source": "s",
    "table": "Table 1",
    "link": "https://example.org",
    "rounding": {"auc": 0.005, "accuracy_change": 0.005},
}
GRID: dict[str, Any] = {
    "experiment": {**TINY, "profiles": {"small": {"rounds": 2, "record_every": 1}}},
    "cells": [
        {"name": "none"},
        {"name": "noise", "set": {"defences": ["perturb"]}, "profiles": {"small": {"defences.0.sigma": 0.5}}},
        {"name": "null", "set": {"candidates.null": True}},
    ],
    "seeds": [0, 1, 2],
}


def figure(cell: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    attack = {} if metric.startswith("accuracy") else {"attack": "fedmia_ii"}
    return {"cell": cell, "metric": metric, "value": value, **attack, **more}


def measured(value: float | None, reach: float = 0.01) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": value, "low": value - reach, "high": value + reach, "n": 500}


def attacked(auc: float | None, tpr: float | None = 0.1, attack: str = "fedmia_ii") -> dict[str, Any]:
    rates = {"0.001": measured(tpr), "0.01": measured(0.3)}
    return {"attack": attack, "name": attack.split("(")[0], "auc": measured(auc), "tpr_at_fpr": rates}


def row(name: str, seed: int, accuracy: float, *attacks: dict[str, Any], status: str = "done") -> dict[str, Any]:
    return {"name": name, "seed": seed, "status": status, "accuracy": accuracy, "attacks": list(attacks)}


def compared(rows: list[dict[str, Any]], *figures: dict[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    made, where = Grid.load({**GRID, "paper": {**PAPER, "figures": list(figures)}}, overrides)
    beside = Beside.of(made, where, made.cells_of(where))
    assert beside is not None
    return beside.compared(rows)


@pytest.mark.parametrize(
    ("published", "margin", "said"),
    [
        (0.6, 0.0, "agrees"),
        (0.62, 0.0, "agrees"),
        (0.58, 0.0, "agrees"),
        (0.621, 0.0, "ours is lower"),
        (0.579, 0.0, "ours is higher"),
        (0.64, 0.021, "agrees"),
        (0.64, 0.019, "ours is lower"),
        (0.56, 0.021, "agrees"),
        (0.56, 0.019, "ours is higher"),
    ],
)
def test_a_published_value_agrees_where_it_meets_our_interval(published: float, margin: float, said: str) -> None:
    assert verdict(published, margin, OURS, False, "") == said
    assert verdict(published, margin, OURS, False, "profile small") == f"{said} (profile small)"


def test_what_is_not_compared() -> None:
    assert verdict(0.6, 0.1, OURS, True, "profile small") == "not compared: a null test"
    assert verdict(0.6, 0.1, None, False, "profile small") == "not measured"
    for missing in ("value", "low", "high"):
        assert verdict(0.6, 0.1, {**OURS, missing: None}, False, "") == "not measured"


def test_what_changed_a_setting() -> None:
    assert changed_by("small", []) == ""
    assert changed_by("small", ["rounds"]) == "profile small"
    assert changed_by(None, ["rounds"]) == "changed setting"


def test_the_bare_attack_goes_before_its_variants() -> None:
    variant, bare = attacked(0.7, attack="fedmia_ii(combine=sum_z)"), attacked(0.8)
    for rows in ([variant, bare], [bare, variant]):
        assert attack_row(rows, "fedmia_ii") is bare
        assert attack_row(rows, "fedmia_ii(combine=sum_z)") is variant
    assert attack_row([variant], "fedmia_ii") is variant
    assert attack_row([variant], "fedmia_i") is None
    bound = {**attacked(0.9, attack="fedmia_ii(trained_on=labelled)"), "upper_bound": True}
    for rows in ([bound, variant], [variant, bound]):
        assert attack_row(rows, "fedmia_ii") is variant, "an upper bound stands in for nothing"
        assert attack_row(rows, "fedmia_ii(trained_on=labelled)") is bound, "unless it is named"
    assert attack_row([bound], "fedmia_ii") is None
    assert metric_of(bare, "auc") == measured(0.8)
    assert metric_of(bare, "tpr@0.001") == measured(0.1)
    assert metric_of(bare, "tpr@0.1")["value"] is None


def test_several_seeds_are_a_mean_with_its_interval() -> None:
    aucs, tprs = [0.60, 0.64, 0.65], [0.10, 0.16, 0.16]
    rows = [
        row("none", seed, 0.5, attacked(auc, tpr)) for seed, (auc, tpr) in enumerate(zip(aucs, tprs, strict=True))
    ]
    found = compared(rows, figure("none", "auc", 0.9), figure("none", "tpr@0.001", 0.14, spread=0.01))
    for values, one in zip((aucs, tprs), found["figures"], strict=True):
        reach = T_2 * stdev(values) / 3**0.5
        ours = one["ours"]
        assert ours["value"] == pytest.approx(fmean(values))
        assert (ours["low"], ours["high"]) == pytest.approx((max(0, fmean(values) - reach), fmean(values) + reach))
        assert ours["n"] == 3
    assert [one["verdict"] for one in found["figures"]] == ["ours is lower", "agrees"]
    assert found["figures"][1] == {
        "cell": "none",
        "metric": "tpr@0.001",
        "attack": "fedmia_ii",
        "against": "",
        "published": 0.14,
        "spread": 0.01,
        "rounding": 0.0,
        "ours": found["figures"][1]["ours"],
        "verdict": "agrees",
    }
    assert {key: found[key] for key in ("claim", "source", "table", "link", "changed")} == {
        **{key: PAPER[key] for key in ("claim", "source", "table", "link")},
        "changed": [],
    }


def test_one_seed_has_its_runs_own_interval() -> None:
    (one,) = compared([row("none", 1, 0.5, attacked(0.7))], figure("none", "auc", 0.72))["figures"]
    assert one["ours"] == {"value": 0.7, "low": pytest.approx(0.69), "high": pytest.approx(0.71), "n": 1}
    assert one["verdict"] == "ours is lower"


@pytest.mark.parametrize(
    ("value", "spread", "said"),
    [
        (0.714, None, "agrees"),  # our interval ends at .71, and the paper prints two decimals
        (0.716, None, "ours is lower"),
        (0.734, 0.01, "agrees"),
        (0.736, 0.01, "ours is lower"),
    ],
)
def test_the_margin_is_two_deviations_and_half_a_printed_digit(
    value: float, spread: float | None, said: str
) -> None:
    published = figure("none", "auc", value, spread=spread)
    (one,) = compared([row("none", 0, 0.5, attacked(0.7))], published)["figures"]
    assert (one["rounding"], one["verdict"]) == (0.005, said)


def test_only_what_finished_counts() -> None:
    rows = [
        row("none", 0, 0.5, attacked(0.7)),
        row("none", 1, 0.5, attacked(0.1), status="failed"),
        row("none", 2, 0.5, status="missing"),
        row("noise", 0, 0.5, attacked(0.2)),
    ]
    published = [figure("none", "auc", 0.7), figure("noise", "tpr@0.1", 0.1), figure("noise", "accuracy", 0.5)]
    none, absent, accuracy = compared(rows, *published)["figures"]
    assert (none["ours"]["value"], none["ours"]["n"]) == (0.7, 1)
    assert (absent["ours"], absent["verdict"]) == (None, "not measured")
    assert accuracy["verdict"] == "agrees"
    assert [one["verdict"] for one in compared([], *published)["figures"]] == ["not measured"] * 3


def test_an_attack_that_was_not_run_or_has_no_figure_is_not_measured() -> None:
    rows = [row("none", 0, 0.5, attacked(0.7, None, attack="fedmia_i"))]
    one, other = compared(rows, figure("none", "auc", 0.7), figure("none", "tpr@0.001", 0.7, attack="fedmia_i"))[
        "figures"
    ]
    assert one["verdict"] == other["verdict"] == "not measured"


def test_accuracy_and_its_change_are_paired_by_seed() -> None:
    """Unpaired, the change would be a mean over other seeds, with an interval that says nothing."""
    rows = [row("none", seed, accuracy) for seed, accuracy in enumerate((0.40, 0.50, 0.60))]
    rows += [row("noise", seed, accuracy) for seed, accuracy in ((1, 0.45), (2, 0.57), (3, 0.9))]
    change = figure("noise", "accuracy_change", -0.04, against="none")
    plain, paired = compared(rows, figure("none", "accuracy", 0.5), change)["figures"]
    assert plain["ours"]["value"] == pytest.approx(0.5)
    assert plain["ours"]["high"] - plain["ours"]["low"] == pytest.approx(2 * T_2 * 0.1 / 3**0.5)
    assert (paired["ours"]["value"], paired["ours"]["n"]) == (pytest.approx(-0.04), 2)
    assert paired["verdict"] == "agrees"


@pytest.mark.parametrize(
    ("change", "said"),
    [(-0.034, "agrees"), (-0.024, "ours is lower"), (-0.046, "ours is higher")],
)
def test_an_accuracy_of_one_seed_stands_for_itself(change: float, said: str) -> None:
    rows = [row("none", 0, 0.50), row("noise", 0, 0.47)]
    published = figure("noise", "accuracy_change", change, against="none")
    (one,) = compared(rows, published)["figures"]
    assert one["ours"] == {"value": pytest.approx(-0.03), "low": None, "high": None, "n": 1}
    assert one["verdict"] == said


def test_a_null_test_is_not_compared() -> None:
    rows = [row("null", 0, 0.5, attacked(0.7)), row("none", 0, 0.5)]
    published = [figure("null", "auc", 0.7), figure("null", "accuracy_change", 0.0, against="none")]
    assert {one["verdict"] for one in compared(rows, *published)["figures"]} == {"not compared: a null test"}


def verdicts(overrides: list[str]) -> tuple[list[str], list[str]]:
    rows = [row(name, 0, 0.5, attacked(0.7)) for name in ("none", "noise")]
    change = figure("noise", "accuracy_change", 0.0, against="none")
    found = compared(rows, figure("none", "auc", 0.7), figure("noise", "auc", 0.7), change, overrides=overrides)
    return found["changed"], [one["verdict"] for one in found["figures"]]


def test_what_the_grid_sets_and_its_seeds_are_the_published_setting() -> None:
    for overrides in ([], ["seeds=[7]"], ["title=x", "threads=2", "device=cpu", "budget=0.1"]):
        assert verdicts(overrides) == ([], ["agrees"] * 3)


def test_a_profile_or_an_override_changes_the_setting() -> None:
    small = ["agrees (profile small)"] * 3
    assert verdicts(["profile=small"]) == (["rounds", "record_every", "defences"], small)
    assert verdicts(["rounds=8"]) == (["rounds"], ["agrees (changed setting)"] * 3)
    assert verdicts(["profile=small", "clients=6"])[1] == small
    assert verdicts(["rounds=6"]) == ([], ["agrees"] * 3)  # as the grid has it


def test_only_the_cells_that_an_override_reaches_are_changed() -> None:
    """The defended cell sets its own defences; its change of accuracy still rests on the undefended one."""
    changed, said = verdicts(["defences=[sparsify]"])
    assert changed == ["defences"]
    assert said == ["agrees (changed setting)", "agrees", "agrees (changed setting)"]


def test_a_grid_without_a_paper_compares_nothing() -> None:
    made, where = Grid.load(GRID)
    assert Beside.of(made, where, made.cells_of(where)) is None
