"""What there is to choose from, as text, JSON and the documentation's table, from the static index alone."""

import ast
import json
from dataclasses import asdict
from typing import Any

import yaml

from fedsiege import shipped
from fedsiege.errors import InputError
from fedsiege.registry import ROOMS, Entry, entry_of, index, nearest

KEYS = {
    "membership": "attacks",
    "aggregator": "aggregator",
    "model": "model",
    "data": "data",
    "partition": "partition",
    "client_defence": "defences",
    "server_defence": "server_defences",
    "coalition": "coalition",
    "poisoning": "adversary",
    "trigger": "backdoor.trigger",
}
"""Kind of component -> the key of a config that takes it."""

LISTS = {"attacks", "defences", "server_defences"}
"""Keys that take a list of components."""

TITLES = {
    "membership": "Membership attacks",
    "aggregator": "Aggregation rules",
    "model": "Models",
    "data": "Data",
    "partition": "Partitions",
    "client_defence": "Client defences",
    "server_defence": "Server defences",
    "coalition": "Coalitions of clients",
    "poisoning": "Poisoning attacks",
    "trigger": "Triggers of backdoors",
}

_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "length >=", "max_length": "length <="}


def as_json() -> str:
    """Every component: kind, name, summary, paper and fields (name, type, default, doc)."""
    entries = [
        {
            "kind": entry.kind,
            "name": entry.name,
            "summary": entry.summary,
            "paper": entry.paper,
            "fields": [asdict(field) for field in entry.fields],
        }
        for _, entries in _by_kind()
        for entry in entries
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False)


def as_text() -> str:
    """Every component, shipped experiment and grid, a line each."""
    lines: list[str] = []
    for kind, entries in _by_kind():
        lines += ["", f"{TITLES[kind]} ({KEYS[kind]}:)", *_columns([(e.name, e.summary) for e in entries])]
    for what, known in (("Experiments (fedsiege run", shipped.names()), ("Grids (fedsiege sweep", shipped.grids())):
        if known:
            lines += ["", f"{what} NAME)", *_columns([(name, _title(name)) for name in known])]
    return "\n".join([*lines[1:], "", "fedsiege show NAME tells more about one of them."])


def as_markdown() -> str:
    """The page docs/components.md: a table for each kind."""
    lines = [
        "# Components",
        "",
        "Everything that a configuration can name. This page is generated: `fedsiege list --markdown`.",
        "Every field has a default; `fedsiege show NAME` tells what each one does.",
    ]
    for kind, entries in _by_kind():
        lines += ["", f"## {TITLES[kind]}", "", f"Key of the configuration: `{KEYS[kind]}`.", ""]
        lines += ["| name | what it is | fields | source |", "|---|---|---|---|"]
        for entry in entries:
            fields = ", ".join(f"`{f.name}={f.default}`" for f in entry.fields) or "-"
            cells = [f"`{entry.name}`", entry.summary, fields, entry.paper or "-"]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def describe(name: str) -> str:
    """All about one component (every kind that has this name), or the file of a shipped experiment or grid.

    A user's own component goes by `module:Class`.
    """
    if ":" in name:
        return _describe(entry_of(name, "show"))
    found = [entry for entry in index().values() if entry.name == name]
    travelling = {*shipped.names(), *shipped.grids()}
    if found:
        return "\n\n".join(_describe(entry) for entry in found)
    if name in travelling:
        return shipped.find(name).read_text(encoding="utf-8").rstrip()
    known = sorted({entry.name for entry in index().values()} | travelling)
    raise InputError(f"show: nothing is named {name!r}{nearest(name, known)}; `fedsiege list` shows all names")


def _by_kind() -> list[tuple[str, list[Entry]]]:
    """The kinds that have components, in the order of the rooms, with their entries by name."""
    kinds = [
        (kind, sorted((e for e in index().values() if e.kind == kind), key=lambda e: e.name)) for kind in ROOMS
    ]
    return [(kind, entries) for kind, entries in kinds if entries]


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:{width}}  {text}".rstrip() for name, text in rows]


def _title(name: str) -> str:
    """The `title` of a shipped experiment or grid, else its first comment."""
    lines = shipped.find(name).read_text(encoding="utf-8").splitlines()
    titles = [line.partition(":")[2].strip().strip("'\"") for line in lines if line.startswith("title:")]
    comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
    return (titles or comments or [""])[0]


def _describe(entry: Entry) -> str:
    lines = [f"{entry.name} ({entry.kind.replace('_', ' ')})", "", *entry.doc.splitlines()]
    if entry.fields:
        lines += ["", "Fields"]
        for field in entry.fields:
            lines.append(f"  {field.name}: {readable_type(field.type)} = {field.default}")
            lines += [f"      {field.doc}"] if field.doc else []
    return "\n".join([*lines, "", "In a config", *(f"  {line}" for line in _example(entry))])


def _example(entry: Entry) -> list[str]:
    above, _, key = KEYS[entry.kind].rpartition(".")
    spec = [f"name: {entry.name}", *(f"{_key(f.name)}: {_yaml(f.default)}" for f in entry.fields)]
    if key in LISTS:
        return [f"{key}:", f"  - {spec[0]}", *(f"    {line}" for line in spec[1:])]
    lines = [f"{key}:", *(f"  {line}" for line in spec)]
    return [f"{above}:", *(f"  {line}" for line in lines)] if above else lines


def _key(name: str) -> str:
    """A field's name as a YAML key: a bare `null` would be no name at all."""
    return f'"{name}"' if yaml.safe_load(name) != name else name


def _yaml(default: str) -> str:
    """A Python default as YAML writes it (JSON is YAML)."""
    try:
        value: Any = ast.literal_eval(default)
    except ValueError:
        return default
    return json.dumps(value, ensure_ascii=False)


def readable_type(annotation: str) -> str:
    """A type with its bounds in plain signs: `Annotated[float, Field(gt=0)] | None` as `float > 0 | None`."""
    return ast.unparse(_Plain().visit(ast.parse(annotation, mode="eval")))


class _Plain(ast.NodeTransformer):
    """Replaces each `Annotated[type, Field(bounds)]` by a name that reads `type bounds`."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if ast.unparse(node.value) != "Annotated" or not isinstance(node.slice, ast.Tuple):
            return node
        kind, *metadata = node.slice.elts
        keywords = [keyword for call in metadata if isinstance(call, ast.Call) for keyword in call.keywords]
        bounds = [f"{_BOUNDS[k.arg]} {ast.unparse(k.value)}" for k in keywords if k.arg in _BOUNDS]
        return ast.Name(id=f"{ast.unparse(kind)} {', '.join(bounds)}".strip())
