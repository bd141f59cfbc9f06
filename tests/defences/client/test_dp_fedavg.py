"""DP-FedAvg: the clipped upload, its noise, and the privacy that it says it spent."""

import math
from itertools import combinations, pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from turns import examples_of, flat_task, turn_of, update_of

from fedsiege.defences.client.base import Ground, posted
from fedsiege.defences.client.dp_fedavg import DPFedAvg, masking
from fedsiege.defences.client.perturb import Perturb
from fedsiege.defences.client.relaxloss import RelaxLoss
from fedsiege.defences.coalition.base import seated
from fedsiege.defences.coalition.cofedmid import CoFedMID
from fedsiege.defences.privacy import gaussian_epsilon
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.task import Task


def task_of(*sizes: int) -> Task:
    return Task(nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(sizes)]))


def ground_of(sizes: tuple[int, ...], task: Task | None = None, **fields: Any) -> Ground:
    """A run with these clients, weighted by their examples, all of them in every round."""
    known: dict[str, Any] = {"using": range(len(sizes)), "weights": sizes, "cohort": len(sizes)}
    return Ground(task or task_of(3, 2), examples_of(torch.zeros(2, 3)), sizes, batch=10, **{**known, **fields})


def test_the_whole_upload_is_scaled_down_to_the_clip_and_a_short_one_is_not() -> None:
    task = task_of(20, 10, 4)
    update = update_of(task)
    defence, norm = DPFedAvg(clip=2.0, noise_multiplier=0.0), float(update.norm())
    torch.testing.assert_close(defence.on_update(update, turn_of(task)), 2.0 * update / norm)
    short = update / norm
    assert torch.equal(defence.on_update(short, turn_of(task)), short)
    nothing = torch.zeros_like(update)
    assert torch.equal(defence.on_update(nothing, turn_of(task)), nothing)


@pytest.mark.parametrize(
    ("noise", "cohort", "sigma"), [("local", 9, 1.5), ("distributed", 9, 0.5), ("distributed", 1, 1.5)]
)
def test_noise_has_the_stated_size_in_every_coordinate(noise: Any, cohort: int, sigma: float) -> None:
    task = task_of(300, 200, 10)
    defence = DPFedAvg(clip=0.5, noise_multiplier=3.0, noise=noise)
    assert defence.sigma(cohort) == pytest.approx(sigma)
    update = update_of(task)
    clipped = 0.5 * update / update.norm()
    found = defence.on_update(update, turn_of(task, cohort=cohort)) - clipped
    assert float(found.std()) == pytest.approx(sigma, rel=0.01)
    assert abs(float(found.mean())) < 4 * sigma / math.sqrt(len(found))
    assert abs(float(torch.corrcoef(torch.stack([found, update]))[0, 1])) < 0.02
    for _, place in task.layout.slices():
        assert float(found[place].std()) == pytest.approx(sigma, rel=0.3)


def test_the_sum_of_a_rounds_uploads_carries_the_distributed_noise() -> None:
    task, clients = task_of(200, 100), 16
    defence, nothing = DPFedAvg(clip=2.0, noise_multiplier=0.7, noise="distributed"), torch.zeros(20100)
    total = sum(defence.on_update(nothing, turn_of(task, seed=k, cohort=clients)) for k in range(clients))
    assert isinstance(total, torch.Tensor)
    assert float(total.std()) == pytest.approx(1.4, rel=0.02)


def test_noise_of_an_upload_comes_from_its_turn() -> None:
    task = task_of(20, 10)
    update = update_of(task)
    first = DPFedAvg().on_update(update, turn_of(task, seed=1))
    assert torch.equal(DPFedAvg().on_update(update, turn_of(task, seed=1)), first)
    assert not torch.equal(DPFedAvg().on_update(update, turn_of(task, seed=2)), first)


def test_models_with_batch_norm_are_refused_before_the_first_round() -> None:
    with pytest.raises(InputError, match=r"^name: got dp_fedavg with a model .*BatchNorm1d"):
        DPFedAvg().check(ground_of((10, 10), flat_task(4, 3)))
    DPFedAvg().check(ground_of((10, 10)))


