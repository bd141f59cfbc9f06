"""Where data lies on this machine: the given path, or a folder below $FEDSIEGE_DATA."""

import os
from pathlib import Path

from fedsiege.errors import InputError

VARIABLE = "FEDSIEGE_DATA"


def local_copy(name: str) -> Path | None:
    """$FEDSIEGE_DATA/<last part of name>, if the variable is set and the folder or file exists."""
    root = os.environ.get(VARIABLE)
    if not root:
        return None
    copy = Path(root).expanduser() / name.rstrip("/").rpartition("/")[2]
    return copy if copy.exists() else None


def given(path: str, source: str) -> Path:
    """The existing file or folder that `data.path` of this source names."""
    if not path:
        raise InputError(f"data.path: {source} needs the file or folder that holds the data; got none")
    place = Path(path).expanduser()
    if not place.exists():
        raise InputError(f"data.path: {path!r} does not exist; expected the file or folder of {source}")
    return place


def given_or_copy(path: str, source: str) -> Path:
    """As `given`; without a path, the copy named like the source below $FEDSIEGE_DATA, where there is one."""
    copy = None if path else local_copy(source)
    return copy or given(path, f"{source} (which is not below ${VARIABLE} either)" if not path else source)


def find(place: Path, names: tuple[str, ...]) -> Path:
    """`place` if it is a file, else the first file below it with one of these names (the first name wins)."""
    if place.is_file():
        return place
    for name in names:
        below = sorted(path for path in place.rglob(name) if path.is_file())
        if below:
            return below[0]
    raise InputError(f"data.path: no file named {' or '.join(names)} below {str(place)!r}")
