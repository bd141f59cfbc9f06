"""How every page, table and chart of a report writes a number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedsiege.report.schema import Measured

NONE = "–"
SPACE = "\u00a0"  # between number and unit: never at the end of a line


def digits(share: float | None, like: float | None = None) -> str:
    """A share as a bare percentage: one decimal, two if it (or the figure it belongs to, `like`) is below 1 %."""
    if share is None:
        return NONE
    percent = 100 * share
    if percent in (0, 100):
        return f"{percent:.0f}"
    return f"{percent:.2f}" if abs(share if like is None else like) < 0.00995 else f"{percent:.1f}"


def percent(share: float | None) -> str:
    """A share with its sign: 66.9 %."""
    return NONE if share is None else f"{digits(share)}{SPACE}%"


def fpr_name(fpr: str) -> str:
    """A false-positive rate as people say it: "0.001" is 0.1 %."""
    return f"{100 * float(fpr):.6g}{SPACE}%"


def span(figure: Measured) -> str:
    """The interval of a share, bare: 65.1–68.2."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{digits(figure.low, figure.value)}–{digits(figure.high, figure.value)}"


def hundredths(figure: Measured) -> tuple[str, str]:
    """A share near 1 % and its interval, in per cent with two decimals."""
    value, low, high = (
        NONE if side is None else f"{100 * side:.2f}" for side in (figure.value, figure.low, figure.high)
    )
    return value, f"{low}–{high}" if figure.low is not None else ""


def points(share: float | None) -> str:
    """A difference between shares: 1.3 points."""
    if share is None:
        return NONE
    bare = bare_points(share).removesuffix(".0")
    return f"{bare}{SPACE}{'point' if bare in ('1', '−1') else 'points'}"


def bare_points(share: float | None) -> str:
    """A difference between shares, bare, in points: 1.3."""
    if share is None:
        return NONE
    tenths = round(1000 * share)
    return f"{'−' if tenths < 0 else ''}{abs(tenths) / 10:.1f}"


def points_span(figure: Measured) -> str:
    """The interval of a difference between shares, bare, in points: −0.4 to 1.9."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{bare_points(figure.low)} to {bare_points(figure.high)}"


def fixed(value: float | None, decimals: int = 3) -> str:
    """An AUC or another plain figure."""
    return NONE if value is None else f"{value:.{decimals}f}"


def fixed_span(figure: Measured, decimals: int = 3) -> str:
    """The interval of a plain figure, bare: 0.884–0.897."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{figure.low:.{decimals}f}–{figure.high:.{decimals}f}"


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 client, 1,200 clients."""
    return f"{number:,}{SPACE}{one if number == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    """A time as people say it: 14.2 s, 2 min 14 s, 3 h 05 min."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60:02d}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60:02d}{SPACE}min"


def size(number: int | None) -> str:
    """A size in binary units: 512 B, 1.2 GiB."""
    if number is None:
        return NONE
    value, unit = float(number), "B"
    for following in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, following
    return f"{value:.0f}{SPACE}B" if unit == "B" else f"{value:.1f}{SPACE}{unit}"


def counter(value: float | None) -> str:
    """A counter's value: whole numbers with thousands, others to four digits."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def defused(value: object) -> object:
    """A cell of a CSV table: a text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def named(component: Any) -> str:
    """The name of a component as a config writes it (a name, or a mapping that has one); "" if there is none."""
    if isinstance(component, Mapping):
        component = component.get("name")
    return component if isinstance(component, str) else ""


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(text: str) -> str:
    """A clause as a sentence of its own."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def rounded(times: float) -> str:
    """A factor to two digits: 3.4, 770, 1,200."""
    if times < 10:
        return f"{times:.1f}"
    return f"{round(times, 1 - math.floor(math.log10(times))):,.0f}"
