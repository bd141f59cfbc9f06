"""FedPoisonMIA: the whole attack written out once more, and each of its choices on vectors made up for it."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_scenes import (
    CLASSES,
    SIZES,
    TRAINING,
    federation,
    first,
    model,
    pictures,
    plot_of,
    poisoner_of,
    rows_of,
    scene_of,
)
from torch import Tensor, nn

from fedsiege.attacks.poisoning import fedpoisonmia
from fedsiege.attacks.poisoning.base import Scene
from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.attacks.poisoning.fedpoisonmia import (
    TOGETHER,
    FedPoisonMIA,
    as_long_as_the_median,
    single_gradients,
    single_steps,
)
from fedsiege.attacks.poisoning.probing import Step, mislabelled, own_of, stepped
from fedsiege.attacks.poisoning.scapegoat import farthest, mixture, widest
from fedsiege.errors import InputError
from fedsiege.records import Examples
from fedsiege.registry import names
from fedsiege.task import Task, seeded

TARGETS = pictures(9, 77)
LR = 0.1


def plain_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def probed(clients: Sequence[int] = (1, 3), build: Callable[[], nn.Module] = plain_model, **fields: Any) -> Scene:
    """A round with something asked about, of a model without BatchNorm if not told otherwise."""
    task = Task(seeded(build, 0), mean=(0.5,), std=(0.25,))
    return scene_of(clients, **{"task": task, "start": task.state.clone(), "targets": TARGETS, **fields})


def gradient(
    scene: Scene, x: Tensor, y: Tensor, build: Callable[[], nn.Module] = plain_model, training: bool = True
) -> Tensor:
    """The gradient of the mean loss at the global model [d], zeros for buffers; in the textbook's way."""
    module = seeded(build, 0)
    values = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    with torch.no_grad():
        for value, part in zip(values, scene.start.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))
    module.train(training)
    F.cross_entropy(module((x.float() / 255 - 0.5) / 0.25), y).backward()
    parts = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
    return torch.cat([part.reshape(-1) for part in parts])


def angles(made: Tensor, rows: Tensor) -> Tensor:
    """Of each of some vectors [b, d] with each of these rows [n, d], in degrees [b, n]."""
    made, rows = made.double(), rows.double()
    cosine = made @ rows.T / made.norm(dim=1)[:, None] / rows.norm(dim=1)
    found: Tensor = torch.rad2deg(cosine.clamp(-1, 1).acos())
    return found


def largest(row: Tensor, rows: Tensor) -> float:
    return float(angles(row[None], rows).max())


def written_out(
    scene: Scene, rows: Tensor, gamma: float, greedy: str, feasible_first: bool
) -> tuple[Tensor, Tensor, int, float]:
    """The pseudo-code on vectors: the attack's step, the mask, K, and alpha from a grid (-1: none)."""
    bound = max(float(angles(one[None], other[None])) for one, other in combinations(rows, 2))
    wrong, own = mislabelled(scene), own_of(scene)
    a = -scene.lr * gradient(scene, wrong.x, wrong.y)
    c = torch.stack([-scene.lr * gradient(scene, own.x[[j]], own.y[[j]]) for j in range(len(own))])
    chosen: list[int] = []
    for _ in range(int(gamma * len(own))):
        tried = {j: a + c[[*chosen, j]].mean(0) for j in range(len(own)) if j not in chosen}
        far = {j: largest(row, rows) for j, row in tried.items()}
        fits = [j for j in tried if far[j] <= bound]
        if not fits and not feasible_first:
            break
        if not fits:
            chosen.append(min(far, key=far.__getitem__))
        elif greedy == "angle":
            chosen.append(max(fits, key=far.__getitem__))
        else:
            chosen.append(max(fits, key=lambda j: float(tried[j].norm())))
    if not chosen:
        return a, c.mean(0), len(c), -1.0
    mask, alphas = c[chosen].mean(0), torch.linspace(0, 10, 4001, dtype=torch.float64)
    far_off = angles(alphas[:, None] * a.double() + mask.double(), rows).amax(1)
    within = [(float(one), float(alpha)) for one, alpha in zip(far_off, alphas, strict=True) if one <= bound]
    return a, mask, len(chosen), max(within)[1] if within else -1.0


