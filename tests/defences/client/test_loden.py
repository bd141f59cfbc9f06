"""LoDen by hand and naively: what is remembered, what is dropped for good, and what a client does with the rest."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from turns import examples_of, flat_task, ground_of, guard_of, turn_of

from fedsiege.aggregators.fedavg import FedAvg
from fedsiege.defences.client.augment import Augment
from fedsiege.defences.client.base import ClientDefence, Guard, Turn, posted
from fedsiege.defences.client.loden import LoDen, named, numbered
from fedsiege.errors import InputError
from fedsiege.federation.checkpoint import Checkpoint, read, save
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.federation.state import Models, State
from fedsiege.records import Examples, Round
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, train


class Above(nn.Module):
    """Two classes: logits (0, 4 (x - b)), so that class 1 is said where x is above b."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), 4 * (x[:, 0] - self.b)], 1)


FIVE = Examples(np.array(["a", "bb", "c", "d", "e"]), torch.arange(1.0, 6)[:, None], torch.ones(5).long())
"""Class 1 at 1, 2, 3, 4 and 5: a model with b has those above b right."""


def rounds(
    defence: LoDen,
    received: Mapping[int, float],
    examples: Examples = FIVE,
    having: Mapping[int, Sequence[int]] | None = None,
) -> tuple[list[str], list[dict[str, float]]]:
    """What a client trains on, as words of ids, and what is counted, where it receives such b in such rounds.

    Args:
        defence: the client's.
        received: b of the model, by the number of the round.
        examples: the client's.
        having: which of them it has in a round, by position; all if left out.

    """
    task, memory = Task(seeded(Above, 0)), dict[str, Tensor]()
    trained, counted = [], []
    for number, b in received.items():
        task.load(torch.tensor([b]))
        turn = turn_of(task, number=number, memory=memory)
        brought = examples if having is None else examples.take(np.array(having[number]))
        kept = defence.on_data(brought, turn)
        assert task.state.tolist() == pytest.approx([b]), "the model that is trained is the one that was received"
        for i, x, y in zip(kept.ids, kept.x, kept.y, strict=True):
            at = examples.ids.tolist().index(i)
            assert torch.equal(x, examples.x[at])
            assert torch.equal(y, examples.y[at])
        memory = dict(turn.memory)
        trained.append(" ".join(kept.ids))
        counted.append(turn.counters)
    return trained, counted


ALL = "a bb c d e"


def test_an_example_that_was_right_and_is_wrong_later_is_dropped_for_good() -> None:
    trained, counted = rounds(LoDen(warmup=2), {3: 1.5, 4: 2.5, 5: 0.5, 6: 3.5, 7: 0.5})
    # a is wrong at first and so not remembered; b falls in round 4; a is remembered in 5 and falls with c in 6.
    assert trained == [ALL, "a c d e", "a c d e", "d e", "d e"]
    assert [one["dropped"] for one in counted] == [0, 1, 0, 2, 0]
    assert [one["judged"] for one in counted] == [0, 4, 3, 4, 2]
    assert [one["left_out"] for one in counted] == [0, 1, 1, 3, 3]
    assert [one["turns_spared"] for one in counted] == [0] * 5


def test_nothing_is_remembered_or_dropped_in_the_warm_up() -> None:
    received = {1: 0.5, 2: 3.5, 3: 0.5, 4: 3.5, 5: 4.5}
    trained, counted = rounds(LoDen(warmup=3), received)
    # Round 4 is the first that is remembered: d and e are right.
    assert trained == [ALL] * 4 + ["a bb c e"]
    assert counted[:3] == [{}] * 3
    trained, _ = rounds(LoDen(warmup=5), received)
    assert trained == [ALL] * 5
    trained, _ = rounds(LoDen(warmup=0), received)
    assert trained == [ALL, "d e", "d e", "d e", "e"]


def test_by_default_the_warm_up_is_100_rounds() -> None:
    assert rounds(LoDen(), {99: 0.5, 100: 0.5, 101: 2.5, 102: 3.5})[0] == [ALL] * 3 + ["a bb d e"]


def sure(b: float) -> list[float]:
    return [1 / (1 + np.exp(-4 * (x - b))) for x in range(1, 6)]


