"""The regularisation of recycled examples, its gradient, and its three labels."""

import math

import pytest
import torch
from torch import Tensor

from fedsiege.defences.client.hamp import HAMP, label_entropy, top_probability
from fedsiege.defences.coalition.confidence import Target, own_label, regularisation


def logits_of(m: int, classes: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(m, classes, generator=rng, dtype=torch.float64)).requires_grad_()


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(z) for z in row]
    return [one / sum(powers) for one in powers]


def naive(row: list[float], y: int, target: Target, mu: float, gamma: float) -> float:
    f, classes = softmax(row), len(row)
    top = {"predicted": f[y], "onehot": 1.0, "hamp": top_probability(classes, gamma)}[target]
    label = [top if c == y else (1 - top) / (classes - 1) for c in range(classes)]
    kl = sum(a * math.log(a / b) for a, b in zip(label, f, strict=True) if a > 0)
    return kl - mu * sum(-p * math.log(p) for p in f)


@pytest.mark.parametrize("target", ["predicted", "onehot", "hamp"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_values_are_those_of_the_formula(target: Target, classes: int) -> None:
    logits, y = logits_of(6, classes), torch.arange(6) % classes
    found = regularisation(logits, y, target, 0.3, 0.6)
    expected = [naive(row, int(c), target, 0.3, 0.6) for row, c in zip(logits.tolist(), y, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def gradient(logits: Tensor, y: Tensor, target: Target, mu: float) -> Tensor:
    (found,) = torch.autograd.grad(regularisation(logits, y, target, mu, 0.5).sum(), logits)
    return found


def test_the_gradient_is_output_less_label() -> None:
    # Acceptance check 4: gradient f - label plus the entropy's part, zero on the true class.
    logits, y = logits_of(8, 5), torch.arange(8) % 5
    f = torch.softmax(logits.detach(), 1)
    label = torch.stack(
        [
            torch.tensor([f[i, y[i]].item() if c == y[i] else (1 - f[i, y[i]].item()) / 4 for c in range(5)])
            for i in range(8)
        ]
    ).double()
    plain = gradient(logits, y, "predicted", 0.0)
    torch.testing.assert_close(plain, f - label, atol=1e-7, rtol=0)
    assert float(plain.gather(1, y[:, None]).abs().max()) < 1e-12
    assert float(plain.abs().max()) > 0.01
    # d/dz of the sum of p log p is p (log p + H).
    entropy = -(f * f.log()).sum(1, keepdim=True)
    torch.testing.assert_close(gradient(logits, y, "predicted", 0.4) - plain, 0.4 * f * (f.log() + entropy))


def test_two_classes_leave_only_the_entropy() -> None:
    # Acceptance check 4: with two classes the divergence and its gradient vanish.
    logits, y = logits_of(8, 2), torch.arange(8) % 2
    assert float(regularisation(logits.detach(), y, "predicted", 0.0, 0.5).abs().max()) < 1e-12
    assert float(gradient(logits, y, "predicted", 0.0).abs().max()) < 1e-12
    assert float(gradient(logits, y, "predicted", 0.1).abs().max()) > 1e-4


def test_labels_keep_the_models_own_probability() -> None:
    log_p = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]]).log()
    expected = torch.tensor([[0.4, 0.2, 0.4], [0.0, 0.5, 0.5]])
    torch.testing.assert_close(own_label(log_p, torch.tensor([1, 0])), expected)
    assert own_label(torch.zeros(1, 1), torch.tensor([0])).tolist() == [[1.0]]


def test_one_hot_labels_are_the_cross_entropy_once_more() -> None:
    logits, y = logits_of(5, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(regularisation(logits, y, "onehot", 0.0, 0.5), expected)


def test_hamps_label_is_hamps() -> None:
    logits, y = logits_of(5, 10).detach().float(), torch.arange(5)
    top = top_probability(10, HAMP().gamma)
    rest = (1 - top) / 9
    f = torch.softmax(logits, 1)
    label = torch.full((5, 10), rest).scatter(1, y[:, None], top)
    cross = -torch.einsum("ic,ic->i", label, f.log())
    found = regularisation(logits, y, "hamp", 0.0, HAMP().gamma)
    torch.testing.assert_close(found, cross - label_entropy(10, top))


def test_sure_outputs_stay_finite() -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0], [-200.0, 0.0, 200.0]], dtype=torch.bfloat16, requires_grad=True)
    targets: tuple[Target, ...] = ("predicted", "onehot", "hamp")
    for target in targets:
        made = regularisation(logits, torch.tensor([0, 0]), target, 0.005, 0.5)
        assert made.dtype == torch.float32
        made.sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
