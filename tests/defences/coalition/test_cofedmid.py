"""One member's rounds: what it trains on, what comes back, what it adds, what it remembers, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from circles import circle_of, examples_of, ground_of, model, task_of, turn_of
from torch import Tensor, nn

from fedsiege.defences.client.base import Batch, Circle, Guard, Turn, is_neutral
from fedsiege.defences.coalition.bandit import placed
from fedsiege.defences.coalition.base import seated
from fedsiege.defences.coalition.cofedmid import CoFedMID, Stint, share_of
from fedsiege.defences.coalition.confidence import regularisation
from fedsiege.errors import InputError
from fedsiege.records import Examples, Memory
from fedsiege.registry import build, index
from fedsiege.streams import stream
from fedsiege.task import Task
from fedsiege.training import Training, train

PARTITION: dict[str, Any] = {"compensation": "none", "perturbation": "none"}
NOISE: dict[str, Any] = {"assignment": "none", "compensation": "none"}
RECYCLING: dict[str, Any] = {"perturbation": "none", "start": 3, "m_max": 4, "m_min": 2, "recycle": 0.1}
ROUNDS = 20


def neutral() -> CoFedMID:
    return CoFedMID(**CoFedMID.neutral)  # type: ignore[arg-type]


def ten_each() -> Examples:
    """A hundred examples, ten of each class, in turn."""
    return examples_of(torch.arange(100) % 10)


class Member:
    """A member that trains round after round on one data set, from a model that moves."""

    def __init__(self, defence: CoFedMID, circle: Circle | None = None, data: Examples | None = None) -> None:
        self.defence, self.circle = defence, circle or circle_of(rounds=ROUNDS)
        self.data = ten_each() if data is None else data
        self.memory: Memory = {}
        self.validation = examples_of(torch.arange(40) % 10, seed=9)

    def turn(self, number: int) -> Turn:
        return turn_of(self.circle, number, memory=self.memory, validation=self.validation, batch=200)

    def round(self, number: int) -> tuple[Turn, Tensor, Examples]:
        """The turn when it is over, the update, and what was trained on."""
        turn, seen = self.turn(number), []
        start = turn.task.state + 0.1 * number

        class Watched(Guard):
            def on_data(self, examples: Examples) -> Examples:
                seen.append(super().on_data(examples))
                return seen[-1]

        update = train(
            turn.task,
            start,
            self.data,
            Training(batch=200, lr=0.05),
            0.05,
            stream(1, "client", number),
            Watched([(self.defence, turn)]),
            number,
        )
        self.memory = turn.memory
        return turn, update, seen[0]


def classes_of(defence: CoFedMID, number: int, client: int = 0) -> set[int]:
    circle = circle_of(rounds=ROUNDS)
    return set(defence.coordinator(circle).plan(number, [0, 1]).classes[client])


def test_a_member_trains_on_its_classes_alone() -> None:
    defence = CoFedMID(m_max=6, m_min=3, **PARTITION)
    member = Member(defence)
    for number, m in ((1, 6), (7, 5), (20, 3)):
        turn, _, seen = member.round(number)
        own = classes_of(defence, number)
        assert len(own) == m
        assert set(seen.y.tolist()) == own
        expected = [i for i, y in enumerate(member.data.y.tolist()) if y in own]
        assert seen.ids.tolist() == member.data.ids[expected].tolist(), "all of them, in order"
        assert turn.counters["classes"] == m
        assert turn.counters["examples_assigned"] == 10 * m
        assert turn.counters["examples_left_out"] == 100 - 10 * m
        assert turn.counters["changed"] == 1
        assert turn.counters["turns_without_examples"] == 0
        assert turn.memory == {}


def test_each_member_trains_on_its_own_classes() -> None:
    defence = CoFedMID(m_max=5, m_min=5)
    seen = [set(defence.on_data(ten_each(), begun_turn(defence, None, client=k)).y.tolist()) for k in (0, 1)]
    assert seen == [classes_of(defence, 1, 0), classes_of(defence, 1, 1)]
    assert not seen[0] & seen[1]


def test_the_two_of_a_pair_share_classes_only_when_they_must() -> None:
    defence = CoFedMID(m_max=7, m_min=2)
    for number in range(1, 21):
        one, other = classes_of(defence, number, 0), classes_of(defence, number, 1)
        assert len(one & other) == max(0, 2 * len(one) - 10)


def test_classes_default_to_all_at_first_and_a_fifth_in_the_end() -> None:
    assert [len(classes_of(CoFedMID(), number)) for number in (1, 20)] == [10, 2]
    eleven = CoFedMID().coordinator(circle_of(classes=11))
    assert (eleven.most, eleven.least) == (11, 3)
    few = CoFedMID(m_max=1).coordinator(circle_of(classes=11))
    assert (few.most, few.least) == (1, 1)


def test_a_class_that_a_member_does_not_have_is_passed_over_and_counted() -> None:
    defence = CoFedMID(m_max=5, m_min=5, **PARTITION)
    own = classes_of(defence, 1)
    missing = sorted(own)[:2]
    data = examples_of([y for y in range(10) for _ in range(10) if y not in missing])
    turn, _, seen = Member(defence, data=data).round(1)
    assert set(seen.y.tolist()) == own - set(missing)
    assert turn.counters["classes_without_examples"] == 2


def test_a_member_with_none_of_its_classes_trains_on_nothing() -> None:
    defence = CoFedMID(m_max=3, m_min=3, **PARTITION)
    own = classes_of(defence, 1)
    data = examples_of([y for y in range(10) for _ in range(5) if y not in own])
    turn, update, seen = Member(defence, data=data).round(1)
    assert len(seen) == 0
    assert not update.any()
    assert turn.counters["turns_without_examples"] == 1
    # Its noise must still come, or that of the others would not cancel.
    noisy = replace(defence, perturbation="scalar")
    turn, update, _ = Member(noisy, data=data).round(1)
    assert turn.counters["perturbed"] == 1
    assert update.any()


@pytest.mark.parametrize("compensation", ["bandit", "random", "sequential"])
def test_recycled_examples_are_few_and_never_of_the_assigned_classes(compensation: Any) -> None:
    # Acceptance check 5: never in D_ass, at most floor(r_l |D_k|), none before round t' + 1.
    defence = CoFedMID(**RECYCLING, compensation=compensation)
    member, came_back = Member(defence), 0
    for number in range(1, 21):
        known = dict(member.memory)
        turn, _, seen = member.round(number)
        own = classes_of(defence, number)
        recycled = [i for i, y in zip(seen.ids, seen.y.tolist(), strict=True) if y not in own]
        assert turn.counters["examples_recycled"] == len(recycled) <= 10
        assert len(seen) == 10 * len(own) + len(recycled)
        assert turn.counters["examples_left_out"] == 100 - len(seen)
        if number <= 3:
            assert not recycled
            assert bool(turn.memory) == (number == 3)
            continue
        came_back += len(recycled)
        # All of one interval of today's losses, by the edges of round 3.
        stint: Stint = turn.tool
        task = task_of()
        losses = task.losses(task.predict(task.state + 0.1 * number, member.data), member.data.y)
        places = placed(losses.double().numpy(), known)
        rows = {name: i for i, name in enumerate(member.data.ids)}
        assert {places[rows[i]] for i in recycled} <= {stint.interval}
        inside = sum(
            p == stint.interval and y not in own for p, y in zip(places, member.data.y.tolist(), strict=True)
        )
        assert len(recycled) == min(10, inside)
        assert turn.counters["choices"] == 1
        assert turn.counters["choices_without_examples"] == float(not recycled)
        torch.testing.assert_close(turn.memory["edges"], known["edges"])
    assert came_back > 30
    assert member.memory["choices"].sum() == 17
    rewarded = 17 if compensation == "bandit" else 0
    assert len(member.memory["rewards"]) == rewarded


def test_intervals_in_turn_are_taken_in_turn() -> None:
    member = Member(CoFedMID(**RECYCLING, compensation="sequential", intervals=4))
    chosen = []
    for number in range(3, 13):
        turn, _, _ = member.round(number)
        chosen.append(turn.tool.interval)
    assert chosen == [None, 0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_intervals_at_random_are_all_taken() -> None:
    member = Member(CoFedMID(**RECYCLING, compensation="random", intervals=3), circle_of(rounds=60))
    chosen = [member.round(number)[0].tool.interval for number in range(3, 40)]
    assert set(chosen[1:]) == {0, 1, 2}


def test_a_member_that_comes_late_sets_its_intervals_then() -> None:
    member = Member(CoFedMID(**RECYCLING))
    turn, _, _ = member.round(9)
    assert turn.counters["examples_recycled"] == 0
    assert turn.memory["choices"].tolist() == [0] * 10
    turn, _, _ = member.round(15)
    assert turn.counters["choices"] == 1


def test_the_reward_is_how_much_the_round_lowered_the_loss_on_validation_examples() -> None:
    member = Member(CoFedMID(**RECYCLING))
    member.round(3)
    for number in (4, 5):
        turn, update, _ = member.round(number)
        task = task_of()
        start = task.state + 0.1 * number
        losses = []
        for vector in (start, start + update):
            module = model(4, 10)
            for tensor, (_, place), shape in zip(tensors(module), *laid(task), strict=True):
                tensor.data = vector[place].view(shape)
            module.eval()
            logits = module(member.validation.x)
            losses.append(F.cross_entropy(logits, member.validation.y, reduction="none").double().mean().item())
        assert turn.counters["reward"] == pytest.approx(losses[0] - losses[1], rel=1e-4)
        assert turn.memory["rewards"][-1].item() == turn.counters["reward"]
        assert len(turn.memory["rewards"]) == turn.memory["choices"].sum() == number - 3


def tensors(module: nn.Module) -> list[Tensor]:
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    return [*module.parameters(), *buffers]


def laid(task: Task) -> tuple[Any, Any]:
    return task.layout.slices(), task.layout.shapes


def test_the_reward_is_measured_before_the_noise() -> None:
    quiet, loud = (
        Member(CoFedMID(**RECYCLING)),
        Member(CoFedMID(**{**RECYCLING, "perturbation": "scalar"}, sigma=9.0)),
    )
    for number in (3, 4, 5):
        one, plain, _ = quiet.round(number)
        other, noisy, _ = loud.round(number)
        assert not torch.equal(plain, noisy)
    assert one.counters["reward"] == other.counters["reward"]


def test_what_is_remembered_survives_a_checkpoint() -> None:
    straight, broken = Member(CoFedMID(**RECYCLING)), Member(CoFedMID(**RECYCLING))
    for number in range(3, 9):
        _, expected, _ = straight.round(number)
        before = {name: tensor.clone() for name, tensor in broken.memory.items()}
        handed = broken.memory
        _, found, _ = broken.round(number)
        assert torch.equal(found, expected)
        assert all(torch.equal(handed[name], before[name]) for name in before), "assigned anew, not changed"
        # Through plain arrays and back, as a file would have it.
        stored = {name: tensor.numpy().copy() for name, tensor in broken.memory.items()}
        broken.memory = {name: torch.from_numpy(array) for name, array in stored.items()}
    for name, tensor in straight.memory.items():
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, broken.memory[name])


def begun_turn(defence: CoFedMID, recycled: list[bool] | None, **fields: Any) -> Turn:
    turn = turn_of(circle_of(), **fields)
    plan = defence.coordinator(circle_of()).plan(turn.number, turn.present)
    flags = None if recycled is None else torch.tensor(recycled)
    turn.tool = Stint(plan, torch.zeros(2), flags)
    return turn


@pytest.mark.parametrize("target", ["predicted", "onehot", "hamp"])
def test_only_recycled_examples_are_regularised(target: Any) -> None:
    defence = CoFedMID(cr_target=target, regularisation=0.2, gamma=0.7)
    logits, y = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 5, 2, 9])
    losses = F.cross_entropy(logits, y, reduction="none")
    turn = begun_turn(defence, [False, True, False, True, True, False])
    batch = Batch.of(torch.zeros(4, 3), y, torch.tensor([4, 0, 5, 1]))
    made = defence.on_loss(losses, logits, batch, turn)
    extra = regularisation(logits, y, target, 0.2, 0.7)
    expected = [losses[0] + extra[0], losses[1], losses[2], losses[3] + extra[3]]
    torch.testing.assert_close(made, torch.stack(expected))
    # Its mean: cross-entropy over all, and the sum over the recycled ones by the size of the batch.
    torch.testing.assert_close(made.mean(), losses.mean() + (extra[0] + extra[3]) / 4)
    torch.testing.assert_close(turn.tool.tally, torch.tensor([2.0, float(extra[0] + extra[3])]))


def test_mixed_examples_are_regularised_by_their_weights() -> None:
    defence = CoFedMID()
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    one, other, share = torch.tensor([1, 5]), torch.tensor([2, 2]), torch.tensor([0.3, 0.8])
    batch = Batch(torch.zeros(2, 3), ((one, share), (other, 1 - share)), torch.tensor([1, 0]))
    losses = torch.zeros(2)
    made = defence.on_loss(losses, logits, batch, begun_turn(defence, [True, True]))
    parts = [regularisation(logits, y, "predicted", 0.005, 0.5) for y in (one, other)]
    torch.testing.assert_close(made, share * parts[0] + (1 - share) * parts[1])


def test_losses_are_as_they_were_where_nothing_is_recycled() -> None:
    losses, logits, y = torch.ones(2), torch.zeros(2, 10), torch.tensor([0, 1])
    placed_batch, unplaced = Batch.of(torch.zeros(2, 3), y, torch.tensor([0, 1])), Batch.of(torch.zeros(2, 3), y)
    for defence, recycled, batch in (
        (CoFedMID(), None, placed_batch),
        (CoFedMID(cr_target="none"), [True, True], placed_batch),
        (CoFedMID(), [True, True], unplaced),
    ):
        assert defence.on_loss(losses, logits, batch, begun_turn(defence, recycled)) is losses


def test_what_was_regularised_is_counted() -> None:
    member = Member(CoFedMID(**RECYCLING))
    member.round(3)
    turn, _, _ = member.round(4)
    assert turn.counters["regularised"] == turn.counters["examples_recycled"] > 0, "each once in an epoch"
    assert turn.counters["regularisation"] != 0


def update_of(task: Task) -> Tensor:
    return torch.randn(task.layout.size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("form", ["scalar", "vector"])
@pytest.mark.parametrize("tail", [0.2, 1.0])
def test_noise_falls_on_the_tail_of_the_trained_parameters(form: Any, tail: float) -> None:
    defence = CoFedMID(**NOISE, perturbation=form, tail=tail)
    turn = begun_turn(defence, None)
    layout, update = turn.task.layout, update_of(turn.task)
    before = update.clone()
    found = defence.on_update(update, turn)
    assert torch.equal(update, before), "not in place"
    first = layout.trained - math.floor(tail * layout.trained)
    assert layout.size > layout.trained, "BatchNorm's buffers lie behind"
    assert torch.equal(found[:first], update[:first])
    assert torch.equal(found[layout.trained :], update[layout.trained :])
    moved = (found - update)[first : layout.trained]
    spread = float(moved.max() - moved.min())
    assert spread < 1e-6 if form == "scalar" else spread > 0.05, "one number, or one for each"
    assert len(torch.unique(moved)) > len(moved) // 2 or form == "scalar"
    assert (moved != 0).all()
    added = defence.noise(circle_of(), 1, [0, 1], 0, layout)
    assert added is not None
    torch.testing.assert_close((update.double() + added).float(), found, rtol=0, atol=0)
    assert defence.disturbed(layout) == layout.trained - first
    assert turn.counters["noise_rms"] == pytest.approx(moved.double().square().mean().sqrt().item(), rel=1e-3)
    assert (turn.counters["perturbed"], turn.counters["unperturbed"], turn.counters["changed"]) == (1, 0, 1)


@pytest.mark.parametrize("form", ["scalar", "vector"])
def test_the_members_noise_cancels_in_float32(form: Any) -> None:
    # Acceptance check 1, on what the members upload, with uneven weights and one of them absent.
    volumes = {0: 40.0, 1: 700.0, 2: 333.0, 3: 90.0, 4: 5.0}
    circle, defence = circle_of(volumes), CoFedMID(**NOISE, perturbation=form, members="half", tail=0.5)
    present = (0, 1, 2, 4)
    total, size = sum(volumes[k] for k in present), 0
    mean = torch.zeros(task_of().layout.size, dtype=torch.float64)
    for client in present:
        turn = turn_of(circle, 5, client, present=present)
        update = update_of(turn.task) * 0.01 * (client + 1)
        with Guard([(defence, turn)]).training(0):
            pass
        found = defence.on_update(update, turn)
        mean += volumes[client] / total * (found.double() - update.double())
        size += int((found != update).sum())
    assert size > 100
    assert float(mean.abs().max()) <= 1e-6


def test_a_member_by_itself_adds_nothing_and_says_so() -> None:
    defence = CoFedMID(**NOISE)
    turn = begun_turn(defence, None, present=(0,))
    update = update_of(turn.task)
    assert defence.on_update(update, turn) is update
    assert (turn.counters["perturbed"], turn.counters["unperturbed"], turn.counters["changed"]) == (0, 1, 0)
    assert defence.noise(circle_of(), 1, [0], 0, turn.task.layout) is None
    assert defence.noise(circle_of({0: 1.0, 1: 1.0, 2: 1.0}), 1, [0, 1], 2, turn.task.layout) is None, "absent"
    alone = CoFedMID(**NOISE, mode="alone")
    turn = begun_turn(alone, None, present=(0,))
    assert not torch.equal(alone.on_update(update, turn), update)


def noised(defence: CoFedMID, circle: Circle, number: int, client: int) -> Turn:
    """A turn in which a member's update got its noise."""
    turn = turn_of(circle, number, client)
    turn.tool = Stint(defence.coordinator(circle).plan(number, turn.present), torch.zeros(2))
    defence.on_update(update_of(turn.task), turn)
    return turn


