"""A dotted name as a chain of attributes, so that one line of configuration can wrap somebody else's app.

Flower loads `module:attribute.attribute...` and reads attribute after attribute. A `Chain` answers each of them by
importing as it goes: `around.quickstart.server_app.app` is what `wrap` makes of the object `app` in the module
`quickstart.server_app`.
"""

import difflib
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from fedsiege.errors import InputError


class AttachError(InputError, AttributeError):
    """The name of somebody's app leads nowhere; an AttributeError too, as whoever reads attributes expects."""


class Chain:
    """Names being followed: modules first, as far as they can be imported, then attributes, up to an app of `kind`.

    Where a name is both a submodule and an attribute of a package, the submodule is meant. Names with two
    underscores on both sides are never followed: copying, pickling and `hasattr` ask for them.
    """

    def __init__(self, wrap: Callable[[Any], Any], kind: type, path: str = "", found: object = None) -> None:
        self._wrap = wrap
        self._kind = kind
        self._path = path
        self._found = found

    def __getattr__(self, name: str) -> Any:
        # `_path` and its like are asked for here only while an object is being rebuilt by copy or pickle.
        if (name.startswith("__") and name.endswith("__")) or name in {"_wrap", "_kind", "_path", "_found"}:
            raise AttributeError(name)
        path = f"{self._path}.{name}" if self._path else name
        found: object = _submodule(path) if self._found is None or _is_package(self._found) else None
        if found is None:
            found = self._attribute(name)
        return self._wrap(found) if isinstance(found, self._kind) else Chain(self._wrap, self._kind, path, found)

    def _attribute(self, name: str) -> object:
        """The attribute of what was found so far; AttachError that names what there is instead."""
        if self._found is None:
            raise AttachError(
                f"app: {name} is no module that can be imported; expected the module of your own app, as it stood "
                "in pyproject.toml, with a dot for the colon"
            )
        try:
            return getattr(self._found, name)
        except AttributeError:
            what = "module " if isinstance(self._found, ModuleType) else ""
            raise AttachError(f"app: {what}{self._path} has no {name}; expected {self._expected(name)}") from None

    def _expected(self, name: str) -> str:
        """The apps that stand where one was looked for, else names like the one that was asked for."""
        held = getattr(self._found, "__dict__", {})
        apps = sorted(key for key, value in held.items() if isinstance(value, self._kind))
        modules = [module.name for module in iter_modules(getattr(self._found, "__path__", ()))]
        near = apps or difflib.get_close_matches(name, [*dir(self._found), *modules], n=3, cutoff=0.6)
        return " or ".join(near) if near else f"the name of a {self._kind.__name__}"

    def __reduce__(self) -> tuple[Any, ...]:
        # A module cannot be pickled; the names can, and are followed again on the other side.
        return _follow, (self._wrap, self._kind, self._path)

    def __repr__(self) -> str:
        return f"<names followed to {self._path or 'nowhere yet'}, where a {self._kind.__name__} is expected>"


def _follow(wrap: Callable[[Any], Any], kind: type, path: str) -> Any:
    """The chain whose names have been followed to `path`."""
    chain: Any = Chain(wrap, kind)
    for name in path.split(".") if path else ():
        chain = getattr(chain, name)
    return chain


def _is_package(found: object) -> bool:
    return isinstance(found, ModuleType) and hasattr(found, "__path__")


def _submodule(path: str) -> ModuleType | None:
    """The module `path`, imported; None where there is none. What fails inside it is its own error and passes."""
    if path not in sys.modules and find_spec(path) is None:
        return None
    return import_module(path)
