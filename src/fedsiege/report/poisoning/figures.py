"""Figures over the rounds: main and backdoor accuracy with the rounds of attack marked; decisions on membership."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsiege.report.canvas import LOOK, Chart, canvas, legend, percent_tick, shortened
from fedsiege.report.finished import Finished
from fedsiege.report.poisoning.decided import HINDSIGHT, final, over
from fedsiege.report.poisoning.series import DECISIONS, LINED, Series, attacked_rounds, series
from fedsiege.report.style import style

GREY = "#9aa1ab"


def accuracy_figure(run: Finished) -> Chart:
    """Main accuracy over rounds and, where a backdoor is measured, its accuracy with Wilson's 95 % band."""
    history = run.report.task.history
    lines, attacks = series(history, run.poisoning), attacked_rounds(history, run.poisoning)
    with mpl.rc_context(LOOK):
        chart, axes = canvas([one.name for one in lines], height=2.4)
        for one in lines:
            _line(axes, one)
        if lines:
            _marks(axes, attacks)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
            axes.set(xlabel="Round", ylabel="Accuracy on held-out data", ylim=(0, 1.02))
        legend(chart, axes)
    return chart


def decisions_figure(run: Finished) -> Chart:
    """Right decisions on membership over rounds: the mean over the last ones, the best round, and guessing."""
    found = run.poisoning.decisions if run.poisoning else None
    last = final(found) if found else None
    names = ["right decisions", f"mean over {over(found)}", f"best round, {HINDSIGHT}"] if found and last else []
    with mpl.rc_context(LOOK):
        chart, axes = canvas(names, height=2.4)
        if found and last:
            look = style(DECISIONS)
            mean, best = found.last.value or 0.0, found.best.value or 0.0
            axes.axhline(found.chance, color=GREY, linewidth=0.8, label="guessing")
            axes.plot(found.rounds, found.accuracy, color=look.light, linewidth=0.9, label=names[0])
            axes.plot(last, [mean, mean], color=look.light, linewidth=2.2, label=shortened(names[1]))
            axes.plot([found.best.round], [best], color=look.light, linestyle="", marker="D", label=names[2])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
            axes.set(xlabel="Round", ylabel="Right decisions", ylim=(0, 1.02))
        legend(chart, axes)
    return chart


def _line(axes: Axes, one: Series) -> None:
    look = style(one.style)
    lone = "o" if len(one.rounds) == 1 else None
    axes.plot(
        one.rounds,
        one.values,
        color=look.light,
        dashes=look.dash or (None, None),
        marker=lone,
        label=shortened(one.name),
    )
    if one.key == "backdoor" and one.low:
        axes.fill_between(one.rounds, one.low, one.high, color=look.light, alpha=0.15, linewidth=0)


def _marks(axes: Axes, attacks: dict[int, int]) -> None:
    if not attacks:
        return
    few = len(attacks) <= LINED
    for number in attacks if few else ():
        axes.axvline(number, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
    axes.plot(
        list(attacks),
        [0.0] * len(attacks),
        linestyle="",
        marker="^" if few else "|",
        color=GREY,
        clip_on=False,
        label="round of attack",
    )
