"""Compromised clients in the protocol: who attacks when, what they see, and what becomes of every answer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedsiege.aggregators.base import Aggregator, Server, Treatment
from fedsiege.aggregators.fedavg import FedAvg
from fedsiege.attacks.poisoning.base import Poisoner, Scene
from fedsiege.attacks.poisoning.campaign import Campaign, Compromised
from fedsiege.defences.client.base import ClientDefence, Posted, Turn
from fedsiege.defences.coalition.base import Circle, Coalition, Members, gathered, seated
from fedsiege.defences.server.base import ServerDefence, without
from fedsiege.errors import InputError
from fedsiege.federation.adversary import ADVERSARY
from fedsiege.federation.checkpoint import Checkpoint, read, save
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation, invited_to, lost
from fedsiege.federation.server import Command, Guarding, Trail
from fedsiege.federation.state import Answer, ModelLostError, Models, State
from fedsiege.records import NOTHING, Cohort, Counters, Examples, Fate, Memory, Round, joined
from fedsiege.task import Task, seeded
from fedsiege.training import Training

K, CLASSES, SEED = 6, 3, 11
TRAINING = Training(epochs=1, batch=4, lr=0.1)


def task() -> Task:
    return Task(seeded(lambda: nn.Linear(4, CLASSES), 0))


def shards() -> tuple[Examples, ...]:
    """Clients of 6, 8, 10, ... examples."""
    made = []
    for client in range(K):
        rng = torch.Generator().manual_seed(client)
        size = 6 + 2 * client
        x, y = torch.randn(size, 4, generator=rng), torch.randint(0, CLASSES, (size,), generator=rng)
        made.append(Examples(np.array([f"{client}.{i}" for i in range(size)]), x, y))
    return tuple(made)


class Asked(LocalEngine):
    """Notes whom it was asked for."""

    def __init__(self) -> None:
        self.clients: list[list[int]] = []

    def answers(
        self, federation: Federation, number: int, invited: list[int], models: Models, memory: Memory = NOTHING
    ) -> Iterator[Answer]:
        self.clients.append(list(invited))
        yield from super().answers(federation, number, invited, models, memory)


class Scripted(LocalEngine):
    """An engine whose honest answers are given."""

    def __init__(self, rows: Mapping[int, list[float]]) -> None:
        self.rows = rows

    def answers(
        self, federation: Federation, number: int, invited: list[int], models: Models, memory: Memory = NOTHING
    ) -> Iterator[Answer]:
        for client in invited:
            yield Answer(client, torch.tensor(self.rows[client]), 1.0, 0)


@dataclass
class Sends(Poisoner):
    """Sends its client's number plus 100 in every coordinate, and notes what it saw."""

    title = "Sends"
    knowledge: str = "partial"
    everything: bool = False
    scenes: list[Scene] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)
    rows: Tensor | None = None

    @property
    def uses_others(self) -> bool:
        return self.everything

    def poison_updates(self, scene: Scene) -> Tensor:
        self.scenes.append(scene)
        scene.count("poisoned_updates", len(scene.clients))
        if self.rows is not None:
            return self.rows
        return torch.stack([torch.full_like(scene.start, 100.0 + client) for client in scene.clients])

    def observe(self, scene: Scene, end: Tensor) -> None:
        before = scene.memory.get("rounds", torch.zeros(1))
        scene.memory = {"rounds": before + 1, f"seen in {scene.number}": end.clone()}
        self.ends.append(end)


class Whole(Aggregator):
    """The unweighted mean as a rule that reads the whole cohort."""

    def __call__(self, cohort: Cohort, server: Server) -> tuple[Tensor, Treatment]:
        return cohort.updates.mean(0), Treatment.plain(len(cohort.updates), {"rows": len(cohort.updates)})


def campaign(poisoner: Poisoner | None = None, **options: Any) -> Campaign:
    known: dict[str, Any] = {"label": "attack", "compromised": (1, 4), "rounds": (2, 4)}
    return Campaign(poisoner or Sends(), **{**known, **options})


def federation(**options: Any) -> Federation:
    known: dict[str, Any] = {
        "task": task(),
        "shards": shards(),
        "training": TRAINING,
        "aggregator": FedAvg(),
        "engine": LocalEngine(),
        "rounds": 5,
        "seed": SEED,
        "classes": CLASSES,
    }
    return Federation(**{**known, **options})


def first() -> State:
    return State(0, Models((task().state.clone(),)))


def all_rounds(**options: Any) -> list[Round]:
    return list(federation(**options).run(first()))


def scripted(rows: Mapping[int, list[float]], **options: Any) -> Round:
    """One round with given honest updates of two entries; all weigh the same."""
    known: dict[str, Any] = {"engine": Scripted(rows), "rounds": 1, "aggregator": FedAvg(weighted=False)}
    made = federation(**{**known, **options})
    return next(made.run(State(0, Models((torch.zeros(2),)))))


# Who is compromised, and who attacks when.


@pytest.mark.parametrize(
    ("given", "numbers"),
    [({}, (0,)), ({"clients": 3}, (3,)), ({"clients": [4, 1, 4]}, (4, 1)), ({"share": 1.0}, tuple(range(10)))],
)
def test_the_compromised_clients_are_those_named(given: dict[str, Any], numbers: tuple[int, ...]) -> None:
    assert Compromised(**given).numbers(10, SEED) == numbers


