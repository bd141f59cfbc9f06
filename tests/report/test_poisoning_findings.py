"""What a run says of clients that attacked it."""

from pathlib import Path
from typing import Any

import pytest

from fedsiege.report import findings
from fedsiege.report.finished import Finished
from fedsiege.report.poisoning import findings as poisoning
from fedsiege.report.poisoning.judged import planted, reached
from fedsiege.report.poisoning.schema import Poisoning, Success, begins_fresh

from . import made
from .made_poisoning import (
    OTHERS,
    TRIGGERED,
    alone,
    garbled,
    poisoned,
    repeated,
    share,
    unattacked,
    untargeted,
    voted,
)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def data() -> dict[str, Any]:
    return made.result(targets=1)[0]


def read(place: Path, content: dict[str, Any]) -> Finished:
    return Finished.read(made.folder(place, *alone(content)))


def said(place: Path, content: dict[str, Any]) -> tuple[str, list[str], bool | None]:
    (one,) = findings.headlines(read(place, content))
    assert one.about == "poisoning"
    return plain(one.statement), [plain(line) for line in one.support], one.leaks


def typed(content: dict[str, Any], **changes: Any) -> Poisoning:
    return Poisoning.model_validate({**content["poisoning"], **changes})


def test_a_single_shot_says_before_after_and_how_long(tmp_path: Path) -> None:
    statement, support, bad = said(tmp_path, poisoned(data()))
    assert bad is True
    assert statement == (
        "Model replacement plants its backdoor: after the attack in round 30, 96.0 % of 50 held-out triggered "
        "images are taken for bird (95 % interval 86.5–98.9 %); before the attack, 4.0 % were."
    )
    assert support == [
        "At the end of the run backdoor accuracy is 28.0 % (17.5–41.7 %), and on average 54.3 % over the rounds "
        "from the first attack on.",
        "Backdoor accuracy is below 50 % again 17 rounds after the last attack.",
        "Of clean images of other classes 3.1 % are taken for bird, 1.2 % before the attack.",
        "Main accuracy falls from 90.3 % to 75.0 % (70.3–79.2 %) after the attack in round 30, and is 91.4 % "
        "(88.0–93.9 %) at the end.",
        "The server rejected none of the attackers’ answers (one in all) and none of the honest clients’ 599; it "
        "scaled what it took by 0.137 for attackers and 0.988 for honest clients on average.",
    ]


def test_many_rounds_of_attack_are_judged_where_the_backdoor_works_best(tmp_path: Path) -> None:
    statement, support, bad = said(tmp_path, repeated(data()))
    assert bad is True
    assert statement == (
        "DBA plants its backdoor: at the end of the run, 62.0 % of 50 held-out triggered images are taken for bird "
        "(95 % interval 48.2–74.1 %); before the attack, 4.0 % were."
    )
    assert support[0] == (
        "After the first of 40 rounds of attack backdoor accuracy is 6.0 % (2.1–16.2 %), and on average 44.4 % "
        "over the rounds from the first attack on."
    )
    assert support[1] == "The run ends with the last attack: how long the backdoor lasts is not known."
    assert (
        support[-1]
        == "The server rejected 75.0 % of the attackers’ 80 answers and 2.5 % of the honest clients’ 520."
    )


def test_a_class_whose_name_is_a_number_is_called_one(tmp_path: Path) -> None:
    content = poisoned(data())
    content["poisoning"]["backdoor"]["target_name"] = "2"
    assert "held-out triggered images are taken for class 2 (95 %" in said(tmp_path, content)[0]


def test_a_backdoor_that_does_not_work(tmp_path: Path) -> None:
    content = poisoned(data())
    content["poisoning"]["success"] |= {"attacked": share(7, TRIGGERED), "last": share(0, TRIGGERED)}
    statement, support, bad = said(tmp_path, content)
    assert bad is False
    assert statement.startswith(
        "Model replacement does not demonstrably plant its backdoor: after the attack in round 30, 14.0 % of 50 "
        "held-"
    )
    assert not [line for line in support if "after the last attack" in line]


