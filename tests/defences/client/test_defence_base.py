"""How defences are posted, how a guard threads them through a training, and where their numbers come from."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from turns import examples_of, turn_of

from fedsiege.defences.client.base import (
    UNGUARDED,
    Batch,
    ClientDefence,
    Clients,
    Ground,
    Guard,
    Part,
    Turn,
    means,
    posted,
)
from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.prepare import prepare
from fedsiege.records import Examples
from fedsiege.registry import build, register
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, train


@register("noting")
class Noting(ClientDefence):
    """Notes every moment in a list and changes nothing."""

    title: ClassVar[str] = "Noting"
    neutral: ClassVar[dict[str, Any] | None] = None
    proof: ClassVar[str] = "moments"
    notes: ClassVar[list[tuple[Any, ...]]] = []

    name: str = "a"
    clients: Clients = "all"

    def note(self, moment: str, *more: Any) -> None:
        self.notes.append((self.name, moment, *more))

    @contextmanager
    def during(self, turn: Turn) -> Iterator[str]:
        self.note("begin", turn.epoch)
        try:
            yield f"tool of {self.name}"
        finally:
            self.note("end", turn.epoch)

    def on_data(self, examples: Examples, turn: Turn) -> Examples:
        self.note("data", len(examples), turn.tool)
        return examples

    def on_epoch(self, parts: list[Part], turn: Turn) -> list[Part]:
        self.note("epoch", turn.epoch, turn.examples, len(parts))
        return parts

    def on_images(self, x: Tensor, turn: Turn) -> Tensor:
        self.note("images", x.dtype)
        return x

    def on_batch(self, batch: Batch, turn: Turn) -> Batch:
        self.note("batch", len(batch))
        return batch

    def on_loss(self, losses: Tensor, logits: Tensor, batch: Batch, turn: Turn) -> Tensor:
        self.note("loss", tuple(losses.shape), tuple(logits.shape))
        return losses

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:
        self.note("update", tuple(update.shape))
        return update


@register("switched")
class Switched(ClientDefence):
    """Puts `value` in the place of the gradient, or with 0 nothing."""

    title: ClassVar[str] = "Switched"
    neutral: ClassVar[dict[str, Any] | None] = {"value": 0.0}
    proof: ClassVar[str] = "filled"
    replaces: ClassVar[Any] = "gradient"

    value: float = 1.0
    clients: Clients = "all"

    def on_gradient(self, losses: Callable[[Batch], Tensor], batch: Batch, turn: Turn) -> None:
        turn.task.gradient.fill_(self.value)


@register("halving")
class Halving(ClientDefence):
    """Does half of everything."""

    title: ClassVar[str] = "Halving"
    neutral: ClassVar[dict[str, Any] | None] = None
    proof: ClassVar[str] = "halved"

    clients: Clients = "all"

    def on_data(self, examples: Examples, turn: Turn) -> Examples:
        return examples.take(np.arange(len(examples) // 2))

    def on_images(self, x: Tensor, turn: Turn) -> Tensor:
        return x // 2

    def on_batch(self, batch: Batch, turn: Turn) -> Batch:
        return replace(batch, x=batch.x / 2)

    def on_loss(self, losses: Tensor, logits: Tensor, batch: Batch, turn: Turn) -> Tensor:
        return losses / 2

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:
        return update / 2


@register("replacing")
class Replacing(ClientDefence):
    """Puts ones in the place of the gradient."""

    title: ClassVar[str] = "Replacing"
    neutral: ClassVar[dict[str, Any] | None] = None
    proof: ClassVar[str] = "replaced"
    replaces: ClassVar[Any] = "gradient"

    clients: Clients = "all"

    def on_gradient(self, losses: Callable[[Batch], Tensor], batch: Batch, turn: Turn) -> None:
        turn.task.gradient.fill_(1.0)


@pytest.fixture(autouse=True)
def _no_notes() -> None:
    Noting.notes.clear()


def task_of() -> Task:
    return Task(seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 0), mean=(0.5,), std=(0.25,))


def pictures(m: int = 10) -> Examples:
    x = torch.randint(0, 256, (m, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return examples_of(x, torch.arange(m) % 3)


def trained(task: Task, guard: Guard = UNGUARDED, number: int = 1, **fields: Any) -> Tensor:
    training = Training(**{"batch": 4, "momentum": 0.0, "weight_decay": 0.0, **fields})
    return train(task, task.state.clone(), pictures(), training, 0.1, stream(0, "client"), guard, number)


def test_a_batch_of_plain_classes_has_one_weight_each() -> None:
    batch = Batch.of(torch.zeros(3, 2), torch.tensor([2, 0, 1]))
    assert len(batch) == 3
    ((y, weight),) = batch.labels
    assert (y.tolist(), weight.tolist()) == ([2, 0, 1], [1, 1, 1])
    losses = torch.tensor([1.0, 2.0, 3.0])
    assert batch.weighted(lambda classes: losses) is losses, "not multiplied by ones: that could cost a bit"


def test_a_mixed_batch_weighs_its_classes_and_its_rows_keep_theirs() -> None:
    first, second = torch.tensor([0, 1, 2]), torch.tensor([2, 2, 0])
    share = torch.tensor([0.25, 0.5, 1.0])
    batch = Batch(torch.arange(6.0).view(3, 2), ((first, share), (second, 1 - share)))
    found = batch.weighted(lambda y: 10.0 * y)
    assert found.tolist() == [15.0, 15.0, 20.0]
    part = batch.rows(slice(1, 3))
    assert part.x.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert part.weighted(lambda y: 10.0 * y).tolist() == [15.0, 20.0]


def test_moments_come_in_order_and_in_each_in_the_order_of_the_list() -> None:
    task = task_of()
    first, second = Noting(), Noting(name="b")
    guard = Guard([(first, turn_of(task)), (second, turn_of(task))])
    trained(task, guard, number=3, epochs=2, batch=8)
    steps = [("images", torch.uint8), ("batch", 8), ("loss", (8,), (8, 3))]
    steps += [("images", torch.uint8), ("batch", 2), ("loss", (2,), (2, 3))]
    of_a = [
        ("begin", 4),
        ("data", 10, "tool of a"),
        *[("epoch", 4, 10, 2), *steps],
        *[("epoch", 5, 10, 2), *steps],
        ("end", 6),
        ("update", (15,)),
    ]
    assert [note[1:] for note in Noting.notes if note[0] == "a"] == of_a
    names = [note[0] for note in Noting.notes if note[1] != "end"]
    assert names == ["a", "b"] * (len(of_a) - 1)
    assert [note[0] for note in Noting.notes if note[1] == "end"] == ["b", "a"], "tools go in the other order"


def test_what_changes_nothing_leaves_the_training_as_it_is() -> None:
    task = task_of()
    start = task.state.clone()
    plain = trained(task, epochs=2)
    task.load(start)
    assert torch.equal(trained(task, Guard([(Noting(), turn_of(task))]), epochs=2), plain)


def test_each_moment_takes_effect() -> None:
    task = task_of()
    start = task.state.clone()
    guard = Guard([(Halving(), turn_of(task))])
    update = trained(task, guard, batch=100)
    few = pictures().take(np.arange(5))
    x = ((few.x // 2) / 255 - 0.5) / 0.25 / 2
    task.load(start)
    task.gradient.zero_()
    task.losses(task.logits(x), few.y).mean().backward()
    torch.testing.assert_close(update, -0.1 * task.gradient / 4)


def test_two_of_a_kind_act_one_after_the_other() -> None:
    task = task_of()
    guard = Guard([(Halving(), turn_of(task)), (Halving(), turn_of(task))])
    assert torch.equal(guard.on_update(torch.ones(15)), torch.full((15,), 0.25))
    assert len(guard.on_data(pictures(12))) == 3


def test_turns_know_how_many_examples_are_left_to_train_on() -> None:
    task, turns = task_of(), [turn_of(task_of()), turn_of(task_of())]
    trained(task, Guard([(Noting(), turns[0]), (Halving(), turns[1])]))
    assert [turn.examples for turn in turns] == [5, 5]
    assert ("a", "epoch", 0, 5, 2) in Noting.notes


def test_a_defence_can_make_the_gradient_in_place_of_the_loss() -> None:
    task = task_of()
    guard = Guard([(Noting(), turn_of(task)), (Replacing(), turn_of(task))])
    update = trained(task, guard, batch=100)
    torch.testing.assert_close(update, torch.full((15,), -0.1))
    assert "loss" not in [note[1] for note in Noting.notes]


@pytest.mark.parametrize("values", [(0.0, 2.0), (2.0, 0.0), (0.0,)])
def test_what_is_set_to_change_nothing_does_not_make_the_gradient(values: tuple[float, ...]) -> None:
    task = task_of()
    start = task.state.clone()
    plain = trained(task, batch=100)
    task.load(start)
    guard = Guard([(Switched(value=value), turn_of(task)) for value in values])
    expected = plain if values == (0.0,) else torch.full((15,), -0.2)
    torch.testing.assert_close(trained(task, guard, batch=100), expected)


def test_tools_go_when_training_raises() -> None:
    task = task_of()

    class Failing(Guard):
        def on_batch(self, batch: Batch) -> Batch:
            raise RuntimeError("a batch")

    with pytest.raises(RuntimeError, match="a batch"):
        trained(task, Failing([(Noting(), turn_of(task)), (Noting(name="b"), turn_of(task))]))
    assert [note[:2] for note in Noting.notes[-2:]] == [("b", "end"), ("a", "end")]


def test_parts_may_be_positions_in_any_number() -> None:
    class Picking(Guard):
        def on_epoch(self, parts: list[Part]) -> list[Part]:
            return [torch.tensor([3, 3, 1]), torch.tensor([7])]

    task = task_of()
    seen = Noting()
    trained(task, Picking([(seen, turn_of(task))]), augment="crop_flip")
    assert [note[2] for note in Noting.notes if note[1] == "batch"] == [3, 1]


def test_a_turn_counts_and_draws() -> None:
    turn = turn_of(task_of())
    turn.count("steps")
    turn.count("steps", 2)
    turn.count("norm", 0.5)
    assert turn.counters == {"steps": 3, "norm": 0.5}
    first, second = turn.normal(1000), turn.normal(1000)
    assert not torch.equal(first, second)
    assert float(first.std()) == pytest.approx(1, abs=0.1)
    again = turn_of(task_of())
    assert torch.equal(again.normal(1000), first)
    assert torch.equal(torch.randn(1000, generator=again.generator()), second)


def numbers_of(
    defences: list[ClientDefence], label: str, seed: int = 0, number: int = 1, client: int = 0
) -> Tensor:
    """What a defence of this label draws first, posted among others."""
    at = turn_of(task_of(), number=number, client=client)
    (one,) = [one for one in posted(defences, 3) if one.label == label]
    return one.turn(seed, at).normal(4)


def test_a_defence_draws_the_same_whoever_stands_beside_it() -> None:
    alone = numbers_of([Noting()], "noting")
    assert torch.equal(numbers_of([Halving(), Noting(), Replacing()], "noting"), alone)
    assert torch.equal(numbers_of([Noting(clients=0)], "noting(clients=0)"), alone)


def test_seeds_rounds_clients_names_and_repetitions_draw_their_own() -> None:
    pair: list[ClientDefence] = [Noting(), Noting(name="b")]
    draws = [
        numbers_of([Noting()], "noting"),
        numbers_of([Noting()], "noting", seed=1),
        numbers_of([Noting()], "noting", number=2),
        numbers_of([Noting()], "noting", client=1),
        numbers_of([Halving()], "halving"),
        numbers_of(pair, "noting(name=b)"),
    ]
    assert torch.equal(numbers_of(pair, "noting"), draws[0])
    off: list[ClientDefence] = [Switched(value=0.0), Switched()]
    assert torch.equal(numbers_of(off, "switched"), numbers_of([Switched()], "switched"))
    assert len({tuple(one.tolist()) for one in draws}) == len(draws)


def test_a_turn_has_counters_of_its_own() -> None:
    at = turn_of(task_of())
    one, other = (posted([Noting(name=name)], 1)[0].turn(0, at) for name in "ab")
    one.count("moments")
    assert (one.counters, other.counters, at.counters) == ({"moments": 1}, {}, {})


def test_posts_have_labels_clients_and_places() -> None:
    defences: list[ClientDefence] = [Noting(), Halving(clients=2), Noting(name="b", clients=(0, 3))]
    assert [(one.label, sorted(one.clients), one.nth) for one in posted(defences, 4)] == [
        ("noting", [0, 1, 2, 3], 0),
        ("halving(clients=2)", [2], 0),
        ("noting(name=b, clients=(0, 3))", [0, 3], 1),
    ]


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([{"name": "perturb", "clients": 4}], r"defences\.0\.clients: got client 4; expected clients from 0 to 3"),
        (["sparsify", {"name": "perturb", "clients": [1, 9]}], r"defences\.1\.clients: got client 9"),
        (["perturb", "perturb"], r"defences\.1: perturb is listed twice"),
        (["relaxloss", "hamp"], r"defences\.1: hamp and relaxloss both make the loss of a step"),
        (
            [{"name": "dp_sgd", "clip": 2.0}, "dp_sgd"],
            r"defences\.1: dp_sgd and dp_sgd\(clip=2.0\) both make the gradient of a step",
        ),
        (["dp_sgd", "dp_fedavg"], r"defences\.1: dp_fedavg and dp_sgd each give a client differential privacy"),
        (
            ["dp_fedavg", {"name": "dp_fedavg", "clients": 1}],
            r"defences\.1: dp_fedavg\(clients=1\) and dp_fedavg each give",
        ),
        (["dp_sgd", "mixup"], r"defences\.1: mixup and dp_sgd: mixup lets an example change .*dp_sgd without it"),
        (["relaxloss", "dp_sgd"], r"defences\.1: dp_sgd and relaxloss: relaxloss lets an example change"),
    ],
)
def test_what_cannot_combine_is_refused_by_its_place(specs: list[Any], words: str) -> None:
    defences = [build("client_defence", spec, "test") for spec in specs]
    with pytest.raises(InputError, match=words):
        posted(defences, 4)


@pytest.mark.parametrize(
    "pair",
    [
        [{"name": "relaxloss", "clients": 0}, {"name": "hamp", "clients": [1, 2]}],
        [{"name": "dp_sgd", "clients": 0}, {"name": "dp_fedavg", "clients": 1}],
        [{"name": "dp_sgd", "clients": 0}, {"name": "mixup", "clients": [2, 3]}],
        ["dp_sgd", "hamp"],
        [{"name": "relaxloss", "weight": 0.0}, "hamp"],
        ["dp_sgd", {"name": "mixup", "probability": 0.0}],
    ],
)
def test_what_no_client_combines_is_no_conflict(pair: list[Any]) -> None:
    assert len(posted([build("client_defence", spec, "test") for spec in pair], 4)) == 2


@pytest.mark.parametrize("clients", [-1, [], [0, -2], "some", True, 1.5, [[0]], None])
def test_clients_that_name_nobody_are_refused(clients: Any) -> None:
    expected = rf"^defences\.0\.clients: got {re.escape(repr(clients))}; expected all, a client's number or a list"
    with pytest.raises(InputError, match=expected):
        build("client_defence", {"name": "perturb", "clients": clients}, "defences.0")


@pytest.mark.parametrize(("batch", "steps"), [(10, [1, 1, 3]), (None, [1, 1, 1])])
def test_the_ground_knows_the_steps_of_an_epoch(batch: int | None, steps: list[int]) -> None:
    ground = Ground(task_of(), pictures(2), (3, 10, 21), (0, 1, 2), batch)
    assert [ground.steps(client) for client in range(3)] == steps


@pytest.mark.parametrize(
    ("using", "words"),
    [
        (range(12), "of every client"),
        ([4], "of client 4"),
        ([0, 11], "of clients 0 and 11"),
        ([1, 2, 5], "of clients 1, 2 and 5"),
        (range(11), "of 11 of the 12 clients"),
    ],
)
def test_the_ground_says_whose_a_guarantee_is(using: Any, words: str) -> None:
    assert Ground(task_of(), pictures(2), (3,) * 12, using, 10).whose() == words


@pytest.mark.parametrize(("data", "measured"), [("wine", True), ("stated", False)])
def test_a_run_knows_whether_its_data_were_normalised_by_themselves(
    data: str, measured: bool, tmp_path: Path
) -> None:
    spec: Any = data
    if data == "stated":
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 256, (90, 8, 8, 3), dtype=np.uint8), np.arange(90) % 3
        np.savez(tmp_path / "d.npz", x=x, y=y)
        spec = {"name": "npz", "path": str(tmp_path / "d.npz"), "mean": [0.5] * 3, "std": [0.2] * 3}
    given = {
        "data": spec,
        "clients": 3,
        "model": "mlp",
        "candidates": {"ifl": 10, "ofl": 10},
        "defences": ["perturb"],
    }
    prepared = prepare(Experiment(**given))
    assert prepared.ground(prepared.defences[0]).measured is measured


def test_a_run_tells_each_defence_its_ground() -> None:
    experiment = Experiment(
        **{  # type: ignore[arg-type]
            "data": "wine",
            "clients": 5,
            "candidates": {"ifl": 20, "ofl": 20},
            "participation": 0.6,
            "dropout": 0.125,
            "training": {"batch": 7},
            "defences": [{"name": "perturb", "clients": [1, 4]}, "sparsify"],
        }
    )
    prepared = prepare(experiment)
    first, second = (prepared.ground(one) for one in prepared.defences)
    assert list(first.using) == [1, 4]
    assert list(second.using) == [0, 1, 2, 3, 4]
    assert [type(one).__name__ for one in first.later] == ["Sparsify"]
    assert list(second.later) == []
    assert (first.batch, first.precision, first.cohort, first.dropout) == (7, "fp32", 3, 0.125)
    assert list(first.sizes) == [len(rows) for rows in prepared.shards] == [float(w) for w in first.weights or ()]
    assert len(first.examples) == 8
    turn = prepared.federation().turns(1, 4)
    assert [(label, one.cohort, one.examples) for label, (_, one) in turn.items()] == [
        ("perturb(clients=(1, 4))", 3, first.sizes[4]),
        ("sparsify", 3, first.sizes[4]),
    ]
    assert list(prepared.federation().turns(1, 0)) == ["sparsify"]


def test_means_are_of_the_named_counters_alone() -> None:
    counters = {"updates": 4, "norm": 10.0, "changed": 2}
    assert means(counters, "norm") == {"updates": 4, "mean_norm": 2.5, "changed": 2}
    assert means({"steps": 5, "norm": 10.0}, "norm", over="steps") == {"steps": 5, "mean_norm": 2.0}
    assert means({}, "norm") == {}
    assert means({"updates": 0, "norm": 0.0}, "norm") == {"updates": 0, "mean_norm": 0.0}