def around_training(scene: Scene, spread: float, seed: int = 0, n: int = 5) -> Tensor:
    """Honest updates [n, d] that go where the attackers' own data goes, more or less."""
    own = own_of(scene)
    way = -gradient(scene, own.x, own.y)
    noise = torch.randn(n, len(way), generator=torch.Generator().manual_seed(seed))
    found: Tensor = 3 * (way + spread * way.norm() * noise / noise.norm(dim=1, keepdim=True))
    return found


FULL = [
    (spread, gamma, greedy, feasible_first)
    for spread in (0.4, 1.0, 3.0)
    for gamma in (0.1, 0.2)
    for greedy, feasible_first in (("angle", True), ("norm", True), ("angle", False), ("norm", False))
]


@pytest.mark.parametrize(("spread", "gamma", "greedy", "feasible_first"), FULL)
def test_it_sends_what_the_pseudo_code_sends_from_every_attacker(
    spread: float, gamma: float, greedy: str, feasible_first: bool
) -> None:
    rows = around_training(probed(), spread)
    scene = probed(honest_rows=rows)
    poisoner = poisoner_of("fedpoisonmia", gamma=gamma, greedy=greedy, feasible_first=feasible_first)
    sent = poisoner.poison_updates(scene)
    a, mask, k, alpha = written_out(probed(), rows, gamma, greedy, feasible_first)
    assert_sent(scene, sent, a, mask, k, alpha)
    assert scene.counters["bound"] == pytest.approx(widest(rows))


