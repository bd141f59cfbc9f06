from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from fedsiege.defences.privacy import gaussian_epsilon
from fedsiege.report import findings
from fedsiege.report.finished import Finished
from fedsiege.report.html import page
from fedsiege.report.schema import Guarantee, Measured, Published

from . import made


def read(tmp_path: Path, data: dict[str, Any], curves: dict[str, Any]) -> Finished:
    return Finished.read(made.folder(tmp_path, data, curves))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def with_rates(data: dict[str, Any], found: int, members: int, spent: int, others: int) -> dict[str, Any]:
    """Every attack recognises `found` of the members at every FPR, with `spent` false positives; AUC of a guess."""
    for one in data["attacks"]:
        one |= {"n_members": members, "n_nonmembers": others}
        one["auc"] = {"value": 0.5, "low": 0.48, "high": 0.52, "n": members + others}
        for rate in one["tpr_at_fpr"].values():
            rate |= {**made.binomial(found, members), "false_positives": spent, "warning": None}
    return data


def test_the_headline_names_attack_rate_interval_basis_and_guessing(folder: Path) -> None:
    run = Finished.read(folder)
    best = run.rows()[-1]
    rate = best.rate("0.001")
    assert rate.value is not None
    said = findings.finding(run)
    assert said.leaks
    assert plain(said.statement) == (
        "FedMIA-II recognises 66.1 % of the members at a false-positive rate of 0.1 % (95 % interval 63.7–68.4 %)."
    )
    support = plain(" ".join(said.support))
    assert "Guessing would recognise 0.1 % of them, so this is 660 times as many." in support
    assert "1,057 recognised members out of 1,600, and 4 false positives among 4,000 non-members." in support
    assert "With 4,000 non-members 0.1 % FPR rests on at most 4 false positives." in support
    assert "On firmer ground, at 1 % FPR, it recognises 83.8 %" in support


def test_luck_of_the_threshold_is_no_leak(tmp_path: Path) -> None:
    # Of 1,000 non-members 1 may pass, so the threshold's true FPR may be .56 %. 4 in 1,000 members recognised is
    # above the nominal .1 % (its interval begins at .109 %) and still says nothing.
    data, curves = made.result()
    run = read(tmp_path, with_rates(data, 4, 1000, 1, 1000), curves)
    assert float(stats.beta.ppf(0.025, 4, 997)) > 0.001
    said = findings.finding(run)
    assert said.leaks is False
    assert plain(said.statement) == (
        "None of 8 attacks demonstrably tells members from non-members at a false-positive rate of 0.1 %."
    )
    assert "up to 0.56 % by the luck of its threshold" in plain(said.support[0])


def test_more_than_luck_is_a_leak(tmp_path: Path) -> None:
    data, curves = made.result()
    assert findings.finding(read(tmp_path, with_rates(data, 20, 1000, 1, 1000), curves)).leaks


def test_a_reassuring_headline_tells_of_leakage_at_a_larger_rate(tmp_path: Path) -> None:
    data, curves = made.result()
    data = with_rates(data, 0, 1000, 1, 1000)
    for one in data["attacks"]:
        if one["attack"] == "avg_cosine":
            one["tpr_at_fpr"]["0.01"] |= {**made.binomial(90, 1000), "false_positives": 10}
            one["tpr_at_fpr"]["0.1"] |= {**made.binomial(400, 1000), "false_positives": 100}
    said = findings.finding(read(tmp_path, data, curves))
    assert said.leaks is False  # and the smallest rate at which it shows is named
    assert plain(said.support[-1]).startswith("At 1 % FPR membership does show: Avg-Cosine recognises 9.0 %")


def test_a_reassuring_headline_tells_of_an_auc_above_a_half(tmp_path: Path) -> None:
    data, curves = made.result()
    data = with_rates(data, 0, 1000, 1, 1000)
    data["attacks"][-1]["auc"] |= {"low": 0.4}
    for one in data["attacks"]:
        if one["attack"] == "loss_series":
            one["auc"] |= {"value": 0.55, "low": 0.53, "high": 0.57}
    said = findings.finding(read(tmp_path, data, curves))
    assert said.support[-1] == "The AUC of Loss-Series, taken alone, is above guessing’s 0.5: 0.550 (0.530–0.570)."


def test_no_figure_at_all(tmp_path: Path) -> None:
    data, curves = made.result()
    data["attacks"] = []
    said = findings.finding(read(tmp_path, data, curves))
    assert (said.statement, said.leaks) == ("No attack was measured in this run.", None)


