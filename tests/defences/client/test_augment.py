"""Images changed before a step: the pipeline by its parts, its strength, and data that are no images."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from turns import examples_of, flat_task, ground_of, guard_of, turn_of

from fedsiege.augmentation import Colours, Moves
from fedsiege.defences.client.augment import Augment
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, train

CPU = torch.device("cpu")


def images(m: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (m, 3, 16, 16), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize(("strength", "padding"), [(1.0, 4), (0.5, 2), (0.1, 0)])
def test_images_are_moved_and_then_recoloured(strength: float, padding: int) -> None:
    x, turn, again = images(20), turn_of(flat_task(4, 3)), turn_of(flat_task(4, 3)).rng
    made = Augment(strength=strength).on_images(x, turn)
    moves = Moves.drawn(20, again, CPU, padding, 0.5 * strength, 45 * strength)
    colours = Colours.drawn(20, again, CPU, 0.25 * strength, 0.8 * strength)
    assert torch.equal(made, colours.of(moves.of(x)))
    assert made.dtype == torch.float32
    assert (float(made.min()) >= 0, float(made.max()) <= 1) == (True, True)
    assert turn.counters == {"images": 20}


def test_every_step_changes_images_anew() -> None:
    x, turn = images(6), turn_of(flat_task(4, 3))
    assert not torch.allclose(Augment().on_images(x, turn), Augment().on_images(x, turn))


def test_weaker_means_nearer_to_the_image() -> None:
    x = images(200)
    apart = [
        float((Augment(strength=strength).on_images(x, turn_of(flat_task(4, 3))) - x / 255).abs().mean())
        for strength in (0.01, 0.1, 0.5, 1.0)
    ]
    assert apart == sorted(apart)
    assert apart[0] < 0.02
    assert apart[-1] > 0.2


def test_strength_0_gives_the_very_images_whatever_they_are() -> None:
    x, turn = images(4), turn_of(flat_task(4, 3))
    assert Augment(strength=0.0).on_images(x, turn) is x
    assert not turn.counters
    Augment(strength=0.0).check(ground_of(torch.randn(4, 7), (10,)))


def test_a_client_trains_on_changed_images_normalised_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    data = examples_of(images(10))
    task = Task(
        seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), 0), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
    )
    seen: list[Tensor] = []
    monkeypatch.setattr(task, "laid_out", lambda x: seen.append(x) or x)  # type: ignore[func-returns-value]
    train(
        task, task.state.clone(), data, Training(batch=10), 0.1, stream(0, "c"), guard_of(Augment(), turn_of(task))
    )

    rng = stream(0, "c")
    rng.spawn(1)
    changed = Augment().on_images(data.x[rng.permutation(10)], turn_of(task))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
    torch.testing.assert_close(seen[-1], (changed - mean) / std)


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (torch.zeros(8, 13), r"strength: got 1, .* shape \[13\]; expected images"),
        (torch.randn(8, 3, 6, 6), r"strength: got 1, .* the data's lie from -\d"),
        (torch.full((8, 3, 6, 6), 1.5), "the data's lie from 1.5 to 1.5; expected bytes"),
        (torch.full((8, 3, 6, 6), -0.5), "the data's lie from -0.5 to -0.5; expected bytes"),
    ],
)
def test_data_that_cannot_be_augmented_are_refused(x: Tensor, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Augment().check(ground_of(x, (10,)))


@pytest.mark.parametrize("x", [images(3), images(3) / 255, torch.zeros(3, 1, 8, 5)])
def test_bytes_and_floats_from_0_to_1_are_images(x: Tensor) -> None:
    Augment().check(ground_of(x, (10,)))
    assert Augment().on_images(x, turn_of(flat_task(4, 3))).shape == x.shape


@pytest.mark.parametrize("strength", [-0.1, 1.5, "strong"])
def test_bad_strengths_of_augmentation_are_refused_by_name(strength: Any) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.strength: got {strength!r}"):
        build("client_defence", {"name": "augment", "strength": strength}, "defences.0")