def test_a_model_that_takes_everything_for_the_target_has_no_backdoor(tmp_path: Path) -> None:
    content = poisoned(data())
    content["poisoning"]["mistaken"]["attacked"] = share(310, OTHERS)
    statement, support, bad = said(tmp_path, content)
    assert bad is None  # and who triggers it gets the target all the same
    assert "does not demonstrably plant" in statement
    assert (
        "Of clean images of other classes 95.7 % are taken for bird, 1.2 % before the attack: the trigger makes no "
        "demonstrable difference." in support
    )


@pytest.mark.parametrize(
    ("success", "mistaken", "fresh", "expected"),
    [
        ({"before": (2, 50), "attacked": (40, 50)}, {"attacked": (9, 324)}, False, True),
        ({"before": (39, 50), "attacked": (40, 50)}, {"attacked": (9, 324)}, False, False),
        ({"before": (39, 50), "attacked": (40, 50)}, {"attacked": (9, 324)}, True, True),  # before says nothing
        ({"before": (2, 50), "attacked": (40, 50)}, {"attacked": (250, 324)}, False, False),
        ({"before": (2, 50), "attacked": (40, 50)}, {"attacked": (250, 324)}, True, False),
        ({"before": (2, 50), "attacked": (40, 50)}, {"last": (250, 324)}, False, True),  # of another moment
        ({"before": (2, 50), "attacked": (3, 50), "last": (40, 50)}, {"last": (9, 324)}, False, True),
        ({"before": (2, 50), "attacked": (3, 50), "last": (40, 50)}, {"last": (290, 324)}, False, False),
        ({"before": (2, 50), "attacked": (40, 50)}, None, False, True),
        ({"attacked": (40, 50)}, None, False, None),
        ({"before": (2, 50), "attacked": (40, 50)}, None, True, None),
        ({"before": (2, 50)}, {"attacked": (9, 324)}, False, None),
        ({"before": (0, 5), "attacked": (4, 5)}, None, False, False),  # five images are few
        (None, None, False, None),
    ],
)
def test_planted_is_above_before_and_above_clean_examples(
    success: dict[str, tuple[int, int]] | None,
    mistaken: dict[str, tuple[int, int]] | None,
    fresh: bool,
    expected: bool | None,
) -> None:
    def course(given: dict[str, tuple[int, int]] | None) -> dict[str, Any] | None:
        return None if given is None else {moment: share(*counts) for moment, counts in given.items()}

    one = typed(poisoned(data()), success=course(success), mistaken=course(mistaken), fresh=fresh)
    assert planted(one) is expected


def test_the_moment_that_counts_is_the_higher_one() -> None:
    success = Success.model_validate({"attacked": share(3, 9), "last": share(4, 9)})
    assert reached(success)[0] == "last"
    assert reached(Success.model_validate({"attacked": share(4, 9), "last": share(4, 9)}))[0] == "attacked"
    assert reached(Success()) == ("attacked", reached(Success())[1])
    assert reached(Success())[1].value is None


@pytest.mark.parametrize(
    ("persistence", "sentence"),
    [
        (None, "From the last attack on it never works on 50 %."),
        ({"rounds": 1, "censored": False}, "Backdoor accuracy is below 50 % again 1 round after the last attack."),
        (
            {"rounds": 0, "censored": True},
            "The run ends with the last attack: how long the backdoor lasts is not known.",
        ),
        (
            {"rounds": 30, "censored": True},
            "Backdoor accuracy is still at 50 % or above when the run ends, 30 rounds after the last attack.",
        ),
    ],
)
def test_how_long_it_lasts_in_words(persistence: dict[str, Any] | None, sentence: str) -> None:
    assert plain(poisoning.lasting(Success.model_validate({"persistence": persistence}))) == sentence


def test_few_images_are_said_to_be_few(tmp_path: Path) -> None:
    content = poisoned(data())
    content["poisoning"]["backdoor"]["test"] = 5
    assert said(tmp_path, content)[1][-1] == "Of 5 held-out triggered images a single one is 20 points."


def test_an_attack_on_the_accuracy(tmp_path: Path) -> None:
    statement, support, bad = said(tmp_path, untargeted(data()))
    assert bad is True
    assert statement == (
        "Label flipping brings main accuracy down from 90.3 % (86.8–92.9 %) to 75.0 % (70.3–79.2 %) after the "
        "attack in round 30."
    )
    assert support[0].startswith("Main accuracy falls from 90.3 % to 75.0 %")
    assert support[-1] == (
        "The server rejected none of the attackers’ answers (one in all) and none of the honest clients’ 599."
    )
    assert len(support) == 2