def test_what_dp_fedavg_tells_of_its_updates() -> None:
    task, defence = task_of(20, 10), DPFedAvg(noise_multiplier=0.0)
    turn, update = turn_of(task, client=2), update_of(task)
    defence.on_update(update, turn)
    defence.on_update(update / 1000, turn)
    assert turn.counters["rounds_of_2"] == 2
    told = defence.told(turn.counters)
    norm = float(update.norm())
    assert told == {
        "updates": 2,
        "changed": 1,
        "mean_clipped": 0.5,
        "mean_update_norm": pytest.approx(norm * 1.001 / 2, rel=1e-5),
        "mean_noise_norm": 0,
    }


ROUNDS = {"rounds_of_0": 30.0, "rounds_of_1": 50.0, "rounds_of_2": 40.0}


def test_against_the_server_the_client_of_most_rounds_is_the_worst() -> None:
    for noise, alone in (("local", 2.0), ("distributed", 2.0 / math.sqrt(3))):
        defence = DPFedAvg(noise_multiplier=2.0, clip=0.3, noise=noise, delta=1e-6)  # type: ignore[arg-type]
        server, _ = defence.guarantees(ROUNDS, ground_of((10, 10, 10)))
        assert server.epsilon == pytest.approx(gaussian_epsilon(alone, 50, 1e-6), rel=1e-12)
        assert (server.unit, server.against, server.delta) == ("client", "server", 1e-6)
        for words in ("client 1", "50 rounds", "without amplification", "replaced by zero", "being public"):
            assert words in server.note
        assert server.clients == "of every client"


def test_what_a_guarantee_of_dp_fedavg_leaves_out_is_said() -> None:
    for measured in (False, True):
        found = DPFedAvg().guarantees(ROUNDS, ground_of((10, 10, 10), measured=measured))
        assert ["computed from all training data" in one.note for one in found] == [measured] * 2
    (some,) = DPFedAvg().guarantees(ROUNDS, ground_of((10, 10, 10), using=(1,)))
    assert some.clients == "of client 1"


def test_against_the_aggregate_equal_clients_hide_in_the_noise_of_all_but_the_onlooker() -> None:
    _, local = DPFedAvg(noise_multiplier=2.0).guarantees(ROUNDS, ground_of((10, 10, 10)))
    assert local.epsilon == pytest.approx(gaussian_epsilon(2.0 * math.sqrt(2), 50, 1e-5), rel=1e-12)
    _, shared = DPFedAvg(noise_multiplier=2.0, noise="distributed").guarantees(ROUNDS, ground_of((10, 10, 10)))
    assert shared.epsilon == pytest.approx(gaussian_epsilon(2.0 * math.sqrt(2 / 3), 50, 1e-5), rel=1e-12)
    assert shared.against == "aggregate"


def test_of_two_clients_each_hides_from_the_other_in_its_own_noise_alone() -> None:
    server, aggregate = DPFedAvg(noise="distributed").guarantees(
        {"rounds_of_0": 9, "rounds_of_1": 9}, ground_of((5, 5))
    )
    assert aggregate.epsilon == server.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(0.5), 9, 1e-5))


def test_against_the_aggregate_a_heavy_client_can_be_worse_than_one_of_more_rounds() -> None:
    # What a client shows grows with its weight and the square root of its rounds, over the noise that hides it.
    _, spent = DPFedAvg(noise_multiplier=2.0).guarantees(ROUNDS, ground_of((60, 11, 10)))
    expected = gaussian_epsilon(2.0 * math.hypot(60, 10) / 60, 30, 1e-5)
    assert spent.epsilon == pytest.approx(expected, rel=1e-12)
    assert expected > gaussian_epsilon(2.0 * math.hypot(11, 10) / 11, 50, 1e-5)
    assert "client 0" in spent.note