def test_a_share_of_the_clients_is_drawn_for_the_run() -> None:
    drawn = [Compromised(share=0.3).numbers(10, seed) for seed in range(300)]
    assert all(len(set(one)) == 3 and one == tuple(sorted(one)) for one in drawn)
    assert all(set(one) <= set(range(10)) for one in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert abs(counts - 90).max() < 5 * np.sqrt(300 * 0.3 * 0.7)
    assert drawn[7] == Compromised(share=0.3).numbers(10, 7)
    assert len(Compromised(share=0.01).numbers(10, SEED)) == 1, "at least one"
    assert len(Compromised(share=0.26).numbers(10, SEED)) == 3


def test_clients_that_there_are_not_and_two_ways_to_name_them_are_refused() -> None:
    with pytest.raises(InputError, match=r"compromised\.clients: got client 10; expected clients from 0 to 9"):
        Compromised(clients=(3, 10)).numbers(10, SEED)
    with pytest.raises(InputError, match="got both clients and share"):
        Compromised(clients=(3,), share=0.5).numbers(10, SEED)
    bad: list[dict[str, Any]] = [{"clients": []}, {"clients": [-1]}, {"clients": [True]}, {"clients": "all"}]
    bad += [{"share": 0.0}, {"share": 1.5}, {"rounds": []}, {"rounds": [0]}, {"first": 0}, {"every": 0}]
    for given in [*bad, {"turns": "alone"}, {"client": 3}]:
        with pytest.raises(ValidationError):
            Compromised(**given)


@pytest.mark.parametrize(
    ("given", "rounds"),
    [
        ({}, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
        ({"first": 4, "every": 3}, (4, 7, 10)),
        ({"first": 2, "last": 5, "every": 2}, (2, 4)),
        ({"first": 9, "last": 90}, (9, 10)),
        ({"rounds": [7, 2, 2, 11]}, (2, 7)),
        ({"rounds": [3], "first": 5}, (3,)),
    ],
)
def test_the_rounds_of_attack_are_those_named(given: dict[str, Any], rounds: tuple[int, ...]) -> None:
    assert Compromised(**given).attacks_in(10) == rounds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": [11, 12]}, "rounds: got [11, 12]; expected at least one of the federation's, 1 to 10"),
        ({"first": 11}, "first: got 11; expected one of the federation's rounds, 1 to 10"),
        ({"first": 12, "last": 11}, "first: got 12; expected one of the federation's rounds, 1 to 10"),
        ({"first": 5, "last": 4, "every": 2}, "last: got 4; expected null, or no round before `first` (5)"),
    ],
)
def test_a_federation_without_a_round_of_attack_is_refused_by_the_field_at_fault(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(f'compromised.{message}')}$"):
        Compromised(**given).attacks_in(10)


def test_together_all_attack_in_each_round_and_one_by_one_they_take_turns() -> None:
    together = campaign(compromised=(1, 3, 4), rounds=(2, 3, 5, 6))
    assert [together.planned(number) for number in range(1, 7)] == [(), *[(1, 3, 4)] * 2, (), *[(1, 3, 4)] * 2]
    taking_turns = replace(together, one_by_one=True)
    assert [taking_turns.planned(number) for number in range(1, 7)] == [(), (1,), (3,), (), (4,), (1,)]
    assert taking_turns.attackers(3, [1, 3, 4]) == (3,)
    assert taking_turns.attackers(3, [1, 4]) == ()
    assert together.attackers(2, [4, 0, 1]) == (1, 4)
    assert together.sure(2) == (1, 3, 4)
    assert taking_turns.sure(3) == (3,)
    listed = replace(taking_turns, compromised=(4, 1, 3))
    assert [listed.planned(number) for number in (2, 3, 5, 6)] == [(4,), (1,), (3,), (4,)], "the list's order"
    assert replace(listed, one_by_one=False).attackers(2, [0, 1, 3, 4]) == (1, 3, 4), "rows go by client's number"
    assert replace(together, invited=False).sure(2) == ()


@pytest.mark.parametrize("invited", [True, False])
@pytest.mark.parametrize("turns", ["together", "one_by_one"])
def test_who_is_sure_to_be_invited_is_known_from_the_config_alone(invited: bool, turns: Any) -> None:
    who = Compromised(share=0.3, first=2, every=3, invited=invited, turns=turns)
    made = campaign(
        compromised=who.numbers(10, SEED),
        rounds=who.attacks_in(20),
        invited=invited,
        one_by_one=turns == "one_by_one",
    )
    sure = [who.sure(number, 10, 20, SEED) for number in range(1, 21)]
    assert sure == [made.sure(number) for number in range(1, 21)]
    each = (1 if turns == "one_by_one" else 3) * invited
    assert [len(one) for one in sure] == [each if number % 3 == 2 else 0 for number in range(1, 21)]


def test_one_by_one_each_round_has_its_attacker() -> None:
    done = all_rounds(campaign=campaign(rounds=(1, 2, 4), one_by_one=True))
    assert [one.attackers for one in done] == [(1,), (4,), (), (1,), ()]
    assert [one.counters[ADVERSARY]["attackers"] for one in done] == [1, 1, 0, 1, 0]


