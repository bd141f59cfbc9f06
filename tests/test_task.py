"""A model as one flat vector: what travels in it, what does not, and what its inputs become."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsiege.errors import InputError
from fedsiege.models.base import build_model
from fedsiege.records import Examples
from fedsiege.task import Task, layout_of, seeded, trains_channels_last


def batch_norm_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 2, 5, bias=False)
    )


def examples(m: int = 7, *shape: int) -> Examples:
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(m, *(shape or (3, 4, 4)), generator=rng)
    return Examples(np.array([str(i) for i in range(m)]), x, torch.arange(m) % 5)


@pytest.fixture
def task() -> Task:
    return Task(seeded(batch_norm_model, 0))


def test_layout_is_parameters_in_order_then_float_buffers(task: Task) -> None:
    layout = task.layout
    assert layout.names == (
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "4.weight",
        "1.running_mean",
        "1.running_var",
    )
    assert layout.kinds == ("trained",) * 5 + ("buffer",) * 2
    assert layout.sizes == (108, 4, 4, 4, 80, 4, 4)
    assert (layout.trained, layout.size) == (200, 208)
    assert layout.groups == ("0", "0", "1", "1", "4", "1", "1")
    assert layout.head == slice(120, 200)


def test_the_state_is_the_models_own_initial_values(task: Task) -> None:
    plain = seeded(batch_norm_model, 0)
    wanted = [*plain.parameters(), plain[1].running_mean, plain[1].running_var]  # type: ignore[index]
    torch.testing.assert_close(task.state, torch.cat([t.detach().reshape(-1) for t in wanted]), rtol=0, atol=0)


def test_loading_a_vector_changes_the_module_and_training_changes_the_vector(task: Task) -> None:
    vector = torch.arange(208, dtype=torch.float32) / 100 + 1
    task.load(vector)
    for (name, place), shape in zip(task.layout.slices(), task.layout.shapes, strict=True):
        tensor = dict(task.module.named_parameters()) | dict(task.module.named_buffers())
        torch.testing.assert_close(tensor[name].detach(), vector[place].view(shape), rtol=0, atol=0)
    with torch.no_grad():
        task.module[1].bias.fill_(-3.0)  # type: ignore[index]
    task.module.train()
    task.logits(examples().x)
    assert task.state[116:120].tolist() == [-3.0] * 4
    assert not torch.equal(task.state[200:], vector[200:]), "BatchNorm's statistics are a view of the vector too"
    assert torch.equal(vector, torch.arange(208, dtype=torch.float32) / 100 + 1), "what was loaded is not changed"


def test_gradients_are_views_of_one_vector(task: Task) -> None:
    task.gradient.zero_()
    data = examples()
    task.module.eval()
    task.losses(task.logits(data.x), data.y).mean().backward()
    found = torch.cat([p.grad.reshape(-1) for p in task.module.parameters() if p.grad is not None])
    torch.testing.assert_close(task.gradient, found, rtol=0, atol=0)
    assert task.gradient.abs().max() > 0


def test_integer_buffers_go_back_to_their_first_value_on_load(task: Task) -> None:
    counter = task.module[1].num_batches_tracked  # type: ignore[index]
    task.module.train()
    for _ in range(3):
        task.logits(examples().x)
    assert int(counter) == 3
    task.load(task.state.clone())
    assert int(counter) == 0


def test_frozen_parameters_do_not_travel_and_stay() -> None:
    module = seeded(batch_norm_model, 0)
    module[0].requires_grad_(False)  # type: ignore[index]
    before = module[0].weight.detach().clone()  # type: ignore[index]
    task = Task(module)
    assert task.layout.names[0] == "1.weight"
    assert (task.layout.trained, task.layout.size) == (88, 96)
    task.load(torch.full((96,), 9.0))
    torch.testing.assert_close(module[0].weight.detach(), before)  # type: ignore[index]
    data = examples()
    task.losses(task.logits(data.x), data.y).mean().backward()
    assert task.gradient.shape == (88,)


def test_a_module_in_float64_or_with_nothing_to_train() -> None:
    assert Task(nn.Linear(3, 2).double()).state.dtype == torch.float32
    with pytest.raises(InputError, match="model: Flatten has no trained parameter"):
        layout_of(nn.Flatten())
    with pytest.raises(InputError, match=r"1 has track_running_stats=False.*expected running statistics"):
        Task(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)))


def naive(x: Tensor, mean: list[float], std: list[float], scale: float) -> Tensor:
    out = torch.empty(x.shape, dtype=torch.float64)
    for index in np.ndindex(*x.shape):
        out[index] = (float(x[index]) / scale - mean[index[1]]) / std[index[1]]
    return out


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3), (2, 3, 6)])
@pytest.mark.parametrize("images", [True, False])
def test_normalisation_is_the_naive_formula(shape: tuple[int, ...], images: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    mean, std = [0.1, 0.4, 0.5], [0.2, 0.5, 2.0]
    x = (
        torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
        if images
        else torch.randn(shape, generator=rng)
    )
    found = Task(nn.Linear(2, 2), mean, std).inputs(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), naive(x, mean, std, 255 if images else 1), rtol=1e-5, atol=1e-6)


def test_without_a_mean_images_are_scaled_and_floats_left_alone() -> None:
    task = Task(nn.Linear(2, 2))
    assert task.inputs(torch.tensor([[0, 51, 255]], dtype=torch.uint8)).tolist() == [[0.0, pytest.approx(0.2), 1.0]]
    x = torch.tensor([[7.0, -2.0]])
    assert task.inputs(x) is x


def test_predictions_are_in_evaluation_mode_whatever_the_batch(task: Task) -> None:
    data = examples(7)
    vector = task.state + 0.1
    task.module.train()
    found = task.predict(vector, data, batch=3)
    torch.testing.assert_close(found, task.predict(vector, data))
    torch.testing.assert_close(task.state, vector, rtol=0, atol=0)
    assert not found.requires_grad


def test_losses_and_measures_by_hand() -> None:
    task = Task(nn.Linear(2, 3, bias=False))
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    data = Examples(
        np.array(["a", "b", "c"]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 2])
    )
    accuracy, loss = task.measure(weight.reshape(-1), data)
    assert accuracy == pytest.approx(2 / 3)
    expected = [np.log(np.exp(2) + 2) - 2, np.log(np.e + 2) - 1, np.log(np.exp(2) + 2)]
    assert loss == pytest.approx(np.mean(expected), rel=1e-6)
    torch.testing.assert_close(
        task.losses(task.logits(data.x), data.y), F.cross_entropy(data.x @ weight.T, data.y, reduction="none")
    )


def test_initial_weights_are_a_function_of_the_seed_and_nothing_else_moves() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (Task(seeded(batch_norm_model, seed)).state for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Branches(nn.Module):
    """Three outputs; which of its layers makes them, and in which order the layers are registered, is asked for."""

    def __init__(self, order: tuple[str, ...], bias: bool, out: str) -> None:
        super().__init__()
        for name in order:
            setattr(self, name, nn.Linear(3, 3, bias=bias))
        self.out = out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = dict(self.named_children())
        hidden = next(layer for name, layer in layers.items() if name != self.out)
        logits: torch.Tensor = layers[self.out](torch.sigmoid(hidden(x)))
        return logits


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_must_make_the_logits(bias: bool) -> None:
    """A hidden layer registered last has as many rows as there are classes, and is still not the head."""
    data = examples(4, 3)
    assert Task(Branches(("hidden", "last"), bias, "last")).ends_in_its_head(data)
    assert not Task(Branches(("last", "hidden"), bias, "last")).ends_in_its_head(data)


def test_images_lie_channels_last_where_that_is_faster() -> None:
    def laid_out(name: str | dict[str, str], device: str = "cpu") -> bool:
        return trains_channels_last(build_model(name, (3, 32, 32), 10), torch.device(device))

    assert laid_out("cnn")
    assert laid_out({"name": "resnet18_light", "norm": "batch"})
    assert not laid_out("resnet18_light")
    assert not laid_out("alexnet")
    assert laid_out("alexnet", "cuda")
    assert not trains_channels_last(build_model("mlp", (6,), 10), torch.device("cuda"))
    task = Task(build_model("cnn", (3, 32, 32), 10))
    x = torch.rand(2, 3, 32, 32)
    assert task.laid_out(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(task.laid_out(x), x)