def test_masking_is_what_a_simulated_aggregate_shows_to_the_client_that_sees_most() -> None:
    weights = np.array([5.0, 1.0, 3.0, 2.0])
    rng = np.random.default_rng(0)
    noises = weights[:, None] * rng.standard_normal((4, 200_000))
    aggregates = noises.sum(0) / weights.sum()
    for client in range(4):
        moved = weights[client] / weights.sum()  # by a unit of this client's update
        # Each other client subtracts what it sent itself.
        left = [(aggregates - noises[k] / weights.sum()).std() for k in range(4) if k != client]
        assert masking(weights.tolist(), client, 4) == pytest.approx(min(left) / moved, rel=0.01)


@pytest.mark.parametrize("cohort", [1, 2, 3, 4])
def test_with_a_sample_of_clients_the_least_hiding_cohort_and_onlooker_count(cohort: int) -> None:
    weights = [4.0, 3.0, 4.0, 12.0]
    for client, own in enumerate(weights):
        others = [k for k in range(4) if k != client]
        least = min(
            math.hypot(own, *(weights[k] for k in beside if k != onlooker))
            for beside in combinations(others, cohort - 1)
            for onlooker in others
        )
        assert masking(weights, client, cohort) == pytest.approx(least / own)
    assert masking(weights, 0, 3) == pytest.approx(5 / 4)


@pytest.mark.parametrize(
    "fields",
    [
        *[{"weights": None}, {"using": (0, 2)}, {"later": [RelaxLoss(), Perturb(sigma=0.1)]}],
        {"later": [CoFedMID(assignment="none", compensation="none")]},
    ],
)
def test_where_the_aggregate_is_not_accounted_for_only_the_server_is(fields: dict[str, Any]) -> None:
    found = DPFedAvg().guarantees(ROUNDS, ground_of((10, 10, 10), **fields))
    assert [one.against for one in found] == ["server"]


def test_a_later_defence_that_leaves_the_upload_alone_does_not_matter() -> None:
    off = CoFedMID(assignment="none", compensation="none", perturbation="none")
    for later in (RelaxLoss(), off, Perturb(sigma=0.0)):
        found = DPFedAvg().guarantees(ROUNDS, ground_of((10, 10, 10), later=[later]))
        assert [one.against for one in found] == ["server", "aggregate"]


def test_a_coalition_behind_it_is_no_conflict_and_one_with_a_guarantee_is() -> None:
    class Sworn(CoFedMID):
        private: ClassVar[bool] = True

    everybody, last = posted([DPFedAvg()], 3), posted([DPFedAvg(clients=2)], 3)
    assert len(seated([CoFedMID()], 3, ["coalition"], everybody)) == 1
    assert len(seated([Sworn()], 3, ["coalition"], last)) == 1
    assert (
        len(seated([Sworn(assignment="none", compensation="none", perturbation="none")], 3, ["c"], everybody)) == 1
    )
    words = r"^defences\.0\.clients: dp_fedavg and .* each give a client differential privacy"
    with pytest.raises(InputError, match=words):
        seated([Sworn()], 3, ["coalition"], everybody)


def test_clipping_uploads_alone_bounds_nothing_and_no_rounds_spend_nothing() -> None:
    found = DPFedAvg(noise_multiplier=0.0).guarantees(ROUNDS, ground_of((10, 10, 10)))
    assert [one.epsilon for one in found] == [None, None]
    assert all(one.note.startswith("no noise, no bound") for one in found)
    assert DPFedAvg().guarantees({}, ground_of((10, 10, 10))) == []


def test_an_upload_that_is_neither_clipped_nor_noised_is_not_changed() -> None:
    task = task_of(20, 10)
    for clip, noise, changed in ((1e9, 0.0, 0), (1e-3, 0.0, 1), (1e9, 0.1, 1)):
        turn = turn_of(task)
        DPFedAvg(clip=clip, noise_multiplier=noise).on_update(update_of(task), turn)
        assert turn.counters[DPFedAvg.proof] == changed


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip", 0), ("noise_multiplier", -1), ("noise", "central"), ("delta", 1), ("delta", 0.0)],
)
def test_bad_fields_of_dp_fedavg_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.{field}: got {value!r}"):
        build("client_defence", {"name": "dp_fedavg", field: value}, "defences.0")