def test_noise_that_is_faint_by_necessity_is_counted() -> None:
    circle = circle_of({0: 1000.0, 1: 1.0})
    defence = CoFedMID(**NOISE, perturbation="vector")
    assert [noised(defence, circle, 1, client).counters["faint"] for client in (0, 1)] == [1, 0]


def test_noise_that_is_faint_by_bad_luck_is_counted() -> None:
    total: dict[str, float] = {}
    for number in range(1, 301):
        turn = noised(CoFedMID(**NOISE), circle_of(), number, 0)
        added = CoFedMID(**NOISE).noise(circle_of(), number, [0, 1], 0, turn.task.layout)
        assert added is not None
        assert turn.counters["faint"] == float(added.abs().max() < 0.1 / 4)
        for name, n in turn.counters.items():
            total[name] = total.get(name, 0) + n
    # Of two with equal weights each adds normal noise of sigma / sqrt(2): 27.6 % of it is within sigma / 4.
    share = CoFedMID().told(total)["faint_share"]
    expected = math.erf(math.sqrt(2) / 4 / math.sqrt(2))
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 300))
    vector = [noised(CoFedMID(**NOISE, perturbation="vector", tail=1.0), circle_of(), n, 0) for n in range(1, 20)]
    assert not any(turn.counters["faint"] for turn in vector)