def test_a_null_test_is_the_headline_of_its_run(tmp_path: Path) -> None:
    data, curves = made.result()
    data = made.with_null_test(data)
    failed = findings.finding(read(tmp_path / "failed", data, curves))
    assert failed.leaks
    assert failed.statement == "The null test is not passed by Grad-Norm."
    assert "Grad-Norm: mean AUC 0.5410 is not within 0.5 +- 0.01." in failed.support
    for one in data["null_test"]:
        one["passed"] = True
    passed = findings.finding(read(tmp_path / "passed", data, curves))
    assert passed.leaks is False
    assert passed.statement.startswith("The null test is passed")
    assert "1,600 pseudo-members" in plain(findings.done(read(tmp_path / "passed", data, curves))[-1])


def test_what_was_done(folder: Path) -> None:
    assert [plain(sentence) for sentence in findings.done(Finished.read(folder))] == [
        "10 clients trained a model (mlp, 100,234 parameters) on scikit-learn digits (10 classes, 1,409 training "
        "examples) for 60 rounds.",
        "The clients defended themselves with perturb(sigma=0.1).",
        "The global model classifies 91.3 % of the held-out examples correctly, and 100 % of those it was trained "
        "on.",
        "8 attacks then scored 1,600 members of 4 audited clients and 4,000 non-members (2,000 of other clients, "
        "2,000 that nobody trained on); how well do the scores tell them apart?",
    ]


@pytest.mark.parametrize(("using", "who"), [(range(10), "The clients"), ((0, 2), "Some clients")])
def test_who_defended_with_what_is_said(using: Sequence[int], who: str, tmp_path: Path) -> None:
    data, curves = made.result()
    acted = {"acted": True, "counters": {}, "kind": "client_defence"}
    data["components"].append({"name": "hamp", "label": "hamp", **acted})
    for number in using:
        data["task"]["clients"][number]["defences"].append("hamp")
    run = read(tmp_path, data, curves)
    assert findings.done(run)[1] == f"{who} defended themselves with perturb(sigma=0.1) and hamp."


def test_a_run_without_defences_says_nothing_of_them(tmp_path: Path) -> None:
    data, curves = made.result()
    data["components"] = [one for one in data["components"] if one["kind"] != "client_defence"]
    assert findings.defended(read(tmp_path, data, curves)) == ""


def test_redrawn_non_members_are_the_first_warning(tmp_path: Path) -> None:
    data, curves = made.result()
    data["data"]["candidates"]["compat"] = "fedmia"
    said = findings.warnings(read(tmp_path, data, curves))
    assert "(compat: fedmia)" in said[0]
    assert said[1:] == data["warnings"]


def test_a_footnote_of_the_table_is_not_said_twice(tmp_path: Path) -> None:
    data, curves = made.result()
    footnote = "with 4,000 non-members 0.1 % FPR rests on at most 4 false positives"
    data["warnings"] = [footnote, "mind the labels", "mind the labels"]
    run = read(tmp_path, data, curves)
    assert f"W{footnote[1:]}." in findings.cautions(run, run.rows())
    assert findings.warnings(run) == ["mind the labels"]


def test_idle_components_are_named(tmp_path: Path) -> None:
    data, curves = made.result()
    data["components"][1]["acted"] = False
    assert findings.idle(read(tmp_path, data, curves)) == ["perturb(sigma=0.1)"]


def test_what_may_have_acted_is_not_said_to_be_idle(tmp_path: Path) -> None:
    data, curves = made.result()
    data["components"][1] |= {"acted": False, "unproven": "poisoned_updates", "label": "turned"}
    run = read(tmp_path, data, curves)
    assert findings.idle(run) == []
    assert findings.unproven(run) == [
        "turned counted nothing as `poisoned_updates`: whether it acted is not known."
    ]


def test_columns_share_the_usual_false_positives(tmp_path: Path) -> None:
    data, curves = made.result()
    for one in data["attacks"]:
        if one["attack"] == "grad_norm":
            one["tpr_at_fpr"]["0.001"]["false_positives"] = 2
    run = read(tmp_path, data, curves)
    shared = {column.fpr: column for column in findings.columns(run, run.rows())}
    assert shared["0.001"].false_positives == 4
    assert shared["0.001"].doubtful
    assert not shared["0.1"].doubtful