def test_attackers_are_sure_to_be_invited_in_place_of_others_and_in_their_rounds_alone() -> None:
    made = federation(participation=0.5, campaign=campaign(rounds=(2, 3, 4, 5)), rounds=40)
    for number in range(1, 41):
        invited, drawn = made.invited(number), invited_to(number, K, 0.5, SEED)
        assert len(invited) == 3
        if number in (2, 3, 4, 5):
            assert {1, 4} <= set(invited)
            assert set(invited) - {1, 4} <= set(drawn)
        else:
            assert invited == drawn
    for done in made.run(first()):
        assert done.attackers == ((1, 4) if done.number in (2, 3, 4, 5) else ())
        if done.number == 6:
            break


def test_more_attackers_than_places_are_refused_and_as_many_take_them_all() -> None:
    made = federation(participation=0.34, campaign=campaign(compromised=(5, 0, 2)))
    assert len(made.invited(1)) == 2
    with pytest.raises(InputError, match=r"^sure: got 3 clients for a round of 2; expected 2 at most$"):
        made.invited(2)
    assert federation(participation=0.5, campaign=campaign(compromised=(5, 0, 2))).invited(2) == [0, 2, 5]
    assert len(replace(made, campaign=campaign(compromised=(5, 0, 2), one_by_one=True)).invited(2)) == 2


def test_attackers_that_are_drawn_like_everybody_attack_when_they_are() -> None:
    rounds = tuple(range(1, 21))
    made = federation(participation=0.5, campaign=campaign(rounds=rounds, invited=False), rounds=20)
    counts = []
    for done in made.run(first()):
        drawn = invited_to(done.number, K, 0.5, SEED)
        assert made.invited(done.number) == drawn
        assert done.attackers == tuple(sorted({1, 4} & set(drawn)))
        counts.append(len(done.attackers))
    assert set(counts) == {0, 1, 2}


# What they answer, and what they see.


@pytest.mark.parametrize("knowledge", ["partial", "full"])
def test_answers_come_in_order_of_client_number_with_the_attackers_among_them(knowledge: str) -> None:
    engine = Asked()
    done = all_rounds(engine=engine, campaign=campaign(Sends(knowledge)), keeps=lambda _: True)
    assert engine.clients == [
        [0, 1, 2, 3, 4, 5],
        [0, 2, 3, 5],
        [0, 1, 2, 3, 4, 5],
        [0, 2, 3, 5],
        [0, 1, 2, 3, 4, 5],
    ]
    cohort = done[1].cohort
    assert cohort is not None
    assert cohort.clients == (0, 1, 2, 3, 4, 5)
    assert cohort.weights.tolist() == [6, 8, 10, 12, 14, 16]
    assert bool((cohort.updates[1] == 101).all())
    assert bool((cohort.updates[4] == 104).all())
    assert float(cohort.updates[[0, 2, 3, 5]].abs().max()) < 50
    total = (cohort.weights[:, None] * cohort.updates.double()).sum(0) / cohort.weights.sum()
    torch.testing.assert_close(done[1].end, (done[1].start + total).float())


@pytest.mark.parametrize("rule", [FedAvg(), Whole()])
def test_with_full_knowledge_they_see_the_honest_updates_of_the_round_and_none_else(rule: Aggregator) -> None:
    seeing, blind = Sends("full"), Sends("partial")
    done = all_rounds(campaign=campaign(seeing), keeps=lambda _: True, aggregator=rule)
    same = all_rounds(campaign=campaign(blind), keeps=lambda _: True, aggregator=rule)
    assert all(torch.equal(one.end, two.end) for one, two in zip(done, same, strict=True))
    assert [scene.number for scene in seeing.scenes] == [2, 4]
    for scene, number in zip(seeing.scenes, (2, 4), strict=True):
        cohort = done[number - 1].cohort
        assert cohort is not None
        assert scene.honest_rows is not None
        assert torch.equal(scene.honest_rows, cohort.updates[[0, 2, 3, 5]])
    assert all(scene.honest_rows is None for scene in blind.scenes)


def test_they_do_not_go_by_updates_that_the_server_cannot_use() -> None:
    rows = {0: [1.0, 2.0], 2: [float("nan"), 0.0], 3: [1.0], 5: [3.0, 4.0]}
    poisoner = Sends("full")
    done = scripted(rows, campaign=campaign(poisoner, rounds=(1,)))
    assert poisoner.scenes[0].honest_rows is not None
    assert poisoner.scenes[0].honest_rows.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert done.counters["server"] == {"answers": 6, "dropped_nonfinite": 1, "dropped_misshapen": 1}
    nobody = Sends("full")
    scripted({0: [1.0], 2: [1.0], 3: [1.0], 5: [1.0]}, campaign=campaign(nobody, rounds=(1,)))
    assert nobody.scenes[0].honest_rows is None


def test_where_all_attack_there_are_no_honest_updates() -> None:
    poisoner = Sends("full")
    (done,) = all_rounds(campaign=campaign(poisoner, compromised=tuple(range(K)), rounds=(1,)), rounds=1)
    assert poisoner.scenes[0].honest_rows is None
    assert done.attackers == tuple(range(K))