def test_intervals_hold_equally_many_of_all_the_members_examples() -> None:
    """Of those that it trains on in that round alone they would not."""
    member = Member(CoFedMID(**RECYCLING, intervals=4))
    turn, _, seen = member.round(3)
    assert len(seen) < len(member.data)
    task = task_of()
    each = task.losses(task.predict(task.state + 0.3, member.data), member.data.y).double()
    ordered = ((each - each.min()) / (each.max() - each.min())).sort().values
    assert turn.memory["edges"].tolist() == pytest.approx([0, *ordered[[25, 50, 75]].tolist(), 1], abs=1e-12)


def test_uploads_of_noise_alone_are_counted_and_remarked_on() -> None:
    defence = CoFedMID(m_max=3, m_min=3, compensation="none")
    own = classes_of(defence, 1)
    nothing = examples_of([y for y in range(10) for _ in range(5) if y not in own])
    turn, update, _ = Member(defence, data=nothing).round(1)
    added = defence.noise(circle_of(rounds=ROUNDS), 1, [0, 1], 0, turn.task.layout)
    assert added is not None
    assert torch.equal(update, added.float()), "plain to see"
    assert turn.counters["noise_alone"] == turn.counters["turns_without_examples"] == 1
    (said,) = defence.remarks(turn.counters)
    assert "1 of 1 noisy uploads were noise and nothing else" in said
    assert "the other's too" in said
    assert "other's" not in replace(defence, mode="alone").remarks(turn.counters)[0]
    assert replace(defence, sigma=0.0).remarks(turn.counters) == []
    full, _, _ = Member(defence).round(1)
    assert full.counters["noise_alone"] == 0
    assert defence.remarks(full.counters) == []


