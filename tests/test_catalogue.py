"""What there is to choose from, as text, JSON and a table."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsiege import catalogue, shipped
from fedsiege.catalogue import KEYS, LISTS, as_markdown, as_text, describe, readable_type
from fedsiege.errors import InputError
from fedsiege.registry import build, index

PAGE = Path(__file__).parents[1] / "docs" / "components.md"


def test_the_page_of_components_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == as_markdown() + "\n", "run `make docs`"


def test_a_table_row_has_four_cells_even_where_a_text_has_a_bar() -> None:
    rows = [line for line in as_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(index())
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}


@pytest.mark.parametrize(("kind", "name"), sorted(index()))
def test_the_example_of_a_component_is_that_component(kind: str, name: str) -> None:
    """The YAML that `show` prints can be pasted: it builds the component with its defaults."""
    entry = index()[kind, name]
    config: Any = yaml.safe_load("\n".join(catalogue._example(entry)))
    spec = config
    for key in KEYS[kind].split("."):
        spec = spec[key]
    if KEYS[kind] in LISTS:
        (spec,) = spec
    assert build(kind, spec, "x") == build(kind, name, "x")
    assert set(spec) == {"name", *(field.name for field in entry.fields)}


def test_describe_tells_all_there_is() -> None:
    entry = index()["membership", "fedmia_ii"]
    text = describe("fedmia_ii")
    assert entry.summary in text
    assert entry.paper in text
    assert all(field.name in text and field.doc in text for field in entry.fields)


@pytest.mark.parametrize(
    ("base", "kind", "key"),
    [
        ("attacks.poisoning.base import Poisoner", "poisoning", "adversary"),
        ("attacks.poisoning.sign_flip import SignFlip", "poisoning", "adversary"),
        ("aggregators.base import Aggregator", "aggregator", "aggregator"),
        ("defences.server.base import ServerDefence", "server defence", "server_defences"),
    ],
)
def test_a_class_of_ones_own_is_described_like_a_shipped_one(
    base: str, kind: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown.py").write_text(
        f"""
from fedsiege.{base} as Base
from fedsiege.registry import register

@register("turned")
class Turned(Base):
    '''Something of one's own.'''

    factor: float = 3.0
    '''How much of it.'''

class Plain(Base):
    pass

other = 3
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shown", raising=False)
    head, _, config = describe("shown:Turned").partition("In a config")
    assert head.splitlines() == [
        f"shown:Turned ({kind})", "", "Something of one's own.", "", "Fields", "  factor: float = 3.0",
        "      How much of it.", "",
    ]  # fmt: skip
    spec = {"name": "shown:Turned", "factor": 3.0}
    assert yaml.safe_load(config) == {key: [spec] if key in LISTS else spec}
    for name in ("Plain", "other", "register"):
        with pytest.raises(
            InputError, match=f"show: 'shown:{name}' is not a component; expected a class made with"
        ):
            describe(f"shown:{name}")
    with pytest.raises(InputError, match="show: cannot import 'shown:Missing'"):
        describe("shown:Missing")


def test_describe_prints_an_experiment() -> None:
    assert describe("quickstart") == (shipped.FOLDER / "quickstart.yaml").read_text().rstrip()


def test_grids_are_listed_and_described_beside_experiments() -> None:
    text, name = as_text(), "quickstart_defences"
    experiments, _, grids = text.partition("Grids (fedsiege sweep NAME)")
    assert f"  {name} " in grids
    assert f"  {name} " not in experiments
    assert describe(name) == (shipped.FOLDER / f"{name}.yaml").read_text().rstrip()


def test_text_gives_experiments_their_title() -> None:
    title = yaml.safe_load((shipped.FOLDER / "quickstart.yaml").read_text())["title"]
    (line,) = [line for line in as_text().splitlines() if line.startswith("  quickstart ")]
    assert line.endswith(title)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("int", "int"),
        ("str | None", "str | None"),
        ("Annotated[float, Field(gt=0)]", "float > 0"),
        ("Annotated[float, Field(ge=0, lt=1)]", "float >= 0, < 1"),
        ("Annotated[int, Field(ge=1)] | None", "int >= 1 | None"),
        ("tuple[Annotated[int, Field(gt=0)], ...]", "tuple[int > 0, ...]"),
        ("Annotated[str, 'x']", "str"),
        ("Literal['a', 'b']", "Literal['a', 'b']"),
    ],
)
def test_readable_type(annotation: str, text: str) -> None:
    assert readable_type(annotation) == text
