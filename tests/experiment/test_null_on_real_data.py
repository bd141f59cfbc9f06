"""The audit audited: on scanned digits, no attack may find members where there are none."""

from typing import Any

import pytest

from fedsiege.experiment import run
from fedsiege.registry import names
from fedsiege.report.result import Result

NULL = {"null": True, "ifl": 180, "ofl": 820}
SHORT = ["rounds=30", "training.epochs=5"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("null") / "frozen"
    return run("quickstart", out, overrides=[*SHORT, f"candidates={NULL}"], progress=False)


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("null") / "redrawn"
    return run("quickstart", out, overrides=[*SHORT, f"candidates={NULL | {'compat': 'fedmia'}}"], progress=False)


def verdict(result: Result, attack: str) -> dict[str, Any]:
    (row,) = [row for row in result.data["null_test"] if row["attack"] == attack and row["against"] == "all"]
    assert isinstance(row, dict)
    return row


@pytest.mark.parametrize("attack", names("membership"))
def test_no_attack_finds_members_where_there_are_none(frozen: Result, attack: str) -> None:
    row = verdict(frozen, attack)
    assert row["nulls"] >= 20
    assert row["passed"], row["reason"]


@pytest.mark.parametrize("attack", ["loss_series", "avg_cosine", "fedmia_i", "fedmia_ii"])
def test_redrawn_candidates_manufacture_members(redrawn: Result, attack: str) -> None:
    """The published way of drawing non-members finds a fifth of nobody's members at 1 % false positives."""
    row = verdict(redrawn, attack)
    assert not row["passed"]
    assert row["tpr_at_1pct"]["low"] > 0.1
