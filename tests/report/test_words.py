import pytest

from fedsiege.report import words
from fedsiege.report.schema import Measured


@pytest.mark.parametrize(
    ("share", "written"),
    [(None, "–"), (0, "0"), (1, "100"), (0.669, "66.9"), (0.0018, "0.18"), (0.00996, "1.0"), (0.9999, "100.0")],
)
def test_digits(share: float | None, written: str) -> None:
    assert words.digits(share) == written


def test_an_interval_has_its_figures_decimals() -> None:
    assert words.span(Measured(value=0.0092, low=0.0067, high=0.0123)) == "0.67–1.23"
    assert words.span(Measured(value=0.012, low=0.009, high=0.0151)) == "0.9–1.5"
    assert words.span(Measured(value=0.5, low=None, high=None)) == ""


@pytest.mark.parametrize(
    ("key", "name"), [("0.1", "10 %"), ("0.001", "0.1 %"), ("0.0001", "0.01 %"), ("1e-05", "0.001 %")]
)
def test_names_of_false_positive_rates(key: str, name: str) -> None:
    assert words.fpr_name(key).replace("\u00a0", " ") == name


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(None, "–"), (14.21, "14.2 s"), (134.2, "2 min 14 s"), (59.96, "60.0 s"), (11100, "3 h 05 min")],
)
def test_durations(seconds: float | None, written: str) -> None:
    assert words.duration(seconds).replace("\u00a0", " ") == written


@pytest.mark.parametrize(
    ("number", "written"),
    [(None, "–"), (512, "512 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_sizes(number: int | None, written: str) -> None:
    assert words.size(number).replace("\u00a0", " ") == written


def test_counts_and_counters() -> None:
    assert words.count(1, "class", "classes") == "1\u00a0class"
    assert words.count(1200, "class", "classes") == "1,200\u00a0classes"
    assert [words.counter(value) for value in (None, 600.0, 31.6228, 1e6)] == ["–", "600", "31.62", "1,000,000"]


def test_lists_and_factors() -> None:
    assert [words.listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [words.rounded(times) for times in (3.42, 66.9, 772, 1234)] == ["3.4", "67", "770", "1,200"]
    assert words.named({"name": "mlp", "hidden": 3}) == words.named("mlp") == "mlp"
    assert words.named(None) == ""
