"""Weak differential privacy: what is clipped, where noise goes, how much of it, and what it is worth."""

import pytest
import torch
from server_cohorts import blobs, cohort_of, rows_of, server_of, task_of

from fedsiege.defences.privacy import gaussian_epsilon
from fedsiege.defences.server.norm_bounding import NormBounding
from fedsiege.defences.server.weak_dp import WeakDP
from fedsiege.errors import InputError
from fedsiege.registry import build

WIDE = 200_000


@pytest.mark.parametrize("bound", [2.0, "median", None])
@pytest.mark.parametrize("scope", ["all", "trained"])
def test_answers_are_clipped_as_by_norm_bounding(bound: float | str | None, scope: str) -> None:
    task = task_of()
    cohort = cohort_of(rows_of(5, task.layout.size) * torch.arange(5.0)[:, None])
    fields = {"bound": bound, "scope": scope}
    ours = build("server_defence", {"name": "weak_dp", **fields}, "d").on_cohort(cohort, server_of(task))
    theirs = build("server_defence", {"name": "norm_bounding", **fields}, "d").on_cohort(cohort, server_of(task))
    assert torch.equal(ours[0].updates, theirs[0].updates)
    assert torch.equal(ours[1].scale, theirs[1].scale)
    assert ours[1].counters["clipped"] == theirs[1].counters["clipped"]


def test_noise_on_the_combined_update_has_its_standard_deviation() -> None:
    update = rows_of(1, WIDE)[0]
    noise = WeakDP(sigma=0.3).on_update(update, server_of()) - update
    assert float(noise.std()) == pytest.approx(0.3, rel=0.01)
    assert abs(float(noise.mean())) < 0.003
    assert abs(float(torch.corrcoef(torch.stack([noise, update]))[0, 1])) < 0.01


def test_noise_is_drawn_anew_in_each_round_and_from_the_servers_stream_alone() -> None:
    update, defence = torch.zeros(1000), WeakDP()
    first, again = (defence.on_update(update, server_of(number=1)) for _ in range(2))
    other = defence.on_update(update, server_of(number=2))
    assert torch.equal(first, again)
    assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.15
    server = server_of()
    assert not torch.equal(defence.on_update(update, server), defence.on_update(update, server))


def test_running_statistics_get_no_noise_so_that_no_variance_falls_below_zero() -> None:
    task = task_of()
    server, trained = server_of(task), task.layout.trained
    update = rows_of(1, task.layout.size)[0]
    out = WeakDP(sigma=100.0).on_update(update, server)
    assert torch.equal(out[trained:], update[trained:])
    assert bool((out[:trained] != update[:trained]).all())
    logits = task.predict(task.state.clone() + (out - update), blobs(20, 5))
    assert bool(logits.isfinite().all())


def test_a_round_counts_as_changed_where_there_was_noise_or_a_long_row() -> None:
    cohort = cohort_of(torch.tensor([[3.0, 4.0], [0.1, 0.0]]))
    for fields, changed in (
        ({"bound": None, "sigma": 0.0}, 0),
        ({"bound": None, "sigma": 0.1}, 1),
        ({"bound": 1.0, "sigma": 0.0}, 1),
        ({"bound": 9.0, "sigma": 0.0}, 0),
    ):
        defence = build("server_defence", {"name": "weak_dp", **fields}, "d")
        assert defence.on_cohort(cohort, server_of())[1].counters["changed"] == changed


def test_without_noise_it_is_norm_bounding() -> None:
    update = rows_of(1, 10)[0]
    assert WeakDP(sigma=0.0).on_update(update, server_of()) is update
    assert NormBounding(bound=2.0).on_update(update, server_of()) is update


def test_the_epsilon_that_its_page_names_is_right() -> None:
    bound, sigma, clients = 2.0, 0.025, 10
    multiplier = sigma / (bound / clients)
    assert multiplier == pytest.approx(0.125)
    assert round(gaussian_epsilon(multiplier, 1, 1e-5)) == 65
    doc = " ".join((WeakDP.__doc__ or "").split())
    assert "0.125 at bound 2, sigma 0.025 and ten clients, and epsilon 65 at delta 1e-5" in doc


@pytest.mark.parametrize("sigma", [-0.1, float("inf"), "much"])
def test_noise_that_is_none_is_refused_by_name(sigma: object) -> None:
    with pytest.raises(InputError, match=rf"server_defences\.0\.sigma: got {sigma!r}"):
        build("server_defence", {"name": "weak_dp", "sigma": sigma}, "server_defences.0")