def test_in_the_white_box_a_fall_of_the_true_class_is_suspicious_too() -> None:
    # The probabilities at b = 0.5 are .88 1 1 1 1, at 0.9 .60 .99 1 1 1, at 1.4 .17 .92 1 1 1.
    assert sure(0.5)[0] - sure(0.9)[0] == pytest.approx(0.282, abs=1e-3)
    received = {1: 0.5, 2: 0.9}
    assert rounds(LoDen(warmup=0), received)[0] == [ALL, ALL]
    assert rounds(LoDen(warmup=0, mode="white_box"), received)[0] == [ALL, "bb c d e"]
    assert rounds(LoDen(warmup=0, mode="white_box", fall=0.28), received)[0] == [ALL, "bb c d e"]
    assert rounds(LoDen(warmup=0, mode="white_box", fall=0.29), received)[0] == [ALL, ALL]
    assert rounds(LoDen(warmup=0, mode="white_box", fall=0.99), {1: 0.5, 2: 1.5})[0] == [ALL, "bb c d e"], (
        "a wrong class is suspicious there as well"
    )


def test_a_fall_is_from_the_model_received_the_time_before_and_of_remembered_examples_alone() -> None:
    white = LoDen(warmup=0, mode="white_box")
    # .88 .80 .73 .60: never more than 0.2 at a time.
    slow = {1: 0.5, 2: 0.65, 3: 0.75, 5: 0.9}
    assert rounds(white, slow)[0] == [ALL] * 4
    assert rounds(white, {1: 0.5, 5: 0.9})[0] == [ALL, "bb c d e"]
    # .40 .03: it fell, but was never right.
    assert sure(1.1)[0] - sure(1.9)[0] > 0.2
    assert rounds(white, {1: 1.1, 2: 1.45})[0] == [ALL, ALL]


def naive(defence: LoDen, received: Mapping[int, float], x: Tensor, y: Tensor) -> list[list[int]]:
    """The definition, example by example."""
    right, dropped, last = set[int](), set[int](), dict[int, float]()
    trained = []
    for number, b in received.items():
        found = set[int]()
        if defence.warmup is not None and number > defence.warmup:
            for i, (value, label) in enumerate(zip(x[:, 0].tolist(), y.tolist(), strict=True)):
                one = 1 / (1 + np.exp(-4 * (value - b)))
                p = one if label == 1 else 1 - one
                fell = defence.mode == "white_box" and last.get(i, 0.0) - p > defence.fall
                if i in right and i not in dropped and (p < 0.5 or fell):
                    found.add(i)
                if p > 0.5:
                    right.add(i)
                last[i] = p
        if len(dropped | found) < len(x):
            dropped |= found
        trained.append([i for i in range(len(x)) if i not in dropped])
    return trained


@pytest.mark.parametrize("mode", ["black_box", "white_box"])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_naive_one(mode: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = torch.as_tensor(rng.normal(size=(40, 1)) * 2).float(), torch.as_tensor(rng.integers(0, 2, 40))
    received = {number: float(rng.normal() / 2) for number in sorted(rng.choice(30, size=8, replace=False) + 1)}
    defence, examples = LoDen(warmup=8, mode=mode, fall=0.1), examples_of(x, y)
    trained, counted = rounds(defence, received, examples)
    expected = naive(defence, received, x, y)
    assert trained == [" ".join(examples.ids[rows]) for rows in expected]
    assert sum(one.get("dropped", 0) for one in counted) == 40 - len(expected[-1]) > 0


def test_a_client_never_drops_all_that_it_has() -> None:
    trained, counted = rounds(LoDen(warmup=0), {1: 0.5, 2: 2.5, 3: 9.0, 4: 3.5, 5: 9.0})
    assert trained == [ALL, "c d e", "c d e", "d e", "d e"]
    assert [one["turns_spared"] for one in counted] == [0, 0, 1, 0, 1]
    assert [one["dropped"] for one in counted] == [0, 2, 0, 1, 0]


def test_examples_are_known_by_their_ids_in_whatever_order_and_number_they_come() -> None:
    having = {1: [4, 0, 2], 2: [0, 1, 2, 3, 4], 3: [3, 2, 1, 0], 4: [1, 0], 5: [0, 1, 2, 3, 4]}
    trained, counted = rounds(LoDen(warmup=0), {1: 0.5, 2: 1.5, 3: 2.5, 4: 0.5, 5: 0.5}, having=having)
    assert trained == ["e a c", "bb c d e", "d c", "", "c d e"]
    assert [one["judged"] for one in counted] == [0, 3, 3, 0, 3]
    assert counted[3]["turns_spared"] == 0, "what it has in that round was dropped before"


def test_without_examples_nothing_is_done() -> None:
    none = FIVE.take(np.arange(0))
    turn = turn_of(Task(seeded(Above, 0)), number=3)
    assert LoDen(warmup=0).on_data(none, turn) is none
    assert (turn.counters, turn.memory) == ({}, {})


def test_ids_are_the_same_when_they_come_back_from_memory() -> None:
    for ids in (["a", "bb", ""], ["train/0001", "müll-\U0001f600", "z"], [""]):
        given = np.array(ids)
        assert named(numbered(given)).tolist() == ids
        assert numbered(given).dtype == torch.int32
    assert numbered(np.array(["b", "a"])).tolist() == [[98], [97]]
    assert named(numbered(np.array(["x"])[:0])).tolist() == []


def test_what_was_remembered_is_replaced_and_not_written_to() -> None:
    task = Task(seeded(Above, 0))
    first = turn_of(task, number=1)
    LoDen(warmup=0).on_data(FIVE, first)
    before = {name: kept.clone() for name, kept in first.memory.items()}
    task.load(torch.tensor([3.5]))
    second = turn_of(task, number=2, memory=first.memory)
    LoDen(warmup=0).on_data(FIVE, second)
    assert all(torch.equal(first.memory[name], kept) for name, kept in before.items())
    assert not torch.equal(second.memory["dropped"], before["dropped"])


def flat() -> nn.Module:
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), head=nn.Linear(64, 2)))


