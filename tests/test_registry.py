"""Components by name: the static index, the live classes, and what a wrong config is told."""

import ast
import dataclasses
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from fedsiege import registry
from fedsiege.catalogue import KEYS, TITLES
from fedsiege.errors import InputError
from fedsiege.registry import (
    ROOMS,
    build,
    discover,
    index,
    label_of,
    load,
    name_of,
    names,
    nearest,
    register,
)

KEYS_OF_INDEX = sorted(index())

MARKED = '''
@register("x")
class X:
    """Sum.

    Paper: A,
    eq. 1

    More.
    """

    a: int = 1
    """Doc
    of a."""
    K: ClassVar[int] = 2
    b: str = "s"
'''


def test_index_and_live_registry_agree_on_names() -> None:
    live = {key: getattr(cls, "__fedsiege_name__", None) for key, cls in discover().items()}
    assert live == {key: key[1] for key in index()}


@pytest.mark.parametrize(("kind", "name"), KEYS_OF_INDEX)
def test_index_and_live_class_agree(kind: str, name: str) -> None:
    entry, cls = index()[kind, name], load(kind, name)
    component = cls()
    assert [f.name for f in entry.fields] == [f.name for f in fields(cls)]
    for field in entry.fields:
        assert _value(field.default, cls) == getattr(component, field.name)
    assert (cls.__doc__ or "").partition("\n")[0] == entry.summary
    assert cls.__module__ == entry.module


@pytest.mark.parametrize(("kind", "name"), KEYS_OF_INDEX)
def test_every_component_is_documented(kind: str, name: str) -> None:
    entry = index()[kind, name]
    assert entry.summary.endswith((".", "?"))
    assert [field.name for field in entry.fields if not field.doc] == []


@pytest.mark.parametrize(("kind", "name"), KEYS_OF_INDEX)
def test_every_component_is_built_again_from_its_own_fields(kind: str, name: str) -> None:
    component = build(kind, name, "x")
    spec = {field.name: getattr(component, field.name) for field in dataclasses.fields(component)}
    assert build(kind, {"name": name, **spec}, "x") == component
    assert label_of(component) == name
    with pytest.raises(FrozenInstanceError):
        component.surprise = 1


def test_no_component_hides_another() -> None:
    """A name used twice in a kind would silently win or lose: as many components as `@register` in the rooms."""
    package = Path(registry.__file__).parent
    sources = [path.read_text() for room in ROOMS.values() for path in (package / room).glob("*.py")]
    assert sum(source.count("\n@register(") for source in sources) == len(index())


def test_the_index_reads_what_register_marks() -> None:
    entry = registry._entry(ast.parse(MARKED).body[0], "model", "m")
    assert entry is not None
    assert (entry.summary, entry.paper, entry.cls) == ("Sum.", "A, eq. 1", "X")
    assert [(f.name, f.type, f.default) for f in entry.fields] == [("a", "int", "1"), ("b", "str", "'s'")]
    assert [f.doc for f in entry.fields] == ["Doc of a.", ""]


def test_every_kind_has_a_title_and_a_key() -> None:
    assert set(TITLES) == set(KEYS) == set(ROOMS)


@register("example")
class Example:
    """A component of these tests."""

    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Strength."""
    steps: int = 3
    """How often."""

    def __post_init__(self) -> None:
        if self.steps > 100:
            raise ValueError("expected at most 100 steps")


OWN = f"{__name__}:Example"


def test_a_component_of_ones_own_by_module_and_class() -> None:
    component = build("model", {"name": OWN, "alpha": 2}, "model")
    assert component == Example(alpha=2.0)
    assert (name_of(component), label_of(component)) == ("example", "example(alpha=2.0)")


def test_a_label_names_what_differs_from_the_defaults() -> None:
    assert label_of(Example()) == "example"
    assert label_of(Example(alpha=0.1, steps=4)) == "example(alpha=0.1, steps=4)"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("alexnt", "attack.x: unknown model 'alexnt' (did you mean 'alexnet'?); known: alexnet"),
        ("zzzzzz", "attack.x: unknown model 'zzzzzz'; known: alexnet"),
        (7, "attack.x: got 7; expected a name or {name: ..., field: ...}"),
        (["mlp"], "attack.x: got ['mlp']; expected a name"),
        ({"alpha": 1}, "attack.x: got {'alpha': 1}; expected a name"),
        ({"name": 3}, "attack.x: got {'name': 3}; expected a name"),
        ({"name": OWN, "alhpa": 1}, "attack.x.alhpa: "),
        ({"name": OWN, "alhpa": 1}, "has no such field (did you mean 'alpha'?); its fields: alpha, steps"),
        ({"name": "alexnet", "width": 1}, "attack.x.width: alexnet has no such field; its fields: none"),
        ({"name": OWN, "alpha": 0}, "attack.x.alpha: got 0; Input should be greater than 0"),
        ({"name": OWN, "alpha": "much"}, "attack.x.alpha: got 'much'; Input should be a valid number"),
        ({"name": OWN, "steps": 1.5}, "attack.x.steps: got 1.5; "),
        ({"name": OWN, "steps": 101}, "expected at most 100 steps"),
        ("nowhere_at_all:Attack", "attack.x: cannot import 'nowhere_at_all:Attack'"),
        (f"{__name__}:Absent", "attack.x: cannot import"),
        (f"{__name__}:OWN", "is not a component; expected a class made with @register"),
        (f"{__name__}:", "attack.x: cannot import"),
        (":x", "attack.x: cannot import ':x'"),
    ],
)
def test_a_wrong_spec_is_told_what_is_wrong(spec: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build("model", spec, "attack.x")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_name_of_a_kind_that_has_none() -> None:
    empty = next((kind for kind in ROOMS if not names(kind)), None)
    if empty is None:
        pytest.skip("every kind has components")
    with pytest.raises(InputError, match="none is registered yet"):
        build(empty, "x", "where")


def test_nearest() -> None:
    assert nearest("fedmia_1", ["fedmia_i", "avg_cosine"]) == " (did you mean 'fedmia_i'?)"
    assert nearest("zzz", ["fedmia_i"]) == ""


def _value(default: str, cls: type) -> Any:
    """The default as the class's module would evaluate it, so that named constants count too."""
    value = eval(default, vars(sys.modules[cls.__module__]))
    return tuple(value) if isinstance(value, list) else value