def assert_sent(scene: Scene, sent: Tensor, a: Tensor, mask: Tensor, k: int, alpha: float) -> None:
    told = scene.counters
    assert sent.shape == (len(scene.clients), len(scene.start))
    assert all(torch.equal(row, sent[0]) for row in sent)
    assert told["rounds"] == 1
    assert told["mask"] == k
    assert told["alpha"] == pytest.approx(max(alpha, 0.0), abs=5e-3)
    assert (told["feasible"], told["mask_alone"], told["fallbacks"]) == (alpha > 0, alpha == 0, alpha < 0)
    assert told["poisoned_updates"] == len(scene.clients) * (alpha > 0)
    torch.testing.assert_close(sent[0], told["alpha"] * a + mask, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize(("spread", "gamma"), [(spread, gamma) for spread, gamma, *_ in FULL[::4]])
def test_what_keeps_the_bound_keeps_it_as_it_is_sent(spread: float, gamma: float) -> None:
    for seed in range(6):
        scene = probed(seed=seed, honest_rows=around_training(probed(), spread, seed))
        sent = poisoner_of("fedpoisonmia", gamma=gamma).poison_updates(scene)
        assert scene.honest_rows is not None
        assert scene.counters["angle"] == pytest.approx(largest(sent[0], scene.honest_rows), abs=1e-5)
        if scene.counters["feasible"]:
            assert largest(sent[0], scene.honest_rows) <= widest(scene.honest_rows) + 1e-3


def test_those_rounds_are_of_all_kinds() -> None:
    kinds = set()
    for spread, gamma, greedy, feasible_first in FULL:
        scene = probed(honest_rows=around_training(probed(), spread))
        poisoner_of("fedpoisonmia", gamma=gamma, greedy=greedy, feasible_first=feasible_first).poison_updates(scene)
        kinds |= {kind for kind in ("feasible", "mask_alone", "fallbacks") if scene.counters[kind]}
    assert {"feasible", "fallbacks"} <= kinds


@pytest.mark.parametrize("clients", [(1, 3), (0, 2, 5), (4,)])
def test_attackers_that_see_nobody_go_by_their_own_updates(clients: tuple[int, ...]) -> None:
    scene, again = probed(clients), probed(clients)
    sent = poisoner_of("fedpoisonmia", knowledge="partial", gamma=0.2).poison_updates(scene)
    if len(clients) > 1:
        rows = torch.stack([again.honest(at) for at in range(len(clients))])
    else:
        shard = again.shards[0]
        rows = torch.stack([again.honest(0, shard.take(np.arange(part, len(shard), 3))) for part in range(3)])
    assert_sent(scene, sent, *written_out(again, rows, 0.2, "angle", True))
    assert scene.counters["went_by_own_updates"] == 1
    assert scene.counters["bound"] == pytest.approx(widest(rows))


def test_only_the_one_that_is_told_to_reads_honest_updates() -> None:
    assert poisoner_of("fedpoisonmia").sees_honest
    assert not poisoner_of("fedpoisonmia", knowledge="partial").sees_honest


@pytest.mark.parametrize("m", [1, TOGETHER, TOGETHER + 5])
def test_gradients_are_those_of_each_example_by_itself(m: int) -> None:
    scene, some = probed(), pictures(m, 55)
    found = single_gradients(scene, some)
    expected = torch.stack([gradient(scene, some.x[j : j + 1], some.y[j : j + 1]) for j in range(m)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(single_steps(scene, some, "plain"), -LR * expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(single_steps(scene, some, "plain", 0.7), -0.7 * expected, rtol=1e-4, atol=1e-6)


def test_batchnorm_goes_by_its_running_statistics_and_they_stay_as_they_are() -> None:
    start = probed(build=model).start.clone()
    start += 0.05 * torch.rand(len(start), generator=torch.Generator().manual_seed(1))
    scene, some = probed(build=model, start=start), pictures(4, 55)
    expected = torch.stack(
        [gradient(scene, x[None], y[None], model, False) for x, y in zip(some.x, some.y, strict=True)]
    )
    torch.testing.assert_close(single_gradients(scene, some), expected, rtol=1e-4, atol=1e-6)
    kinds: tuple[Step, ...] = ("plain", "optimiser")
    for step in kinds:
        steps = single_steps(scene, some, step)
        assert not steps[:, scene.task.layout.trained :].any()
        assert steps[:, : scene.task.layout.trained].any()


@pytest.mark.parametrize(
    "changed",
    [{}, {"optimiser": "adam", "lr": 0.01}, {"optimiser": "adamw"}, {"algorithm": "fedsgd"}],
    ids=["momentum", "adam", "adamw", "fedsgd"],
)
def test_the_optimisers_step_on_one_example_is_that_of_training_on_it(changed: dict[str, Any]) -> None:
    training = TRAINING.model_copy(update={"clip": 1e-3, "weight_decay": 0.3, **changed})
    scene, some = probed(training=training), pictures(3, 55)
    expected = torch.stack([stepped(scene, some.take(np.array([j])), "optimiser", 0.02) for j in range(3)])
    torch.testing.assert_close(single_steps(scene, some, "optimiser", 0.02), expected, rtol=1e-3, atol=1e-6)
    default = torch.stack([stepped(scene, some.take(np.array([j])), "optimiser") for j in range(3)])
    torch.testing.assert_close(single_steps(scene, some, "optimiser"), default, rtol=1e-3, atol=1e-6)


def test_adams_first_step_goes_by_signs() -> None:
    scene, some = probed(training=TRAINING.model_copy(update={"optimiser": "adam"})), pictures(1, 55)
    step, downhill = single_steps(scene, some, "optimiser", 0.01)[0], -single_gradients(scene, some)[0]
    steep = downhill.abs() > 1e-4
    torch.testing.assert_close(step[steep], 0.01 * downhill[steep].sign(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("step", ["plain", "optimiser"])
def test_both_steps_are_taken_as_told_at_the_rate_told(step: Step) -> None:
    adam = TRAINING.model_copy(update={"optimiser": "adam"})
    again = probed(training=adam)
    own, wrong = own_of(again), mislabelled(again)
    # Honest updates that go the other way: no alpha keeps their bound.
    rows = -single_steps(again, own, step, 0.03)[0] + 1e-3 * rows_of(3, len(again.start))
    scene = probed(training=adam, honest_rows=rows)
    sent = poisoner_of("fedpoisonmia", step=step, lr=0.03, fallback="attack", feasible_first=False).poison_updates(
        scene
    )
    assert scene.counters["fallbacks"] == 1
    assert torch.equal(sent[0], stepped(again, wrong, step, 0.03))
    partial = poisoner_of("fedpoisonmia", step=step, lr=0.03, knowledge="partial", gamma=1.0, mask=5)
    scene = probed((2,), training=adam, shards=(pictures(1, 6),))
    (sent,) = partial.poison_updates(scene)
    torch.testing.assert_close(sent, single_steps(again, pictures(1, 6), step, 0.03)[0])


def test_wrong_labels_are_never_the_truth_and_stay_for_the_run() -> None:
    many = pictures(500, 77)
    wrong = [mislabelled(probed(targets=many, number=number)).y for number in (1, 2, 5)]
    assert not (wrong[0] == many.y).any()
    assert sorted(set(wrong[0].tolist())) == list(range(CLASSES))
    assert torch.equal(wrong[0], wrong[1])
    assert torch.equal(wrong[0], wrong[2])


Vectors = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def crafted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, Scene]]:
    """What is sent for a step, own steps and honest updates that are given, [d], [M, d] and [n, d]."""

    def craft(attack: Tensor, steps: Tensor, rows: Tensor, number: int = 1, **fields: Any) -> tuple[Tensor, Scene]:
        monkeypatch.setattr(fedpoisonmia, "stepped", lambda *_: attack)
        monkeypatch.setattr(fedpoisonmia, "single_steps", lambda *_: steps)
        monkeypatch.setattr(fedpoisonmia, "references", lambda _: rows)
        scene = probed(number=number)
        return poisoner_of("fedpoisonmia", **fields).poison_updates(scene), scene

    return craft


def flat(*degrees: float) -> Tensor:
    """Unit vectors of a plane."""
    turned = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([turned.cos(), turned.sin()], 1).float()


CONE = flat(-30, 30)
Crafted = Callable[..., tuple[Tensor, Scene]]


def test_in_a_plane_what_is_sent_is_at_the_bound(crafted: Crafted) -> None:
    # At 60 degrees from -30: the mask at 0, the attack straight up.
    sent, scene = crafted(flat(90)[0], flat(0), CONE)
    expected = float(np.tan(np.radians(30)))
    torch.testing.assert_close(sent, torch.tensor([[1.0, expected]]).expand(2, -1))
    assert scene.counters == {
        "no_reference": 0,
        "bound": pytest.approx(60, abs=1e-4),
        "rounds": 1,
        "feasible": 1,
        "mask_alone": 0,
        "fallbacks": 0,
        "alpha": pytest.approx(expected, rel=1e-6),
        "angle": pytest.approx(60, abs=1e-4),
        "mask": 1,
        "poisoned_updates": 2,
    }
    limited, scene = crafted(flat(90)[0], flat(0), CONE, alpha_max=0.25)
    torch.testing.assert_close(limited[0], torch.tensor([1.0, 0.25]))
    assert scene.counters["alpha"] == 0.25


@pytest.mark.parametrize(("fallback", "goes", "mask", "poisoned"), [("mask", 150, 1, 0), ("attack", 170, 0, 2)])
def test_where_no_alpha_keeps_the_bound_the_fallback_goes_out(
    crafted: Crafted, fallback: str, goes: float, mask: int, poisoned: int
) -> None:
    sent, scene = crafted(flat(170)[0], flat(150), CONE, fallback=fallback)
    torch.testing.assert_close(sent, flat(goes, goes))
    assert scene.counters["fallbacks"] == 1
    assert (scene.counters["mask"], scene.counters["poisoned_updates"]) == (mask, poisoned)
    assert (scene.counters["feasible"], scene.counters["alpha"], scene.counters["mask_alone"]) == (0, 0, 0)
    assert scene.counters["angle"] == pytest.approx(goes + 30 if goes == 150 else 160, abs=1e-3)


@pytest.mark.parametrize("fallback", ["mask", "attack"])
def test_where_the_mask_alone_is_at_the_largest_angle_it_goes_out_alone(crafted: Crafted, fallback: str) -> None:
    # The attack lies within the cone, and nearer to its middle than the mask.
    sent, scene = crafted(flat(0)[0], flat(20), CONE, fallback=fallback)
    torch.testing.assert_close(sent, flat(20, 20))
    assert (scene.counters["mask_alone"], scene.counters["feasible"], scene.counters["fallbacks"]) == (1, 0, 0)
    assert scene.counters["poisoned_updates"] == 0


@pytest.mark.parametrize("rows", [flat(), flat(10)])
@pytest.mark.parametrize("fallback", ["mask", "attack"])
def test_with_fewer_than_two_updates_to_measure_the_fallback_goes_out(
    crafted: Crafted, rows: Tensor, fallback: str
) -> None:
    steps = flat(0, 90, 45)
    sent, scene = crafted(flat(180)[0], steps, rows.reshape(-1, 2), fallback=fallback)
    expected = steps.mean(0) if fallback == "mask" else flat(180)[0]
    torch.testing.assert_close(sent, expected.expand(2, -1))
    assert (scene.counters["no_reference"], scene.counters["fallbacks"]) == (1, 1)
    assert scene.counters["angle"] == 0
    assert "bound" not in scene.counters
    assert scene.counters["mask"] == (3 if fallback == "mask" else 0)


def test_a_paper_literal_selection_ends_where_nothing_keeps_the_bound(crafted: Crafted) -> None:
    attack, steps = flat(120)[0], flat(0, 10, 20)
    sent, scene = crafted(attack, steps, flat(-5, 5), gamma=1.0, feasible_first=False)
    assert scene.counters["fallbacks"] == 1
    # Nothing was chosen: all make the mask.
    torch.testing.assert_close(sent[0], steps.mean(0))
    _, scene = crafted(attack, steps, flat(-5, 5), gamma=1.0, feasible_first=False, fallback="attack")
    assert (scene.counters["mask"], scene.counters["poisoned_updates"]) == (0, 2)
    sent, scene = crafted(attack, steps, flat(-5, 5), gamma=0.4)
    assert scene.counters["mask"] == 1
    assert scene.counters["feasible"] == 1, "with feasibility first a smaller alpha is found"


def test_the_longest_or_the_farthest_of_those_that_fit_is_taken(crafted: Crafted) -> None:
    attack, steps = 0.1 * flat(90)[0], torch.cat([3 * flat(0), flat(15), flat(80)])
    _, by_angle = crafted(attack, steps, CONE, gamma=0.1, alpha_max=1e-6)
    _, by_norm = crafted(attack, steps, CONE, gamma=0.1, greedy="norm", alpha_max=1e-6)
    # 15 degrees is the farthest that fits, that at 0 the longest.
    assert by_angle.counters["angle"] == pytest.approx(45, abs=1e-3)
    assert by_norm.counters["angle"] == pytest.approx(30, abs=1e-3)


def test_random_choice_is_of_as_many_and_another_one_each_round(crafted: Crafted) -> None:
    steps, rows = torch.eye(40), rows_of(3, 40, seed=2)

    def taken(number: int) -> list[int]:
        sent, scene = crafted(torch.zeros(40), steps, rows, number=number, greedy="random", gamma=0.1)
        assert scene.counters["mask"] == 4
        torch.testing.assert_close(sent[0].sum(), torch.tensor(1.0))
        found: list[int] = sent[0].nonzero()[:, 0].tolist()
        return found

    assert len(taken(1)) == 4
    assert taken(1) == taken(1)
    assert len({tuple(taken(number)) for number in range(1, 9)}) > 5


@pytest.mark.parametrize(
    ("gamma", "m", "k"), [(0.1, 30, 3), (0.29, 100, 29), (0.1, 9, 1), (0.1, 19, 1), (1.0, 7, 7), (0.5, 5, 2)]
)
def test_the_share_of_own_examples_is_rounded_down_to_one_at_least(
    crafted: Crafted, gamma: float, m: int, k: int
) -> None:
    for greedy in ("angle", "random"):
        _, scene = crafted(rows_of(1, 20, seed=1)[0], rows_of(m, 20), rows_of(4, 20), gamma=gamma, greedy=greedy)
        assert scene.counters["mask"] == k


def test_a_mask_that_all_but_cancels_the_attack_is_not_sent_for_feasible(crafted: Crafted) -> None:
    # Nearly all of both cancels, and with it most digits of the products: angles come out wrong by 0.01 degrees.
    rows = torch.cat([flat(20, 70), torch.zeros(2, 1)], 1)
    kinds = set()
    for size in torch.linspace(0.5e6, 8e6, 41).tolist():
        attack, mask = torch.tensor([0.0, 1.0, size]), torch.tensor([[1.0, 0.0, -size]])
        sent, scene = crafted(attack, mask, rows)
        kinds.add(scene.counters["feasible"])
        if scene.counters["feasible"]:
            assert largest(sent[0], rows) <= widest(rows) + 1e-3
    assert kinds == {0, 1}


def test_what_turns_out_to_be_beyond_the_bound_is_a_fallback(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, scene = crafted(flat(90)[0], flat(0), CONE)
    assert scene.counters["feasible"] == 1
    bend = torch.tensor([0.0, 0.01])
    plain = mixture
    monkeypatch.setattr(fedpoisonmia, "mixture", lambda *given: plain(*given) + bend)
    _, scene = crafted(flat(90)[0], flat(0), CONE)
    assert (scene.counters["feasible"], scene.counters["fallbacks"]) == (0, 1)


def test_rescaling_makes_it_as_long_as_the_median_of_the_updates(crafted: Crafted) -> None:
    rows = torch.cat([2 * flat(-30), 3 * flat(30), 7 * flat(10), 20 * flat(0)])
    plain, _ = crafted(flat(90)[0], flat(0), rows)
    sent, scene = crafted(flat(90)[0], flat(0), rows, rescale="median_norm")
    torch.testing.assert_close(sent[0], 5 * plain[0] / plain[0].norm())
    assert scene.counters["angle"] == pytest.approx(60, abs=1e-4)
    lone, _ = crafted(flat(90)[0], flat(0), rows[3:], rescale="median_norm")
    torch.testing.assert_close(lone[0], 20 * flat(0)[0])
    nobody, _ = crafted(flat(90)[0], flat(0), rows[:0], rescale="median_norm")
    torch.testing.assert_close(nobody[0], flat(0)[0])
    assert torch.equal(as_long_as_the_median(torch.zeros(2), rows, 2), torch.zeros(2))
    attack, _ = crafted(flat(170)[0], flat(150), rows, rescale="median_norm", fallback="attack")
    torch.testing.assert_close(attack[0], 5 * flat(170)[0])


def test_rescaling_leaves_statistics_as_they_are() -> None:
    rows = torch.tensor([[3.0, 4.0, 100.0], [6.0, 8.0, 900.0], [0.0, 15.0, 0.0]])
    found = as_long_as_the_median(torch.tensor([0.0, 2.0, -7.0]), rows, 2)
    torch.testing.assert_close(found, torch.tensor([0.0, 10.0, -7.0]))


def test_updates_of_zeros_are_at_a_right_angle(crafted: Crafted) -> None:
    _, scene = crafted(flat(90)[0], flat(0), torch.cat([torch.zeros(1, 2), flat(0)]))
    assert scene.counters["bound"] == pytest.approx(90)
    assert scene.counters["feasible"] == 1
    sent, scene = crafted(torch.zeros(2), torch.zeros(3, 2), CONE)
    assert not sent.any()
    assert scene.counters["angle"] == pytest.approx(90)
    assert scene.counters["fallbacks"] == 1
    _, scene = crafted(flat(90)[0], flat(0), torch.zeros(3, 2))
    assert scene.counters["bound"] == pytest.approx(90)


def test_own_examples_are_no_more_than_told_and_the_same_in_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    plain = fedpoisonmia.single_steps

    def watched(scene: Scene, examples: Examples, *rest: Any) -> Tensor:
        seen.append(examples.ids.tolist())
        return plain(scene, examples, *rest)

    monkeypatch.setattr(fedpoisonmia, "single_steps", watched)
    poisoner = poisoner_of("fedpoisonmia", mask=11, knowledge="partial")
    for number in (1, 2):
        poisoner.poison_updates(probed(number=number))
    assert len(seen[0]) == 11
    assert seen[0] == seen[1]
    poisoner_of("fedpoisonmia", mask=None, knowledge="partial").poison_updates(probed())
    assert len(seen[2]) == SIZES[1] + SIZES[3]


def test_the_same_scene_gives_the_same_bytes_and_is_left_as_it_was() -> None:
    rows = around_training(probed(), 1.0)
    one, other = probed(honest_rows=rows.clone()), probed(honest_rows=rows.clone())
    sent = [poisoner_of("fedpoisonmia", gamma=0.2).poison_updates(scene) for scene in (one, other)]
    assert torch.equal(sent[0], sent[1])
    assert one.counters == other.counters
    assert one.honest_rows is not None
    assert torch.equal(one.honest_rows, rows)
    assert torch.equal(one.start, probed().start)
    assert torch.equal(TARGETS.y, pictures(9, 77).y)
    assert not sent[0].requires_grad


@pytest.mark.parametrize("knowledge", ["full", "partial"])
@pytest.mark.parametrize("clients", [(3,), (1, 3), (0, 1, 2)])
def test_in_a_federation_every_attacker_sends_a_row_of_its_own(clients: tuple[int, ...], knowledge: str) -> None:
    poisoner = poisoner_of("fedpoisonmia", knowledge=knowledge, gamma=0.2, fallback="attack")
    campaign = Campaign(poisoner=poisoner, label="attack", compromised=clients, rounds=(1, 2), targets=TARGETS)
    done = list(federation(campaign=campaign, rounds=2).run(first()))
    for one in done:
        assert one.cohort is not None
        assert one.cohort.updates.shape == (len(SIZES), len(one.start))
        sent = one.cohort.updates[[one.cohort.clients.index(client) for client in clients]]
        assert all(torch.equal(row, sent[0]) for row in sent)
        assert one.counters["adversary"]["poisoned_updates"] in (0, len(clients))
        rows = one.cohort.updates[[at for at, c in enumerate(one.cohort.clients) if c not in clients]]
        if knowledge == "full":
            assert one.counters["adversary"]["bound"] == pytest.approx(widest(rows))
            assert one.counters["adversary"]["angle"] == pytest.approx(farthest(sent[0], rows))


def test_what_it_tells_are_shares_of_rounds_and_means() -> None:
    counters = {
        "rounds": 8.0,
        "feasible": 2.0,
        "mask_alone": 1.0,
        "fallbacks": 5.0,
        "no_reference": 4.0,
        "alpha": 3.0,
        "angle": 200.0,
        "bound": 240.0,
        "mask": 24.0,
        "poisoned_updates": 4.0,
        "went_by_own_updates": 8.0,
    }
    assert poisoner_of("fedpoisonmia").told(counters) == {
        "rounds": 8,
        "feasible_share": 0.25,
        "mask_alone_share": 0.125,
        "fallback_share": 0.625,
        "no_reference_share": 0.5,
        "mean_alpha": 1.5,
        "mean_angle": 50,
        "mean_bound": 60,
        "mean_mask": 3,
        "poisoned_updates": 4,
        "went_by_own_updates": 8,
    }
    none_feasible = {**counters, "feasible": 0.0, "alpha": 0.0, "no_reference": 8.0, "angle": 0.0, "bound": 0.0}
    told = poisoner_of("fedpoisonmia").told(none_feasible)
    assert (told["mean_alpha"], told["mean_angle"], told["mean_bound"]) == (0, 0, 0)
    assert poisoner_of("fedpoisonmia").told({}) == {}


def test_it_refuses_what_nobody_sees_and_runs_in_which_nothing_is_asked() -> None:
    asked = {"targets": 9, "sizes": SIZES}
    poisoner_of("fedpoisonmia").check(plot_of(**asked))
    with pytest.raises(InputError, match="knowledge: got full, and secure_aggregation"):
        poisoner_of("fedpoisonmia").check(plot_of(secure_aggregation=True, **asked))
    poisoner_of("fedpoisonmia", knowledge="partial").check(plot_of(secure_aggregation=True, **asked))
    with pytest.raises(InputError, match="attacks: got none"):
        poisoner_of("fedpoisonmia").check(plot_of(**{**asked, "targets": 0}))
    with pytest.raises(InputError, match="targets: got no examples"):
        poisoner_of("fedpoisonmia").poison_updates(probed(targets=None))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", 0),
        ("gamma", 1.1),
        ("alpha_max", 0),
        ("alpha_max", float("inf")),
        ("mask", 0),
        ("lr", 0),
        ("greedy", "best"),
        ("fallback", "nothing"),
        ("rescale", "mean"),
        ("step", "adam"),
        ("knowledge", "all"),
    ],
)
def test_fields_have_their_ranges(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"adversary\.{field}: got"):
        poisoner_of("fedpoisonmia", **{field: value})


def test_it_is_an_attack_of_two_sides() -> None:
    assert "fedpoisonmia" in names("poisoning")
    assert "fedpoisonmia" in names("membership")
    assert isinstance(poisoner_of("fedpoisonmia"), FedPoisonMIA)
    assert poisoner_of("fedpoisonmia").probes
