"""Bars of a part of a run, and lines above the bars."""

from typing import Any

import pytest

from fedsiege.experiment.progress import Bars


def descriptions(bars: Bars) -> list[Any]:
    return [task.description for task in bars._progress.tasks]


def test_the_bars_of_a_part_are_named_after_it_and_go_with_it() -> None:
    bars = Bars(False)
    with bars.counting("rounds", 3), bars.part("shadow 1 of 2") as own:
        with own.counting("rounds", 3) as step:
            step(1, "evidence")
            assert descriptions(bars) == ["rounds", "shadow 1 of 2: evidence"]
        with own.waiting("data"), own.part("again") as inner, inner.waiting("more"):
            assert descriptions(bars)[1:] == [
                "shadow 1 of 2: rounds",
                "shadow 1 of 2: data",
                "shadow 1 of 2: again: more",
            ]
    assert descriptions(bars) == ["rounds"]


def test_bars_go_with_a_part_that_fails() -> None:
    bars = Bars(False)
    with pytest.raises(KeyboardInterrupt), bars.part("shadow") as own, own.counting("rounds", 3):
        raise KeyboardInterrupt
    assert descriptions(bars) == []


@pytest.mark.parametrize("shown", [False, True])
def test_a_line_is_for_those_who_want_progress(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(shown) as bars:
        bars.say("5 [to train], kept in /a/b")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ("5 [to train], kept in /a/b\n" if shown else "")
