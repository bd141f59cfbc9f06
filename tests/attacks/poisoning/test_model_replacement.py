"""Model replacement: what is sent, against a naive Algorithm 1 and by hand, and what it does to a federation."""

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backdoored import (
    HONEST,
    Found,
    Still,
    backdoor_of,
    client,
    plot_of,
    rounds_of,
    scene_of,
    task_of,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fedsiege.aggregators.fedavg import FedAvg
from fedsiege.attacks.poisoning import gamma as factors
from fedsiege.attacks.poisoning.base import Poisoner, Scene
from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.attacks.poisoning.data_poisoning import DataPoisoning
from fedsiege.attacks.poisoning.mixing import mixed, stepped, training_of
from fedsiege.attacks.poisoning.model_replacement import ModelReplacement
from fedsiege.attacks.poisoning.tactics import triggered
from fedsiege.data.triggers.base import Backdoor, Trigger
from fedsiege.errors import InputError
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.federation.state import Models, State
from fedsiege.records import Examples, joined
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training

PLAIN: dict[str, Any] = {"poisoned": 3, "stop": None, "epochs": 2, "noise": 0.0}


def sent(attack: Poisoner, scene: Scene) -> Tensor:
    scene.task.load(torch.randn_like(scene.start))  # whatever model was resident before
    return attack.poison_updates(scene)


def test_the_update_is_gamma_times_what_a_naive_algorithm_1_trains() -> None:
    fields: dict[str, Any] = {"poisoned": 3, "stop": 0.05, "epochs": 4, "noise": 0.3, "lr": 0.04, "step_rate": 5}
    attack, scene = ModelReplacement(gamma=7.0, step_every=2, momentum=0.5, weight_decay=0.02, **fields), scene_of()
    (row,) = sent(attack, scene)
    (shard,), backdoor = scene.shards, scene.backdoor
    assert backdoor is not None
    scene.task.load(scene.start)
    module = copy.deepcopy(scene.task.module)
    rng, order = scene.rng("triggers", "together"), scene.rng("train", "together")
    order.spawn(1)
    look = triggered(backdoor, shard, rng)
    assert look is not None
    optimiser = torch.optim.SGD(module.parameters(), lr=0.04, momentum=0.5, weight_decay=0.02)
    for epoch in range(4):
        module.eval()
        assert float(F.cross_entropy(module(look.x), look.y).detach()) > 0.05
        module.train()
        optimiser.param_groups[0]["lr"] = 0.04 / (1, 1, 5, 5)[epoch]
        for rows in torch.as_tensor(order.permutation(24)).split(8):
            x, y = shard.x[rows].clone(), shard.y[rows].clone()
            x[:3], y[:3] = backdoor.drawn(shard, 3, rng)
            x[:3] += 0.3 * torch.as_tensor(rng.standard_normal((3, x.shape[1]), dtype=np.float32))
            optimiser.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimiser.step()
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    naive = torch.cat([t.detach().reshape(-1) for t in tensors]) - scene.start
    torch.testing.assert_close(row, 7 * naive, rtol=1e-4, atol=1e-5)
    assert scene.counters["steps"] == 12
    assert scene.counters["poisoned_examples"] == 36


def test_an_attacker_trains_as_honest_clients_but_for_its_own_fields() -> None:
    honest = Training(epochs=3, batch=5, momentum=0.3, weight_decay=0.1, clip=2.0, optimiser="sgd")
    assert training_of(ModelReplacement(epochs=None), honest) == honest
    given = training_of(ModelReplacement(epochs=7, batch=9, momentum=0.0, weight_decay=0.0), honest)
    expected = {"epochs": 7, "batch": 9, "momentum": 0.0, "weight_decay": 0.0}
    assert given == honest.model_copy(update=expected)
    one = Training(algorithm="fedsgd")
    assert training_of(ModelReplacement(epochs=None), one) == one
    assert training_of(ModelReplacement(epochs=2), one).algorithm == "fedavg"
    assert training_of(ModelReplacement(epochs=None, batch=4), one).algorithm == "fedavg"


def test_the_learning_rate_falls_every_few_epochs() -> None:
    assert [stepped(1.0, epoch, 2, 10) for epoch in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [stepped(1.0, epoch, None, 10) for epoch in range(3)] == [1, 1, 1]
    fast = ModelReplacement(gamma=1.0, lr=0.05, step_every=1, step_rate=1e6, **PLAIN)
    once = ModelReplacement(gamma=1.0, lr=0.05, step_every=None, momentum=0.0, **{**PLAIN, "epochs": 1})
    still = replace(fast, momentum=0.0)
    trained = task_of().layout.trained
    first, second = (sent(attack, scene_of())[0, :trained] for attack in (once, still))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("attackers", "step"), [((3,), 1.0), ((3,), 0.1), ((0, 2, 4), 0.5)])
def test_the_next_global_model_is_x_where_honest_clients_do_not_move(
    attackers: tuple[int, ...], step: float, weighted: bool
) -> None:
    """BatchNorm's running statistics are X's too."""
    shards = [client(number, 12 + 4 * number) for number in range(6)]
    backdoor = backdoor_of()
    attack = ModelReplacement(poisoned=3, epochs=3)
    campaign = Campaign(attack, "attack", attackers, (1,), backdoor)
    (done,) = rounds_of(campaign, shards, engine=Still(), aggregator=FedAvg(weighted=weighted), server_step=step)
    scene = scene_of([shards[one] for one in attackers], number=1, start=done.start, backdoor=backdoor)
    update, poisoned = mixed(scene, attack, joined(scene.shards), "together")
    assert poisoned
    torch.testing.assert_close(done.end - done.start, update, rtol=1e-5, atol=1e-6)
    assert update[scene.task.layout.trained :].abs().max() > 0.01
    sizes = [len(shard) if weighted else 1 for shard in shards]
    gamma = sum(sizes) / sum(sizes[one] for one in attackers) / step
    counters = attack.told(done.counters["adversary"])
    assert counters["mean_gamma"] == pytest.approx(gamma)
    assert counters["poisoned_updates"] == len(attackers)
    assert counters["mean_trained_norm"] == pytest.approx(float(update.norm()), rel=1e-5)
    assert counters["mean_sent_norm"] == pytest.approx(gamma * float(update.norm()), rel=1e-5)


def test_colluders_send_equal_shares_of_one_model_trained_on_all_their_examples() -> None:
    shards = [client(0), client(1), client(2, 8)]
    attack = ModelReplacement(gamma=12.0, **PLAIN)
    scene = scene_of(shards)
    rows = sent(attack, scene)
    alone = scene_of([joined(shards)])
    (row,) = sent(attack, alone)
    assert rows.shape == (3, len(row))
    for one in rows:
        torch.testing.assert_close(one, row / 3)
    assert torch.equal(rows[0], rows[1])
    assert scene.counters["gamma"] == 12
    assert scene.counters["steps"] == alone.counters["steps"] == 2 * 7, "trained once"
    union = joined(shards)
    assert union.ids.tolist() == [one for shard in shards for one in shard.ids]
    assert torch.equal(union.x, torch.cat([shard.x for shard in shards]))
    assert torch.equal(union.y, torch.cat([shard.y for shard in shards]))


def test_constrain_and_scale_with_alpha_1_is_scale_bit_for_bit() -> None:
    plain = sent(ModelReplacement(gamma=4.0, **PLAIN), scene_of())
    same = sent(ModelReplacement(gamma=4.0, mode="constrain_and_scale", alpha=1.0, **PLAIN), scene_of())
    assert torch.equal(plain, same)


def test_alpha_and_the_anomaly_have_no_say_in_scale() -> None:
    plain = sent(ModelReplacement(gamma=4.0, **PLAIN), scene_of())
    assert torch.equal(plain, sent(ModelReplacement(gamma=4.0, alpha=0.1, anomaly="cosine", **PLAIN), scene_of()))


@pytest.mark.parametrize("knowledge", ["full", "partial"])
@pytest.mark.parametrize("anomaly", ["l2", "l2_to_benign", "cosine_to_benign"])
def test_constrain_and_scale_trains_a_model_that_looks_less_unusual(anomaly: Any, knowledge: Any) -> None:
    fields: dict[str, Any] = {**PLAIN, "epochs": 8, "gamma": 1.0, "knowledge": knowledge}
    shards, trained = [client(0), client(1)], task_of().layout.trained
    found = []
    for alpha in (1.0, 0.3):
        scene = scene_of(shards)
        if knowledge == "full":
            honest = scene_of([client(5), client(6)])
            scene.honest_rows = torch.stack([honest.honest(0), honest.honest(1)])
        rows = scene.honest_rows
        typical = (torch.stack([scene.honest(0), scene.honest(1)]) if rows is None else rows).mean(0)[:trained]
        attack = ModelReplacement(mode="constrain_and_scale", anomaly=anomaly, alpha=alpha, **fields)
        update = 2 * sent(attack, scene)[0, :trained]
        found.append(
            {
                "l2": float(update.norm()),
                "l2_to_benign": float((update - typical).norm()),
                "cosine_to_benign": 1 - float(F.cosine_similarity(update, typical, dim=0)),
            }[anomaly]
        )
        asked = anomaly != "l2" and alpha < 1
        assert ("went_by_own_updates" in scene.counters) == (asked and knowledge == "partial")
        assert attack.sees_honest == (anomaly != "l2" and knowledge == "full")
    free, constrained = found
    assert constrained < 0.8 * free


def test_the_mean_honest_update_is_the_anchor_of_the_anomaly(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}

    def noting(kind: str, start: Tensor, benign: Any) -> Any:
        seen.update(start=start, benign=benign())
        return lambda x: x.sum()

    monkeypatch.setattr("fedsiege.attacks.poisoning.model_replacement.anomaly_of", noting)
    scene = scene_of()
    scene.honest_rows = torch.randn(4, len(scene.start))
    attack = ModelReplacement(mode="constrain_and_scale", anomaly="l2_to_benign", knowledge="full", **PLAIN)
    sent(attack, scene)
    trained = scene.task.layout.trained
    assert torch.equal(seen["start"], scene.start[:trained])
    torch.testing.assert_close(seen["benign"], scene.honest_rows.mean(0)[:trained])


@pytest.mark.parametrize("scope", ["all", "trained"])
@pytest.mark.parametrize("bound", [0.01, 30.0])
def test_train_and_scale_sends_updates_of_the_given_length(scope: Any, bound: float) -> None:
    attack = ModelReplacement(mode="train_and_scale", bound=bound, scope=scope, gamma=123.0, **PLAIN)
    scene = scene_of([client(0), client(1)], step=None)
    rows = sent(attack, scene)
    n = scene.task.layout.trained if scope == "trained" else scene.task.layout.size
    for row in rows:
        assert float(row[:n].norm()) == pytest.approx(bound, rel=1e-5)
    (plain,) = sent(ModelReplacement(gamma=1.0, **PLAIN), scene_of([joined(scene.shards)]))
    factor = bound / float(plain[:n].norm())
    torch.testing.assert_close(rows[0], factor * plain, rtol=1e-4, atol=1e-6)
    assert scene.counters["gamma"] == pytest.approx(2 * factor)
    assert not scene.memory


def test_train_and_scale_does_not_scale_nothing() -> None:
    attack = ModelReplacement(mode="train_and_scale", bound=1.0, poisoned=3, stop=1e9)
    rows = sent(attack, scene_of())
    assert not rows.any()


def test_an_attacker_that_has_its_backdoor_sends_nothing_and_says_so() -> None:
    scene = scene_of([client(0), client(1)])
    attack = ModelReplacement(poisoned=3, stop=1e9)
    assert not sent(attack, scene).any()
    assert scene.counters["early_stops"] == 1
    assert scene.counters["nothing_planted"] == 2
    assert "poisoned_updates" not in scene.counters
    assert "mean_gamma" not in attack.told(scene.counters)


def test_found_images_are_moved_and_stamped_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[bool] = []

    class SpyError(Exception):
        pass

    def noting(*args: Any, **given: Any) -> None:
        moved.append(given["moved"])
        raise SpyError

    monkeypatch.setattr("fedsiege.attacks.poisoning.mixing.Tactics", noting)
    for backdoor in (backdoor_of(Found(), client(7, 5)), backdoor_of()):
        for asked in (None, True, False):
            with pytest.raises(SpyError):
                sent(ModelReplacement(moved=asked), scene_of(backdoor=backdoor))
    assert moved == [True, True, False, False, True, False]


def test_clean_examples_are_all_clients_only_when_asked() -> None:
    everybody = joined([client(number) for number in range(4)])
    own, others = ModelReplacement(gamma=1.0, **PLAIN), ModelReplacement(gamma=1.0, data="all", **PLAIN)
    assert (own.uses_others, others.uses_others) == (False, True)
    scene = scene_of(others=lambda: everybody)
    (row,) = sent(others, scene)
    (same,) = sent(own, scene_of([everybody]))
    assert torch.equal(row, same)
    with pytest.raises(InputError, match=r"^data: got all"):
        sent(others, scene_of())


def test_at_most_so_many_clean_examples_are_drawn_anew_in_each_round() -> None:
    attack = ModelReplacement(gamma=1.0, examples=8, **PLAIN)
    scene = scene_of()
    sent(attack, scene)
    assert scene.counters["steps"] == 2 * 1
    drawn = []
    for number in (3, 3, 4):
        scene = scene_of(number=number)
        clean = attack._clean(scene)
        drawn.append(clean.ids.tolist())
        assert len(set(drawn[-1])) == 8
        assert set(drawn[-1]) <= set(scene.shards[0].ids)
    assert drawn[0] == drawn[1] != drawn[2]
    assert ModelReplacement(examples=24)._clean(scene) is scene.shards[0]


def shards_of(count: int = 5) -> list[Examples]:
    return [client(number) for number in range(count)]


@pytest.mark.parametrize("attackers", [(1,), (0, 3)])
def test_gamma_is_estimated_from_what_the_attack_did(attackers: tuple[int, ...]) -> None:
    attack = ModelReplacement(gamma="estimated", probe=2.0, poisoned=3)
    campaign = Campaign(attack, "attack", attackers, (1, 2), backdoor_of())
    done = rounds_of(campaign, shards_of(), rounds=2, engine=Still(), server_step=0.25)
    gammas = [one.counters["adversary"]["gamma"] for one in done]
    assert gammas[0] == pytest.approx(2)
    assert gammas[1] == pytest.approx(4 * 5 / len(attackers) * len(attackers), rel=1e-4)
    assert set(done[0].memory) == {"adversary/moment", "adversary/square"}
    scene = scene_of([shards_of()[one] for one in attackers], number=2, start=done[1].start)
    update, _ = mixed(scene, attack, joined(scene.shards), "together")
    torch.testing.assert_close(done[1].end - done[1].start, update, rtol=1e-3, atol=1e-5)


def test_estimates_approach_the_true_gamma_among_honest_clients() -> None:
    attack = ModelReplacement(gamma="estimated", poisoned=3)
    campaign = Campaign(attack, "attack", (1,), tuple(range(1, 9)), backdoor_of())
    done = rounds_of(campaign, shards_of(8), rounds=8, training=HONEST.model_copy(update={"lr": 0.01}))
    gammas = [one.counters["adversary"]["gamma"] for one in done]
    assert gammas[0] == 1
    assert 5 < gammas[-1] < 12, gammas


def test_a_search_raises_gamma_until_the_backdoor_works() -> None:
    attack = ModelReplacement(gamma="estimated", estimator="line_search", growth=2.0, poisoned=3, lr=0.1)
    campaign = Campaign(attack, "attack", (1,), (1, 2, 4, 5, 6, 7, 8), backdoor_of())
    # A model that does not happen to have the backdoor from the beginning.
    done = rounds_of(campaign, shards_of(8), rounds=9, engine=Still(), server_step=0.1, task=task_of(seed=2))
    gammas = [one.counters["adversary"].get("gamma") for one in done]
    grown = [gamma for gamma in gammas if gamma is not None]
    assert grown[:2] == [1, 2]
    assert gammas[2] is None
    assert all(after in (before, 2 * before) for before, after in pairwise(grown))
    scene = scene_of([client(1)], task=task_of())
    look = triggered(backdoor_of(), client(1), stream(0, "a"))
    assert look is not None
    worked = [scene.task.measure(one.end, look)[0] >= 0.9 for one in done if "gamma" in one.counters["adversary"]]
    first = worked.index(True)
    assert first > 0
    assert grown[first:] == [2.0**first] * (len(grown) - first)
    assert grown[: first + 1] == [2.0**n for n in range(first + 1)]


def test_a_search_is_split_among_colluders() -> None:
    attack = ModelReplacement(gamma="estimated", estimator="line_search", probe=6.0, **PLAIN)
    (row, _) = sent(attack, scene_of([client(0), client(1)]))
    (alone,) = sent(ModelReplacement(gamma=3.0, **PLAIN), scene_of([joined([client(0), client(1)])]))
    torch.testing.assert_close(row, alone)


def test_nothing_is_kept_where_nothing_is_estimated_and_nothing_learnt_where_nobody_attacked() -> None:
    for attack in (
        ModelReplacement(**PLAIN),
        ModelReplacement(mode="train_and_scale", bound=1.0, gamma="estimated"),
    ):
        scene = scene_of()
        sent(attack, scene)
        attack.observe(scene, scene.start + 1)
        assert not scene.memory
    for estimator in ("regression", "line_search"):
        attack = ModelReplacement(gamma="estimated", estimator=estimator, **PLAIN)
        scene = scene_of([])
        attack.observe(scene, scene.start + 1)
        assert not scene.memory


def test_what_was_sent_is_what_the_estimate_goes_by() -> None:
    attack, scene = ModelReplacement(gamma="estimated", probe=4.0, **PLAIN), scene_of([client(0), client(1)])
    rows = sent(attack, scene)
    torch.testing.assert_close(scene.memory[factors.SENT], rows.sum(0))
    attack.observe(scene, scene.start + 0.2 * rows.sum(0))
    assert factors.from_regression(scene.memory, 1, 1000) == pytest.approx(5, rel=1e-4)


ONE_STEP: dict[str, Any] = {"poisoned": 20, "epochs": None}
FEDSGD: dict[str, Any] = {"training": Training(algorithm="fedsgd"), "compromised": (0, 2)}


@pytest.mark.parametrize(
    ("fields", "plot", "message"),
    [
        ({}, {"backdoor": None}, "backdoor"),
        (
            {},
            {"rule": "krum", "step": None},
            "^gamma: got auto; aggregator krum .* expected a number or estimated$",
        ),
        ({"gamma": "estimated"}, {"attacks": 1}, "^gamma: got estimated"),
        ({"mode": "train_and_scale"}, {}, "^bound: missing"),
        ({"poisoned": 8, "batch": 8}, {}, "^poisoned: got 8 of every 8 examples; expected fewer than 8$"),
        (ONE_STEP, {**FEDSGD, "sizes": (9, 90, 11)}, "^poisoned: got 20 of a step .* 20 examples; expected fewer"),
        ({**ONE_STEP, "examples": 20, "data": "all"}, {**FEDSGD, "sizes": (9, 90, 11)}, "^poisoned: got 20 of"),
        ({**ONE_STEP, "poisoned": 110, "data": "all"}, {**FEDSGD, "sizes": (9, 90, 11)}, "'s 110 examples"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_round(
    fields: dict[str, Any], plot: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ModelReplacement(**fields).check(plot_of(**plot))


def test_what_can_be_is_not_refused() -> None:
    ModelReplacement().check(plot_of())
    ModelReplacement(gamma=5.0).check(plot_of(step=None))
    ModelReplacement(gamma="estimated").check(plot_of(step=None))
    ModelReplacement(mode="train_and_scale", bound=1.0).check(plot_of(step=None))
    ModelReplacement(poisoned=7, batch=8).check(plot_of())
    both = plot_of(**FEDSGD, sizes=(9, 90, 12))  # they train on all their data together
    ModelReplacement(**ONE_STEP).check(both)
    ModelReplacement(**ONE_STEP, data="all").check(plot_of(**FEDSGD, sizes=(9, 90, 11)))
    ModelReplacement(**ONE_STEP).check(plot_of(**FEDSGD))


def test_a_gamma_that_is_none_is_named_with_what_was_expected() -> None:
    with pytest.raises(
        InputError, match=r"adversary\.gamma: got 'automatic'; expected auto, estimated or a number"
    ):
        build("poisoning", {"name": "model_replacement", "gamma": "automatic"}, "adversary")


def test_an_attack_without_a_backdoor_says_so() -> None:
    with pytest.raises(InputError, match=r"^backdoor: missing"):
        sent(ModelReplacement(), scene_of(backdoor=None))


class Corner(Trigger):
    """Bright pixels in a corner of a digit."""

    title: ClassVar[str] = "Corner"

    def stamped(self, x: Tensor, y: Tensor, target: int, part: int | None = None) -> tuple[Tensor, Tensor]:
        x = x.clone()
        x.view(-1, 8, 8)[:, :2, :2] = 1
        return x, torch.full_like(y, target)


def digits() -> tuple[list[Examples], Examples]:
    """Twenty clients, and held-out digits."""
    found = load_digits()
    x = torch.tensor(found.data, dtype=torch.float32) / 16
    y = torch.tensor(found.target, dtype=torch.int64)
    order = np.random.default_rng(0).permutation(len(x))
    every = Examples(np.array([f"{i}" for i in range(len(x))]), x, y).take(order)
    parts = np.split(np.arange(1400), 20)
    return [every.take(part) for part in parts], every.take(np.arange(1400, len(x)))


@pytest.mark.parametrize(
    ("attack", "works"),
    [
        (ModelReplacement(poisoned=6), True),
        (ModelReplacement(poisoned=6, mode="constrain_and_scale", alpha=0.9), True),
        (DataPoisoning(poisoned=6), False),
    ],
)
def test_one_shot_of_replacement_plants_what_one_shot_of_data_poisoning_does_not(
    attack: Poisoner, works: bool
) -> None:
    shards, heldout = digits()
    clean = heldout.take((heldout.y != 3).nonzero()[:, 0].numpy())
    x, y = Corner().stamped(clean.x, clean.y, 3)
    backdoor = Backdoor(Corner(), 3, None, replace(clean, x=x, y=y))
    task = Task(seeded(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), 0))
    made = Federation(
        task=task,
        shards=tuple(shards),
        training=Training(epochs=4, batch=20, lr=0.1),
        aggregator=FedAvg(),
        engine=LocalEngine(),
        rounds=13,
        seed=3,
        classes=10,
        campaign=Campaign(attack, "attack", (4,), (12,), backdoor),
        participation=0.5,
    )
    done = list(made.run(State(0, Models((task.state.clone(),)))))
    before, shot = done[10].end, done[11].end
    main, planted = task.measure(shot, heldout)[0], task.measure(shot, backdoor.test)[0]
    assert task.measure(before, backdoor.test)[0] < 0.1
    assert task.measure(before, heldout)[0] > 0.9
    assert main > task.measure(before, heldout)[0] - 0.05
    assert (planted > 0.9) if works else (planted < 0.2)
    assert done[11].attackers == (4,)
