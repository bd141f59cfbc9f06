"""Figures for a paper: the ROC curves, and TPR over rounds (Zhu et al. 2025, FedMIA, their per-round figure).

Equal runs give equal bytes: no date, no random names. Drawn without pyplot, so no global state is touched.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from fedsiege.errors import InputError
from fedsiege.files import write_bytes
from fedsiege.report.finished import Finished
from fedsiege.report.schema import Curve, RoundCurve
from fedsiege.report.style import style
from fedsiege.report.words import fpr_name

WIDTH = 3.5  # inches: one column of a two-column page
LOOK: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so equal on every machine
    "font.size": 7,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}
NO_DATE = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
FORMATS = ("pdf", "png", "svg")
LEGEND_LINE = 0.15  # inches
LEGEND_HALF, LEGEND_FULL = 20, 48  # letters that fit into half the width, into all of it
GUESSING = "guessing"
NOTHING = "nothing was recorded"


class Chart(Figure):
    """A matplotlib figure that a notebook shows without further ado."""

    def _repr_png_(self) -> bytes:
        return encoded(self, "png")


def figures(folder: Path | str, formats: Sequence[str] = ("pdf",)) -> list[Path]:
    """Write `figures/roc` and `figures/rounds` of a finished run in these formats (pdf, png, svg)."""
    return write_figures(Finished.read(folder), formats)


def write_figures(run: Finished, formats: Sequence[str] = ("pdf",)) -> list[Path]:
    """The same for a run that is already read."""
    return write_charts(
        run.folder, {"roc": partial(roc_figure, run), "rounds": partial(rounds_figure, run)}, formats
    )


def write_charts(folder: Path, charts: Mapping[str, Callable[[], Figure]], formats: Sequence[str]) -> list[Path]:
    """Draw charts and write each below `figures/` by its name, in these formats (pdf, png, svg)."""
    for one in formats:
        if one not in FORMATS:
            raise InputError(f"formats: got {one!r}; expected some of {', '.join(FORMATS)}")
    place = folder / "figures"
    place.mkdir(exist_ok=True)
    written = []
    for name, draw in charts.items():
        chart = draw()
        for one in formats:
            path = place / f"{name}.{one}"
            write_bytes(path, encoded(chart, one))
            written.append(path)
    return written


def encoded(chart: Figure, kind: str) -> bytes:
    """The figure as the bytes of a file, the same bytes every time."""
    buffer = io.BytesIO()
    with mpl.rc_context({**LOOK, "svg.hashsalt": "fedsiege"}):
        chart.savefig(buffer, format=kind, metadata=NO_DATE.get(kind))
    return buffer.getvalue()


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
        chart, axes = _canvas(run, curves, height=3.0)
        axes.plot([low, 1], [low, 1], color="#9aa1ab", linewidth=0.8, label=GUESSING)
        for one in curves:
            _roc_line(axes, one, run, low)
        for setting, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
            setting("log")
            axis.set_major_locator(FixedLocator([10.0**power for power in range(round(math.log10(low)), 1)]))
            axis.set_major_formatter(FuncFormatter(_tick))
            axis.set_minor_formatter(NullFormatter())
        axes.set(xlim=(low, 1), ylim=(low, 1.05), xlabel="False-positive rate", ylabel="True-positive rate")
        _legend(chart, axes)
    return chart


def rounds_figure(run: Finished) -> Chart:
    """TPR at a low FPR over rounds: attacks on one round as lines, attacks on all rounds as horizontal lines.

    At the right, side by side, each attack's last value with its 95 % interval.
    """
    curves = run.curves.rounds
    with mpl.rc_context(LOOK):
        chart, axes = _canvas(run, curves, height=2.4)
        last = max((one.round[-1] for one in curves), default=1)
        for place, one in enumerate(curves):
            _round_line(axes, one, run, last * (1.04 + 0.02 * place))
        rate = fpr_name(str(curves[0].fpr)) if curves else "low"
        ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10]).tick_values(0, last)
        axes.xaxis.set_ticks([tick for tick in ticks if tick <= last])
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        axes.set(xlabel="Round", ylabel=f"True-positive rate at {rate} FPR")
        axes.set_ylim(bottom=0)
        _legend(chart, axes)
    return chart


def _canvas(run: Finished, curves: Sequence[Curve | RoundCurve], height: float) -> tuple[Chart, Axes]:
    """Axes of this height in inches, and room for the legend below them."""
    columns = _columns([run.names[one.attack] for one in curves])
    below = LEGEND_LINE * math.ceil((len(curves) + 1) / columns)
    chart = Chart(figsize=(WIDTH, height + below), layout="constrained")
    axes = chart.add_subplot()
    if not curves:
        axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center", color="#6b7280")
    return chart, axes


def _columns(labels: Sequence[str]) -> int:
    return 2 if max(map(len, labels), default=0) <= LEGEND_HALF else 1


def _roc_line(axes: Axes, one: Curve, run: Finished, low: float) -> None:
    look = style(run.styles[one.attack])
    axes.plot(
        *shown(one, low),
        drawstyle="steps-post",
        color=look.light,
        dashes=look.dash or (None, None),
        marker=look.marker,
        markevery=0.16,
        label=_label(run.names[one.attack]),
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
        label=_label(run.names[one.attack]),
    )
    whisker = [[value[-1] - low[-1]], [high[-1] - value[-1]]]
    axes.errorbar([end], value[-1:], yerr=whisker, color=look.light, marker=look.marker, elinewidth=1, linestyle="")


def _legend(chart: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    legend = chart.legend(handles, labels, loc="outside lower center", ncols=_columns(labels))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a name starts no formula


def _label(name: str) -> str:
    """A name that fits into the legend; a leading underscore would hide it there."""
    name = f" {name}" if name.startswith("_") else name
    return name if len(name) <= LEGEND_FULL else name[: LEGEND_FULL - 1] + "…"


def _tick(share: float, _position: int) -> str:
    return f"{100 * share:.5g}{chr(0xA0)}%"