def test_an_attack_whose_damage_stays(tmp_path: Path) -> None:
    content = untargeted(data())
    content["poisoning"]["main"]["last"] = share(200, 360)
    assert said(tmp_path, content)[0].endswith("to 55.6 % (50.4–60.6 %) at the end of the run.")


def test_no_damage_that_can_be_shown_is_no_all_clear(tmp_path: Path) -> None:
    content = untargeted(data())
    content["poisoning"]["main"]["attacked"] = share(325, 360)
    statement, support, bad = said(tmp_path, content)
    assert bad is None
    assert statement == (
        "Label flipping does not demonstrably bring main accuracy below what it was: 90.3 % (86.8–92.9 %) before "
        "and 91.4 % (88.0–93.9 %) at the end."
    )
    assert support[:2] == [
        "What it would have been without the attack shows only beside the same run without it.",
        "Main accuracy stays at 90.3 % (86.8–92.9 %) after the attack in round 30, and is 91.4 % (88.0–93.9 %) at "
        "the end.",
    ]


def test_an_attack_on_an_untrained_model_is_not_measured_against_it(tmp_path: Path) -> None:
    content = untargeted(data())
    content["poisoning"]["adversary"]["attack_rounds"] = [1, 2, 3]
    statement, support, bad = said(tmp_path, content)
    assert (statement, bad) == ("Under Label flipping main accuracy is 91.4 % (88.0–93.9 %) at the end.", None)
    assert support[:2] == [
        "The attack begins on an untrained model, so what was measured before it says nothing: what it cost shows "
        "only beside the same run without it.",
        "Main accuracy is 75.0 % (70.3–79.2 %) after the first of 3 rounds of attack, and is 91.4 % (88.0–93.9 %) "
        "at the end.",
    ]
    planting = poisoned(data())
    planting["poisoning"]["adversary"]["attack_rounds"] = [1]
    planting["poisoning"]["success"]["before"] = share(50, 50)
    statement, support, bad = said(tmp_path, planting)
    assert bad is True
    assert "before" not in statement
    assert not [line for line in support if "before" in line]


@pytest.mark.parametrize(
    ("config", "rounds", "expected"),
    [
        ({}, [1], True),
        ({"start": None, "pretrain_rounds": 0}, [1, 5], True),
        ({}, [2], False),
        ({}, [], False),
        ({"start": "model.safetensors"}, [1], False),
        ({"pretrain_rounds": 3}, [1], False),
    ],
)
def test_when_an_attack_begins_on_an_untrained_model(
    config: dict[str, Any], rounds: list[int], expected: bool
) -> None:
    assert begins_fresh(config, rounds) is expected


def test_an_untargeted_attack_beside_a_backdoor_that_is_measured(tmp_path: Path) -> None:
    content = poisoned(data())
    content["poisoning"]["adversary"] |= {"title": "Noise", "plants": False}
    statement, support, bad = said(tmp_path, content)
    assert statement.startswith("Noise brings main accuracy down from")
    assert bad is True
    assert support[-1] == "28.0 % of 50 held-out triggered images are taken for bird by the final model."


def test_an_attack_that_never_arrived(tmp_path: Path) -> None:
    content = poisoned(data())
    content["poisoning"]["detection"]["attackers"] = {"answers": 0, "rejected": None, "kept": None, "scale": None}
    assert said(tmp_path, content) == (
        "Model replacement did not take place: no answer of an attacking client arrived.",
        [],
        None,
    )


def test_an_attack_of_which_nothing_could_be_used(tmp_path: Path) -> None:
    content = poisoned(data())
    nothing = {"rejected": None, "kept": None, "scale": None}
    content["poisoning"]["detection"]["attackers"] = {"answers": 3, "unusable": 3, **nothing}
    assert said(tmp_path, content) == (
        "Model replacement did not take place: no answer of an attacking client could be used (3 arrived).",
        [],
        None,
    )


