"""What a sweep says in words."""

from pathlib import Path
from typing import Any

import pytest

from fedsiege.report.grid import findings
from fedsiege.report.grid.findings import Headline, headline

from . import made_sweep
from .made_sweep import grid, run
from .written import read


def said(place: Path, *cells: dict[str, Any], **more: Any) -> Headline:
    found = headline(read(place, grid(*cells, **more)))
    return Headline(
        found.statement.replace("\u00a0", " "),
        tuple(line.replace("\u00a0", " ") for line in found.support),
        found.helps,
        found.verdicts,
    )


NONE = run("none", 0, 0.5, {"x": 0.6, "y": 0.4})


def test_the_best_defence_within_the_budget(tmp_path: Path) -> None:
    cells = [
        NONE, run("cheap", 0, 0.499, {"x": 0.5, "y": 0.4}, "p"), run("best", 0, 0.48, {"x": 0.1, "y": 0.3}, "p"),
        run("dear", 0, 0.47, {"x": 0.01, "y": 0.01}, "p"),
    ]  # fmt: skip
    found = said(tmp_path, *cells)  # 0.5 - 0.48 is 0.020000000000000018 and within a budget of 0.02
    assert found.statement == (
        "The best defence within an accuracy budget of 2 points is best: it brings the strongest attack’s TPR at "
        "0.1 % FPR from 60.0 % (X) to 30.0 % (Y), and costs 2 points of test accuracy."
    )
    assert found.helps is True
    assert found.support[:2] == (
        "One seed: how another training run would come out is not known.",
        "Guessing would recognise 0.1 %: 300 times as many are still found.",
    )
    assert found.support[-1] == (
        "Which attack is strongest, and which of the 2 cells within the budget is best, was chosen with the truth "
        "in hand."
    )
    poorer = said(tmp_path, *cells, budget=0.005)
    assert poorer.statement.startswith(
        "No defence within an accuracy budget of 0.5 points demonstrably brings the strongest attack down. The "
        "lowest measured is cheap: the strongest"
    )
    assert "is 50.0 % (X) with it and 60.0 % without, and it costs 0.1 points of" in poorer.statement
    assert poorer.helps is None
    assert "budget of 5 points is dear" in said(tmp_path, *cells, budget=0.05).statement


def test_a_defence_that_gains_accuracy(tmp_path: Path) -> None:
    found = said(tmp_path, NONE, run("p", 0, 0.51, {"x": 0.1}, "p"))
    assert found.helps is True
    assert found.statement.endswith("to 10.0 % (X), and gains 1 point of test accuracy.")
    assert "Not measured against it: Y." in found.support


def test_no_defence_is_within_the_budget(tmp_path: Path) -> None:
    found = said(tmp_path, NONE, run("p", 0, 0.4, {"x": 0.1}, "p"), run("q", 0, 0.3, {"x": 0.01}, "q"))
    assert found.statement == "No defence stays within an accuracy budget of 2 points."
    assert found.support[0].startswith("The cheapest is p: the strongest attack’s TPR at 0.1 % FPR is 10.0 %")
    assert found.support[0].endswith("and it costs 10 points of test accuracy.")
    assert found.helps is False


def test_no_defence_brings_the_attack_down(tmp_path: Path) -> None:
    found = said(tmp_path, NONE, run("p", 0, 0.5, {"x": 0.6}, "p"))
    assert found.statement == ("No defence within an accuracy budget of 2 points brings the strongest attack down.")
    assert found.support == (
        "Every defence within the budget left it as high or higher; the lowest measured is p: the strongest "
        "attack’s TPR at 0.1 % FPR is 60.0 % (X) with it and 60.0 % without, and it costs nothing in test "
        "accuracy.",
    )
    assert found.helps is False


def test_defences_that_leave_more_to_find_are_not_said_to_bring_it_down(tmp_path: Path) -> None:
    found = said(tmp_path, NONE, run("p", 0, 0.5, {"x": 0.7, "y": 0.1}, "p"), run("q", 0, 0.5, {"x": 0.8}, "q"))
    assert found.statement.endswith("brings the strongest attack down.")
    assert found.support[0].startswith("Every defence within the budget left it as high or higher; the lowest")
    assert "is 70.0 % (X) with it and 60.0 % without" in found.support[0]
    assert "brings" not in " ".join(found.support)
    part = run("q", 0, 0.5, {"y": 0.6}, "q")  # x, which is stronger without a defence, was not run on it
    assert (
        said(tmp_path, NONE, run("p", 0, 0.5, {"x": 0.7}, "p"), part)
        .support[0]
        .startswith(
            "Every defence within the budget left it, or the strongest that was run on both, as high or higher;"
        )
    )


