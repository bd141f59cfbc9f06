"""Gaussian noise on the upload: the official numbers, its size, where it goes, and clipping."""

from pathlib import Path

import pytest
import torch
from turns import examples_of, flat_task, golden, guard_of, micro, turn_of, update_of

from fedsiege.defences.client.perturb import Perturb
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task
from fedsiege.training import Training, train


def test_a_perturbed_step_is_the_official_one(shared_golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {name: torch.as_tensor(of) for name, of in golden(shared_golden).items() if name.startswith("perturb")}
    task, turn, sigma, start = Task(micro()), turn_of(Task(micro())), 0.02, stored["perturb_init"]
    torch.manual_seed(11)
    noise = torch.cat([torch.normal(0.0, sigma, shape).flatten() for shape in task.layout.shapes])
    monkeypatch.setattr(type(turn), "normal", lambda self, size: noise / sigma)
    data = examples_of(stored["perturb_X"], stored["perturb_Y"])
    training = Training(batch=len(data), lr=0.05)

    clean = train(task, start, data, training, 0.05, stream(0, "client"))
    torch.testing.assert_close(start + clean, stored["perturb_clean"], rtol=0, atol=1e-6)
    guard = guard_of(Perturb(sigma=sigma), turn)
    noisy = train(task, start, data, training, 0.05, stream(0, "client"), guard)
    torch.testing.assert_close(start + noisy, stored["perturb_noisy_sigma0_02"], rtol=0, atol=1e-6)


def test_noise_has_its_standard_deviation_on_trained_parameters_alone() -> None:
    task = flat_task(300, 200, 100)
    turn, update, trained = turn_of(task), update_of(task), task.layout.trained
    noise = Perturb(sigma=0.3).on_update(update, turn) - update
    assert abs(float(noise[:trained].std()) / 0.3 - 1) < 0.01
    assert abs(float(noise[:trained].mean())) < 0.005
    assert abs(float(torch.corrcoef(torch.stack([noise[:trained], update[:trained]]))[0, 1])) < 0.02
    assert not noise[trained:].any()
    assert len(noise) > trained


def test_a_long_update_is_clipped_before_the_noise_and_a_short_one_is_not() -> None:
    task = flat_task(20, 10)
    update, trained = update_of(task), task.layout.trained
    norm = float(update[:trained].norm())
    clipped = Perturb(sigma=0.0, clip=norm / 4).on_update(update, turn_of(task))
    torch.testing.assert_close(clipped[:trained], update[:trained] / 4)
    assert torch.equal(clipped[trained:], update[trained:])
    assert torch.equal(Perturb(sigma=0.0, clip=norm * 1.01).on_update(update, turn_of(task)), update)
    both = Perturb(sigma=0.1, clip=norm / 4).on_update(update, turn_of(task))
    noise = Perturb(sigma=0.1).on_update(update, turn_of(task)) - update
    torch.testing.assert_close(both - clipped, noise, atol=1e-6, rtol=0)


def test_what_it_tells() -> None:
    task, defence = flat_task(20, 10), Perturb(sigma=0.1, clip=1.0)
    turn, trained = turn_of(task), task.layout.trained
    long, short = update_of(task), 0.01 * update_of(task)
    noises = [
        defence.on_update(long, turn) - long / long[:trained].norm(),
        defence.on_update(short, turn) - short,
    ]
    told = defence.told(turn.counters)
    assert (told["updates"], told["changed"], told["mean_clipped"]) == (2, 2, 0.5)
    assert told["mean_update_norm"] == pytest.approx(float(long[:trained].norm() + short[:trained].norm()) / 2)
    assert told["mean_noise_norm"] == pytest.approx(
        sum(float(one[:trained].norm()) for one in noises) / 2, rel=1e-5
    )


def test_an_update_of_nothing_is_not_divided_by_its_norm() -> None:
    task = flat_task(4, 3)
    nothing = torch.zeros(task.layout.size)
    assert torch.equal(Perturb(sigma=0.0, clip=1.0).on_update(nothing, turn_of(task)), nothing)


@pytest.mark.parametrize(("field", "value"), [("sigma", -0.1), ("clip", 0), ("clip", -1), ("sigma", "much")])
def test_bad_strengths_of_noise_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.{field}: got {value!r}"):
        build("client_defence", {"name": "perturb", field: value}, "defences.0")
