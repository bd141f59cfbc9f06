"""Figures for a paper: the ROC curves, and TPR over rounds (Zhu et al. 2025, FedMIA, their per-round figure).

A run that is about poisoning has main and backdoor accuracy over rounds. Equal runs give equal bytes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from fedsiege.report.canvas import LOOK, Chart, canvas, legend, percent_tick, shortened, write_charts
from fedsiege.report.finished import Finished
from fedsiege.report.poisoning.figures import accuracy_figure, decisions_figure
from fedsiege.report.schema import Curve, RoundCurve
from fedsiege.report.style import style
from fedsiege.report.words import fpr_name

GUESSING = "guessing"


def figures(folder: Path | str, formats: Sequence[str] = ("pdf",)) -> list[Path]:
    """Write the figures of a finished run in these formats (pdf, png, svg), below its `figures/`.

    They are `roc` and `rounds` where membership was audited, and `accuracy` where it was not or clients attacked;
    `decisions` where attackers made membership visible.
    """
    return write_figures(Finished.read(folder), formats)


def write_figures(run: Finished, formats: Sequence[str] = ("pdf",)) -> list[Path]:
    """The same for a run that is already read."""
    charts: dict[str, Callable[[], Figure]] = {}
    if run.audited:
        charts = {"roc": partial(roc_figure, run), "rounds": partial(rounds_figure, run)}
    if run.besieged or not run.audited:
        charts["accuracy"] = partial(accuracy_figure, run)
    if run.poisoning and run.poisoning.decisions:
        charts["decisions"] = partial(decisions_figure, run)
    return write_charts(run.folder, charts, formats)


def floor(curves: Sequence[Curve]) -> float:
    """Where a log axis begins: the power of ten at or below the smallest FPR above zero (0.001 to 0.00001)."""
    smallest = min((fpr for one in curves for fpr in one.fpr if fpr > 0), default=1e-3)
    return float(10.0 ** min(max(math.floor(math.log10(smallest) + 1e-9), -5), -3))


def shown(curve: Curve, low: float) -> tuple[list[float], list[float]]:
    """The curve as log axes from `low` show it: from what it has at their edge, once it rises above them."""
    start = max((i for i, fpr in enumerate(curve.fpr) if fpr <= low), default=0)
    points = zip(curve.fpr[start:], curve.tpr[start:], strict=True)
    seen = [(max(fpr, low), tpr) for fpr, tpr in points if tpr >= low]
    return [fpr for fpr, _ in seen], [tpr for _, tpr in seen]


def roc_figure(run: Finished) -> Chart:
    """The log-log ROC of every attack, with the diagonal of guessing."""
    curves = run.curves.roc
    low = floor(curves)
    with mpl.rc_context(LOOK):
        chart, axes = canvas([run.names[one.attack] for one in curves], height=3.0)
        axes.plot([low, 1], [low, 1], color="#9aa1ab", linewidth=0.8, label=GUESSING)
        for one in curves:
            _roc_line(axes, one, run, low)
        for setting, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
            setting("log")
            axis.set_major_locator(FixedLocator([10.0**power for power in range(round(math.log10(low)), 1)]))
            axis.set_major_formatter(FuncFormatter(percent_tick))
            axis.set_minor_formatter(NullFormatter())
        axes.set(xlim=(low, 1), ylim=(low, 1.05), xlabel="False-positive rate", ylabel="True-positive rate")
        legend(chart, axes)
    return chart


def rounds_figure(run: Finished) -> Chart:
    """TPR at a low FPR over rounds: attacks on one round as lines, attacks on all rounds as horizontal lines.

    At the right, side by side, each attack's last value with its 95 % interval.
    """
    curves = run.curves.rounds
    with mpl.rc_context(LOOK):
        chart, axes = canvas([run.names[one.attack] for one in curves], height=2.4)
        last = max((one.round[-1] for one in curves), default=1)
        for place, one in enumerate(curves):
            _round_line(axes, one, run, last * (1.04 + 0.02 * place))
        rate = fpr_name(str(curves[0].fpr)) if curves else "low"
        ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10]).tick_values(0, last)
        axes.xaxis.set_ticks([tick for tick in ticks if tick <= last])
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
        axes.set(xlabel="Round", ylabel=f"True-positive rate at {rate} FPR")
        axes.set_ylim(bottom=0)
        legend(chart, axes)
    return chart


def _roc_line(axes: Axes, one: Curve, run: Finished, low: float) -> None:
    look = style(run.styles[one.attack])
    axes.plot(
        *shown(one, low),
        drawstyle="steps-post",
        color=look.light,
        dashes=look.dash or (None, None),
        marker=look.marker,
        markevery=0.16,
        label=shortened(run.names[one.attack]),
    )


def _round_line(axes: Axes, one: RoundCurve, run: Finished, end: float) -> None:
    """The line, and at `end` beside the rounds the last value with its interval."""
    look = style(run.styles[one.attack])
    value, low, high = ([math.nan if v is None else v for v in side] for side in (one.tpr, one.low, one.high))
    axes.plot(
        one.round,
        value,
        color=look.light,
        dashes=look.dash or (None, None),
        marker=look.marker if one.kind == "single" else None,
        linewidth=0.9 if one.kind == "single" else 1.4,
        label=shortened(run.names[one.attack]),
    )
    whisker = [[value[-1] - low[-1]], [high[-1] - value[-1]]]
    axes.errorbar([end], value[-1:], yerr=whisker, color=look.light, marker=look.marker, elinewidth=1, linestyle="")