NOTHING_BESIDE = "No defended cell was measured beside the undefended one with the same attack and seed."


@pytest.mark.parametrize(
    ("cells", "statement"),
    [
        ([NONE], "No cell of this grid has a defence."),
        ([run("p", 0, 0.5, {"x": 0.5}, "p")], "No undefended cell was measured, so nothing can be compared."),
        ([NONE, run("p", 1, 0.5, {"x": 0.5}, "p")], NOTHING_BESIDE),
        (
            [run("none", 0, 0.5, {"x": 0.002}), run("p", 0, 0.5, {"x": 0.0}, "p")],  # 0.1 % is in its interval
            "Even without a defence no attack demonstrably does better than guessing at 0.1 % FPR, so there is "
            "nothing for a defence to bring down.",
        ),
        ([NONE | {"status": "failed", "attacks": [], "accuracy": None}], "No cell of this grid finished."),
    ],
)
def test_nothing_can_be_said(tmp_path: Path, cells: list[dict[str, Any]], statement: str) -> None:
    found = said(tmp_path, *cells)
    assert found.statement == statement
    assert found.helps is None


def seeds(name: str, accuracies: list[float], tprs: list[float], *defences: str) -> list[dict[str, Any]]:
    return [run(name, s, a, {"x": t}, *defences) for s, (a, t) in enumerate(zip(accuracies, tprs, strict=True))]


def test_a_fall_too_small_to_be_seen_is_none(tmp_path: Path) -> None:
    found = said(tmp_path, run("none", 0, 0.5, {"x": 0.60004}), run("p", 0, 0.5, {"x": 0.6}, "p"))
    assert found.helps is False
    assert "is 60.0 % (X) with it and 60.0 % without" in found.support[0]


def test_settings_in_which_nothing_leaks(tmp_path: Path) -> None:
    data = made_sweep.sweep(("alexnet", "resnet18"), seeds=(0,))
    for one in data["cells"]:
        for attack in one["attacks"]:
            attack["tpr_at_fpr"]["0.001"] |= {"value": 0.002, "low": 0.0005}
    found = headline(read(tmp_path, data))
    assert found.statement.startswith("Even without a defence no attack demonstrably does better than guessing")
    assert found.helps is None


def test_over_seeds_fall_and_cost_have_intervals(tmp_path: Path) -> None:
    none = seeds("none", [0.5, 0.5, 0.5], [0.6, 0.6, 0.6])
    found = said(tmp_path, *none, *seeds("p", [0.49, 0.495, 0.5], [0.1, 0.2, 0.3], "p"))
    # 0.4 - 4.3027 * 0.1 / sqrt(3); above, the runs' own intervals reach further: the mean of hypot(0.6, 0.05),
    # hypot(0.6, 0.1) and hypot(0.6, 0.15), over sqrt(3); 0.005 +- 4.3027 * 0.005 / sqrt(3)
    assert found.support[0] == (
        "Over 3 seeds the TPR falls by 40 points (95 % interval 15.2 to 75.2) at a cost of 0.5 points "
        "(−0.7 to 1.7)."
    )


def test_falls_and_costs_that_agree_are_not_said_to_be_certain(tmp_path: Path) -> None:
    none = seeds("none", [0.5, 0.5], [0.6, 0.6])
    found = said(tmp_path, *none, *seeds("p", [0.49, 0.49], [0.2, 0.2], "p"))
    # the runs reach from half to twice their TPRs: 0.4 - hypot(0.3, 0.2) / sqrt(2), 0.4 + hypot(0.6, 0.1) / sqrt(2)
    assert found.support[0] == (
        "Over 2 seeds the TPR falls by 40 points (95 % interval 14.5 to 83.0) at a cost of 1 point, the same with "
        "every seed."
    )
    for one in (cells := [*none, *seeds("p", [0.49, 0.49], [0.2, 0.2], "p")]):
        one["attacks"][0]["tpr_at_fpr"]["0.001"] |= {"low": None, "high": None}
    assert said(tmp_path, *cells).support[0] == (
        "Over 2 seeds the TPR falls by 40 points at a cost of 1 point, the same with every seed."
    )