def test_a_scene_is_the_round_as_it_is() -> None:
    poisoner = Sends()
    training = Training(epochs=1, batch=4, lr=0.4, schedule="factor", factor=0.5)
    made = federation(campaign=campaign(poisoner), training=training, server_step=0.5, delay=2)
    done = list(made.run(first()))
    scene = poisoner.scenes[1]
    assert (scene.number, scene.rounds, scene.cohort, scene.classes, scene.seed) == (4, 5, K, CLASSES, SEED)
    assert torch.equal(scene.start, done[3].start)
    assert scene.clients == (1, 4)
    assert [len(shard) for shard in scene.shards] == [8, 14]
    assert all((one.ids == shards()[client].ids).all() for client, one in zip((1, 4), scene.shards, strict=True))
    assert scene.weights == (8 / 66, 14 / 66)
    assert scene.step == 0.5
    assert scene.lr == 0.4 * 0.5**3
    assert scene.training == training
    assert scene.backdoor is None
    assert scene.others is None


def test_attackers_train_at_the_learning_rate_of_honest_clients_also_where_rounds_came_before() -> None:
    poisoner, training = Sends(), Training(epochs=1, batch=4, lr=0.4, schedule="cosine")
    made = federation(campaign=campaign(poisoner), training=training, done=3, to_come=2)
    list(made.run(first()))
    assert poisoner.scenes[0].lr == training.rate(5, 10) == made.rate(2)
    assert poisoner.scenes[0].rounds == 5


def test_weights_are_the_rules_own_and_of_those_invited() -> None:
    for rule, weights in ((FedAvg(weighted=False), (1 / 3, 1 / 3)), (Whole(), (1 / 3, 1 / 3))):
        poisoner = Sends()
        all_rounds(campaign=campaign(poisoner), aggregator=rule, participation=0.5)
        assert poisoner.scenes[0].weights == weights
        assert poisoner.scenes[0].cohort == 3
    poisoner = Sends()
    made = federation(campaign=campaign(poisoner), participation=0.5)
    list(made.run(first()))
    total = sum(len(shards()[client]) for client in made.invited(2))
    assert poisoner.scenes[0].weights == (8 / total, 14 / total)


def test_others_data_is_there_for_those_who_were_told_to_use_it() -> None:
    poisoner = Sends(everything=True)
    all_rounds(campaign=campaign(poisoner))
    others = poisoner.scenes[0].others
    assert others is not None
    found = others()
    assert len(found) == sum(map(len, shards()))
    assert (found.ids == np.concatenate([shard.ids for shard in shards()])).all()
    assert torch.equal(found.x, torch.cat([shard.x for shard in shards()]))
    assert torch.equal(found.y, torch.cat([shard.y for shard in shards()]))
    assert torch.equal(joined(shards()).y, found.y)


class Noise(ClientDefence):
    """Doubles every update that leaves a client."""

    title = "Noise"
    neutral = None
    proof = "updates"

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:
        turn.count("updates")
        turn.memory = {"rounds": turn.memory.get("rounds", torch.zeros(1)) + 1}
        return 2 * update


def test_attackers_do_not_use_the_clients_defences_and_are_defended_while_they_are_honest() -> None:
    posted = (Posted(Noise(), "noise", frozenset(range(K))),)
    done = all_rounds(defences=posted, campaign=campaign(), keeps=lambda _: True)
    assert [one.counters["noise"]["updates"] for one in done] == [6, 4, 6, 4, 6]
    assert float(done[4].memory["noise/1/rounds"]) == 3
    assert float(done[4].memory["noise/0/rounds"]) == 5
    cohort = done[1].cohort
    assert cohort is not None
    assert bool((cohort.updates[1] == 101).all())


def test_attackers_start_from_the_newest_model_where_others_may_be_late() -> None:
    done = all_rounds(delay=2, campaign=campaign(rounds=(3, 4, 5)), keeps=lambda _: True)
    late = set()
    for one in done[2:]:
        assert one.cohort is not None
        ages = dict(zip(one.cohort.clients, one.cohort.ages, strict=True))
        assert ages[1] == ages[4] == 0
        late |= set(ages.values())
    assert late == {0, 1, 2}


# What becomes of their answers.


def test_attackers_whose_answers_get_lost_have_attacked_and_are_not_among_those_who_arrived() -> None:
    rounds = tuple(range(1, 21))
    gone = {number: tuple(c for c in (1, 4) if lost(number, c, 0.4, SEED)) for number in rounds}
    assert {len(clients) for clients in gone.values()} == {0, 1, 2}
    for done in all_rounds(dropout=0.4, campaign=campaign(rounds=rounds), rounds=20):
        assert done.attackers == tuple(c for c in (1, 4) if c not in gone[done.number])
        assert done.counters[ADVERSARY]["attackers"] == 2
        assert done.counters[ADVERSARY]["poisoned_updates"] == 2
        assert done.cohort is not None
        assert set(done.fates) == set(done.cohort.clients)
        assert {1, 4} & set(done.cohort.clients) == set(done.attackers)