def pictures(m: int, seed: int) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (m, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return examples_of(x, torch.randint(0, 2, (m,), generator=rng))


@pytest.mark.parametrize("order", [0, 1])
def test_examples_are_judged_as_they_are_and_not_augmented(order: int) -> None:
    """With `augment`, in either order, and the training's own crops: the verdicts are those of the model alone."""
    examples, memory = pictures(60, 3), dict[str, Tensor]()
    task = Task(seeded(flat, 0), mean=(0.5,), std=(0.25,))
    models = [task.state + 0.2 * torch.randn(130, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    right = [task.predict(one, examples).argmax(1) == examples.y for one in models]
    for number, start in enumerate(models, 1):
        own = turn_of(task, number=number, memory=memory, batch=10)
        pair: list[tuple[ClientDefence, Turn]] = [(LoDen(warmup=0), own), (Augment(), turn_of(task, seed=9))]
        guard = Guard(pair[::-1] if order else pair)
        training = Training(batch=10, augment="crop_flip")
        train(task, start.clone(), examples, training, 0.1, stream(0, "c"), guard, number)
        memory = dict(own.memory)
    expected = right[0] & ~right[1]
    assert int(expected.sum()) > 5
    assert memory["dropped"].tolist() == expected.tolist()
    assert own.counters["dropped"] == int(expected.sum())


def test_training_takes_its_steps_on_what_is_left() -> None:
    examples, memory = pictures(60, 3), dict[str, Tensor]()
    task = Task(seeded(flat, 0), mean=(0.5,), std=(0.25,))
    models = [task.state + 0.2 * torch.randn(130, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    right = [(task.predict(one, examples).argmax(1) == examples.y).numpy() for one in models]
    for number, start in enumerate(models, 1):
        turn = turn_of(task, number=number, memory=memory, batch=10)
        guard = guard_of(LoDen(warmup=0), turn)
        update = train(task, start.clone(), examples, Training(batch=10), 0.1, stream(0, "c"), guard, number)
        memory = dict(turn.memory)
    left = examples.take(np.flatnonzero(~(right[0] & ~right[1])))
    assert torch.equal(update, train(task, models[1].clone(), left, Training(batch=10), 0.1, stream(0, "c")))
    assert turn.examples == len(left)


@pytest.mark.parametrize(
    ("left", "batch", "trained"), [(11, 10, 10), (11, None, 11), (12, 10, 12), (1, 10, 0), (1, None, 0)]
)
def test_batchnorm_never_gets_a_step_of_one_example(left: int, batch: int | None, trained: int) -> None:
    """21 examples, of which so many are not dropped."""
    task = flat_task(3, 4, 2)
    examples = examples_of(torch.randn(21, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(21).long())
    memory = {
        "ids": numbered(examples.ids),
        "right": torch.ones(21, dtype=torch.bool),
        "sure": torch.ones(21, dtype=torch.float64),
        "dropped": torch.arange(21) >= left,
    }
    examples = Examples(examples.ids, examples.x, task.predict(task.state.clone(), examples).argmax(1))
    turn = turn_of(task, number=3, memory=memory, batch=batch)
    kept = LoDen(warmup=0).on_data(examples, turn)
    assert kept.ids.tolist() == examples.ids[:trained].tolist()
    assert turn.counters["left_out"] == 21 - trained
    assert turn.memory["dropped"].tolist() == memory["dropped"].tolist(), "the last one only rests"
    plain = Task(seeded(lambda: nn.Linear(3, 2), 0))
    turn = turn_of(plain, number=3, memory=memory, batch=batch)
    wanted = Examples(examples.ids, examples.x, plain.predict(plain.state.clone(), examples).argmax(1))
    assert len(LoDen(warmup=0).on_data(wanted, turn)) == left


def test_without_anything_dropped_batchnorm_is_left_what_there_is() -> None:
    task = flat_task(3, 4, 2)
    examples = examples_of(torch.randn(11, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(11).long())
    assert LoDen(warmup=0).on_data(examples, turn_of(task)) is examples


SHARDS = tuple(pictures(30, 50 + client) for client in range(3))


def federation(defence: LoDen, total: int) -> Federation:
    return Federation(
        task=Task(seeded(flat, 0), mean=(0.5,), std=(0.25,)),
        shards=SHARDS,
        training=Training(batch=6, lr=0.1),
        aggregator=FedAvg(),
        engine=LocalEngine(),
        rounds=total,
        seed=4,
        defences=posted([defence], 3),
        participation=0.7,
    )


def begin(total: int = 6) -> State:
    return State(0, Models((federation(LoDen(), total).task.state.clone(),)))


def test_a_federation_goes_on_from_a_checkpoint_with_what_its_clients_remember(tmp_path: Path) -> None:
    defence = LoDen(warmup=1, mode="white_box", fall=0.05)
    whole = list(federation(defence, 6).run(begin()))
    assert sum(one.counters[label(defence)].get("dropped", 0) for one in whole[:3]) > 0
    assert sum(one.counters[label(defence)].get("dropped", 0) for one in whole[3:]) > 0
    first = list(federation(defence, 3).run(begin()))
    state = State(3, Models((first[-1].end,)), first[-1].memory)
    save(tmp_path / "checkpoint", Checkpoint(state, {}))
    rest = list(federation(defence, 6).run(read(tmp_path / "checkpoint").state))
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.end, other.end)
        assert one.counters[label(defence)] == other.counters[label(defence)]
    forgetful = list(federation(defence, 6).run(State(3, Models((first[-1].end,)))))
    assert not torch.equal(forgetful[-1].end, whole[-1].end)


def label(defence: LoDen) -> str:
    return posted([defence], 3)[0].label


def test_each_client_remembers_its_own_and_drops_it_for_good() -> None:
    defence = LoDen(warmup=0)
    dropped: dict[int, set[str]] = {client: set() for client in range(3)}
    last: Round
    for last in federation(defence, 6).run(begin()):
        for client in range(3):
            place = f"{label(defence)}/{client}/"
            if place + "ids" not in last.memory:
                continue
            ids = named(last.memory[place + "ids"])
            assert set(ids) <= set(SHARDS[client].ids)
            now = set(ids[last.memory[place + "dropped"].numpy()])
            assert dropped[client] <= now
            assert len(now) < 30
            dropped[client] = now
    assert any(dropped.values())


def test_the_neutral_setting_neither_predicts_nor_remembers() -> None:
    turn = turn_of(Task(nn.Linear(1, 2)), number=500)
    assert LoDen(warmup=None).on_data(FIVE, turn) is FIVE
    assert (turn.counters, turn.memory) == ({}, {})


def test_a_warm_up_that_leaves_no_two_models_is_refused() -> None:
    x = torch.zeros(5, 4)
    LoDen().check(ground_of(x, (5,), rounds=102))
    LoDen(warmup=0).check(ground_of(x, (5,), rounds=2))
    LoDen(warmup=None).check(ground_of(x, (5,), rounds=1))
    with pytest.raises(
        InputError,
        match=r"^warmup: got 100; loden judges from round 102 on.* has 101; expected at most 99, or null",
    ):
        LoDen().check(ground_of(x, (5,), rounds=101))
    with pytest.raises(InputError, match=r"^rounds: got 1; loden compares .* expected 2 or more"):
        LoDen(warmup=0).check(ground_of(x, (5,), rounds=1))


@pytest.mark.parametrize(
    ("field", "value"), [("warmup", -1), ("warmup", 1.5), ("mode", "grey"), ("fall", -0.1), ("fall", 1.0)]
)
def test_bad_fields_of_loden_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.{field}: got {value!r}"):
        build("client_defence", {"name": "loden", field: value}, "defences.0")