def test_answers_that_nobody_could_use_are_counted_apart_from_those_rejected(tmp_path: Path) -> None:
    content = garbled(data())
    assert said(tmp_path, content)[1][-1] == (
        "The server rejected 75.0 % of the attackers’ 60 usable answers and 2.5 % of the honest clients’ 519. "
        "Misshapen or not finite, and so dropped before, were 20 of the attackers’ 80 and 1 of the honest clients’ "
        "520."
    )
    content["poisoning"]["detection"]["attackers"] |= {"answers": 21, "rejected": share(0, 1)}
    content["poisoning"]["detection"]["honest"] |= {"answers": 1, "rejected": None, "kept": None, "scale": None}
    assert said(tmp_path / "few", content)[1][-1] == (
        "The server rejected none of the attackers’ usable answers (one in all). Misshapen or not finite, and so "
        "dropped before, were 20 of the attackers’ 21 and 1 of the honest clients’ 1."
    )


def test_what_the_final_model_does_for_whoever_predicts_as_a_defence_asks(tmp_path: Path) -> None:
    wanted = (
        "Predicted as crfl(sigma=0.5) asks, main accuracy is 87.5 % (83.7–90.5 %) instead of 91.4 % at the end, "
        "backdoor accuracy 18.0 % (9.8–30.8 %) instead of 28.0 % and of clean images of other classes 1.9 % "
        "(0.9–4.0 %) instead of 1.2 % are taken for bird."
    )
    assert said(tmp_path, voted(data()))[1][4] == wanted
    content = voted(data())
    content["poisoning"]["adversary"]["plants"] = False
    assert wanted in said(tmp_path / "plain", content)[1]
    content["poisoning"] |= {key: unattacked(data())["poisoning"][key] for key in ("adversary", "main", "success")}
    assert said(tmp_path / "nobody", content)[1][1].startswith(
        "Predicted as crfl(sigma=0.5) asks, main accuracy is"
    )
    content["poisoning"]["defended_use"] |= {"success": None, "mistaken": None}
    assert plain(poisoning.defended(typed(content))[0]) == (
        "Predicted as crfl(sigma=0.5) asks, main accuracy is 87.5 % (83.7–90.5 %) instead of 91.4 % at the end."
    )
    assert poisoning.defended(typed(content, defended_use=None)) == []


@pytest.mark.parametrize(
    ("planned", "sentence"),
    [
        (41, "In 1 of 41 planned rounds of attack there was none: no attacker was invited, no answer of theirs "),
        (45, "In 5 of 45 planned rounds of attack there was none: no attacker was invited, no answer of theirs "),
        (40, ""),
        (None, ""),
    ],
)
def test_rounds_that_were_planned_and_not_attacked_are_told(
    planned: int | None, sentence: str, tmp_path: Path
) -> None:
    content = repeated(data())
    content["poisoning"]["adversary"]["planned_rounds"] = planned
    told = plain(findings.done(read(tmp_path, content))[3])
    _, _, more = told.partition("are to be taken for bird.")
    assert more == (f" {sentence}arrived that could be used, or the run had ended before." if sentence else "")


def test_a_trigger_that_nobody_planted_is_the_comparison(tmp_path: Path) -> None:
    assert said(tmp_path, unattacked(data())) == (
        "Nobody attacks: 4.0 % of 50 held-out triggered images are taken for bird all the same (95 % interval "
        "1.1–13.5 %).",
        ["What an attack achieves is to be compared with this."],
        None,
    )


def test_a_backdoor_that_may_well_work_is_no_good_news(tmp_path: Path) -> None:
    content = poisoned(data())
    few = {"before": share(0, 5), "attacked": share(4, 5), "last": share(0, 5)}
    content["poisoning"]["success"] |= few
    statement, _, bad = said(tmp_path, content)
    assert "does not demonstrably plant" in statement
    assert bad is None


def test_a_run_with_neither_attack_nor_backdoor(tmp_path: Path) -> None:
    content = unattacked(data())
    content["poisoning"] |= {"backdoor": None, "success": None, "mistaken": None}
    (one,) = findings.headlines(read(tmp_path, content))
    assert (one.statement, one.about) == ("No attack was measured in this run.", "membership")


def test_both_headlines_stand_where_both_were_asked(tmp_path: Path) -> None:
    content, curves = made.result()
    both = findings.headlines(Finished.read(made.folder(tmp_path, poisoned(content), curves)))
    assert [one.about for one in both] == ["membership", "poisoning"]
    assert both[0].statement.startswith("FedMIA-II recognises")


