"""What is written of a run or a sweep, read again."""

from pathlib import Path
from typing import Any

from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.html import page

from . import made_sweep
from .page import Node, parse


def read(place: Path, data: dict[str, Any]) -> FinishedSweep:
    """The sweep of a folder that is made here."""
    return FinishedSweep.read(made_sweep.folder(place, data))


def tree(place: Path, data: dict[str, Any]) -> Node:
    """The page of the same."""
    return parse(page(read(place, data)))


def sections(root: Node) -> list[str]:
    """What a page's sections are called, in order."""
    return [node.attributes["id"] for node in root.all("section") if "id" in node.attributes]


def is_number(text: str) -> bool:
    """Whether a cell of a table holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
