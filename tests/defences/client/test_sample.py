"""How many steps of an epoch are trained, which ones, and shares that would leave none."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from turns import examples_of, flat_task, ground_of, guard_of, turn_of

from fedsiege.defences.client.base import Part
from fedsiege.defences.client.sample import Sample
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, parts, train


@pytest.mark.parametrize(("share", "steps", "kept"), [(0.5, 10, 5), (0.5, 7, 3), (0.99, 10, 9), (1.0, 3, 3)])
def test_the_first_steps_of_an_epoch_are_kept(share: float, steps: int, kept: int) -> None:
    whole: list[Part] = parts(steps * 4, 4)
    turn = turn_of(flat_task(4, 3))
    assert Sample(share=share).on_epoch(whole, turn) == whole[:kept]
    assert (turn.counters["steps"], turn.counters["left_out"]) == (kept, steps - kept)


def test_training_ends_each_epoch_early_and_shuffles_the_next_one() -> None:
    data = examples_of(torch.randn(22, 5, generator=torch.Generator().manual_seed(1)))
    module = seeded(lambda: nn.Linear(5, 10), 0)
    training = Training(epochs=3, batch=4, lr=0.1, momentum=0.0, weight_decay=0.0)
    task = Task(seeded(lambda: nn.Linear(5, 10), 0))
    start, turn = task.state.clone(), turn_of(Task(nn.Linear(5, 10)))
    defence = Sample(share=0.5)
    update = train(task, start, data, training, 0.1, stream(0, "c"), guard_of(defence, turn))

    rng = stream(0, "c")
    rng.spawn(1)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    trained_on = []
    for _ in range(3):
        order = rng.permutation(22)
        # Six batches, the last of two; three are trained.
        for first in (0, 4, 8):
            rows = order[first : first + 4]
            trained_on.append(frozenset(rows.tolist()))
            optimiser.zero_grad()
            F.cross_entropy(module(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
    plain = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(start + update, plain)
    assert len(set(trained_on)) == 9
    assert defence.told(turn.counters) == {"steps": 9, "left_out": 9, "trained_share": 0.5}


def test_a_share_that_leaves_a_client_no_step_names_it_and_the_smallest_one() -> None:
    x = torch.zeros(5, 4)
    # Steps of an epoch: 10, 3 and 4.
    ground = ground_of(x, (100, 25, 39))
    Sample(share=0.34).check(ground)
    with pytest.raises(InputError, match=r"^share: got 0.3, .* client 1 none of the 3 steps .* 0\.3334 or more"):
        Sample(share=0.3).check(ground)
    Sample(share=0.3).check(ground_of(x, (100, 25, 39), using=(0, 2)))
    with pytest.raises(InputError, match=r"client 0 none of the 1 step of an epoch; expected 1 or more"):
        Sample(share=0.99).check(ground_of(x, (100,), batch=None))


def test_an_epoch_that_became_shorter_is_not_left_empty() -> None:
    turn = turn_of(flat_task(4, 3))
    assert Sample(share=0.5).on_epoch(parts(4, 4), turn) == parts(4, 4), (
        "what it gets in this round, not all its data"
    )
    assert Sample(share=0.3).on_epoch(parts(12, 4), turn) == parts(4, 4)
    assert (turn.counters["steps"], turn.counters["left_out"]) == (2, 2)
    assert Sample(share=0.5).on_epoch([], turn) == []
    assert Sample(share=0.5).told(turn.counters) == {"steps": 2, "left_out": 2, "trained_share": 0.5}


def test_the_smallest_share_that_the_message_names_is_enough() -> None:
    ground = ground_of(torch.zeros(1, 4), (1,), batch=1)
    for steps in range(1, 1000):
        other = replace(ground, sizes=(steps,))
        with pytest.raises(InputError) as caught:
            Sample(share=1e-9).check(other)
        Sample(share=float(str(caught.value).partition("expected ")[2].split()[0])).check(other)


def test_share_1_trains_all_and_has_left_out_nothing() -> None:
    turn = turn_of(flat_task(4, 3))
    whole = parts(20, 4)
    assert Sample(share=1.0).on_epoch(whole, turn) == whole
    assert turn.counters[Sample.proof] == 0


@pytest.mark.parametrize("share", [0, -0.5, 1.1, "half"])
def test_bad_shares_of_steps_are_refused_by_name(share: Any) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.share: got {share!r}"):
        build("client_defence", {"name": "sample", "share": share}, "defences.0")
