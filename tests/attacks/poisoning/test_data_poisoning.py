"""Data poisoning: honest training on mixed batches, each attacker on its own data, and nothing scaled."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backdoored import HONEST, TARGET, Found, backdoor_of, client, plot_of, scene_of

from fedsiege.attacks.poisoning.data_poisoning import DataPoisoning
from fedsiege.errors import InputError
from fedsiege.training import Training


def test_each_attacker_sends_what_a_plain_loop_over_its_mixed_batches_trains() -> None:
    shards, attack = [client(0), client(1, 16)], DataPoisoning(poisoned=2, noise=0.0)
    scene = scene_of(shards, clients=(4, 9))
    rows = attack.poison_updates(scene)
    assert rows.shape == (2, scene.task.layout.size)
    for row, number, shard in zip(rows, scene.clients, shards, strict=True):
        scene.task.load(scene.start)
        module = copy.deepcopy(scene.task.module)
        module.train()
        backdoor, rng, order = scene.backdoor, scene.rng("triggers", number), scene.rng("train", number)
        assert backdoor is not None
        order.spawn(1)
        optimiser = torch.optim.SGD(
            module.parameters(), lr=HONEST.lr, momentum=HONEST.momentum, weight_decay=HONEST.weight_decay
        )
        for _ in range(HONEST.epochs):
            for taken in torch.as_tensor(order.permutation(len(shard))).split(8):
                x, y = shard.x[taken].clone(), shard.y[taken].clone()
                x[:2], y[:2] = backdoor.drawn(shard, 2, rng)
                optimiser.zero_grad()
                F.cross_entropy(module(x), y).backward()
                optimiser.step()
        tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
        naive = torch.cat([t.detach().reshape(-1) for t in tensors]) - scene.start
        torch.testing.assert_close(row, naive, rtol=1e-4, atol=1e-6)
    told = attack.told(scene.counters)
    assert told["poisoned_updates"] == 2
    assert told["mean_gamma"] == 1
    assert told["mean_sent_norm"] == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)
    assert (told["steps"], told["epochs"], told["early_stops"]) == (2 * (3 + 2), 2 * HONEST.epochs, 0)
    assert told["poisoned_examples"] == 2 * 2 * (3 + 2)


def test_an_honest_learning_rate_epochs_and_batch_are_the_default() -> None:
    plain = DataPoisoning(poisoned=2).poison_updates(scene_of())
    same = DataPoisoning(poisoned=2, lr=HONEST.lr, epochs=HONEST.epochs, batch=HONEST.batch).poison_updates(
        scene_of()
    )
    assert torch.equal(plain, same)
    other = DataPoisoning(poisoned=2, lr=HONEST.lr / 2).poison_updates(scene_of())
    assert not torch.equal(plain, other)


def test_a_falling_rate_and_an_early_stop_have_their_say() -> None:
    scene = scene_of()
    DataPoisoning(poisoned=2, epochs=30, stop=0.3).poison_updates(scene)
    assert 1 < scene.counters["epochs"] < 30
    assert scene.counters["early_stops"] == 1
    slow = DataPoisoning(poisoned=2, epochs=2, step_every=1, step_rate=1e9).poison_updates(scene_of())
    fast = DataPoisoning(poisoned=2, epochs=2).poison_updates(scene_of())
    assert slow.norm() < fast.norm()


def test_a_last_smaller_batch_has_as_large_a_share_of_triggered_examples() -> None:
    """Of batches as large as honest clients', too."""
    for batch in (None, 8):
        scene = scene_of([client(0, 20)])
        DataPoisoning(poisoned=4, epochs=1, batch=batch).poison_updates(scene)
        assert scene.counters["poisoned_examples"] == 4 + 4 + 2


def test_one_plain_step_on_everything_is_poisoned_too() -> None:
    scene = scene_of(training=Training(algorithm="fedsgd", lr=0.1), lr=0.1)
    DataPoisoning(poisoned=5).poison_updates(scene)
    assert (scene.counters["steps"], scene.counters["poisoned_examples"]) == (1, 5)


def test_an_attacker_with_nothing_to_stamp_says_so() -> None:
    shards = [client(0), replace(client(1), y=torch.full((24,), TARGET))]
    scene = scene_of(shards)
    DataPoisoning(poisoned=2).poison_updates(scene)
    assert scene.counters["poisoned_updates"] == 1
    assert scene.counters["nothing_planted"] == 1


@pytest.mark.parametrize("own", [None, client(7, 5)])
def test_colluders_do_not_share_their_streams(own: Any) -> None:
    backdoor = backdoor_of(Found(), own) if own else backdoor_of()
    first, second = DataPoisoning(poisoned=2).poison_updates(scene_of([client(0), client(0)], backdoor=backdoor))
    assert not torch.equal(first, second)


def test_what_cannot_be_is_refused_before_the_first_round() -> None:
    DataPoisoning().check(plot_of(step=None, attacks=1))
    with pytest.raises(InputError, match="backdoor"):
        DataPoisoning().check(plot_of(backdoor=None))
    with pytest.raises(InputError, match=r"^poisoned: got 20 of every 8 examples"):
        DataPoisoning(batch=8).check(plot_of())
    for batch in (19, 20):
        with pytest.raises(InputError, match=rf"^poisoned: got 20 of every {batch} examples; expected fewer than"):
            DataPoisoning().check(plot_of(training=Training(batch=batch)))
    DataPoisoning().check(plot_of(training=Training(batch=21)))
    DataPoisoning(batch=21).check(plot_of(training=Training(batch=8)))


def test_a_step_on_all_of_an_attackers_data_must_leave_clean_examples_to_each_of_them() -> None:
    one_step = plot_of(training=Training(algorithm="fedsgd", batch=19), compromised=(0, 2), sizes=(30, 5, 21))
    DataPoisoning(poisoned=20).check(one_step)
    message = r"^poisoned: got 21 of a step that takes all of an attacker's 21 examples; expected fewer than 21$"
    with pytest.raises(InputError, match=message):
        DataPoisoning(poisoned=21).check(one_step)
    DataPoisoning(poisoned=21).check(replace(one_step, sizes=()))
    DataPoisoning(poisoned=21, batch=22).check(one_step)
    with pytest.raises(InputError, match=r"^poisoned: got 20 of every 19 examples"):
        DataPoisoning(poisoned=20, epochs=2).check(one_step)  # who has epochs of its own trains in batches
