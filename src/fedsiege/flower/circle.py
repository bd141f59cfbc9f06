"""The file that the members of a coalition give each other, and that no server sees."""

import json
import os
from dataclasses import replace
from pathlib import Path

from fedsiege.defences.coalition.base import Circle
from fedsiege.errors import InputError
from fedsiege.streams import entropy


def circle_in(path: Path, where: str) -> Circle:
    """What the members of a coalition know in common, from a file that they gave each other and no server sees.

    JSON: `{"secret": "<hexadecimal>", "volumes": {"0": 120, "2": 80}, "rounds": 20, "classes": 10}`: a number of
    128 random bits, each member's number of examples, the rounds of the run, and the classes of the task, which
    only the class-guided partition needs. For the noise to cancel all members have to take part in every round.
    One file serves any number of runs of a mod (see `of_run`). `where` names the setting in messages.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        circle = Circle(
            secret=int(said["secret"], 16),
            volumes={int(client): float(volume) for client, volume in sorted(said["volumes"].items())},
            classes=int(said.get("classes", 1)),
            rounds=int(said["rounds"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # Not the error's text, which may hold the secret.
        raise InputError(
            f"{where}: {path} cannot be read ({type(error).__name__}); expected JSON with secret (a "
            "text of hexadecimal digits), volumes by client, rounds and classes"
        ) from None
    if len(circle.volumes) < 2 or not all(0 < volume < float("inf") for volume in circle.volumes.values()):
        raise InputError(f"{path}: volumes: expected two members or more, each with examples")
    if min(circle.volumes) < 0:
        raise InputError(f"{path}: volumes: got client {min(circle.volumes)}; expected numbers from 0")
    for name, count in (("rounds", circle.rounds), ("classes", circle.classes)):
        if count < 1:
            raise InputError(f"{path}: {name}: got {count}; expected 1 or more")
    if circle.secret < 2**63:
        raise InputError(f"{path}: secret: anybody can guess it; expected 128 random bits in hexadecimal")
    return circle


def of_run(circle: Circle, run: int) -> Circle:
    """What members know in common in one run: by a run's id, which all of them are told, each has other noise."""
    return replace(circle, secret=entropy(circle.secret, "run", run))


def write_circle(path: Path, circle: Circle) -> None:
    """Write what `circle_in` reads, for the eyes of this user alone."""
    known = {
        "secret": f"{circle.secret:x}",
        "volumes": {str(client): volume for client, volume in circle.volumes.items()},
        "rounds": circle.rounds,
        "classes": circle.classes,
    }
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        os.fchmod(file.fileno(), 0o600)  # a file that was there keeps its rights
        json.dump(known, file)
