"""What every registered poisoning attack must do, whatever its idea is."""

import functools
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_scenes import (
    CLASSES,
    SEED,
    SIZES,
    TRAINING,
    asked_about,
    backdoor,
    federation,
    first,
    model,
    plot_of,
    poisoner_of,
    scene_of,
    shards,
    task_of,
)
from torch import Tensor

from fedsiege.attacks.poisoning.base import Poisoner, Scene
from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.errors import InputError
from fedsiege.federation.adversary import ADVERSARY
from fedsiege.federation.checkpoint import Checkpoint, read, save
from fedsiege.federation.state import Models, State
from fedsiege.records import Examples, Round
from fedsiege.registry import index, label_of, names
from fedsiege.task import Task, seeded
from shuffled import Shuffled

NAMES = names("poisoning")
ATTACKS = (2, 4)
TELLING: dict[str, dict[str, Any]] = {
    # By its formula two attackers of six send the mean, which is no attack.
    "alie": {"z": 1.0},
    # Within its bound only where it is short, and not at all among updates of one step.
    "agrevader_euclidean": {"lr": 0.01},
    "fedpoisonmia": {"fallback": "attack"},
    # The rule at its defaults keeps two colluders in so small a federation whatever they send.
    "adaptive_atm": {"trim": 2, "statistic": "median"},
}
"""Fields without which an attack would do nothing in so small a federation."""
HONEST = {"passive"}
"""Adversaries that send what honest clients would."""
WHETHER = {"agrevader_euclidean"}
"""Attacks whose knowledge of others decides only whether they attack."""
COLLUDERS = {1: (3,), 2: (1, 3)}


def attack_of(name: str) -> Poisoner:
    return poisoner_of(name, **TELLING.get(name, {}))


def campaign_of(poisoner: Poisoner, k: int = 2, **options: Any) -> Campaign:
    given: dict[str, Any] = {"label": "attack", "compromised": COLLUDERS[k], "rounds": ATTACKS}
    given["targets"] = asked_about() if poisoner.probes else None
    return Campaign(poisoner, **{**given, "backdoor": backdoor() if poisoner.plants else None, **options})


def rounds_of(poisoner: Poisoner, k: int = 2, **options: Any) -> list[Round]:
    return list(federation(campaign=campaign_of(poisoner, k), **options).run(first()))


@functools.cache
def honest() -> list[Round]:
    return list(federation().run(first()))


@functools.cache
def attacked(name: str, k: int = 2) -> list[Round]:
    return rounds_of(attack_of(name), k)


def rows(done: Round, clients: tuple[int, ...]) -> Tensor:
    assert done.cohort is not None
    return done.cohort.updates[[done.cohort.clients.index(client) for client in clients]]


def same(one: Round, other: Round) -> bool:
    assert one.cohort is not None
    assert other.cohort is not None
    return torch.equal(one.end, other.end) and torch.equal(one.cohort.updates, other.cohort.updates)


def all_same(one: list[Round], other: list[Round]) -> bool:
    return all(same(a, b) for a, b in zip(one, other, strict=True))


