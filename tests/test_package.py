"""`import fedsiege as fs`: what it offers, and that it waits until it is asked."""

import subprocess
import sys
from pathlib import Path

import pytest

import fedsiege as fs


@pytest.mark.parametrize("name", [name for name in fs.__all__ if name != "__version__"])
def test_every_name_on_offer_is_there(name: str) -> None:
    assert getattr(fs, name) is getattr(fs, name)
    assert name in dir(fs)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fedsiege' has no attribute 'attack'"):
        _ = fs.attack


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, fedsiege; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(fs.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_rooms_are_usable_by_their_names() -> None:
    assert fs.metrics.audit([2.0, 3.0], [0.0, 1.0]).auc.value == 1.0
    assert fs.attacks.__name__ == "fedsiege.attacks"