def test_noise_that_stayed_is_remarked_on() -> None:
    counters = {"rounds": 9.0, "members_lost": 3.0, "residual": 0.06, "residual_squares": 0.0025}
    (said,) = CoFedMID().remarks({**counters, "residual_rounds": 2.0})
    assert said.startswith("In 2 of 9 rounds noise stayed in the global model (3 of the members' answers got lost)")
    assert "0.03 root mean square" in said
    assert "and 0.05 in all, where sigma is 0.1." in said
    (unknown,) = CoFedMID().remarks({"rounds": 9.0, "members_lost": 3.0})
    assert unknown.endswith("left in the model is not known.")
    assert CoFedMID().remarks({"rounds": 9.0, "members_lost": 0.0}) == []
    assert CoFedMID().remarks({**counters, "residual": 0.0, "residual_squares": 0.0, "residual_rounds": 0.0}) == []
    assert CoFedMID(perturbation="none").remarks({**counters, "residual_rounds": 2.0}) == []
    assert CoFedMID(sigma=0.0).remarks({"rounds": 9.0, "members_lost": 3.0}) == []


def test_members_that_act_alone_draw_other_classes_and_noise() -> None:
    together, alone = CoFedMID(m_max=5, m_min=5), CoFedMID(m_max=5, m_min=5, mode="alone")
    shared = [len(classes_of(alone, n, 0) & classes_of(alone, n, 1)) for n in range(1, 21)]
    assert sum(shared) > 20
    assert not any(classes_of(together, n, 0) & classes_of(together, n, 1) for n in range(1, 21))
    layout = task_of().layout
    one, other = (alone.noise(circle_of(), 1, [0, 1], k, layout) for k in (0, 1))
    assert one is not None
    assert other is not None
    assert float((one + other).abs().max()) > 1e-3


