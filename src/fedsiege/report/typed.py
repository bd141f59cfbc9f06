"""A JSON file as a checked value."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedsiege.errors import InputError

File = TypeVar("File", bound=BaseModel)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a file; InputError says that it is missing (then `what` it should be) or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; expected {what}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: got a JSON {type(value).__name__}; expected an object")
    return value


def read_finished(folder: Path, name: str, schema: int, what: str) -> dict[str, Any]:
    """The object in a folder's file of this name; InputError where `what` the folder should be it is not.

    Raises InputError for another schema too.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder}: not a {what} folder; expected the file {name} in it")
    data = read_json(path, f"the file of a {what}")
    if data.get("schema") != schema:
        raise InputError(f"{path}: schema is {data.get('schema')!r}; this version reads schema {schema}")
    return data


def typed(kind: type[File], value: dict[str, Any], path: Path) -> File:
    """The object as this type; InputError names the file, the first wrong field and what it holds."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = f"{field}: got {first['input']!r:.80}; " if field else ""
        raise InputError(f"{path}: {given}{first['msg']}") from None
