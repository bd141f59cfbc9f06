"""DBA: who plants which part of the trigger, and by what each attacker's own update is scaled."""

from typing import Any

import pytest
import torch
from backdoored import MARK, Stamp, Still, backdoor_of, client, plot_of, rounds_of, scene_of
from torch import Tensor

from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.attacks.poisoning.dba import DBA
from fedsiege.attacks.poisoning.mixing import mixed
from fedsiege.errors import InputError
from fedsiege.records import Examples

SPLIT = Stamp(3)


class Noting(Stamp):
    """A split trigger that keeps which of its parts were stamped."""

    def __init__(self, parts: int) -> None:
        super().__init__(parts)
        self.stamps_of: list[int | None] = []

    def stamped(self, x: Tensor, y: Tensor, target: int, part: int | None = None) -> tuple[Tensor, Tensor]:
        self.stamps_of.append(part)
        return super().stamped(x, y, target, part)


def shards(count: int = 6) -> list[Examples]:
    return [client(number) for number in range(count)]


def planted(trigger: Noting, **given: Any) -> list[list[int | None]]:
    """The parts that were stamped in each round, once each, in their order."""
    found: list[list[int | None]] = []
    campaign = Campaign(DBA(poisoned=2), "dba", backdoor=backdoor_of(trigger), **given)
    trigger.stamps_of.clear()
    rounds = rounds_of(campaign, shards(), rounds=max(campaign.rounds), engine=Once(trigger, found))
    assert len(rounds) == len(found)
    found.append(list(dict.fromkeys(trigger.stamps_of)))
    return found[1:]


class Once(Still):
    """Notes, at the beginning of each round, what was stamped in the one before."""

    def __init__(self, trigger: Noting, found: list[list[int | None]]) -> None:
        self.trigger, self.found = trigger, found

    def answers(self, *args: Any) -> Any:
        self.found.append(list(dict.fromkeys(self.trigger.stamps_of)))
        self.trigger.stamps_of.clear()
        return super().answers(*args)


def test_attackers_of_a_round_plant_a_part_each_and_share_where_there_are_more_of_them() -> None:
    assert planted(Noting(3), compromised=(1, 2, 4), rounds=(1,)) == [[0, 1, 2]]
    assert planted(Noting(2), compromised=(0, 1, 2, 4), rounds=(1,)) == [[0, 1]]


def test_attackers_that_take_turns_plant_the_next_part_each_and_keep_it() -> None:
    found = planted(Noting(3), compromised=(1, 2, 4), rounds=(1, 2, 4, 5), one_by_one=True)
    assert found == [[0], [1], [], [2], [0]]


def test_parts_go_by_the_order_of_the_list_and_not_by_the_clients_numbers() -> None:
    found = planted(Noting(4), compromised=(4, 2, 5, 1), rounds=(1, 2, 3, 4), one_by_one=True)
    assert found == [[0], [1], [2], [3]], "who is first in the list has the first part, and the first turn"
    assert planted(Noting(4), compromised=(4, 2, 5, 1), rounds=(1,)) == [[3, 1, 0, 2]], "of clients 1, 2, 4 and 5"
    assert planted(Noting(2), compromised=(4, 2, 1), rounds=(1,)) == [[0, 1]], "of 1, 2 and 4: 0, 1 and 0"


def test_whoever_is_there_plants_its_own_part_in_every_round() -> None:
    attack, trigger = DBA(poisoned=2), Noting(3)
    memory: Any = {}
    counted, parts = [], []
    for clients in ((2, 7), (7,), (4, 9), (2, 4)):
        trigger.stamps_of.clear()
        scene = scene_of(
            [client(0)] * len(clients),
            clients=clients,
            compromised=(7, 4, 2, 9),
            backdoor=backdoor_of(trigger),
            memory=memory,
        )
        trigger.stamps_of.clear()
        attack.poison_updates(scene)
        memory = scene.memory
        parts.append(list(dict.fromkeys(trigger.stamps_of)))
        counted.append(scene.counters["parts"])
    assert parts == [[2, 0], [0], [1, 0], [2, 1]]
    assert counted == [2, 0, 1, 0], "parts that nobody had planted before"
    assert memory["planted"].tolist() == [0, 1, 2]