@pytest.mark.parametrize(("batch", "m"), [(7, 49), (12, 48), (48, 48), (49, 49), (50, 49), (None, 49)])
def test_a_model_with_batch_norm_is_spared_a_step_of_one_example(batch: int | None, m: int) -> None:
    defence = CoFedMID(m_max=5, m_min=5, **PARTITION)
    own = classes_of(defence, 1)
    # Forty-nine examples of its classes and ten of each other.
    data = examples_of([y for y in range(10) for _ in range(9 if y == min(own) else 10)])
    turn = begun_turn(defence, None, batch=batch)
    kept = defence.on_data(data, turn)
    assert len(kept) == turn.counters["examples_assigned"] == m
    assert turn.counters["examples_left_out"] == len(data) - m
    without = begun_turn(defence, None, batch=batch, task=Task(nn.Linear(4, 10)))
    assert len(defence.on_data(data, without)) == 49
    one = begun_turn(defence, None, batch=batch)
    assert len(defence.on_data(examples_of([min(own)]), one)) == 0


def test_the_neutral_setting_touches_nothing() -> None:
    defence = neutral()
    assert is_neutral(defence)
    turn, data = turn_of(circle_of()), ten_each()
    guard = Guard([(defence, turn)])
    losses, update = torch.ones(2), update_of(turn.task)
    with guard.training(0):
        assert guard.on_data(data) is data
        assert (
            guard.on_loss(losses, torch.zeros(2, 10), Batch.of(torch.zeros(2, 3), torch.tensor([0, 1]))) is losses
        )
    assert guard.on_update(update) is update
    assert turn.counters == {}
    assert turn.memory == {}
    assert defence.settle(circle_of(), 1, [0, 1], {0: 1.0, 1: 1.0}, 1.0) == {}
    assert defence.settle(circle_of(), 1, [], {}, 1.0) == {}
    assert defence.remarks({"members_lost": 3.0, "rounds": 4.0}) == []
    assert defence.disturbed(turn.task.layout) == 0
    assert defence.noise(circle_of(), 1, [0, 1], 0, turn.task.layout) is None
    defence.check(ground_of(circle_of({0: 0.0, 1: 0.0}), validation=0))
    assert defence.cautions(ground_of(circle_of(), weights=None)) == []


