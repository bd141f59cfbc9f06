"""What clients say that they ran, and which promises that makes."""

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import yaml

from fedsiege.defences.client.base import ClientDefence, acting, is_neutral
from fedsiege.defences.client.dp_fedavg import DPFedAvg
from fedsiege.defences.client.perturb import Perturb
from fedsiege.defences.client.quantize import Quantize
from fedsiege.defences.client.sparsify import Sparsify
from fedsiege.errors import InputError
from fedsiege.promises.base import Promise
from fedsiege.promises.length import Length
from fedsiege.promises.levels import Levels
from fedsiege.promises.noise import Noise
from fedsiege.promises.zeros import Zeros
from fedsiege.registry import build, label_of, names
from fedsiege.update_log import shown

NAMED = 200
"""So many characters of what a client wrote stand in a sentence."""


COHORT = "cohort"
"""Beside a declared component's own fields: among how many clients of a round its noise was shared out."""


Declared = Mapping[int, Sequence[Mapping[str, Any]]]
"""What each client says it ran, by number: components as a config names them."""


@singledispatch
def promised(defence: ClientDefence, cohort: int = 1) -> list[Promise]:  # noqa: ARG001 - of which nothing is known
    """What a defence promises about the update that leaves the client; nothing where that is not known.

    `cohort` is the number of clients among whom it shared out noise that a round has together.
    """
    return []


@promised.register
def _(defence: Perturb, cohort: int = 1) -> list[Promise]:  # noqa: ARG001 - its noise is each upload's own
    found = [] if defence.clip is None else [Length(defence.clip, defence.sigma, whole=False)]
    return [*found, Noise(defence.sigma, whole=False)] if defence.sigma else [*found]


@promised.register
def _(defence: DPFedAvg, cohort: int = 1) -> list[Promise]:
    sigma, cohort = defence.noise_multiplier * defence.clip, cohort if shares(defence) else 1
    length = Length(defence.clip, sigma / math.sqrt(cohort), whole=True)
    return [length, Noise(sigma, True, cohort)] if sigma else [length]


@promised.register
def _(defence: Sparsify, cohort: int = 1) -> list[Promise]:  # noqa: ARG001 - it has no noise
    return [Zeros(defence.share, defence.spare)] if defence.share else []


@promised.register
def _(defence: Quantize, cohort: int = 1) -> list[Promise]:  # noqa: ARG001 - it has no noise
    return [] if defence.bits is None else [Levels(defence.bits)]


def shares(defence: ClientDefence) -> bool:
    """Whether a defence has less noise the more clients it believes to take part in a round."""
    return isinstance(defence, DPFedAvg) and defence.noise == "distributed" and defence.noise_multiplier > 0


def made(spec: Mapping[str, Any]) -> ClientDefence | str:
    """A declared component, or why nothing can be said of it.

    Clients write these lists: no name in them makes anything be imported that is not registered.
    """
    name = spec.get("name")
    if name in names("coalition"):
        return "only its members know what a coalition adds to their updates"
    if name not in names("client_defence"):
        return f"no client defence {shown(name, NAMED)!r} is known here"
    try:
        own = {field: value for field, value in spec.items() if field != COHORT}
        defence: ClientDefence = build("client_defence", own, "declared")
    except InputError as error:
        return shown(error, NAMED)
    return defence


def outlives(promise: Promise, later: ClientDefence | str) -> bool:
    """Whether a promise can still be seen after a later component, which may be one that is not known."""
    if isinstance(later, str):
        return False
    acts = type(later).on_update is not ClientDefence.on_update and not is_neutral(later)
    return not acts or promise.survives(later)


def unseen(defence: ClientDefence) -> str:
    """Why a defence leaves nothing to look for in an update: the moments at which it acts."""
    moments = acting(type(defence))
    if not moments:
        return "nothing is known of what it leaves in an update"
    return f"it acts on {' and '.join(moments)}, and an update does not show how it was trained"


def unshared(defence: ClientDefence, spec: Mapping[str, Any], clients: int) -> str:
    """Why nobody can say how much noise a declared component owes where a round shares it; empty where one can.

    A client that divided by another number than the server has in mind is no liar: it says by which.
    """
    if not shares(defence):
        return ""
    cohort = spec.get(COHORT)
    if cohort is None:
        return "a round's clients share its noise, and it is not declared among how many they shared it out"
    if not isinstance(cohort, int) or isinstance(cohort, bool) or not 1 <= cohort <= clients:
        return f"it shared out its noise among {shown(cohort, 40)} clients, and the log is of {clients}"
    return ""


def named(defence: ClientDefence | str) -> str:
    """What a component is called in a sentence."""
    return "a component that is not known" if isinstance(defence, str) else label_of(defence)


def declared_in(path: Path, clients: int) -> dict[int, list[dict[str, Any]]]:
    """What a YAML or JSON file says that clients declared: a list of components, or one for each client.

    A list is every client's, or of those that a component's own field `clients` names. InputError names the file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a list of components, or one for each client")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({str(error)[:200]})") from None
    if isinstance(said, list):
        return _of_all(_components(said, str(path)), clients, str(path))
    if not isinstance(said, dict) or not all(str(key).isdecimal() for key in said):
        raise InputError(f"{path}: expected a list of components, or a client's number: [components]")
    return {int(client): _components(specs, f"{path}: {client}") for client, specs in said.items()}


def _components(said: object, where: str) -> list[dict[str, Any]]:
    named = [{"name": one} if isinstance(one, str) else one for one in said] if isinstance(said, list) else None
    if named is None or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in named):
        raise InputError(f"{where}: got {said!r}; expected [{{name: ..., field: ...}}, ...]"[:300])
    return named


def _of_all(specs: list[dict[str, Any]], clients: int, where: str) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {client: [] for client in range(clients)}
    for place, spec in enumerate(specs):
        defence = made(spec)
        if isinstance(defence, str):
            raise InputError(f"{where}: {place}: {defence}")
        for client in sorted(defence.users(clients, f"{where}: {place}")):
            found[client].append(spec)
    return found