def test_each_attacker_sends_its_own_model_trained_with_its_own_part() -> None:
    attack, backdoor, own = DBA(poisoned=2, gamma=3.0), backdoor_of(SPLIT), [client(0), client(1)]
    scene = scene_of(own, backdoor=backdoor, clients=(5, 8))
    rows = attack.poison_updates(scene)
    for place, (number, shard) in enumerate(zip((5, 8), own, strict=True)):
        same = scene_of([shard], backdoor=backdoor, clients=(number,))
        update, _ = mixed(same, attack, shard, number, part=place)
        assert torch.equal(rows[place], 3 * update)
        other, _ = mixed(same, attack, shard, number, part=1 - place)
        assert not torch.equal(update, other)
    told = attack.told(scene.counters)
    assert (told["poisoned_updates"], told["mean_gamma"], told["parts"]) == (2, 3, 2)


@pytest.mark.parametrize(
    ("step", "weights", "gamma"),
    [(0.1, (0.1,), 100.0), (0.1, (0.1,) * 4, 25.0), (1.0, (0.2, 0.3), 2.0)],
)
def test_auto_is_full_replacement_by_those_who_attack_in_the_round(
    step: float, weights: tuple[float, ...], gamma: float
) -> None:
    """The code's 100 is what one of its ten clients needs at its server step of 0.1."""
    own = [client(number) for number in range(len(weights))]
    scene = scene_of(own, backdoor=backdoor_of(SPLIT), weights=weights, step=step)
    DBA(poisoned=2).poison_updates(scene)
    assert scene.counters["gamma"] == pytest.approx(gamma * len(weights))
    plain = scene_of(own, backdoor=backdoor_of(SPLIT), weights=weights, step=None)
    DBA(poisoned=2, gamma=None).poison_updates(plain)
    assert plain.counters["gamma"] == len(weights)


def test_the_next_global_model_is_the_weighted_mean_of_the_attackers_models() -> None:
    every = [client(number, 12 + 4 * number) for number in range(5)]
    attack, backdoor = DBA(poisoned=2), backdoor_of(SPLIT)
    (done,) = rounds_of(Campaign(attack, "dba", (1, 4), (1,), backdoor), every, engine=Still(), server_step=0.3)
    scene = scene_of([every[1], every[4]], number=1, start=done.start, backdoor=backdoor, clients=(1, 4))
    first, second = (
        mixed(scene, attack, every[number], number, part=part)[0] for part, number in enumerate((1, 4))
    )
    expected = (16 * first + 28 * second) / 44
    torch.testing.assert_close(done.end - done.start, expected, rtol=1e-4, atol=1e-6)


def test_the_whole_trigger_is_the_union_of_its_parts() -> None:
    x, y = client(0).x, client(0).y
    whole, _ = SPLIT.stamped(x, y, 2)
    assert (whole[:, 3:] == MARK).all()
    assert torch.equal(whole[:, :3], x[:, :3])


def test_what_cannot_be_is_refused_before_the_first_round() -> None:
    DBA().check(plot_of(backdoor=backdoor_of(SPLIT)))
    with pytest.raises(InputError, match=r"^trigger: dba splits it among attackers, and Stamp is one piece"):
        DBA().check(plot_of())
    with pytest.raises(InputError, match=r"^gamma: got auto; aggregator krum"):
        DBA().check(plot_of(backdoor=backdoor_of(SPLIT), rule="krum", step=None))
    DBA(gamma=100.0).check(plot_of(backdoor=backdoor_of(SPLIT), step=None))
    DBA(gamma=None).check(plot_of(backdoor=backdoor_of(SPLIT), step=None))
    with pytest.raises(InputError, match=r"^poisoned: got 5 of every 4"):
        DBA(batch=4).check(plot_of(backdoor=backdoor_of(SPLIT)))