def test_all_classes_and_no_noise_train_as_without() -> None:
    defence = CoFedMID(m_max=10, m_min=10, perturbation="none", compensation="none")
    turn, update, seen = Member(defence).round(4)
    _, plain, _ = Member(neutral()).round(4)
    assert torch.equal(update, plain)
    assert len(seen) == 100
    assert turn.counters["changed"] == 0


def test_the_same_turn_gives_the_same_bytes_whatever_the_order() -> None:
    defence = CoFedMID(**{**RECYCLING, "perturbation": "vector"})
    one, other = Member(defence), Member(defence)
    for number in (3, 4, 5):
        other.turn(number).rng.random()
        assert torch.equal(one.round(number)[1], other.round(number)[1])


def test_what_became_of_a_round() -> None:
    circle = circle_of({0: 30.0, 1: 50.0, 2: 20.0})
    defence = CoFedMID(m_max=6, m_min=6, members="half")
    plan = defence.coordinator(circle).plan(2, [0, 1, 2])
    assert plan.assignment is not None
    all_there = defence.settle(circle, 2, [0, 1, 2], {0: 30.0, 1: 50.0, 2: 20.0, 3: 60.0}, 1.0)
    assert all_there == {
        "rounds": 1,
        "classes_covered": 10,
        "overlap": plan.assignment.overlap,
        "overlap_allowed": plan.assignment.allowed,
        "restarts": plan.assignment.restarts,
        "messages": 3,
        "message_bytes": 3 * (6 * 2 + 16),
        "members_lost": 0,
        "residual": 0,
        "residual_squares": 0,
        "residual_rounds": 0,
    }
    lost = defence.settle(circle, 2, [0, 1, 2], {0: 30.0, 2: 20.0, 3: 60.0}, 2.5)
    layout = task_of().layout
    noise = [defence.noise(circle, 2, [0, 1, 2], k, layout) for k in range(3)]
    assert noise[0] is not None
    assert noise[2] is not None
    left = (30 * noise[0] + 20 * noise[2]) / 110
    assert lost["members_lost"] == 1
    assert lost["residual"] == pytest.approx(2.5 * float(left.abs().max()), rel=1e-9)
    assert lost["residual_squares"] == pytest.approx(lost["residual"] ** 2)
    assert lost["residual_rounds"] == 1
    nobody = defence.settle(circle, 2, [0, 1, 2], {3: 60.0}, 1.0)
    assert (nobody["members_lost"], nobody["residual"], nobody["residual_rounds"]) == (3, 0, 0)
    # Where the rule is no weighted mean, there is no telling what the noise comes to.
    unknown = defence.settle(circle, 2, [0, 1, 2], {0: 30.0, 2: 20.0, 3: 60.0}, None)
    assert unknown == {name: n for name, n in lost.items() if not name.startswith("residual")}
    assert defence.settle(circle, 2, [], {3: 60.0}, 1.0) == {}
    assert defence.settle(circle, 1, [], {3: 60.0}, 1.0) == {"messages": 3, "message_bytes": 24}, "their volumes"
    whole = CoFedMID(assignment="none").settle(circle, 2, [0, 1], {0: 30.0, 1: 50.0}, 1.0)
    assert (whole["classes_covered"], whole["overlap"], whole["overlap_allowed"]) == (10, 10, 10)