def counted(done: list[Round]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in done:
        for name, n in one.counters.get(ADVERSARY, {}).items():
            total[name] = total.get(name, 0) + n
    return total


def test_there_are_attacks() -> None:
    assert {"label_flip", "sign_flip", "gaussian", "alie", "ipm", "min_max", "min_sum", "buffer_shift"} <= set(
        NAMES
    )
    assert {"model_replacement", "data_poisoning", "pgd", "dba", "neurotoxin"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_and_what_its_fields_are(name: str) -> None:
    poisoner, entry = poisoner_of(name), index()["poisoning", name]
    assert isinstance(poisoner, Poisoner)
    assert poisoner.title
    assert poisoner.proof
    assert label_of(poisoner) == name
    assert entry.paper
    assert entry.summary.endswith((".", ":"))
    assert all(field.doc.endswith(".") for field in entry.fields)
    assert [field.name for field in fields(poisoner)] == [field.name for field in entry.fields]  # type: ignore[arg-type]


@pytest.mark.parametrize("k", COLLUDERS)
@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_run_is_not_refused(name: str, k: int) -> None:
    attack_of(name).check(plot_of(compromised=COLLUDERS[k]))


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_that_plants_asks_for_a_backdoor_and_others_do_not(name: str) -> None:
    poisoner, bare = attack_of(name), plot_of(backdoor=None)
    if poisoner.plants:
        with pytest.raises(InputError, match=r"the config names none; expected backdoor"):
            poisoner.check(bare)
    else:
        poisoner.check(bare)


@pytest.mark.parametrize("k", COLLUDERS)
@pytest.mark.parametrize("name", NAMES)
def test_it_acts_in_its_rounds_and_counts_it(name: str, k: int) -> None:
    poisoner, done = attack_of(name), attacked(name, k)
    for one in done:
        counters, attacking = one.counters[ADVERSARY], one.number in ATTACKS
        assert counters["attackers"] == (k if attacking else 0)
        assert (counters.get(poisoner.proof, 0) > 0) == attacking
        assert one.attackers == (COLLUDERS[k] if attacking else ())
    sent, own = rows(done[1], COLLUDERS[k]), rows(honest()[1], COLLUDERS[k])
    for row, other in zip(sent, own, strict=True):
        assert torch.equal(row, other) == (name in HONEST)
    assert torch.equal(done[1].end, honest()[1].end) == (name in HONEST)


@pytest.mark.parametrize("k", COLLUDERS)
@pytest.mark.parametrize("name", NAMES)
def test_it_sends_a_finite_row_from_every_attacker_and_none_else_changes(name: str, k: int) -> None:
    done = attacked(name, k)[1]
    others = tuple(client for client in range(len(SIZES)) if client not in COLLUDERS[k])
    assert rows(done, COLLUDERS[k]).isfinite().all()
    assert torch.equal(rows(done, others), rows(honest()[1], others))
    assert done.cohort is not None
    assert done.cohort.clients == tuple(range(len(SIZES)))
    assert done.cohort.weights.tolist() == list(SIZES)
    assert done.cohort.ages == (0,) * len(SIZES)


@pytest.mark.parametrize("name", NAMES)
def test_rounds_without_attack_are_those_of_a_federation_without_adversary(name: str) -> None:
    done = attacked(name)
    assert same(done[0], honest()[0])
    (alone,) = federation(rounds=3).run(State(2, Models((done[1].end,))))
    assert same(done[2], alone)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(name: str) -> None:
    assert all_same(rounds_of(attack_of(name)), attacked(name))
    other = rounds_of(attack_of(name), seed=SEED + 1)
    assert not torch.equal(rows(other[1], COLLUDERS[2]), rows(attacked(name)[1], COLLUDERS[2]))


@pytest.mark.parametrize("name", NAMES)
def test_order_engine_and_torchs_own_numbers_do_not_matter(name: str) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert all_same(rounds_of(attack_of(name), engine=Shuffled()), attacked(name))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_it_does_not_matter_whether_rows_are_kept(name: str) -> None:
    done = rounds_of(attack_of(name), keeps=lambda number: False)
    for one, other in zip(done, attacked(name), strict=True):
        assert torch.equal(one.end, other.end)
        assert one.counters == other.counters


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_a_checkpoint_gives_the_same_bytes(name: str, at: int, tmp_path: Path) -> None:
    state = first()
    for done in attacked(name)[:at]:
        state = state.then(done, 0)
    save(tmp_path / "c.safetensors", Checkpoint(state, {}))
    made = federation(campaign=campaign_of(attack_of(name)))
    resumed = list(made.run(read(tmp_path / "c.safetensors").state))
    assert all_same(resumed, attacked(name)[at:])
    for one, other in zip(resumed, attacked(name)[at:], strict=True):
        assert one.counters == other.counters
        assert one.memory.keys() == other.memory.keys()
        assert all(torch.equal(one.memory[key], other.memory[key]) for key in one.memory)


def clone(examples: Examples) -> Examples:
    return replace(examples, x=examples.x.clone(), y=examples.y.clone())


def equal(one: Examples, other: Examples) -> bool:
    return bool((one.ids == other.ids).all()) and torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


class Watched(Poisoner):
    """An attack whose inputs are compared with what they were."""

    def __init__(self, inner: Poisoner) -> None:
        self.inner, self.plants, self.probes = inner, inner.plants, inner.probes  # type: ignore[misc]
        self.scenes = 0

    @property
    def sees_honest(self) -> bool:
        return self.inner.sees_honest

    @property
    def uses_others(self) -> bool:
        return self.inner.uses_others

    def poison_updates(self, scene: Scene) -> Tensor:
        start, seen = scene.start.clone(), None if scene.honest_rows is None else scene.honest_rows.clone()
        kept = {name: tensor.clone() for name, tensor in scene.memory.items()}
        memory, own = scene.memory, [clone(shard) for shard in scene.shards]
        test = None if scene.backdoor is None else clone(scene.backdoor.test)
        asked = None if scene.targets is None else clone(scene.targets)
        sent = self.inner.poison_updates(scene)
        assert torch.equal(scene.start, start)
        assert (seen is None) == (scene.honest_rows is None)
        if seen is not None and scene.honest_rows is not None:
            assert torch.equal(seen, scene.honest_rows)
        assert all(equal(one, other) for one, other in zip(scene.shards, own, strict=True))
        assert all(torch.equal(memory[name], kept[name]) for name in kept), "memory is replaced, not changed"
        if test is not None and scene.backdoor is not None:
            assert equal(scene.backdoor.test, test)
        if asked is not None and scene.targets is not None:
            assert equal(scene.targets, asked)
        assert sent.shape == (len(scene.clients), len(start))
        assert (sent.dtype, sent.device) == (start.dtype, start.device)
        assert not sent.requires_grad
        self.scenes += 1
        return sent

    def observe(self, scene: Scene, end: Tensor) -> None:
        before = end.clone()
        self.inner.observe(scene, end)
        assert torch.equal(end, before)
        assert all(isinstance(kept, Tensor) for kept in scene.memory.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_it_is_given_stays_as_it_was_and_what_it_sends_is_like_the_model(name: str) -> None:
    watched = Watched(attack_of(name))
    given = shards()
    assert all_same(rounds_of(watched, shards=given), attacked(name))
    assert watched.scenes == len(ATTACKS)
    assert all(equal(one, other) for one, other in zip(given, shards(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_it_tells_is_finite_and_no_client_is_named(name: str) -> None:
    counters = counted(attacked(name))
    told = attack_of(name).told(counters)
    assert told
    assert all(math.isfinite(n) for n in (*counters.values(), *told.values()))
    assert not any(character.isdigit() for key in told for character in key)
    assert all(n == 0 for n in attack_of(name).told({}).values())


@pytest.mark.parametrize("name", NAMES)
def test_the_task_is_as_it_was_for_the_next_client(name: str) -> None:
    task = task_of()
    known = set(vars(task.module))
    rounds_of(attack_of(name), task=task)
    assert set(vars(task.module)) == known
    for layer in task.module.modules():
        assert not layer._forward_hooks
        assert not layer._backward_hooks
        assert not layer._forward_pre_hooks
    assert all(p.requires_grad for p in task.module.parameters())
    assert all_same(list(federation(task=task).run(first())), honest())


SETTINGS: Mapping[str, dict[str, Any]] = {
    "one step on all data": {"training": TRAINING.model_copy(update={"algorithm": "fedsgd"})},
    "batches larger than the data": {"training": TRAINING.model_copy(update={"batch": 32})},
    "adam": {"training": TRAINING.model_copy(update={"optimiser": "adam", "lr": 0.01})},
    "a small step": {"server_step": 0.1},
    "few of the clients": {"participation": 0.7},
    "lost answers": {"dropout": 0.4},
    "late answers": {"delay": 2},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_other_federations_are_attacked_too(name: str, setting: str) -> None:
    poisoner, done = attack_of(name), rounds_of(attack_of(name), **SETTINGS[setting])
    assert counted(done)[poisoner.proof] > 0
    assert all(one.end.isfinite().all() for one in done)
    if setting != "lost answers":
        assert [len(one.attackers) for one in done] == [0, 2, 0, 2]


@pytest.mark.parametrize("name", NAMES)
def test_all_clients_may_attack_and_then_nobody_honest_is_seen(name: str) -> None:
    everybody = campaign_of(attack_of(name), compromised=tuple(range(len(SIZES))))
    done = list(federation(campaign=everybody, rounds=2).run(first()))[1]
    assert done.attackers == tuple(range(len(SIZES)))
    assert rows(done, done.attackers).isfinite().all()
    assert done.counters[ADVERSARY][attack_of(name).proof] > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_it_sends_depends_on_nothing_that_it_may_not_see(name: str) -> None:
    poisoner = attack_of(name)
    given = list(shards())
    given[0] = replace(given[0], y=CLASSES - 1 - given[0].y)
    campaign = campaign_of(poisoner, rounds=(1,))
    (changed,) = federation(shards=tuple(given), rounds=1, campaign=campaign).run(first())
    (plain,) = federation(rounds=1, campaign=campaign).run(first())
    alike = torch.equal(rows(changed, COLLUDERS[2]), rows(plain, COLLUDERS[2]))
    assert alike == (name in WHETHER or not (poisoner.sees_honest or poisoner.uses_others))


@pytest.mark.parametrize("name", NAMES)
def test_a_scene_made_by_hand_is_enough(name: str) -> None:
    poisoner = attack_of(name)
    scene = scene_of((1, 3), backdoor=backdoor() if poisoner.plants else None)
    sent = poisoner.poison_updates(scene)
    assert sent.shape == (2, len(scene.start))
    assert scene.counters[poisoner.proof] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_cuda_device_everything_stays_there(name: str) -> None:
    device = torch.device("cuda")
    planted = backdoor().to(device) if attack_of(name).plants else None
    watched = Watched(attack_of(name))
    made = federation(
        task=Task(seeded(model, 0), mean=(0.5,), std=(0.25,), device=device),
        shards=tuple(shard.to(device) for shard in shards()),
        campaign=campaign_of(watched, backdoor=planted),
    )
    done = list(made.run(State(0, Models((first().models[0].to(device),)))))
    assert watched.scenes == len(ATTACKS)
    assert done[-1].end.device.type == "cuda"
    assert done[-1].end.isfinite().all()