def test_a_fall_that_may_be_luck_and_a_budget_that_may_be_broken(tmp_path: Path) -> None:
    none = seeds("none", [0.5, 0.5], [0.6, 0.6])
    found = said(tmp_path, *none, *seeds("p", [0.48, 0.5], [0.3, 0.55], "p"))
    assert found.helps is None
    assert "Luck could make a fall as large as this." in found.support
    assert found.support[0].endswith(", so the budget may be broken).")


def test_a_defence_that_never_acted_is_no_quiet_winner(tmp_path: Path) -> None:
    quiet = run("p", 0, 0.5, {"x": 0.1, "y": 0.1}, "p", idle=["p()"])
    found = said(tmp_path, NONE, quiet)
    assert found.helps is None
    assert found.statement.startswith("No defended cell in which the defence acted was measured")
    louder = said(tmp_path, NONE, quiet, run("q", 0, 0.5, {"x": 0.3, "y": 0.1}, "q"))
    assert "points is q: it brings" in louder.statement
    sweep = read(tmp_path, made_sweep.troubled())
    assert findings.idle(sweep) == [("sparsify(share=0.9)", ["defences=sparsify 0.9, model=resnet18"])]


def test_a_cell_with_fewer_seeds_is_judged_on_those(tmp_path: Path) -> None:
    none = seeds("none", [0.5, 0.5, 0.5], [0.1, 0.4, 0.4])
    doubled = said(tmp_path, *none, run("p", 0, 0.5, {"x": 0.2}, "p"))
    assert doubled.helps is False
    assert doubled.support[0] == (
        "Every defence within the budget left it as high or higher; the lowest measured is p: on seed 0, which "
        "alone both cells finished, the strongest attack’s TPR at 0.1 % FPR is 20.0 % (X) with it and 10.0 % "
        "without, and it costs nothing in test accuracy."
    )


def test_an_attack_that_was_not_run_on_the_defence_leaves_it_open(tmp_path: Path) -> None:
    found = said(tmp_path, NONE, run("p", 0, 0.5, {"y": 0.01}, "p"))
    assert found.helps is None
    assert (
        "the TPR at 0.1 % FPR of the strongest attack run on both is 1.0 % (Y) with it and 40.0 %"
        in found.statement
    )
    assert "X, the strongest attack without a defence, was not run on it." in found.support


def test_the_lowest_may_be_luck_where_another_is_not(tmp_path: Path) -> None:
    none = seeds("none", [0.5, 0.5], [0.6, 0.6])
    shaky, firm = seeds("shaky", [0.5, 0.5], [0.0, 0.1], "p"), seeds("firm", [0.5, 0.5], [0.2, 0.2], "q")
    for one in shaky:
        one["attacks"][0]["tpr_at_fpr"]["0.001"]["n"] = 4
    found = said(tmp_path, *none, *shaky, *firm)
    assert found.helps is True
    assert "points is firm: it brings" in found.statement
    assert found.support[-1] == "shaky was measured lower still, which may be luck."


def test_cells_outside_the_product_are_compared_among_equals(tmp_path: Path) -> None:
    cells = [
        NONE, run("p", 0, 0.5, {"x": 0.6, "y": 0.4}, "p"),
        run("short", 0, 0.5, {"x": 0.01, "y": 0.01}, "p", axes={}, changes={"rounds": "2", "defences": "[p]"}),
        run("long", 0, 0.7, {"x": 0.9, "y": 0.9}, axes={}, changes={"rounds": "300"}),
    ]  # fmt: skip
    found = said(tmp_path, *cells)
    assert [one.setting for one in found.verdicts] == ["", "rounds=2", "rounds=300"]
    assert [one.helps for one in found.verdicts] == [False, None, None]
    assert findings.setting_name(read(tmp_path, grid(*cells)), "") == "the base’s own values"


def test_a_defence_of_some_clients_is_named(tmp_path: Path) -> None:
    some = run("p", 0, 0.5, {"x": 0.1, "y": 0.1}, "p", labels=["p(clients=(0, 1))"])
    assert (
        "It defends some clients only, and the figures pool all audited ones." in said(tmp_path, NONE, some).support
    )
    (warning,) = [one for one in findings.warnings(read(tmp_path, grid(NONE, some))) if "Only some" in one]
    assert warning.startswith("Only some clients are defended in p: the figures pool all audited clients")
    assert not any("Only some" in one for one in findings.warnings(read(tmp_path, made_sweep.sweep())))