def test_what_is_told_are_means() -> None:
    assert CoFedMID().told({}) == {}
    told = CoFedMID().told(
        {
            **{"updates": 4, "classes": 20, "examples_assigned": 200, "examples_recycled": 8},
            **{"examples_left_out": 100, "perturbed": 2, "noise_rms": 0.3, "rewards": 5, "reward": 1.0},
            **{"rounds": 2, "overlap": 6, "regularised": 8, "regularisation": 4.0, "messages": 4, "faint": 1},
            **{"residual": 0.7, "residual_rounds": 2, "residual_squares": 0.25},
        }
    )
    assert told["mean_classes"] == 5
    assert told["mean_examples_assigned"] == 50
    assert told["mean_examples_recycled"] == 2
    assert told["mean_examples_left_out"] == 25
    assert told["mean_noise_rms"] == 0.15
    assert told["mean_reward"] == 0.2
    assert told["mean_residual"] == 0.35
    assert told["residual_rounds"] == 2
    assert told["residual_accumulated"] == 0.5
    assert told["faint_share"] == 0.5
    assert not {"residual_squares", "faint", "residual"} & set(told)
    assert told["mean_overlap"] == 3
    assert told["mean_regularisation"] == 0.5
    assert told["messages"] == 4


STRICT = {"coverage": "strict"}


@pytest.mark.parametrize(
    ("fields", "ground", "message"),
    [
        ({"m_max": 11}, {}, r"^m_max: got 11; expected 10 or fewer"),
        ({"m_max": 4, "m_min": 5}, {}, r"^m_min: got 5; expected 4 or fewer"),
        (
            STRICT,
            {},
            r"^coverage: got strict, but in round 20 2 members with m = 2 .* at most 4 of 10; expected m_min 5",
        ),
        (
            {**STRICT, "m_min": 5},
            {"cohort": 3},
            r"as few as 1 of 2 members with m = 5 .* at most 5 of 10; .* m_min 10",
        ),
        (
            {**STRICT, "assignment": "random"},
            {},
            r"^coverage: got strict with assignment random, .*; expected maximize",
        ),
        ({**STRICT, "mode": "alone"}, {}, r"^coverage: got strict with mode alone, .*; expected maximize"),
        ({"tail": 0.001}, {}, r"^tail: got 0.001, which is none of the model's 146 .*; expected 0.0068 or more"),
        ({}, {"validation": 0}, r"^compensation: got bandit, .* with validation 0; expected validation 1 or more"),
    ],
)
def test_what_the_run_cannot_do_is_refused(fields: dict[str, Any], ground: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CoFedMID(**fields).check(ground_of(circle_of(), **ground))


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_members_without_weight_are_refused(weight: float) -> None:
    circle = circle_of({0: 50.0, 1: weight})
    with pytest.raises(InputError, match=r"^members: got client 1, whose weight in the aggregation is"):
        CoFedMID().check(ground_of(circle))
    CoFedMID(perturbation="none").check(ground_of(circle))
    CoFedMID(sigma=0.0, tail=1e-9).check(ground_of(circle))


@pytest.mark.parametrize(
    ("fields", "ground"),
    [
        ({}, {}),
        ({"m_min": 5, **STRICT}, {}),
        ({"m_max": 10}, {}),
        ({"start": 20}, {"validation": 0}),
        ({"compensation": "random"}, {"validation": 0}),
        ({"compensation": "none"}, {"validation": 0}),
        ({"assignment": "none", "m_max": 99, **STRICT}, {"validation": 0}),
        ({"perturbation": "none", "tail": 0.001}, {}),
        ({"tail": 0.0069}, {}),
        ({}, {"weights": None}),
    ],
)
def test_what_the_run_can_do_is_not_refused(fields: dict[str, Any], ground: dict[str, Any]) -> None:
    CoFedMID(**fields).check(ground_of(circle_of(), **ground))


def test_a_coalition_of_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"^coalition\.members: got 1 member; expected 2 members or more"):
        seated([CoFedMID(members=(3,))], 5, ["coalition"])


