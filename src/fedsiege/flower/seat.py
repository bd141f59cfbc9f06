"""What a client knows where it runs: the experiment, and either all of its data or its own alone."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context

from fedsiege import __version__
from fedsiege.data.dataset import Dataset
from fedsiege.defences.client.base import Circle, Posted, is_neutral
from fedsiege.defences.coalition.base import Coalition
from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment, validated
from fedsiege.experiment.prepare import check, device_of, prepare, task_of
from fedsiege.experiment.siege import campaign_of
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.files import described, read_tensors, write_tensors
from fedsiege.flower.circle import circle_in, write_circle
from fedsiege.records import Examples

DATA, COALITION, PARTITION = "data", "coalition", "partition-id"
"""Keys of a node's own configuration: its data file, its coalition's file, its number."""

DECIDES = (
    *("model", "clients", "rounds", "seed", "training", "participation", "delay", "defences", "coalition"),
    *("adversary", "compromised", "backdoor", "pretrain_rounds", "validation", "targets", "candidates"),
    *("partition", "examples_per_client", "aggregator", "server_step"),
)
"""The fields of a config that server and clients must agree on: all that decides what is sent, but for the data."""


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


def dealt(examples: Examples) -> str:
    """What server and client compare of a client's data: whose examples are whose decides who is a member."""
    return hashlib.sha256("\x1f".join(examples.ids.tolist()).encode()).hexdigest()[:16]


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
    circle = circle_in(Path(coalition), f"node-config: {COALITION}") if coalition else None
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
        defences=tuple(_seated(one, client, circle) for one in plan.defences),
        done=e.pretrain_rounds,
    )
    return Seat(e, federation, client)


def _seated(one: Posted, client: int, circle: Circle | None) -> Posted:
    """A defence; a coalition of this client's with what its members know. InputError where that is not here."""
    if not isinstance(one.defence, Coalition) or client not in one.clients:
        return one
    if circle is None or (client not in circle.volumes and not is_neutral(one.defence)):
        raise InputError(
            f"node-config: {COALITION}: client {client} is a member of {one.label} and has no word of its secret; "
            "expected the file that its members share"
        )
    return replace(one, circle=circle)


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
        together = [one for one in prepared.defences if one.circle is not None and client in one.clients]
        # No client is in two, but that it may be in others that are set to do nothing.
        for one in sorted(together, key=lambda one: is_neutral(one.defence))[:1]:
            if one.circle is not None:
                write_circle(folder / f"coalition_{client:04d}.json", one.circle)
                node[COALITION] = str((folder / f"coalition_{client:04d}.json").absolute())
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