def test_answers_of_attackers_that_no_server_can_use_are_dropped_counted_and_had_no_say() -> None:
    honest = {0: [1.0, 1.0], 2: [1.0, 1.0], 3: [float("nan"), 1.0], 5: [1.0, 1.0]}
    bad = Sends(rows=torch.tensor([[float("inf"), 0.0], [9.0, 9.0]]))
    done = scripted(honest, campaign=campaign(bad, rounds=(1,)))
    assert done.counters["server"] == {"answers": 6, "dropped_nonfinite": 2, "dropped_misshapen": 0}
    assert done.attackers == (1, 4), "it came, and was rejected"
    assert fates_of(done) == {**dict.fromkeys((0, 2, 4, 5), (1, 1)), 1: (0, 1), 3: (0, 1)}
    assert {client for client, fate in done.fates.items() if not fate.usable} == {1, 3}
    assert done.end.tolist() == pytest.approx([12 / 4] * 2)
    assert done.cohort is not None
    assert done.cohort.clients == (0, 2, 4, 5)
    long = scripted(honest, campaign=campaign(Sends(rows=torch.ones(2, 3)), rounds=(1,)))
    assert long.counters["server"]["dropped_misshapen"] == 2
    assert long.attackers == (1, 4)
    assert long.end.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="shorter"):
        scripted(honest, campaign=campaign(Sends(rows=torch.ones(1, 2)), rounds=(1,)))


def test_a_model_that_an_attack_makes_useless_ends_the_rounds_with_the_last_one_told() -> None:
    poisoner = Sends(rows=torch.full((2, 2), 3e38))
    with pytest.raises(ModelLostError, match="round 1: the global model became non-finite") as lost_model:
        scripted(HONEST, campaign=campaign(poisoner, rounds=(1,)), server_step=1e6)
    assert lost_model.value.done is not None
    assert lost_model.value.done.attackers == (1, 4)
    assert lost_model.value.done.counters[ADVERSARY]["attackers"] == 2
    assert lost_model.value.model.isinf().any()
    assert not poisoner.ends, "there is no model to see"


@pytest.mark.parametrize("keeps", [True, False])
def test_rows_of_a_round_of_attack_are_there_until_it_is_over(keeps: bool) -> None:
    done = all_rounds(campaign=campaign(), keeps=lambda _: keeps)
    assert [one.cohort is not None for one in done] == [keeps or n in (2, 4) for n in range(1, 6)]


@dataclass(frozen=True)
class Reports(Coalition):
    """A coalition that only says what it was told."""

    title = "Reports"
    neutral = None
    proof = "announced"
    members: Members = (1, 2, 3)

    def settle(
        self, circle: Circle, number: int, present: Sequence[int], arrived: Mapping[int, float], scale: float | None
    ) -> Counters:
        return {
            "announced": len(present),
            "weight": sum(arrived.get(member, 0) for member in present),
            "everybody": sum(arrived.values()),
            "scale": -1.0 if scale is None else scale,
        }


def test_a_coalition_does_without_members_that_attack_though_they_were_announced() -> None:
    (seat,) = seated([Reports()], K, ["coalition"])
    one = gathered(seat, SEED, [float(len(own)) for own in shards()], CLASSES, 5)
    done = all_rounds(defences=(one,), campaign=campaign(), server_step=0.5)
    for each in done:
        attacked = each.number in (2, 4)
        assert each.counters[one.label] == {
            "announced": 3,
            "weight": 22 if attacked else 30,
            "everybody": 44 if attacked else 66,
            "scale": 0.5,
        }


# What they keep.


def test_what_an_attack_keeps_is_its_own_and_replaced_round_by_round() -> None:
    posted = (Posted(Noise(), "noise", frozenset({0})),)
    poisoner = Sends()
    done = all_rounds(campaign=campaign(poisoner), defences=posted)
    for one in done:
        kept = {name for name in one.memory if name.startswith("adversary/")}
        assert kept == {"adversary/rounds", f"adversary/seen in {one.number}"}
        assert float(one.memory["adversary/rounds"]) == one.number, "quiet rounds are observed too"
        assert torch.equal(one.memory[f"adversary/seen in {one.number}"], one.end)
        assert "noise/0/rounds" in one.memory
    assert all(torch.equal(one, two.end) for one, two in zip(poisoner.ends, done, strict=True))
    assert set(poisoner.scenes[0].memory) == {"rounds", "seen in 2"}


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_attack_goes_on_with_what_it_kept(at: int, tmp_path: Path) -> None:
    expected, state = all_rounds(campaign=campaign()), first()
    for done in expected[:at]:
        state = state.then(done, 0)
    save(tmp_path / "c.safetensors", Checkpoint(state, {}))
    resumed = list(federation(campaign=campaign()).run(read(tmp_path / "c.safetensors").state))
    for one, two in zip(resumed, expected[at:], strict=True):
        assert torch.equal(one.end, two.end)
        assert one.memory.keys() == two.memory.keys()
        assert all(torch.equal(one.memory[name], two.memory[name]) for name in one.memory)


def test_without_a_campaign_nothing_is_counted_or_kept_for_an_adversary() -> None:
    for done in all_rounds():
        assert ADVERSARY not in done.counters
        assert not done.memory
        assert done.attackers == ()