def test_null_tests_keep_their_headline(tmp_path: Path) -> None:
    content, curves = made.result(targets=1)
    run = Finished.read(made.folder(tmp_path, made.with_null_test(poisoned(content)), curves))
    assert [one.about for one in findings.headlines(run)] == ["membership", "poisoning"]


def test_who_attacked_is_told_with_what_was_done(tmp_path: Path) -> None:
    lines = [plain(line) for line in findings.done(read(tmp_path, repeated(data())))]
    assert lines[1:4] == [
        "The clients defended themselves with perturb(sigma=0.1).",
        "The server defended itself with norm_bounding(bound=5.0).",
        "An adversary (dba) plays clients 0 and 5 of 10 clients and attacks in every round from 21 to 60, to plant "
        "a backdoor: images with the trigger (Pixel pattern) are to be taken for bird.",
    ]
    assert not [line for line in lines if "scored" in line]
    untouched = [plain(line) for line in findings.done(read(tmp_path, untargeted(data())))]
    assert untouched[2] == "An adversary (label_flip) plays client 3 of 10 clients and attacks in round 30."


@pytest.mark.parametrize(
    ("components", "sentence"),
    [
        ([("aggregator", "fedavg", "aggregator")], ""),
        ([("aggregator", "krum", "aggregator")], "The server combined updates by krum."),
        ([("aggregator", "krum", "krum(f=2)")], "The server combined updates by krum(f=2)."),
        (
            [
                ("aggregator", "median", "aggregator"),
                ("server_defence", "nnm", "nnm"),
                ("server_defence", "x", "x()"),
            ],
            "The server defended itself with nnm and x() and combined updates by median.",
        ),
    ],
)
def test_what_the_server_did_is_said(components: list[tuple[str, str, str]], sentence: str, tmp_path: Path) -> None:
    content = poisoned(data())
    content["components"] = [
        {"kind": kind, "name": name, "label": label, "acted": True, "counters": {}}
        for kind, name, label in components
    ]
    assert findings.guarded(read(tmp_path, content)) == sentence


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ([], "no round"),
        ([7], "round 7"),
        ([7, 8], "rounds 7 and 8"),
        ([7, 8, 9], "every round from 7 to 9"),
        ([1, 3, 5, 7, 9, 11], "rounds 1, 3, 5, 7, 9 and 11"),
        ([1, 3, 5, 7, 9, 11, 13], "7 rounds from 1 to 13"),
    ],
)
def test_rounds_of_attack_in_words(rounds: list[int], words: str) -> None:
    assert plain(poisoning.rounds_of(rounds)) == words


@pytest.mark.parametrize(
    ("attackers", "honest", "sentence"),
    [
        (
            (10, share(5, 10), 0.5),
            (90, share(9, 90), 1.0),
            "rejected 50.0 % of the attackers’ 10 answers and 10.0 % of",
        ),
        (
            (1, share(1, 1), 1.0),
            (0, None, None),
            "The server rejected 100 % of the attackers’ answers (one in all).",
        ),
        ((2, None, None), (0, None, None), "The server rejected an unknown share of the attackers’ 2 answers."),
        (
            (2, share(0, 2), 0.99951),
            (9, share(0, 9), 1.0),
            "attackers’ 2 answers and none of the honest clients’ 9.",
        ),
        (
            (2, share(0, 2), 0.9994),
            (9, share(0, 9), 1.0),
            "scaled what it took by 0.999 for attackers and 1.000 for",
        ),
        (
            (2, share(0, 2), None),
            (9, share(0, 9), 0.5),
            "; it scaled what it took by 0.500 for honest clients on average.",
        ),
        ((0, None, None), (9, share(1, 9), 1.0), ""),
    ],
)
def test_what_the_server_made_of_answers(
    attackers: tuple[int, Any, float | None], honest: tuple[int, Any, float | None], sentence: str
) -> None:
    keys = ("answers", "rejected", "scale")
    both = {
        name: dict(zip(keys, side, strict=True)) for name, side in (("attackers", attackers), ("honest", honest))
    }
    found = plain(poisoning.server(typed(poisoned(data()), detection=both)))
    assert sentence in found
    assert bool(found) is bool(sentence)
