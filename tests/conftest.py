"""Where the real data and the golden numbers lie, for the tests that need them."""

import os
from pathlib import Path

import pytest
import torch

BESIDE = Path(__file__).resolve().parents[2] / "shared"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data sets: $FEDSIEGE_DATA, else `shared/data` beside the checkout."""
    return _folder("FEDSIEGE_DATA", BESIDE / "data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder with reference numbers: $FEDSIEGE_GOLDEN, else `shared/golden` beside the checkout."""
    return _folder("FEDSIEGE_GOLDEN", BESIDE / "golden")


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; set {variable} to the folder that holds it")
    return folder
