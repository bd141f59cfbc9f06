"""`build_model`: registered names, options, and a user's own function, class or module."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fedsiege.errors import InputError
from fedsiege.models.base import build_model

OWN = '''
import math

from torch import nn

from fedsiege.registry import register


def network(input_shape, classes, width=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.Linear(width, classes))


def nothing(input_shape, classes):
    return None


def no_arguments():
    return None


@register("component")
class Component:
    """A component of one's own."""

    scale: float = 1.0

    def build(self, input_shape, classes):
        return network(input_shape, classes, int(self.scale))


class Plain:
    pass


class Module(nn.Linear):
    def __init__(self, input_shape, classes):
        super().__init__(math.prod(input_shape), classes)
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


def test_a_name_and_its_mapping_are_the_same() -> None:
    torch.manual_seed(0)
    named = build_model("cnn", (1, 8, 8), 10)
    torch.manual_seed(0)
    mapped = build_model({"name": "cnn"}, (1, 8, 8), 10)
    for ours, theirs in zip(named.parameters(), mapped.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_function_of_ones_own() -> None:
    module = build_model("own_models:network", (2, 3), 4)
    assert module(torch.randn(5, 2, 3)).shape == (5, 4)


def test_a_function_takes_the_fields_of_its_mapping() -> None:
    module = build_model({"name": "own_models:network", "width": 9}, (2, 3), 4)
    assert next(module.parameters()).shape == (9, 6)


def test_a_module_class_of_ones_own() -> None:
    assert isinstance(build_model("own_models:Module", (2, 3), 4), nn.Linear)


def test_a_component_of_ones_own() -> None:
    module = build_model({"name": "own_models:Component", "scale": 2}, (2, 3), 4)
    assert next(module.parameters()).shape == (2, 6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_models:nothing", "made a NoneType; expected a torch.nn.Module"),
        ("own_models:no_arguments", "cannot be called as function"),
        ({"name": "own_models:network", "depth": 2}, "cannot be called as function"),
        ("own_models:absent", "cannot import 'own_models:absent'"),
        ("absent_package:network", "cannot import 'absent_package:network'"),
        ("own_models:Plain", "is not a component"),
        ("alexnett", "unknown model 'alexnett' .did you mean 'alexnet'?"),
        ({"name": "resnet18", "norms": "group"}, "model.norms: resnet18 has no such field .did you mean 'norm'?"),
        ({"name": "resnet18", "norm": "layer"}, "model.norm: got 'layer'"),
        ({"name": "mlp", "hidden": [0]}, "model.hidden.0: got 0"),
        ({"hidden": [3]}, "expected a name or"),
        (None, "expected a name or"),
    ],
)
def test_what_cannot_be_built_says_why(spec: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(spec, (2, 3), 4)