def test_settings_whose_fall_may_be_luck_are_not_counted(tmp_path: Path) -> None:
    data = made_sweep.sweep(("alexnet", "resnet18"), seeds=(0,))
    for one in data["cells"]:
        for attack in one["attacks"]:
            attack["tpr_at_fpr"]["0.001"] |= {
                "n": 30 if one["axes"]["model"] == "alexnet" else 50_000,
                "warning": None,
            }
    found = headline(read(tmp_path, data))
    assert found.statement.startswith("In 1 of 2 settings a defence demonstrably brings")
    assert [one.helps for one in found.verdicts] == [None, True]
    assert found.support[0] == "In 1\u00a0setting one was measured lower, which may be luck."
    for one in data["cells"]:
        for attack in one["attacks"]:
            attack["tpr_at_fpr"]["0.001"]["n"] = 30
    assert headline(read(tmp_path, data)).helps is None


def test_idle_in_some_seeds_names_them(tmp_path: Path) -> None:
    cells = [run("p", s, 0.5, {"x": 0.5}, "p", idle=["p()"] if s else []) for s in range(3)]
    assert findings.idle(read(tmp_path, grid(*cells))) == [("p()", ["p (seeds 1 and 2)"])]


def test_what_may_have_acted_is_not_said_to_be_idle(tmp_path: Path) -> None:
    lacking: dict[str, Any] = {"idle": ["turned"], "unproven": {"turned": "poisoned_updates"}}
    cells = [run("p", s, 0.5, {"x": 0.5}, "p", **(lacking if s else {})) for s in range(3)]
    sweep = read(tmp_path, grid(*cells, run("q", 0, 0.5, {"x": 0.5}, "q", **lacking)))
    assert findings.idle(sweep) == []
    assert findings.unproven(sweep) == [
        "turned counted nothing as `poisoned_updates` in p (seeds 1 and 2) and q: whether it acted is not known."
    ]


def test_several_settings_have_a_verdict_each(tmp_path: Path) -> None:
    data = made_sweep.sweep(("alexnet", "resnet18"))
    found = headline(read(tmp_path, data))
    assert found.statement.replace("\u00a0", " ") == (
        "In every setting a defence demonstrably brings the strongest attack down within an accuracy budget of 2 "
        "points."
    )
    assert [one.setting for one in found.verdicts] == ["model=alexnet", "model=resnet18"]
    assert all(one.best and one.best.point.short == "half data" for one in found.verdicts)
    for one in data["cells"]:
        if one["axes"]["model"] == "alexnet" and one["defences"]:
            one["accuracy"] -= 0.1
    found = headline(read(tmp_path, data))
    assert found.statement.startswith("In 1 of 2 settings a defence demonstrably brings")
    assert [one.helps for one in found.verdicts] == [False, True]
    for one in data["cells"]:
        if one["defences"]:
            one["accuracy"] = 0.1
    assert headline(read(tmp_path, data)).statement.startswith("In none of 2 settings does a defence demonstrably")
    for one in data["cells"]:
        if one["axes"]["model"] == "alexnet" and not one["defences"]:
            made_sweep.undo(one, "failed", "x")
    assert headline(read(tmp_path, data)).statement.startswith(
        "In the only setting that can be judged no defence demonstrably brings the strongest attack down within"
    )
    for one in data["cells"]:
        if one["axes"]["model"] == "alexnet" and not one["defences"]:
            continue
        if one["defences"]:
            one["accuracy"] = 0.9
    assert headline(read(tmp_path, data)).statement.startswith("In every setting that can be judged a defence")


def test_warnings_of_a_sweep(tmp_path: Path) -> None:
    assert findings.warnings(read(tmp_path / "well", made_sweep.sweep())) == []
    sweep = read(tmp_path / "troubled", made_sweep.troubled())
    assert [line.replace("\u00a0", " ") for line in findings.warnings(sweep)] == [
        "1 run failed: what is said of its cell rests on the other seeds.",
        "1 run has not been made yet.",
    ]
    assert findings.unfinished(sweep) == [
        ("defences=perturb 0.05, model=alexnet", 1, "failed", "training diverged in round 3 & stopped"),
        ("defences=sparsify 0.99, model=resnet18", 2, "missing", "not made yet; go on with --resume"),
    ]


def test_a_cell_of_which_no_seed_finished_rests_on_none(tmp_path: Path) -> None:
    alone = run("p", 0, 0.5, {"x": 0.5}, "p")
    made_sweep.undo(alone, "failed", "out of memory")
    assert failures(tmp_path, NONE, alone) == [
        "1 run failed: no run of its cell finished, so nothing is said of it."
    ]
    both = [alone | {"seed": seed} for seed in (0, 1)]
    assert failures(tmp_path, NONE, *both) == [
        "2 runs failed: no run of their cell finished, so nothing is said of it."
    ]
    other = run("none", 1, 0.5, {"x": 0.5})
    made_sweep.undo(other, "failed", "out of memory")
    assert failures(tmp_path, NONE, other, *both, alone | {"name": "q"}) == [
        "1 run failed: what is said of its cell rests on the other seeds.",
        "3 runs failed: no run of their cells finished, so nothing is said of them.",
    ]


