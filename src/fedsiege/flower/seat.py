"""What a client knows where it runs: the experiment, and either all of its data or its own alone."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context

from fedsiege import __version__
from fedsiege.data.dataset import Dataset
from fedsiege.defences.client.base import Circle, Posted
from fedsiege.defences.coalition.base import Coalition
from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment, validated
from fedsiege.experiment.prepare import check, device_of, prepare, task_of
from fedsiege.experiment.siege import campaign_of
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.files import described, read_tensors, write_bytes, write_tensors
from fedsiege.records import Examples
from fedsiege.registry import label_of

DATA, COALITION, PARTITION = "data", "coalition", "partition-id"
"""Keys of a node's own configuration: its data file, its coalition's file, its number."""

DECIDES = (
    *("model", "clients", "rounds", "seed", "training", "participation", "delay", "defences", "coalition"),
    *("adversary", "compromised", "backdoor", "pretrain_rounds", "validation"),
)
"""The fields of a config that server and clients must agree on."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A client's place: `client` is the only one whose data is here; None: everybody's is."""

    experiment: Experiment
    federation: Federation
    client: int | None = None


def digest(experiment: Experiment) -> str:
    """What server and clients compare, so that none of them carries out another experiment."""
    decided = experiment.model_dump(mode="json", include=set(DECIDES))
    text = json.dumps([__version__, decided], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def number_of(context: Context) -> int:
    """The client's number, the `partition-id` of its node; InputError where it has none."""
    number = context.node_config.get(PARTITION)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise InputError(f"node-config: {PARTITION}: got {number!r}; expected the client's number, from 0")
    return number


def seat_of(config: str, context: Context) -> Seat:
    """The seat of the client that a context is of, in the experiment of a config (JSON, defaults included)."""
    data, coalition = (str(context.node_config.get(key, "")) for key in (DATA, COALITION))
    seat = own_seat(config, data, coalition) if data else whole(config)
    number, clients = number_of(context), seat.experiment.clients
    if number >= clients:
        raise InputError(f"node-config: {PARTITION}: got {number}; expected clients from 0 to {clients - 1}")
    if seat.client not in (None, number):
        raise InputError(f"{data}: is client {seat.client}'s data; expected that of client {number}")
    return seat


@functools.lru_cache(maxsize=1)
def whole(config: str) -> Seat:
    """A seat that reads the experiment's data as the server does: simulations, and compromised clients."""
    experiment = validated(json.loads(config), "config")
    return Seat(experiment, prepare(experiment).federation())


@functools.lru_cache(maxsize=1)
def own_seat(config: str, data: str, coalition: str) -> Seat:
    """A seat with one client's data alone, from the file that `write_sites` or the site itself wrote."""
    e = validated(json.loads(config), "config")
    plan, device = check(e), device_of(e.device)
    about, own = read_site(Path(data))
    client, classes = int(about["client"]), tuple(about["classes"])
    none = own["train"].take(np.arange(0))
    shown = Dataset(
        train=own["train"],
        heldout=none,
        classes=classes,
        rows={},
        origin=data,
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
    )
    task = task_of(e, shown, device)
    circles = read_circles(Path(coalition), len(classes), e.rounds) if coalition else {}
    federation = Federation(
        task=task,
        shards=tuple((own["train"] if number == client else none).to(device) for number in range(e.clients)),
        training=e.training,
        aggregator=plan.aggregator,
        engine=LocalEngine(),
        rounds=e.rounds,
        seed=e.seed,
        classes=len(classes),
        campaign=campaign_of(e, plan.poisoner, None),
        validation=own["validation"].to(device) if "validation" in own else None,
        participation=e.participation,
        dropout=e.dropout,
        delay=e.delay,
        server_step=e.server_step,
        defences=tuple(_seated(one, client, circles) for one in plan.defences),
        done=e.pretrain_rounds,
    )
    return Seat(e, federation, client)


def _seated(one: Posted, client: int, circles: Mapping[str, Circle]) -> Posted:
    """A defence; a coalition of this client's with what its members know. InputError where that is not here."""
    if not isinstance(one.defence, Coalition) or client not in one.clients:
        return one
    if one.label not in circles:
        raise InputError(
            f"node-config: {COALITION}: client {client} is a member of {one.label} and has no word of its secret; "
            f"expected the file that the members share, with {one.label!r} in it"
        )
    return replace(one, circle=circles[one.label])


def read_site(path: Path) -> tuple[dict[str, Any], dict[str, Examples]]:
    """A client's own data: what the file says of itself, and its examples, `train` and, if any, `validation`."""
    if not path.is_file():
        raise InputError(f"node-config: {DATA}: {path} is not there; expected the client's data file")
    about, tensors = described(path), read_tensors(path)
    if about.get("kind") != "site":
        raise InputError(f"{path}: not a client's data; expected a file of fedsiege deploy or write_sites")
    found = {
        split: Examples(np.array(ids, dtype=np.str_), tensors[f"{split}.x"], tensors[f"{split}.y"])
        for split, ids in about["ids"].items()
    }
    return about, found


def read_circles(path: Path, classes: int, rounds: int) -> dict[str, Circle]:
    """What the members of coalitions know in common, by the coalition's label."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            label: Circle(
                int(one["secret"]), {int(k): float(v) for k, v in one["volumes"].items()}, classes, rounds
            )
            for label, one in found.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"node-config: {COALITION}: {path} cannot be read ({error}); expected JSON, by coalition: "
            '{"secret": ..., "volumes": {"0": ...}}'
        ) from None


def write_sites(experiment: Experiment, folder: Path) -> list[dict[str, str]]:
    """Write each client's own data, and what each coalition's members share; returns the nodes' configurations.

    A compromised client is given no file: the adversary that plays it knows what the experiment says it knows, and
    reads that from the experiment's own data.
    """
    prepared = prepare(experiment)
    data, found = prepared.data, list[dict[str, str]]()
    folder.mkdir(parents=True, exist_ok=True)
    compromised = () if prepared.campaign is None else prepared.campaign.compromised
    for client, rows in enumerate(prepared.shards):
        node = {PARTITION: str(client), "num-partitions": str(experiment.clients)}
        if client not in compromised:
            path = folder / f"client_{client:04d}.safetensors"
            own = {"train": data.train.take(rows)}
            if prepared.validation is not None:
                own["validation"] = prepared.validation
            write_site(path, client, own, data)
            node[DATA] = str(path.absolute())
        circles = [one for one in prepared.defences if one.circle is not None and client in one.clients]
        if circles:
            node[COALITION] = str(_write_circles(folder / f"coalition_{client:04d}.json", circles).absolute())
        found.append(node)
    return found


def write_site(path: Path, client: int, own: Mapping[str, Examples], data: Dataset) -> None:
    """Write one client's examples, with what it must know of the data to train on them as the others do."""
    tensors = {f"{split}.{name}": getattr(one, name) for split, one in own.items() for name in ("x", "y")}
    about = {
        "kind": "site",
        "client": client,
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "ids": {split: one.ids.tolist() for split, one in own.items()},
    }
    write_tensors(path, tensors, about)


def _write_circles(path: Path, circles: Sequence[Posted]) -> Path:
    """Write what a member knows of its coalitions: a file for its eyes alone."""
    known = {
        label_of(one.defence): {"secret": one.circle.secret, "volumes": dict(one.circle.volumes)}
        for one in circles
        if one.circle is not None
    }
    path.touch(mode=0o600)
    write_bytes(path, json.dumps(known).encode())
    path.chmod(0o600)
    return path