# What the server makes of it.


@dataclass(frozen=True)
class Drops(ServerDefence):
    """Rejects some clients."""

    title: ClassVar[str] = "Drops"
    neutral: ClassVar[Mapping[str, Any] | None] = {"gone": ()}
    proof: ClassVar[str] = "gone"
    gone: tuple[int, ...] = ()

    def on_cohort(self, cohort: Cohort, server: Server) -> tuple[Cohort, Treatment]:
        kept = torch.tensor([client not in self.gone for client in cohort.clients])
        plain = Treatment.plain(len(cohort.clients), {"gone": float((~kept).sum())})
        return without(cohort, kept), replace(plain, kept=kept.double())


@dataclass(frozen=True)
class Scales(ServerDefence):
    """Multiplies the update of one client, and remembers how often."""

    title: ClassVar[str] = "Scales"
    neutral: ClassVar[Mapping[str, Any] | None] = None
    proof: ClassVar[str] = "scaled"
    client: int = 0
    by: float = 0.5

    def on_cohort(self, cohort: Cohort, server: Server) -> tuple[Cohort, Treatment]:
        server.memory = {"rounds": server.memory.get("rounds", torch.zeros(1)) + 1}
        scale = torch.tensor([self.by if client == self.client else 1.0 for client in cohort.clients]).double()
        treatment = Treatment(torch.ones_like(scale), scale, {"scaled": 1.0})
        return replace(cohort, updates=cohort.updates * scale[:, None].float()), treatment


@dataclass(frozen=True)
class Mixes(ServerDefence):
    """Means of rows, which go on under numbers of their own: `of` names the rows of each, by its place."""

    title: ClassVar[str] = "Mixes"
    neutral: ClassVar[Mapping[str, Any] | None] = None
    proof: ClassVar[str] = "means"
    of: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3), (4, 5))
    most: int = 1

    def on_cohort(self, cohort: Cohort, server: Server) -> tuple[Cohort, Treatment]:
        n, count = len(cohort.clients), len(self.of)
        made = Cohort(
            clients=tuple(range(count)),
            updates=torch.stack([cohort.updates[list(rows)].mean(0) for rows in self.of]),
            weights=torch.ones(count, dtype=torch.float64),
            ages=(0,) * count,
            starts=cohort.starts,
        )
        shares = torch.zeros(n, count, dtype=torch.float64)
        for number, rows in enumerate(self.of):
            shares[list(rows), number] = 1 / self.most
        return made, replace(Treatment.plain(n, {"means": float(count)}), shares=shares)


class Keeps(Aggregator):
    """Takes the first half of the rows, half of each."""

    def __call__(self, cohort: Cohort, server: Server) -> tuple[Tensor, Treatment]:
        server.memory = {"rounds": server.memory.get("rounds", torch.zeros(1)) + 1}
        half = len(cohort.clients) // 2
        kept = torch.tensor([0.5] * half + [0.0] * (len(cohort.clients) - half), dtype=torch.float64)
        return cohort.updates[:half].mean(0), Treatment(kept, torch.ones_like(kept), {"rows": len(kept)})


HONEST = {client: [float(client), 1.0] for client in range(K)}


def guarding(*defences: ServerDefence) -> tuple[Guarding, ...]:
    return tuple(Guarding(one, f"{place}") for place, one in enumerate(defences))


def fates_of(done: Round) -> dict[int, Any]:
    return {client: (fate.kept, fate.scale) for client, fate in done.fates.items()}


def test_a_plain_mean_takes_everybody_whole() -> None:
    done = scripted(HONEST)
    assert fates_of(done) == dict.fromkeys(range(K), (1.0, 1.0))
    assert done.end.tolist() == [2.5, 1.0]


def test_a_client_that_one_defence_rejects_is_gone_for_all_that_follow() -> None:
    done = scripted(HONEST, server_defences=guarding(Drops((5,)), Scales(4, 0.25), Drops((0, 5))))
    assert fates_of(done) == {0: (0, 1), 1: (1, 1), 2: (1, 1), 3: (1, 1), 4: (1, 0.25), 5: (0, 1)}
    assert done.end.tolist() == pytest.approx([(1 + 2 + 3 + 1) / 4, (1 + 1 + 1 + 0.25) / 4])
    assert [done.counters[label] for label in "012"] == [{"gone": 1}, {"scaled": 1}, {"gone": 1}]


def test_factors_of_several_defences_and_shares_of_the_rule_multiply() -> None:
    defences = guarding(Scales(0, 0.5), Scales(0, 0.1), Drops((1,)))
    done = scripted(HONEST, server_defences=defences, aggregator=Keeps())
    assert fates_of(done)[0] == (0.5, pytest.approx(0.05))
    assert fates_of(done)[1] == (0, 1)
    assert [fates_of(done)[client][0] for client in (2, 3, 4, 5)] == [0.5, 0, 0, 0]
    assert done.counters["aggregator"] == {"rows": 5}


