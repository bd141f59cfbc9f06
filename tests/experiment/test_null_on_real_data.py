"""The audit audited: on scanned digits, no attack may find members where there are none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsiege.data import candidates
from fedsiege.experiment import prepare, run
from fedsiege.metrics import null
from fedsiege.registry import names
from fedsiege.report.result import Result

NULL = {"null": True, "ifl": 180, "ofl": 820}
SHORT = ["rounds=30", "training.epochs=5"]

SIZES = {
    "lira": {"shadows": 2},
    "rmia": {"shadows": 2, "population": 200},
    "seqmia": {"sequences": 400, "epochs": 5},
}
"""Of the attacks that want more than evidence: 777 examples are nobody's and no candidates."""

LABELLED = {"name": "seqmia", "trained_on": "labelled", "sequences": 400, "epochs": 5}
REDRAWN = ["loss_series", "avg_cosine", "fedmia_i", "fedmia_ii"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Shadow federations of this file's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIEGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch


def audited(out: Path, attacks: list[Any], *changes: str, **drawn: Any) -> Result:
    """The quickstart's null test of these attacks."""
    asked = [f"candidates={json.dumps(NULL | drawn)}", f"attacks={json.dumps(attacks)}"]
    return run("quickstart", out, overrides=[*SHORT, *asked, *changes], progress=False)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Result:
    every = [{"name": name, **SIZES.get(name, {})} for name in names("membership")]
    return audited(tmp_path_factory.mktemp("null") / "frozen", every)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Half the candidates are told, and so few digits leave half the usual 500 a side: twice the nulls make up."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (prepare, null):
            patch.setattr(module, "SIDE", null.SIDE // 2)
        patch.setattr(candidates, "NULLS", 2 * null.NULLS)
        return audited(tmp_path_factory.mktemp("null") / "labelled", [LABELLED], "rounds=10")


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return audited(tmp_path_factory.mktemp("null") / "redrawn", list(REDRAWN), compat="fedmia")


def verdict(result: Result, attack: str) -> dict[str, Any]:
    (row,) = [
        row
        for row in result.data["null_test"]
        if row["attack"].partition("(")[0] == attack and row["against"] == "all"
    ]
    assert isinstance(row, dict)
    return row


@pytest.mark.parametrize("attack", names("membership"))
def test_no_attack_finds_members_where_there_are_none(frozen: Result, attack: str) -> None:
    row = verdict(frozen, attack)
    assert row["nulls"] >= 20
    assert row["tpr_at_1pct"]["n"] == 500 * row["nulls"]
    assert row["passed"], row["reason"]


def test_an_attack_that_is_told_the_truth_about_half_finds_nobody_in_the_other(labelled: Result) -> None:
    row = verdict(labelled, "seqmia")
    assert row["nulls"] >= 40
    assert row["tpr_at_1pct"]["n"] == 250 * row["nulls"]
    assert row["passed"], row["reason"]


@pytest.mark.parametrize("attack", REDRAWN)
def test_redrawn_candidates_manufacture_members(redrawn: Result, attack: str) -> None:
    """The published way of drawing non-members finds a fifth of nobody's members at 1 % false positives."""
    row = verdict(redrawn, attack)
    assert not row["passed"]
    assert row["tpr_at_1pct"]["low"] > 0.1
