"""What every registered client defence must do, whatever its idea is."""

import functools
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import examples_of

from fedsiege.aggregators.fedavg import FedAvg
from fedsiege.defences.client.base import ClientDefence, Clients, Ground, Posted, Turn, posted
from fedsiege.defences.client.sample import Sample
from fedsiege.errors import InputError
from fedsiege.experiment.run import run
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.federation.state import Models, State
from fedsiege.recorder import Recorder
from fedsiege.records import Examples, Round
from fedsiege.registry import build, index, label_of, names
from fedsiege.task import Task, seeded
from fedsiege.trace import Trace
from fedsiege.training import Training
from shuffled import Shuffled

NAMES = names("client_defence")
SIZES, CLASSES, SEED = (12, 14, 16, 13), 2, 5
ALL = range(len(SIZES))
FIELDS: dict[str, dict[str, Any]] = {"loden": {"warmup": 0, "mode": "white_box", "fall": 0.0}}
"""What a defence needs to act in two rounds."""
BEGINS = {"loden": 1}
"""The round, from 0, in which a defence acts first; elsewhere the first one."""


def model() -> nn.Module:
    """Small, with a tensor of more than 1,000 entries, and without BatchNorm."""
    body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten())
    hidden = nn.Sequential(nn.Linear(256, 8), nn.Tanh())
    return nn.Sequential(OrderedDict(body=body, hidden=hidden, head=nn.Linear(8, CLASSES)))


def task_of() -> Task:
    return Task(seeded(model, 0), mean=(0.5,), std=(0.25,))