def test_an_answer_shares_the_fate_of_the_row_that_carries_it() -> None:
    # The rows of clients 0 and 1 go on as client 0's, those of 2 and 3 as 1's, that of 4 as 2's; the last in none.
    defences = guarding(Scales(3, 0.5), Mixes(((0, 1), (2, 3), (4,))), Scales(2, 0.1), Drops((1,)))
    done = scripted(HONEST, server_defences=defences)
    assert fates_of(done) == {0: (1, 1), 1: (1, 1), 2: (0, 1), 3: (0, 0.5), 4: (1, pytest.approx(0.1)), 5: (0, 1)}
    assert done.end.tolist() == pytest.approx([(0.5 + 0.4) / 2, (1 + 0.1) / 2])
    assert done.cohort is not None
    assert done.cohort.clients == tuple(range(K)), "what arrived, before any defence"
    assert done.cohort.updates[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_rows_that_are_rejected_before_means_are_made_are_in_none() -> None:
    defences = guarding(Drops((0, 3)), Mixes(((1, 2), (0, 3))), Drops((0,)))
    done = scripted(HONEST, server_defences=defences)
    # Left are 1, 2, 4 and 5; the mean of 2 and 4 is rejected.
    assert fates_of(done) == {0: (0, 1), 1: (1, 1), 2: (0, 1), 3: (0, 1), 4: (0, 1), 5: (1, 1)}
    assert done.end.tolist() == [3.0, 1.0]


def test_an_answer_in_several_rows_has_a_part_of_the_fate_of_each() -> None:
    # Client 0 is in both means, 1 and 2 in one each, the others in none.
    mixes = Mixes(((0, 1), (0, 2)), most=2)
    assert fates_of(scripted(HONEST, server_defences=guarding(mixes))) == {
        **dict.fromkeys((3, 4, 5), (0, 1)),
        0: (1, 1),
        1: (0.5, 1),
        2: (0.5, 1),
    }
    for defences in (guarding(mixes, Scales(1, 0.2), Drops((0,))), guarding(mixes, Drops((0,)), Scales(1, 0.2))):
        found = fates_of(scripted(HONEST, server_defences=defences))
        assert (found[0][0], found[1][0], found[2][0]) == (0.5, 0, 0.5)
        assert found[2][1] == pytest.approx(0.2)
        # Before the other part is rejected, by the mean factor; afterwards, by that of the part that is left.
        assert found[0][1] == pytest.approx(0.6 if isinstance(defences[1].defence, Scales) else 0.2)


def test_shares_that_a_later_mean_brings_together_again_add_up_to_one_at_most() -> None:
    mixes = (Mixes(((0, 1), (0, 2)), most=2), Mixes(((0, 1), (0, 1)), most=1))
    found = fates_of(scripted(HONEST, server_defences=guarding(*mixes)))
    assert [kept for kept, _ in found.values()] == [1, 1, 1, 0, 0, 0]


def test_followed_by_hand() -> None:
    def treated(kept: Sequence[float], scale: Sequence[float]) -> Treatment:
        return Treatment(torch.tensor(kept, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))

    trail = Trail.of((7, 8, 9))
    trail.follow(treated([1, 0.5, 0], [1, 2, 1]), (7, 8, 9), (7, 8))
    assert trail.fates() == {7: Fate(1, 1), 8: Fate(0.5, 2), 9: Fate(0, 1)}
    trail.follow(treated([0.5, 0.5], [4, 0.25]), (7, 8), (8,))
    assert trail.fates() == {7: Fate(0, 4), 8: Fate(0.25, 0.5), 9: Fate(0, 1)}


@pytest.mark.parametrize("rule", [FedAvg(), Keeps()])
def test_where_a_defence_rejects_everybody_the_old_model_stays(rule: Aggregator) -> None:
    defences = guarding(Scales(1, 0.5), Drops(tuple(range(K))), Scales(2, 0.5))
    done = scripted(HONEST, server_defences=defences, aggregator=rule)
    assert {kept for kept, _ in fates_of(done).values()} == {0}
    assert fates_of(done)[1] == (0, 0.5)
    assert torch.equal(done.start, done.end)
    assert done.counters["aggregator"] == {"kept_old_model": 1}
    assert done.counters["1"] == {"gone": 6}
    assert "2" not in done.counters, "there was nothing left to see"
    assert float(done.memory["0/rounds"]) == 1


def test_attackers_answers_pass_the_servers_defences_like_all_others() -> None:
    done = all_rounds(campaign=campaign(), server_defences=guarding(Drops((4,)), Scales(1, 0.5)))
    assert [fates_of(one)[4] for one in done] == [(0, 1)] * 5
    assert [fates_of(one)[1] for one in done] == [(1, 0.5)] * 5
    assert [one.attackers for one in done] == [(), (1, 4), (), (1, 4), ()], "rejected, but arrived"


@dataclass(frozen=True)
class Moves(ServerDefence):
    """Changes the combined update, then the model, by numbers of its own."""

    title: ClassVar[str] = "Moves"
    neutral: ClassVar[Mapping[str, Any] | None] = {"by": 0.0}
    proof: ClassVar[str] = "updates"
    rowwise: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    by: float = 1.0

    def on_update(self, update: Tensor, server: Server) -> Tensor:
        return update if self.by == 0 else update + self.by * torch.from_numpy(server.rng.random(len(update)))

    def on_model(self, model: Tensor, server: Server) -> Tensor:
        return model if self.by == 0 else 2 * model


def test_defences_act_on_the_combined_update_and_on_the_model_in_their_order_and_are_counted() -> None:
    class Tenfold(Moves):
        def on_update(self, update: Tensor, server: Server) -> Tensor:
            return 10 * update

        def on_model(self, model: Tensor, server: Server) -> Tensor:
            return model + 1

    class Halved(Moves):
        def on_update(self, update: Tensor, server: Server) -> Tensor:
            return update + 4

        def on_model(self, model: Tensor, server: Server) -> Tensor:
            return model / 2

    for defences in (guarding(Tenfold(), Halved()), guarding(Scales(9), Tenfold(), Halved())):
        done = scripted(HONEST, server_defences=defences, server_step=0.5)
        assert done.end.tolist() == pytest.approx([(0.5 * (10 * 2.5 + 4) + 1) / 2, (0.5 * (10 * 1 + 4) + 1) / 2])
        assert done.counters[defences[-1].label] == {"updates": 1, "models": 1}
        assert done.counters[defences[-2].label] == {"updates": 1, "models": 1}
    idle = scripted(HONEST, server_defences=guarding(Moves(by=0.0)))
    assert "0" not in idle.counters


def test_each_defence_draws_numbers_of_its_own_and_others_in_each_round() -> None:
    class Draws(ServerDefence):
        title = "Draws"
        neutral = None
        proof = "rows"

        def __init__(self) -> None:
            self.drawn: list[float] = []

        def on_cohort(self, cohort: Cohort, server: Server) -> tuple[Cohort, Treatment]:
            self.drawn.append(float(server.rng.random()))
            return super().on_cohort(cohort, server)

        def on_update(self, update: Tensor, server: Server) -> Tensor:
            self.drawn.append(float(server.rng.random()))
            return update

        def on_model(self, model: Tensor, server: Server) -> Tensor:
            self.drawn.append(float(server.rng.random()))
            return model

    one, two = Draws(), Draws()
    all_rounds(server_defences=(Guarding(one, "one"), Guarding(two, "two", 1)))
    assert len({*one.drawn, *two.drawn}) == 30, "three moments, five rounds, two defences"
    again = Draws()
    all_rounds(server_defences=(Guarding(again, "other label"),))
    assert again.drawn == one.drawn


def test_what_rule_and_defences_keep_is_their_own() -> None:
    defences = (Guarding(Scales(1), "one"), Guarding(Scales(2), "two"))
    done = all_rounds(server_defences=defences, aggregator=Keeps(), campaign=campaign())
    for each in done:
        kept = {name: float(value) for name, value in each.memory.items() if name.endswith("rounds")}
        assert kept == dict.fromkeys(
            ["one/rounds", "two/rounds", "aggregator/rounds", "adversary/rounds"], each.number
        )


def test_a_defence_that_is_set_to_do_nothing_leaves_the_sum_a_sum_and_every_byte_as_it_was() -> None:
    plain, idle = all_rounds(), all_rounds(server_defences=guarding(Drops(), Moves(by=0.0)))
    for one, two in zip(plain, idle, strict=True):
        assert torch.equal(one.end, two.end)
        assert two.cohort is None
    assert Command(FedAvg(), guarding(Drops(), Moves())).streams
    assert not Command(FedAvg(), guarding(Drops((1,)))).streams
    assert not Command(Whole()).streams


@pytest.mark.parametrize(
    ("rule", "defences", "step"),
    [
        (FedAvg(), (), 0.5),
        (FedAvg(), guarding(Drops()), 0.5),
        (FedAvg(), guarding(Moves()), 0.5),
        (FedAvg(), guarding(Drops((0,))), None),
        (Whole(), (), None),
    ],
)
def test_coalitions_know_a_step_where_the_result_is_a_weighted_mean_and_attackers_where_the_rule_is(
    rule: Aggregator, defences: tuple[Guarding, ...], step: float | None
) -> None:
    poisoner = Sends()
    (seat,) = seated([Reports()], K, ["coalition"])
    one = gathered(seat, SEED, [1.0] * K, CLASSES, 5)
    options: dict[str, Any] = {"aggregator": rule, "server_defences": defences, "server_step": 0.5}
    done = all_rounds(campaign=campaign(poisoner), defences=(one,), **options)
    assert poisoner.scenes[0].step == (0.5 if isinstance(rule, FedAvg) else None)
    assert done[0].counters[one.label]["scale"] == (-1 if step is None else step)


def test_counters_of_a_defence_that_hands_out_one_mapping_do_not_add_up_in_it() -> None:
    shared: Counters = {"rows": 1.0}

    class Constant(ServerDefence):
        title = "Constant"
        neutral = None
        proof = "rows"

        def on_cohort(self, cohort: Cohort, server: Server) -> tuple[Cohort, Treatment]:
            return cohort, Treatment.plain(len(cohort.clients), shared)

        def on_update(self, update: Tensor, server: Server) -> Tensor:
            return 2 * update

    done = all_rounds(server_defences=guarding(Constant()))
    assert [one.counters["0"] for one in done] == [{"rows": 1, "updates": 1}] * 5
    assert shared == {"rows": 1}
