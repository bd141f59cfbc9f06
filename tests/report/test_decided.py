"""What a run says of decisions on membership that poisoning made possible, in every format."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from fedsiege import report
from fedsiege.report import Result
from fedsiege.report.findings import headlines
from fedsiege.report.finished import Finished
from fedsiege.report.html import fragment, page
from fedsiege.report.poisoning import decided
from fedsiege.report.poisoning.charts import chart_data, decided_data
from fedsiege.report.poisoning.figures import decisions_figure
from fedsiege.report.poisoning.findings import done, finding
from fedsiege.report.poisoning.schema import Decisions, Poisoning
from fedsiege.report.terminal import summary
from fedsiege.report.tiles import tiles

from . import made
from .made_poisoning import alone, of_anybody, poisoned, probed, share, untargeted
from .page import Node, parse


def data() -> dict[str, Any]:
    return made.result(targets=1)[0]


def part(**changed: Any) -> Poisoning:
    found = probed(data())["poisoning"]
    found["decisions"] |= changed
    return Poisoning.model_validate(found)


def lone_run(place: Path, content: dict[str, Any]) -> Finished:
    return Finished.read(made.folder(place, *alone(content)))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def printed(run: Finished, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(summary(run, width))
    assert isinstance(console.file, io.StringIO)
    return plain(console.file.getvalue())


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def section(root: Node) -> Node:
    return root.one("section", id="hijack")


def test_the_headline_is_of_the_last_rounds_and_the_best_round_stands_below_it() -> None:
    found = finding(part())
    assert found is not None
    assert plain(found.statement) == (
        "Under FedPoisonMIA membership shows: calling an example a member where the model gets it right was right "
        "for 70.9 % (65.6–75.7 %) of 306 examples over the last 20 recorded rounds; guessing is right for 50.0 %."
    )
    assert plain(found.support[0]) == (
        "In the best round (35), which takes the truth to find, the decision was right for 83.0 % (78.4–86.8 %)."
    )
    assert found.leaks is True


def test_the_finding_says_what_it_costs_and_not_that_it_was_to_do_damage() -> None:
    found = finding(part())
    assert found is not None
    said = plain(" ".join([found.statement, *found.support]))
    assert "Main accuracy falls from 90.3 % to 75.0 %" in said
    assert "What it would have been without the attack shows only beside the same run without it." in said
    assert "brings main accuracy down" not in said
    fresh = finding(part().model_copy(update={"fresh": True}))
    assert fresh is not None
    assert any("untrained model" in line for line in fresh.support)
    assert not any("would have been without" in line for line in fresh.support)


@pytest.mark.parametrize(("right", "shows"), [(170, False), (171, True), (140, False)])
def test_membership_shows_where_the_whole_interval_is_above_guessing(right: int, shows: bool) -> None:
    one = part(last={"rounds": 20, **share(right, 306)})
    assert one.decisions is not None
    assert decided.shows(one.decisions) is shows
    found = finding(one)
    assert found is not None
    assert found.leaks is (True if shows else None)
    assert ("does not demonstrably show" in found.statement) is not shows


def test_guessing_is_the_better_constant_answer() -> None:
    one = part(members=306, nonmembers=102, chance=0.75)
    assert one.decisions is not None
    assert not decided.shows(one.decisions)
    found = finding(one)
    assert found is not None
    assert "of 408 examples" in plain(found.statement)
    assert plain(found.statement).endswith("guessing is right for 75.0 %.")


def test_one_recorded_round_is_said_as_one() -> None:
    one = part(last={"rounds": 1, **share(217, 306)}).decisions
    assert one is not None
    assert decided.over(one) == "the last recorded round"


def test_an_attack_that_probes_without_decisions_is_not_said_to_do_damage() -> None:
    one = part().model_copy(update={"decisions": None})
    found = finding(one)
    assert found is not None
    assert plain(found.statement).startswith("Under FedPoisonMIA main accuracy is ")
    assert found.leaks is None
    adversary = one.adversary
    assert adversary is not None
    other = finding(one.model_copy(update={"adversary": adversary.model_copy(update={"probes": False})}))
    assert other is not None
    assert "brings main accuracy down" in other.statement


def test_who_attacks_and_what_for() -> None:
    assert done(part(), 10)[0].endswith("attacks in every round from 21 to 60, to find members.")
    assert "to find members" not in done(Poisoning.model_validate(untargeted(data())["poisoning"]), 10)[0]


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValidationError, match="40 rounds, 39 accuracies"):
        part(accuracy=[0.5] * 39)


def test_the_rows_of_the_table() -> None:
    found = part().decisions
    assert [(plain(one.name), one.figure.value, one.figure.low is None) for one in decided.rows(found)] == [
        ("Over the last 20 recorded rounds", 217 / 306, False),
        ("In the best round (35), chosen with the truth", 254 / 306, False),
        ("Guessing", 0.5, True),
    ]
    assert decided.rows(None) == []


def test_the_rounds_of_the_headline_are_the_last_that_were_recorded() -> None:
    found = part().decisions
    assert found is not None
    assert decided.final(found) == (41, 60)
    assert decided.final(found.model_copy(update={"rounds": [], "accuracy": []})) is None


def test_tiles_lead_with_the_last_rounds(tmp_path: Path) -> None:
    found = tiles(lone_run(tmp_path, probed(data())), "poisoning")
    assert [(one.term, plain(one.figure)) for one in found] == [
        ("Right decisions", "70.9 %"),
        ("In the best round", "83.0 %"),
        ("Main accuracy", "91.4 %"),
        ("Attackers’ answers rejected", "25.0 %"),
    ]
    assert plain(found[0].note) == "over the last 20 recorded rounds, 65.6–75.7 %; guessing 50.0 %"
    assert found[1].note == "round 35, chosen with the truth"


def test_the_page_has_the_table_the_rounds_and_the_words(tmp_path: Path) -> None:
    root = parse(page(lone_run(tmp_path, probed(data()))))
    own = section(root)
    assert own.one("h2").text == "Does poisoning make membership visible?"
    first = own.all("table")[0]
    assert "153 members and 153 non-members" in first.one("caption").text
    values = [[cell.text for cell in row.all("span", class_="value")] for row in first.one("tbody").all("tr")]
    assert values == [["70.9"], ["83.0"], ["50.0"]]
    listed = own.all("table")[1].one("tbody").all("tr")
    assert [row.one("th").text for row in listed] == [str(number) for number in range(21, 61)]
    assert [listed[0].one("td").text, listed[14].one("td").text] == ["50.0", "83.0"]
    terms = [term.text for term in root.one("section", id="glossary").all("dt")]
    assert {"Decision", "Over the last rounds", "In the best round"} <= set(terms)
    assert own.one("div", id="chart-decided")
    assert "70.9" in fragment(lone_run(tmp_path / "again", probed(data())))


def test_a_run_without_decisions_says_nothing_of_them(tmp_path: Path) -> None:
    run = lone_run(tmp_path, poisoned(data()))
    text = page(run)
    assert "decision" not in section(parse(text)).text.lower()
    assert section(parse(text)).one("h2").text == "Can the model be hijacked?"
    assert decided_data(run) is None
    assert "decisions on" not in printed(run)
    report.write(run.folder)
    assert not (run.folder / "figures" / "decisions.pdf").exists()
    assert not [row for row in rows(run.folder / "poisoning.csv") if row["measure"].startswith("decision")]


def test_what_the_chart_draws(tmp_path: Path) -> None:
    run = lone_run(tmp_path, probed(data()))
    found = decided_data(run)
    assert found is not None
    assert (found["last"], found["best"]) == (
        {"rounds": [41, 60], "value": 217 / 306},
        {"round": 35, "value": 254 / 306},
    )
    assert (found["round"], found["chance"]) == (list(range(21, 61)), 0.5)
    assert found["value"][:2] == [0.5, 0.505]
    assert chart_data(run) is not None


def test_the_figure_has_the_rounds_the_mean_the_best_round_and_guessing(tmp_path: Path) -> None:
    (axes,) = decisions_figure(lone_run(tmp_path, probed(data()))).axes
    guessing, line, mean, best = axes.get_lines()
    assert np.asarray(guessing.get_ydata()).tolist() == [0.5, 0.5]
    assert np.asarray(line.get_xdata()).tolist() == list(range(21, 61))
    assert (np.asarray(mean.get_xdata()).tolist(), np.asarray(mean.get_ydata()).tolist()) == (
        [41, 60],
        [217 / 306] * 2,
    )
    assert (np.asarray(best.get_xdata()).tolist(), np.asarray(best.get_ydata()).tolist()) == ([35], [254 / 306])
    assert "chosen with the truth" in str(best.get_label())


def test_the_terminal_has_the_table(tmp_path: Path) -> None:
    text = printed(lone_run(tmp_path, probed(data())), 160)
    assert "decisions on 153 members and 153 non-members" in text
    line = next(one for one in text.splitlines() if one.strip().startswith("In the best round (35), chosen"))
    assert line.split()[-2:] == ["83.0", "[78.4–86.8]"]


def test_decisions_are_in_the_files(tmp_path: Path) -> None:
    run = lone_run(tmp_path, probed(data()))
    report.write(run.folder)
    table = {(row["measure"], row["of"]): row for row in rows(run.folder / "poisoning.csv")}
    for which in ("last", "best"):
        wanted = share({"last": 217, "best": 254}[which], 306)
        assert [float(table["decision", which][side]) for side in ("value", "low", "high", "n")] == list(
            wanted.values()
        )
    assert table["decision", "guessing"]["value"] == "0.5"
    assert [float(table["decision_rounds", which]["value"]) for which in ("last", "best")] == [20, 35]
    right = {int(row["round"]): row["decision"] for row in rows(run.folder / "rounds.csv")}
    assert (right[20], float(right[21]), float(right[35])) == ("", 0.5, 254 / 306)
    tex = (run.folder / "table.tex").read_text()
    assert "Right decisions (\\%) & 70.9 & 83.0 & 50.0" in tex
    assert "Best round (35), by the truth" in tex
    assert tex.count("\\begin{table}") == tex.count("\\end{table}") == 2
    assert (run.folder / "figures" / "decisions.pdf").exists()


def test_a_round_in_which_only_decisions_were_made_has_its_row(tmp_path: Path) -> None:
    content = probed(data())
    content["task"]["history"] = content["task"]["history"][:1]
    content["poisoning"]["attacks"] = []
    table = Result.read(made.folder(tmp_path, *alone(content))).rounds_table()
    assert list(table["round"]) == [0, *range(21, 61)]


def test_crafting_and_combining_are_parts_of_training(tmp_path: Path) -> None:
    def costs(run: Finished) -> dict[str, str]:
        pairs = parse(page(run)).one("section", id="cost").one("dl").all("div")
        return {one.one("dt").text: one.one("dd").text for one in pairs}

    found = costs(lone_run(tmp_path, probed(data())))
    assert list(found)[:4] == [
        "Wall time", "Training", "Attackers’ answers (of training)", "Combining answers (of training)"
    ]  # fmt: skip
    assert [found[name] for name in list(found)[2:4]] == ["12.5 s", "3.2 s"]
    assert list(costs(lone_run(tmp_path / "other", data())))[2] == "Evidence"


def several(place: Path, content: dict[str, Any]) -> Finished:
    return Finished.read(made.folder(place, content, made.result()[1]))


def test_anybodys_against_nobodys_is_the_default_where_poisoning_probes(tmp_path: Path) -> None:
    run = several(tmp_path / "a", of_anybody(probed(made.result()[0])))
    assert (run.wheres, run.against) == (["any", "pooled", "mean", "worst"], "ofl")
    assert {(row.target, row.against, row.n_members, row.auc.value) for row in run.rows()} == {
        ("any", "ofl", 153, 0.777)
    }
    assert run.rows("any", "all") == []
    assert len(run.rows("pooled")) == len(made.ATTACKS)
    statement = headlines(run)[0]
    assert statement.about == "membership"
    assert "153 members" in plain(" ".join(statement.support) + printed(run))
    assert "member of any client, against nobody’s data (OFL)" in printed(run, 120)


def test_other_runs_and_runs_with_attacks_on_single_clients_are_pooled(tmp_path: Path) -> None:
    content = of_anybody(probed(made.result()[0]))
    content["attacks"] = [one for one in content["attacks"] if (one["target"], one["name"]) != ("any", "fedmia_ii")]
    some = several(tmp_path / "some", content)
    assert (some.wheres[0], some.against) == ("pooled", "all")
    assert "any" in some.wheres
    quiet = several(tmp_path / "quiet", of_anybody(made.result()[0]))
    spoilt = several(tmp_path / "spoilt", of_anybody(untargeted(made.result()[0])))
    bare = several(tmp_path / "bare", probed(made.result()[0]))
    assert [one.wheres[0] for one in (quiet, spoilt, bare)] == ["pooled"] * 3


def test_upper_bounds_are_not_asked_for_anybody(tmp_path: Path) -> None:
    content = of_anybody(probed(made.result()[0]))
    content["attacks"] = [one for one in content["attacks"] if (one["target"], one["name"]) != ("any", "fedmia_ii")]
    for one in content["attacks"]:
        one["upper_bound"] = one["name"] == "fedmia_ii"
    assert several(tmp_path, content).wheres[0] == "any"


def test_the_page_shows_the_default_table_and_pooled_curves(tmp_path: Path) -> None:
    root = parse(page(several(tmp_path, of_anybody(probed(made.result()[0])))))
    own = root.one("section", id="figures")
    shown = [one for one in own.all("div", class_="scroll") if "hidden" not in one.attributes]
    assert [(one.attributes["data-where"], one.attributes["data-against"]) for one in shown] == [("any", "ofl")]
    checked = {one.attributes["name"]: one.attributes["value"] for one in own.all("input", checked="")}
    assert checked == {"against": "ofl", "where": "any"}
    assert "1,600 members" in root.one("section", id="roc").one("figcaption").text


def test_doubts_about_pooled_figures_are_not_said_twice(tmp_path: Path) -> None:
    content = of_anybody(probed(made.result()[0]))
    for one in content["attacks"]:
        if one["target"] == "pooled" and one["against"] == "all":
            one["tpr_at_fpr"]["0.001"]["warning"] = "too few, as pooled"
    content["warnings"] = ["too few, as pooled", "another"]
    text = page(several(tmp_path, content))
    warned = parse(text).one("section", class_="warnings").text
    assert "another" in warned
    assert "too few, as pooled" not in warned


def test_decisions_of_a_file_are_typed() -> None:
    found = Decisions.model_validate(probed(data())["poisoning"]["decisions"])
    assert (found.best.round, found.last.rounds, found.last.n) == (35, 20, 306)