def pictures(m: int, seed: int) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (m, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return examples_of(x, torch.randint(0, CLASSES, (m,), generator=rng))


def ground_of(one: Posted, task: Task, every: Sequence[Posted]) -> Ground:
    later = [other.defence for other in every[list(every).index(one) + 1 :]]
    return Ground(task, pictures(8, 0), SIZES, sorted(one.clients), 6, "fp32", SIZES, len(SIZES), later, rounds=2)


def defence_of(name: str, **given: Any) -> ClientDefence:
    made: ClientDefence = build("client_defence", {"name": name, **FIELDS.get(name, {}), **given}, "test")
    return made


NEUTRAL = [name for name in NAMES if defence_of(name).neutral is not None]


def checked(defences: Sequence[ClientDefence], task: Task) -> tuple[Posted, ...]:
    """The defences as a run posts them, after their own checks."""
    made = posted(defences, len(SIZES))
    for one in made:
        one.defence.check(ground_of(one, task, made))
    return made


def rounds_of(defences: Sequence[ClientDefence], rounds: int = 2, **options: Any) -> list[Round]:
    task = task_of()
    known: dict[str, Any] = {
        "shards": tuple(pictures(size, 1 + client) for client, size in enumerate(SIZES)),
        "training": Training(epochs=2, batch=6, lr=0.1),
        "engine": LocalEngine(),
        "seed": SEED,
    }
    made = Federation(
        task=task,
        aggregator=FedAvg(),
        rounds=rounds,
        keeps=lambda number: True,
        defences=checked(defences, task),
        **{**known, **options},
    )
    return list(made.run(State(0, Models((task_of().state.clone(),)))))


@functools.cache
def undefended() -> list[Round]:
    return rounds_of([])


@functools.cache
def defended(name: str) -> list[Round]:
    """Two rounds with the defence's defaults."""
    return rounds_of([defence_of(name)])


def updates_of(done: Round) -> Tensor:
    assert done.cohort is not None
    return done.cohort.updates


def same(one: list[Round], other: list[Round]) -> bool:
    return all(
        torch.equal(a.end, b.end) and torch.equal(updates_of(a), updates_of(b))
        for a, b in zip(one, other, strict=True)
    )


def counted(done: list[Round], label: str) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in done:
        for name, n in one.counters.get(label, {}).items():
            total[name] = total.get(name, 0) + n
    return total


def test_there_are_defences() -> None:
    assert {"augment", "dp_fedavg", "dp_sgd", "hamp", "instahide", "mixup"} <= set(NAMES)
    assert {"perturb", "quantize", "relaxloss", "sample", "sparsify"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_and_what_its_fields_are(name: str) -> None:
    defence, entry = defence_of(name), index()["client_defence", name]
    assert isinstance(defence, ClientDefence)
    assert defence.title
    assert defence.proof
    assert [field.name for field in fields(defence)][-1] == "clients"  # type: ignore[arg-type]
    assert defence.clients == "all"
    assert entry.paper
    assert entry.summary.endswith((".", ":"))
    assert all(field.doc.endswith(".") for field in entry.fields)
    known = {field.name for field in entry.fields} - {"clients"}
    if defence.neutral is None:
        assert "no neutral setting" in " ".join(entry.doc.split())
    else:
        assert set(defence.neutral) <= known
        assert any(getattr(defence, field) != value for field, value in defence.neutral.items())


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_setting_leaves_every_byte_as_it_was(name: str) -> None:
    defence = defence_of(name, **(defence_of(name).neutral or {}))
    (one,) = posted([defence], len(SIZES))
    done = rounds_of([defence])
    assert same(done, undefended())
    assert counted(done, one.label).get(defence.proof, 0) == 0
    # Also where numbers are drawn after an epoch's order, and where all of a client's data is one step.
    for training in (Training(epochs=1, batch=5, augment="crop_flip"), Training(algorithm="fedsgd")):
        assert same(rounds_of([defence], training=training), rounds_of([], training=training))


@pytest.mark.parametrize("name", NAMES)
def test_the_default_setting_changes_every_clients_update_and_counts_it(name: str) -> None:
    first = BEGINS.get(name, 0)
    plain, done = updates_of(undefended()[first]), updates_of(defended(name)[first])
    assert done.shape == plain.shape
    assert done.isfinite().all()
    for client in ALL:
        assert not torch.equal(done[client], plain[client])
    assert counted(defended(name), label_of(defence_of(name)))[defence_of(name).proof] > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(name: str) -> None:
    assert same(rounds_of([defence_of(name)]), defended(name))
    assert not same(rounds_of([defence_of(name)], seed=SEED + 1), defended(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_clients_and_torchs_own_numbers_do_not_matter(name: str) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert same(rounds_of([defence_of(name)], engine=Shuffled()), defended(name))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_clients_that_use_it_are_touched(name: str) -> None:
    first = BEGINS.get(name, 0)
    done = rounds_of([defence_of(name, clients=[1, 3])], rounds=first + 1)
    plain, all_use_it = updates_of(undefended()[first]), updates_of(defended(name)[first])
    for client in ALL:
        assert torch.equal(updates_of(done[first])[client], (all_use_it if client in (1, 3) else plain)[client])


@pytest.mark.parametrize("name", NAMES)
def test_what_it_tells_is_finite_and_no_client_is_named(name: str) -> None:
    counters = counted(defended(name), label_of(defence_of(name)))
    assert counters
    told = defence_of(name).told(counters)
    assert all(math.isfinite(n) for n in (*counters.values(), *told.values()))
    assert not any(character.isdigit() for key in told for character in key)
    assert all(n == 0 for n in defence_of(name).told({}).values())


@pytest.mark.parametrize("name", NAMES)
def test_guarantees_are_finite_and_say_how_they_were_found(name: str) -> None:
    defence, task = defence_of(name), task_of()
    (one,) = posted([defence], len(SIZES))
    spent = defence.guarantees(counted(defended(name), one.label), ground_of(one, task, [one]))
    assert bool(spent) == defence.private
    for guarantee in spent:
        assert guarantee.epsilon is not None
        assert 0 < guarantee.epsilon < math.inf
        assert 0 < guarantee.delta < 1
        assert guarantee.accountant
        assert "neighbours:" in guarantee.note
    assert defence.guarantees({}, ground_of(one, task, [one])) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_task_is_as_it_was_for_the_next_client(name: str) -> None:
    task = task_of()
    (one,) = checked([defence_of(name)], task)
    shards = tuple(pictures(size, 1 + client) for client, size in enumerate(SIZES))
    made = Federation(
        task, shards, Training(batch=6), FedAvg(), LocalEngine(), 1, SEED, (), keeps=lambda number: True
    )
    known = set(vars(task.module))
    state = State(0, Models((task_of().state.clone(),)))
    (before,) = made.run(state)
    list(Federation(task, shards, Training(batch=6), FedAvg(), LocalEngine(), 1, SEED, (one,)).run(state))
    (after,) = made.run(state)
    assert same([before], [after])
    assert set(vars(task.module)) == known
    for layer in task.module.modules():
        assert not layer._forward_hooks
        assert not layer._backward_hooks
        assert not layer._forward_pre_hooks


REFUSED = {
    frozenset(pair)
    for pair in [
        ("hamp", "relaxloss"),
        ("dp_fedavg", "dp_sgd"),
        *(("dp_sgd", name) for name in ("instahide", "loden", "mixup", "relaxloss")),
    ]
}


@pytest.mark.parametrize(("first", "second"), list(permutations(NAMES, 2)))
def test_two_together_run_or_are_refused(first: str, second: str) -> None:
    pair = [defence_of(first), defence_of(second)]
    # One client has a single example.
    options: dict[str, Any] = {
        "rounds": 1 + max(BEGINS.get(name, 0) for name in (first, second)),
        "shards": tuple(pictures(m, 1 + k) for k, m in enumerate((12, 7, 1, 9))),
    }
    if frozenset((first, second)) in REFUSED:
        with pytest.raises(InputError, match=r"defences\.1: .*expected"):
            rounds_of(pair, **options)
        return
    *_, done = rounds_of(pair, **options)
    assert updates_of(done).isfinite().all()
    assert len(updates_of(done)) == len(SIZES)
    assert all(done.counters[label_of(one)] for one in pair)


@dataclass(frozen=True)
class Leaves(ClientDefence):
    """Leaves a client so many of its examples, as a coalition may."""

    title = "Leaves"
    neutral = None
    proof = "left"
    most: int = 0
    clients: Clients = "all"

    def on_data(self, examples: Examples, turn: Turn) -> Examples:
        turn.count("left", self.most)
        return examples.take(np.arange(self.most))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedsgd"])
def test_a_client_that_is_left_nothing_or_little_answers_all_the_same(
    name: str, left: int, behind: bool, algorithm: Any
) -> None:
    both = [Leaves(left), defence_of(name)]
    # All of a client's data is one step there: `sample` refuses to leave out a part of it.
    if name == "sample" and algorithm == "fedsgd":
        both[1] = Sample(share=1.0)
    done = rounds_of(both if behind else both[::-1], training=Training(algorithm=algorithm, batch=6))
    assert updates_of(done[-1]).isfinite().all()
    assert len(updates_of(done[-1])) == len(SIZES)
    moves = {"dp_fedavg", "perturb"} if left == 0 else set(NAMES)
    # A Poisson sample of a single example in a step of at least one holds it; noise is added to its gradient.
    assert bool(updates_of(done[0]).any()) == (name in moves)
    label = label_of(both[1])
    counters = counted(done, label)
    assert all(math.isfinite(n) for n in defence_of(name).told(counters).values())
    (one,) = posted([both[1]], len(SIZES))
    for guarantee in both[1].guarantees(counters, ground_of(one, task_of(), [one])):
        assert guarantee.epsilon is not None


BESIDE = [
    (name, other)
    for name in NEUTRAL
    for other in ("augment", "dp_sgd", "hamp", "instahide", "perturb", "relaxloss")
    if name != other
]


@pytest.mark.parametrize(("name", "other"), BESIDE)
def test_the_neutral_setting_leaves_another_defence_as_it_was(name: str, other: str) -> None:
    neutral = defence_of(name, **(defence_of(name).neutral or {}))
    for pair in ([neutral, defence_of(other)], [defence_of(other), neutral]):
        assert same(rounds_of(pair), defended(other))


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_setting_leaves_another_of_its_name_as_it_was(name: str) -> None:
    neutral = defence_of(name, **(defence_of(name).neutral or {}))
    for pair in ([neutral, defence_of(name)], [defence_of(name), neutral]):
        assert same(rounds_of(pair), defended(name))


@dataclass(frozen=True)
class Seen:
    """A round as the server could compute it from uploads, by plain autograd in float64."""

    loss: np.ndarray
    cosine: np.ndarray
    head: np.ndarray


def seen(start: Tensor, updates: Tensor, candidates: Examples) -> Seen:
    layout = task_of().layout
    x, y = (candidates.x.double() / 255 - 0.5) / 0.25, candidates.y

    def module_at(vector: Tensor) -> nn.Module:
        module = seeded(model, 0).double()
        torch.nn.utils.vector_to_parameters(vector.double(), module.parameters())
        return module

    losses = [F.cross_entropy(module_at(start + row)(x), y, reduction="none").detach() for row in updates]
    module = module_at(start)
    each = [F.cross_entropy(module(a[None]), b[None]) for a, b in zip(x, y, strict=True)]
    rows = [torch.autograd.grad(loss, list(module.parameters())) for loss in each]
    gradients = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    cosines = F.cosine_similarity(-updates.double()[:, None], gradients[None], dim=2)
    return Seen(torch.stack(losses).numpy(), cosines.numpy(), updates[:, layout.trained - CLASSES :].numpy())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_recorded_is_what_was_uploaded(name: str, tmp_path: Path) -> None:
    first = BEGINS.get(name, 0)
    candidates, done = pictures(5, 99), defended(name)[first]
    recorder = Recorder(task_of(), candidates, len(SIZES), CLASSES, tmp_path)
    recorder.begin()
    recorder.record(done)
    trace = Trace(tmp_path)
    uploaded = seen(done.start, updates_of(done), candidates)
    np.testing.assert_allclose(trace.loss(0), uploaded.loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trace.cosine(0), uploaded.cosine, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(trace.head(0), uploaded.head, rtol=1e-6)
    # And not what the clients' models were without the defence, or, where it edits the upload, before it.
    raw = seen(done.start, updates_of(undefended()[first]), candidates)
    for client in ALL:
        assert np.abs(trace.loss(0)[client] - raw.loss[client]).max() > 1e-4
        assert np.abs(trace.cosine(0)[client] - raw.cosine[client]).max() > 1e-4


def test_a_run_reports_what_each_defence_did_and_spent(tmp_path: Path) -> None:
    run(
        {
            "data": "wine",
            "model": {"name": "mlp", "hidden": [8]},
            "clients": 4,
            "rounds": 2,
            "record_every": 1,
            "training": {"batch": 8},
            "candidates": {"ifl": 20, "ofl": 20},
            "attacks": ["avg_cosine"],
            "defences": [
                {"name": "dp_sgd", "clients": [0, 1]},
                {"name": "dp_fedavg", "clients": [2], "noise_multiplier": 4.0},
                {"name": "relaxloss", "weight": 0.0, "clients": 3},
            ],
        },
        out=tmp_path / "run",
    )
    raw = json.loads((tmp_path / "run" / "result.json").read_text())
    rows = {row["name"]: row for row in raw["components"] if row["kind"] == "client_defence"}
    assert {name: row["acted"] for name, row in rows.items()} == {
        "dp_sgd": True,
        "dp_fedavg": True,
        "relaxloss": False,
    }
    spent = {row["label"].partition("(")[0]: row for row in raw["privacy"]}
    assert set(spent) == {"dp_sgd", "dp_fedavg"}
    assert spent["dp_sgd"]["unit"] == "example"
    assert spent["dp_sgd"]["epsilon"] > spent["dp_fedavg"]["epsilon"] > 0