def guarantee(**fields: Any) -> dict[str, Any]:
    known = {
        "label": "d",
        "unit": "example",
        "against": "server",
        "epsilon": 3.0,
        "delta": 1e-5,
        "accountant": "rdp",
    }
    return {**known, "note": "so it was counted", **fields}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"clients": "of clients 0 and 1"},
            "d: ε = 3 at δ = 1e-05, for each single example of clients 0 and 1, against a server that sees single "
            "updates (rdp). At 0.1 % FPR no such adversary recognises more than 2.0 % of these members. "
            "So it was counted.",
        ),
        (
            {"unit": "client", "against": "aggregate", "clients": "of every client"},
            "d: ε = 3 at δ = 1e-05, for the data of every client, each client’s as a whole, against whoever sees "
            "only what was aggregated, any one other client included (rdp). At 0.1 % FPR no such adversary "
            "recognises more than 2.0 % of the cases in which such a client’s updates are not all zero. "
            "So it was counted.",
        ),
        (
            {"epsilon": None, "unit": "client"},
            "d: no finite ε, for each client’s data as a whole, against a server that sees single updates (rdp). "
            "No useful bound on attacks at 0.1 % FPR. So it was counted.",
        ),
        (
            {"epsilon": 771.0},
            "d: ε = 771 at δ = 1e-05, for each single example, against a server that sees single updates (rdp). "
            "No useful bound on attacks at 0.1 % FPR. So it was counted.",
        ),
    ],
)
def test_a_guarantee_says_whose_it_is_and_what_it_bounds(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    data, curves = made.result()
    data["privacy"] = [guarantee(**fields)]
    run = read(tmp_path, data, curves)
    assert [plain(line) for line in findings.guarantees(run)] == [said]


@pytest.mark.parametrize(
    ("epsilon", "delta", "fpr", "most"),
    [
        (0.0, 1e-5, "0.001", 0.00101),
        (3.0, 1e-5, "0.001", 0.0200955),
        (3.0, 0.5, "0.1", 1.0),
        (6.9, 1e-5, "0.001", 0.992285),
        (6.91, 1e-5, "0.001", 1.0),
        (1e4, 1e-5, "0.001", 1.0),
        (None, 1e-5, "0.001", 1.0),
    ],
)
def test_what_an_epsilon_bounds(epsilon: float | None, delta: float, fpr: str, most: float) -> None:
    one = Guarantee(**guarantee(epsilon=epsilon, delta=delta))
    assert findings.ceiling(one, fpr) == pytest.approx(most, rel=1e-4)


def test_no_test_on_one_gaussian_release_beats_what_its_epsilon_bounds() -> None:
    # The most powerful test between N(0, 1) and N(mu, 1), whose epsilon the accountant knows exactly.
    for multiplier in (0.7, 1.0, 3.0):
        one = Guarantee(**guarantee(epsilon=gaussian_epsilon(multiplier, 1, 1e-5)))
        best = float(stats.norm.sf(stats.norm.isf(0.001) - 1 / multiplier))
        assert 0.001 < best <= findings.ceiling(one)


def test_values_by_round(folder: Path) -> None:
    run = Finished.read(folder)
    table = findings.by_round(run)
    assert [number for number, _ in table] == made.ROUNDS
    single, multi = run.curves.rounds[0], run.curves.rounds[-1]
    assert [values[0] for _, values in table] == single.tpr
    assert [values[-1] for _, values in table] == [None] * (len(made.ROUNDS) - 1) + [multi.tpr[-1]]


@pytest.mark.parametrize(
    ("metric", "written"),
    [
        ("tpr@0.001", ("TPR at 0.1 % FPR", "54.7", "± 1.22", "40.0", "30.0–50.0")),
        ("auc", ("AUC", "0.547", "± 0.012", "0.400", "0.300–0.500")),
    ],
)
def test_published_and_own_figures_are_written_alike(metric: str, written: tuple[str, ...]) -> None:
    ours = Measured(value=0.4, low=0.3, high=0.5)
    figure = Published(attack="a", metric=metric, published=0.5466, spread=0.0122, ours=ours, verdict="lower")
    line = findings.compared(figure)
    assert (plain(line.metric), line.published, line.spread, line.ours, line.interval) == written


UNSEEN = "what balances in the tails of the uploads does not give them away."


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (None, []),
        ({"members": {}, "detected": [], "unbalanced": []}, []),
        (
            {"members": {"c": [0, 1, 4]}, "detected": [], "unbalanced": []},
            [f"c: clients 0, 1 and 4 defend together; {UNSEEN}"],
        ),
        (
            {
                "members": {"c": [0, 1]},
                "detected": [{"members": [0, 1], "form": "scalar", "balance": 0.0123}],
                "unbalanced": [3],
            },
            [
                "c: clients 0 and 1 defend together; a server can tell this from the tails of the uploads, whose "
                "noise cancels to 0.012 of what independent noise would leave.",
                "The uploads of client 3 are noisy, and no others’ balance them.",
            ],
        ),
        (
            {
                "members": {"c": [0, 1]},
                "detected": [{"members": [0, 2], "form": "vector", "balance": 0.1}],
                "unbalanced": [],
            },
            [
                f"c: clients 0 and 1 defend together; {UNSEEN}",
                "A server would take clients 0 and 2 for a coalition, which is wrong.",
            ],
        ),
    ],
)
def test_what_a_server_can_tell_of_a_coalition(
    about: dict[str, Any] | None, said: list[str], tmp_path: Path
) -> None:
    data, curves = made.result()
    data["coalitions"] = about
    run = read(tmp_path, data, curves)
    assert findings.coalitions(run) == said
    assert ("<h3>Coalitions</h3>" in page(run)) == bool(said)
