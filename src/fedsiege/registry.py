"""Components by name: `@register("fedmia_ii")` on a class, `build(kind, spec)` from a config.

A component is a frozen dataclass: its fields are its configuration, validated by pydantic, all with defaults.
Which names exist is read from the syntax trees of the leaf files, so that `fedsiege list` imports no torch and
`build` imports only the file it needs.
"""

import ast
import difflib
import functools
import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic import dataclasses as pydantic_dataclasses

from fedsiege.errors import InputError

T = TypeVar("T")

ROOMS = {
    "membership": "attacks/membership",
    "aggregator": "aggregators",
    "model": "models",
    "data": "data/sources",
    "partition": "data/partitions",
    "client_defence": "defences/client",
    "server_defence": "defences/server",
    "coalition": "defences/coalition",
    "poisoning": "attacks/poisoning",
    "trigger": "data/triggers",
}
"""Kind of component -> the folder its leaf files live in."""

WORDS = {"membership": "membership attack", "poisoning": "poisoning attack"}
"""What people call a kind, where that is not its own name."""


@dataclass(frozen=True, slots=True)
class FieldEntry:
    """One configuration field, as written in the source."""

    name: str
    type: str
    default: str
    doc: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What the static index knows of a component."""

    kind: str
    name: str
    summary: str
    paper: str
    doc: str
    module: str
    cls: str
    fields: tuple[FieldEntry, ...]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def register(name: str, kind: str | None = None) -> Callable[[type[T]], type[T]]:  # noqa: ARG001 - read as text
    """Make the class a frozen, validated dataclass and give it the name that configs use.

    `kind` is needed only where a file holds two sides of one attack: its room says what the first one is.
    """

    def decorate(cls: type[T]) -> type[T]:
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        made = pydantic_dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
        made.__fedsiege_name__ = name  # type: ignore[attr-defined]
        return cast(type[T], made)

    return decorate


def name_of(component: object) -> str:
    """The registered name, or the class name of a user's own component."""
    return str(getattr(type(component), "__fedsiege_name__", type(component).__name__))


def label_of(component: object) -> str:
    """The name with the fields that differ from their defaults: unique among differently configured components."""
    default = type(component)()
    changed = [
        f"{f.name}={getattr(component, f.name)}"
        for f in fields(component)  # type: ignore[arg-type]
        if getattr(component, f.name) != getattr(default, f.name)
    ]
    return name_of(component) + (f"({', '.join(changed)})" if changed else "")


@functools.cache
def index() -> dict[tuple[str, str], Entry]:
    """Every registered component by (kind, name), read from the syntax trees of the leaf files."""
    package = Path(__file__).parent
    found: dict[tuple[str, str], Entry] = {}
    for kind, room in ROOMS.items():
        for path in sorted((package / room).glob("*.py")):
            module = ".".join(["fedsiege", *room.split("/"), path.stem])
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                entry = _entry(node, kind, module)
                if entry is not None:
                    found[entry.kind, entry.name] = entry
    return found


def names(kind: str) -> list[str]:
    """The registered names of a kind, sorted."""
    return sorted(name for k, name in index() if k == kind)


def discover() -> dict[tuple[str, str], type]:
    """Import every leaf file and return the live classes; equal to the static index (a test compares them)."""
    return {key: load(*key) for key in index()}


def load(kind: str, name: str) -> type:
    """The class registered under this name (imports its file)."""
    entry = index()[kind, name]
    return cast(type, getattr(importlib.import_module(entry.module), entry.cls))


def build(kind: str, spec: object, where: str) -> Any:
    """A component from its config: a name, `{name: ..., field: ...}`, or `{name: "module:Class", ...}`.

    `where` is the config field, for the message. Raises InputError naming the nearest name or field.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise InputError(f"{where}: got {spec!r}; expected a name or {{name: ..., field: ...}}")
    options = {str(key): value for key, value in spec.items() if key != "name"}
    cls = _find(kind, spec["name"], where)
    known = [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            raise InputError(
                f"{where}.{key}: {spec['name']} has no such field{nearest(key, known)}; "
                f"its fields: {', '.join(known) or 'none'}"
            )
    try:
        return cls(**options)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}.{field}: got {first['input']!r}; {message}") from None


def nearest(given: str, known: list[str]) -> str:
    """' (did you mean ...?)' with the closest known word, or nothing."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def resolve(path: str, where: str) -> Any:
    """The object that a user's `package.module:attribute` names."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{where}: cannot import {path!r} ({error}); expected 'package.module:name'") from None


def entry_of(path: str, where: str) -> Entry:
    """What there is to know of a user's class `module:Class`, by that name, read from its source.

    Its kind is that of the base class it has from here. Raises InputError where it is no component.
    """
    cls = resolve(path, where)
    rooms = {f"fedsiege.{room.replace('/', '.')}.": kind for kind, room in ROOMS.items()}
    parents = getattr(cls, "__mro__", ())
    kinds = [kind for base in parents for room, kind in rooms.items() if base.__module__.startswith(room)]
    entry = None
    if kinds and is_dataclass(cls):
        source = textwrap.dedent(inspect.getsource(cast(type, cls)))
        entry = _entry(ast.parse(source).body[0], kinds[0], cls.__module__)
    if entry is None:
        raise InputError(
            f"{where}: {path!r} is not a component; expected a class made with @register, of one of fedsiege's "
            "base classes"
        )
    return replace(entry, name=path)


def _find(kind: str, name: str, where: str) -> type:
    if ":" in name:
        cls = resolve(name, where)
        if not (isinstance(cls, type) and is_dataclass(cls)):
            raise InputError(f"{where}: {name!r} is not a component; expected a class made with @register")
        return cls
    if (kind, name) in index():
        return load(kind, name)
    known = names(kind)
    listed = f"known: {', '.join(known)}" if known else "none is registered yet"
    raise InputError(
        f"{where}: unknown {WORDS.get(kind, kind.replace('_', ' '))} {name!r}{nearest(name, known)}; {listed}"
    )


def _entry(node: ast.stmt, kind: str, module: str) -> Entry | None:
    if not isinstance(node, ast.ClassDef):
        return None
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Name)
            and decorator.func.id == "register"
        ):
            name = ast.literal_eval(decorator.args[0])
            other = [ast.literal_eval(one.value) for one in decorator.keywords if one.arg == "kind"]
            doc = ast.get_docstring(node) or ""
            return Entry(
                kind=other[0] if other else kind,
                name=name,
                summary=doc.partition("\n")[0],
                paper=_paper(doc),
                doc=doc,
                module=module,
                cls=node.name,
                fields=tuple(_fields(node)),
            )
    return None


def _paper(doc: str) -> str:
    """What stands after `Paper: `, up to the end of that paragraph, on one line."""
    _, _, after = f"\n{doc}".partition("\nPaper: ")
    return " ".join(after.partition("\n\n")[0].split())


def _fields(node: ast.ClassDef) -> list[FieldEntry]:
    """The annotated fields, with the string below each as its documentation."""
    found = []
    following = [*node.body[1:], ast.Pass()]
    for statement, after in zip(node.body, following, strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = ast.unparse(statement.annotation)
        if annotation.startswith("ClassVar"):
            continue
        doc = ""
        if (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            doc = " ".join(after.value.value.split())
        default = "" if statement.value is None else ast.unparse(statement.value)
        found.append(FieldEntry(statement.target.id, annotation, default, doc))
    return found