def failures(place: Path, *cells: dict[str, Any]) -> list[str]:
    warned = findings.warnings(read(place, grid(*cells)))
    return [line.replace("\u00a0", " ") for line in warned if "failed" in line]


def test_an_empty_list_of_defences_is_called_none(tmp_path: Path) -> None:
    cells = [run("[]", s, 0.5, {"x": 0.5}, idle=["q()"] if s else []) for s in (0, 1)]
    failed = run("[]", 2, 0.5, {})
    made_sweep.undo(failed, "failed", "out of memory")
    for one in (*cells, failed):
        one["name"] = "defences=[]"
    sweep = read(tmp_path, grid(*cells, failed, run("p", 0, 0.5, {"x": 0.1}, "p")))
    assert [point.short for point in sweep.points] == ["none", "p"]
    assert [point.name for point in sweep.points] == ["defences=[]", "p"]
    assert findings.unfinished(sweep)[0][0] == "defences=none"
    assert findings.idle(sweep) == [("q()", ["defences=none (seed 1)"])]


def test_attacks_that_are_not_told_of_the_defence(tmp_path: Path) -> None:
    sweep = read(tmp_path, grid(NONE, run("p", 0, 0.5, {"x": 0.1}, "p")))
    assert findings.warnings(sweep)[-1].startswith("No attack here is told of the defence.")
    adapted = run("q", 0, 0.4, {"x": 0.1}, "q")
    adapted["attacks"][0] |= {"attack": "x(coordinates=nonzero)", "title": "X (non-zero)", "adapted": True}
    sweep = read(tmp_path, grid(NONE, run("p", 0, 0.5, {"x": 0.1, "y": 0.1}, "p"), adapted))
    assert not [line for line in findings.warnings(sweep) if "told" in line]
    assert "No attack on it was told of the defence." in headline(sweep).support


def test_a_setting_without_a_baseline_is_named(tmp_path: Path) -> None:
    data = made_sweep.sweep(("alexnet", "resnet18"))
    data["cells"] = [one for one in data["cells"] if one["name"] != "defences=none, model=resnet18"]
    assert "No undefended cell was measured in model=resnet18: what a defence changes there is not known." in (
        findings.warnings(read(tmp_path, data))
    )


def test_guarantees_are_said_once(tmp_path: Path) -> None:
    sweep = read(tmp_path, made_sweep.troubled())
    (point,) = [p for p in sweep.points if findings.epsilons(p)]
    assert point.short == "perturb 0.01"
    assert [line.replace("\u00a0", " ") for line in findings.epsilons(point)] == [
        "ε = 8.25 at δ = 1e-05, for each client’s data as a whole, against a server that sees single updates: no "
        "useful bound on attacks at 0.1 % FPR"
    ]
    cell = run("p", 0, 0.5, {"x": 0.5}, "p")
    cell["privacy"] = [
        {"label": "p", "unit": "example", "against": "aggregate", "epsilon": None, "delta": 1e-5,
         "accountant": "rdp", "note": "no noise"}
    ]  # fmt: skip
    (bare,) = read(tmp_path, grid(cell)).points
    assert findings.epsilons(bare)[0].startswith("no finite ε")
    cell["privacy"][0] |= {"epsilon": 2.0, "clients": "of clients 0 and 1"}
    (some,) = read(tmp_path, grid(cell)).points
    # exp(2) * 0.001 + 0.00001
    assert "of clients 0 and 1" in findings.epsilons(some)[0]
    assert "0.74\u00a0%" in findings.epsilons(some)[0]


def test_what_was_run(tmp_path: Path) -> None:
    sweep = read(tmp_path, made_sweep.troubled())
    assert findings.done(sweep).replace("\u00a0", " ") == (
        "12 cells, 2 settings, 3 seeds and 4 attacks; 34 of 36 runs finished."
    )
    assert findings.basis(sweep).startswith("Means over seeds with Student’s")
    assert "no narrower than the runs’ own intervals imply for their mean" in findings.basis(sweep)
    assert findings.basis(read(tmp_path, made_sweep.sweep(seeds=(4,)))).startswith("One seed: the intervals of TPR")
