"""What a model is to the house: it builds a `torch.nn.Module` for a shape of input and a number of classes.

The module's top-level children are its natural stages: they name the groups of parameters that evidence is kept by.
Modules change no tensor in place, because per-example gradients are formed from the activations that layers kept.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from torch import nn

from fedsiege.errors import InputError
from fedsiege.registry import build, resolve

Norm = Literal["group", "batch", "none"]

MAX_GROUPS = 32


class Model(Protocol):
    """A registered model: a frozen dataclass whose `build` makes the module, initialised as PyTorch does."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """The module that maps [m, *input_shape] to logits [m, classes]; InputError for a shape it cannot take."""
        ...


def build_model(spec: object, input_shape: tuple[int, ...], classes: int, where: str = "model") -> nn.Module:
    """The module that a config's `model` names, on the CPU, initialised from torch's global generator.

    `spec` is a registered name, `{name: ..., field: ...}`, or `package.module:function` (alone or as the `name`),
    where `function(input_shape, classes, **fields)` returns a module. Raises InputError naming `where`, what was
    given and what was expected.
    """
    module = maker(spec, where)(input_shape, classes)
    if not isinstance(module, nn.Module):
        raise InputError(f"{where}: {spec!r} made a {type(module).__name__}; expected a torch.nn.Module")
    return module


def maker(spec: object, where: str = "model") -> Callable[[tuple[int, ...], int], object]:
    """What makes the module of a config's `model`; InputError where the config alone tells that it cannot."""
    own = _own_function(spec, where)
    if own:
        return own
    make: Callable[[tuple[int, ...], int], object] = build("model", spec, where).build
    return make


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """A normalisation layer for an even number of channels: GroupNorm(32), or fewer groups of two channels.

    A group of one channel would be instance normalisation, which erases how strongly a channel fires.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    return nn.GroupNorm(math.gcd(MAX_GROUPS, channels // 2), channels)


def image_shape(model: str, input_shape: tuple[int, ...], smallest: int = 1) -> tuple[int, int, int]:
    """Channels, height and width; InputError where inputs are no images, or less than `smallest` pixels a side."""
    if len(input_shape) != 3 or min(input_shape) < 1 or min(input_shape[1:]) < smallest:
        raise InputError(
            f"model {model}: got inputs of shape {input_shape}; "
            f"expected images (channels, height, width) of at least {smallest}x{smallest} pixels"
        )
    channels, height, width = input_shape
    return channels, height, width


def _own_function(spec: object, where: str) -> Callable[[tuple[int, ...], int], object] | None:
    """The user's function behind `spec`, or None where it names a registered model or a user's own component."""
    name: object = spec
    fields: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        name = spec.get("name")
        fields = {str(key): value for key, value in spec.items() if key != "name"}
    if not isinstance(name, str) or ":" not in name:
        return None
    found = resolve(name, where)
    if isinstance(found, type) and not issubclass(found, nn.Module):
        return None
    try:
        inspect.signature(found).bind((1,), 1, **fields)
    except TypeError as error:
        raise InputError(
            f"{where}: {name!r} cannot be called as function(input_shape, classes, **{fields}): {error}"
        ) from None
    return functools.partial(found, **fields)