def test_cautions_say_where_the_noise_does_not_cancel() -> None:
    def said(defence: CoFedMID, circle: Circle | None = None, **fields: Any) -> str:
        found = defence.cautions(ground_of(circle or circle_of(), **fields))
        assert all(one.endswith(".") for one in found)
        return " ".join(found)

    assert said(CoFedMID()) == ""
    assert "is no weighted mean: the members' noise does not cancel" in said(CoFedMID(), weights=None)
    assert said(CoFedMID(perturbation="none"), weights=None) == ""
    assert said(CoFedMID(sigma=0.0), weights=None) == ""
    assert "Each round invites 3 of 4 clients" in said(CoFedMID(), cohort=3)
    assert "act alone: their noise does not cancel" in said(CoFedMID(mode="alone"))
    lopsided = said(CoFedMID(), circle_of({0: 1000.0, 1: 1.0}))
    assert "Client 0 has nearly all" in lopsided
    assert "only 0.0001, where sigma is 0.1" in lopsided
    assert "Client 1" not in lopsided
    assert "Nothing is recycled: there are 20 rounds" in said(CoFedMID(start=20))
    assert "Nothing is recycled: no classes are left out" in said(CoFedMID(assignment="none"))
    lossy = "A share of 0.2 of the answers gets lost"
    assert lossy in said(CoFedMID(), dropout=0.2)
    assert said(CoFedMID(perturbation="none"), dropout=0.2) == ""
    assert lossy not in said(CoFedMID(), dropout=0.2, weights=None), "it does not cancel anyway"


def test_cautions_say_where_nothing_can_come_back() -> None:
    def said(defence: CoFedMID, *sizes: int, circle: Circle | None = None) -> list[str]:
        return defence.cautions(ground_of(circle or circle_of(), sizes))

    learns = "; the bandit learns from its choices all the same."
    # A twentieth of nineteen is none, of twenty one.
    assert said(CoFedMID(), 20, 20, 5) == []
    none = "Nothing is recycled: 0.05 of the member's examples is less than one"
    assert said(CoFedMID(), 19, 19, 50) == [none + learns]
    assert said(CoFedMID(compensation="random"), 19, 19, 50) == [none + "."]
    one = "Nothing is recycled by client 1: 0.05 of the member's examples is less than one"
    assert said(CoFedMID(), 20, 19, 50) == [one + learns]
    five = circle_of(dict.fromkeys(range(5), 10.0))
    assert "by clients 0, 2 and 4: 0.02 of" in said(CoFedMID(recycle=0.02), 40, 50, 40, 50, 40, circle=five)[0]
    many = circle_of(dict.fromkeys(range(12), 10.0))
    assert "by 11 members: 0.05 of" in said(CoFedMID(), 20, *[19] * 11, circle=many)[0]
    whole = said(CoFedMID(m_max=10, m_min=10), 50, 50)
    assert whole == ["Nothing is recycled: each member trains on all 10 classes in every round" + learns]
    assert said(CoFedMID(m_max=10, m_min=9), 50, 50) == []
    assert said(CoFedMID(m_max=10, m_min=10, compensation="none"), 19, 19) == []
    assert len(said(CoFedMID(start=20), 19, 19)) == 1


@pytest.mark.parametrize(
    "field",
    [
        *[{"m_max": 0}, {"m_min": 0}, {"start": 0}, {"intervals": 0}, {"recycle": 0.0}, {"recycle": 1.1}],
        *[{"exploration": 0.0}, {"step": -1.0}, {"history": 1}, {"regularisation": -0.1}, {"sigma": -0.1}],
        *[{"tail": 0.0}, {"tail": 1.5}, {"mode": "apart"}, {"decay": "step"}, {"coverage": "some"}],
        *[{"cr_target": "soft"}, {"members": "most"}, {"members": []}, {"gamma": 2.0}, {"perturbation": "matrix"}],
    ],
)
def test_bad_settings_are_refused_by_name(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(InputError, match=rf"^coalition\.{name}"):
        build("coalition", {"name": "cofedmid", **field}, "coalition")


def test_it_is_listed_with_its_paper_and_what_its_fields_mean() -> None:
    entry = index()["coalition", "cofedmid"]
    assert "arXiv 2601.06866" in entry.doc
    assert entry.paper
    assert all(field.doc.endswith(".") for field in entry.fields)
    assert build("coalition", "cofedmid", "coalition") == CoFedMID()


@pytest.mark.parametrize(
    ("share", "n", "expected"), [(0.29, 100, 29), (0.05, 19, 0), (0.05, 20, 1), (0.3, 10, 3), (1.0, 7, 7)]
)
def test_shares_are_rounded_down_but_not_by_an_ulp(share: float, n: int, expected: int) -> None:
    assert share_of(share, n) == expected


def test_labels_may_be_of_any_kind_of_integer() -> None:
    defence = CoFedMID(m_max=5, m_min=5, **PARTITION)
    data = ten_each()
    turn = begun_turn(defence, None)
    found = defence.on_data(replace(data, y=data.y.to(torch.int32)), turn)
    assert np.isin(found.y.numpy(), sorted(classes_of(defence, 1))).all()
