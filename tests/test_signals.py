"""Per-example evidence against plain float64 autograd, one example at a time."""

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsiege import products, signals
from fedsiege.records import Cohort, Examples
from fedsiege.signals import align, gram, losses_of, outputs_of, uploaded
from fedsiege.task import Task, seeded

CLASSES, M, N = 4, 9, 3


class Twice(nn.Module):
    """A layer that runs twice, and two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 6)
        self.encode = nn.Linear(6, 6, bias=False)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inside(torch.tanh(self.inside(x))))
        logits: Tensor = self.head(torch.tanh(self.decode(torch.tanh(self.encode(x)))))
        return logits


class Residual(nn.Module):
    """In-place activations and an in-place sum, as published ResNets have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 7 * 6, CLASSES)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        out = self.block(x)
        out += x
        logits: Tensor = self.head(self.act(out).flatten(1))
        return logits


class Words(nn.Module):
    """An embedding (a layer of no known kind), then a linear layer on [b, positions, in]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 5)
        self.mix = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(torch.tanh(self.mix(self.words(x)))).mean(1))
        return logits


class Recurrent(nn.Module):
    """A layer that cannot be vectorised."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.gru(x)[0][:, -1])
        return logits


class PositionsFirst(nn.Module):
    """Linear layers whose rows are positions, or examples and positions in one: not the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.folded = nn.Linear(5, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        b, positions, _ = x.shape
        x = torch.tanh(self.first(x.transpose(0, 1))).transpose(0, 1)
        x = torch.tanh(self.folded(x.reshape(b * positions, 5))).reshape(b, positions, 5)
        logits: Tensor = self.head(x.mean(1))
        return logits


class Keyword(nn.Module):
    """A layer called by keyword, and one whose result is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 5)
        self.unused = nn.Linear(6, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        logits: Tensor = self.head(torch.tanh(self.hidden(input=x)))
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.Tanh(), nn.Linear(5, CLASSES))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=3, bias=False),
        nn.Tanh(),
        nn.Conv2d(6, 4, 2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6, eps=1e-2), nn.ReLU(True), nn.Flatten(), nn.Linear(120, CLASSES)
    )


def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm((3, 7, 6)),
        nn.Flatten(),
        nn.Linear(126, 8),
        nn.LayerNorm(8, eps=1e-2),
        nn.Tanh(),
        nn.LayerNorm(8, elementwise_affine=False),
        nn.LayerNorm(8, bias=False),
        nn.Linear(8, CLASSES),
    )


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.BatchNorm2d(5, affine=False),
        nn.Flatten(),
        nn.Linear(100, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Linear(6, CLASSES),
    )


def circular() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 2),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def frozen() -> nn.Module:
    """The first layer does not train, nor one in the middle, nor the weight of the last."""
    module = mlp()
    module[0].requires_grad_(False)  # type: ignore[index]
    module[4].requires_grad_(False)  # type: ignore[index]
    module.append(nn.Linear(CLASSES, CLASSES))  # type: ignore[operator]
    module[-1].weight.requires_grad_(False)  # type: ignore[index]
    return module


IMAGES, ROWS, WORDS, SERIES = (3, 7, 6), (6,), (5,), (5, 4)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, ROWS),
    "conv": (conv, IMAGES),
    "group_norm": (group_norm, IMAGES),
    "layer_norm": (layer_norm, IMAGES),
    "batch_norm": (batch_norm, IMAGES),
    "circular": (circular, IMAGES),
    "frozen": (frozen, ROWS),
    "twice": (Twice, ROWS),
    "residual": (Residual, IMAGES),
    "words": (Words, WORDS),
    "recurrent": (Recurrent, SERIES),
    "positions_first": (PositionsFirst, SERIES),
    "keyword": (Keyword, ROWS),
}


class Case:
    """A model at a point it did not start from, candidates, updates, and a float64 copy of the model."""

    def __init__(self, name: str) -> None:
        make, shape = MODELS[name]
        rng = torch.Generator().manual_seed(7)
        tokens = name == "words"
        x = torch.randint(0, 11, (M, *shape), generator=rng) if tokens else torch.randn(M, *shape, generator=rng)
        y = torch.randint(0, CLASSES, (M,), generator=rng)

        def build() -> nn.Module:
            module = make()
            with torch.no_grad():
                module(x[:2])  # lazy layers take their shape
            return module

        self.examples = Examples(np.array([f"{i}" for i in range(M)]), x, y)
        self.task = Task(seeded(build, 3))
        layout = self.task.layout
        self.start = self.task.state + 0.1 * torch.randn(layout.size, generator=rng)
        self.start[layout.trained :].abs_()  # running variances
        self.updates = 0.1 * torch.randn(N, layout.size, generator=rng)
        self.plain = seeded(build, 3).double().eval()
        self._place(self.start)

    def _place(self, vector: Tensor) -> None:
        state = {**dict(self.plain.named_parameters()), **dict(self.plain.named_buffers())}
        for (name, place), shape in zip(self.task.layout.slices(), self.task.layout.shapes, strict=True):
            state[name].data = vector[place].double().view(shape)

    def gradients(self) -> Tensor:
        """[m, trained] in float64, one backward pass an example."""
        wanted = [p for p in self.plain.parameters() if p.requires_grad]
        x = self.examples.x if self.examples.x.dtype == torch.int64 else self.examples.x.double()
        rows = []
        for xi, yi in zip(x, self.examples.y, strict=True):
            loss = F.cross_entropy(self.plain(xi[None]), yi[None])
            found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([g.reshape(-1) for g in found]))
        return torch.stack(rows)

    def tensors(self) -> tuple[int, ...]:
        return tuple(range(self.task.layout.kinds.count("trained")))


@pytest.fixture(params=list(MODELS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def close(ours: Tensor, naive: Tensor) -> None:
    torch.testing.assert_close(ours.double(), naive, rtol=2e-4, atol=2e-6 * float(naive.abs().max()))


def test_every_tensor_agrees_with_naive_float64_autograd(case: Case) -> None:
    gradients = case.gradients()
    change = case.updates.mean(0)
    found = align(case.task, case.start, case.updates, case.examples, case.tensors(), extra=change)
    against = torch.cat((case.updates, change[None])).double()
    assert gradients.abs().max() > 1e-3
    for number, (_, place) in zip(case.tensors(), case.task.layout.slices(), strict=False):
        naive = gradients[:, place]
        close(found.dot[number], -(against[:, place] @ naive.T))
        close(found.gradient_norm2[number], naive.square().sum(1))
        close(found.update_norm2[number], against[:, place].square().sum(1))
        # Sums cancel: what is rounded is as large as the entries together.
        within = 2e-6 * float(naive.abs().sum(1).max())
        torch.testing.assert_close(found.gradient_sum[number].double(), naive.sum(1), rtol=2e-4, atol=within)
        close(found.update_sum[number], against[:, place].sum(1))
    assert found.support_norm2 is None
    with torch.no_grad():
        x = case.examples.x if case.examples.x.dtype == torch.int64 else case.examples.x.double()
        close(found.start_loss, F.cross_entropy(case.plain(x), case.examples.y, reduction="none"))


def test_squared_norms_where_an_update_is_not_zero_agree_with_naive_float64_autograd(case: Case) -> None:
    gradients, updates = case.gradients(), case.updates.clone()
    updates[0][updates[0].abs() < 0.1] = 0
    updates[1] = 0
    change = updates.mean(0)
    found = align(case.task, case.start, updates, case.examples, case.tensors(), extra=change, support=True)
    plain = align(case.task, case.start, updates, case.examples, case.tensors(), extra=change)
    assert found.support_norm2 is not None
    assert found.support_norm2.shape == (len(case.tensors()), N, M), "of clients, not of the global change"
    for number, (_, place) in zip(case.tensors(), case.task.layout.slices(), strict=False):
        naive = torch.stack([gradients[:, place][:, row != 0].square().sum(1) for row in updates[:, place]])
        close(found.support_norm2[number], naive)
    for name in ("dot", "gradient_norm2", "gradient_sum", "update_norm2", "update_sum", "start_loss"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.13, 0.5, 0.81, 1.0])
@pytest.mark.parametrize("batch", [None, 2])
def test_products_before_a_cut_agree_with_naive_float64_autograd(case: Case, share: float, batch: int) -> None:
    cut = round(share * case.task.layout.trained)
    gradients, updates, change = case.gradients(), case.updates, case.updates.mean(0)
    found = align(case.task, case.start, updates, case.examples, case.tensors(), extra=change, batch=batch, cut=cut)
    assert found.front is not None
    g, u = gradients[:, :cut], updates[:, :cut].double()
    within = 2e-6 * float((u.abs() @ g.abs().T).max()) if cut else 0
    torch.testing.assert_close(found.front.dot.double(), -u @ g.T, rtol=2e-4, atol=within)
    close(found.front.gradient_norm2, g.square().sum(1))
    close(found.front.update_norm2, u.square().sum(1))
    plain = align(case.task, case.start, updates, case.examples, case.tensors(), extra=change, batch=batch)
    assert plain.front is None
    for name in ("dot", "gradient_norm2", "gradient_sum", "update_norm2", "update_sum", "start_loss"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=0, atol=0)


def test_products_of_rows_with_each_other() -> None:
    rows = torch.randn(3, 70_000, generator=torch.Generator().manual_seed(0))
    found = gram(rows)
    assert found.dtype == torch.float64
    for i in range(3):
        for j in range(3):
            assert float(found[i, j]) == pytest.approx(
                float((rows[i].double() * rows[j].double()).sum()), rel=1e-10
            )


@pytest.mark.parametrize("block", [1, 40])
@pytest.mark.parametrize("gathered", [0, 10**6])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_way_of_computing_does_not_change_the_figures(
    case: Case, monkeypatch: pytest.MonkeyPatch, block: int, gathered: int, batch: int
) -> None:
    expected = align(case.task, case.start, case.updates, case.examples, case.tensors())
    monkeypatch.setattr(signals, "GENERAL", block)
    monkeypatch.setattr(signals, "PATCHES", block)
    monkeypatch.setattr(signals, "GATHERED", gathered)
    monkeypatch.setitem(products.TILE, "cpu", (2, 3, 2))
    monkeypatch.setattr(products, "cheaper_moved", lambda *_: gathered == 0)
    found = align(case.task, case.start, case.updates, case.examples, case.tensors(), batch=batch)
    for ours, other in ((found.dot, expected.dot), (found.gradient_norm2, expected.gradient_norm2)):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=2e-6 * float(other.abs().max()))
    torch.testing.assert_close(found.update_norm2, expected.update_norm2, rtol=0, atol=0)


def test_groups_add_up_to_the_total(case: Case) -> None:
    fine = align(case.task, case.start, case.updates, case.examples, case.tensors())
    halves = tuple(number % 2 for number in case.tensors())
    total = align(case.task, case.start, case.updates, case.examples, (0,) * len(halves))
    split = align(case.task, case.start, case.updates, case.examples, halves)
    for name in ("dot", "gradient_norm2", "gradient_sum", "update_norm2", "update_sum"):
        whole = getattr(total, name)[0]
        for parts in (fine, split):
            torch.testing.assert_close(getattr(parts, name).sum(0), whole, rtol=1e-4, atol=1e-5)
    even = torch.stack([fine.dot[number] for number in case.tensors()[::2]]).sum(0)
    torch.testing.assert_close(split.dot[0], even, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gathered", [0, 10**6])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(2, 3, (1, 4), stride=(2, 1), padding=(0, 2)),
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=2, dilation=(1, 2), groups=2),
        nn.Conv2d(3, 2, 5, stride=3),
    ],
    ids=str,
)
def test_patches_are_what_unfold_gives(layer: nn.Conv2d, gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GATHERED", gathered)
    a = torch.randn(5, layer.in_channels, 9, 8, generator=torch.Generator().manual_seed(0))
    assert not isinstance(layer.padding, str)
    expected = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    room = torch.full((expected.numel() + 7,), torch.nan)
    torch.testing.assert_close(signals.patches(layer, a, room), expected, rtol=0, atol=0)


def test_squared_norms_of_long_rows_keep_their_digits() -> None:
    rows = torch.randn(3, 200_001, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(signals.norms2(rows), rows.double().square().sum(1), rtol=1e-6, atol=0)


def test_updates_may_lie_in_a_file(tmp_path: Any) -> None:
    case = Case("conv")
    expected = align(case.task, case.start, case.updates, case.examples, case.tensors())
    size = case.updates.numel()
    mapped = torch.from_file(str(tmp_path / "rows"), shared=True, size=size, dtype=torch.float32)
    rows = mapped.view(N, -1)
    rows.copy_(case.updates)
    found = align(case.task, case.start, rows, case.examples, case.tensors())
    torch.testing.assert_close(found.dot, expected.dot, rtol=0, atol=0)


def test_alignment_leaves_the_model_as_it_was_asked_and_drops_nothing_out() -> None:
    case = Case("batch_norm")
    case.task.module.train()
    first = align(case.task, case.start, case.updates, case.examples, case.tensors())
    again = align(case.task, case.start, case.updates, case.examples, case.tensors())
    torch.testing.assert_close(first.dot, again.dot, rtol=0, atol=0)
    torch.testing.assert_close(case.task.state, case.start, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in case.task.module.modules())


def test_frozen_and_unknown_layers_are_not_direct() -> None:
    direct = {}
    for name in MODELS:
        case = Case(name)
        case.task.module.eval()
        direct[name] = set(signals.Tape(case.task, case.examples.x[:1]).layers)
    assert direct["mlp"] == {"0", "2", "4"}
    assert direct["frozen"] == {"2", "5"}
    assert direct["twice"] == {"head"}
    assert direct["words"] == {"mix", "norm", "head"}
    assert direct["positions_first"] == {"head"}
    assert direct["keyword"] == {"unused", "head"}
    assert direct["circular"] == {"6"}


def test_a_model_without_a_layer_of_a_known_kind_takes_the_general_way_alone() -> None:
    task = Task(seeded(lambda: nn.Sequential(nn.Conv1d(3, 5, 8), nn.Flatten()), 0))
    x, y = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3])
    examples = Examples(np.array(list("abcd")), x, y)
    updates, start = torch.ones(1, task.layout.size), task.state.clone()
    found = align(task, start, updates, examples, [0, 0])
    for i in range(4):
        gradients = torch.autograd.grad(
            task.losses(task.logits(x[i : i + 1]), y[i : i + 1]).sum(), list(task.module.parameters())
        )
        expected = -torch.cat([g.reshape(-1) for g in gradients]).sum()
        torch.testing.assert_close(found.dot[0, 0, i], expected, rtol=1e-4, atol=1e-6)


def test_only_outputs_that_are_written_over_are_copied() -> None:
    case = Case("residual")
    tape = signals.Tape(case.task, case.examples.x[:1])
    assert tape._copied == {"stem", "block"}
    assert set(tape.layers) == {"stem", "block", "head"}  # the others would take the slower, general way
    case = Case("conv")
    assert not signals.Tape(case.task, case.examples.x[:1])._copied


def test_a_batch_holds_as_many_candidates_as_the_model_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("mlp")
    tape = signals.Tape(case.task, case.examples.x[:1])
    assert tape.affordable() == signals.MOST
    outputs = 8 + 5 + CLASSES
    monkeypatch.setattr(signals, "ROOM", 100 * outputs)
    assert tape.affordable() == 100
    monkeypatch.setattr(signals, "ROOM", 1)
    assert tape.affordable() == signals.FEWEST


def test_losses_of_models_by_hand() -> None:
    case = Case("mlp")
    models = [case.start, case.start + case.updates[0]]
    found = losses_of(case.task, iter(models), case.examples, keep_logits=True)
    assert found.logits is not None
    assert found.logits.shape == (2, M, CLASSES)
    for model, loss, logits in zip(models, found.loss, found.logits, strict=True):
        case._place(model)
        expected = case.plain(case.examples.x.double())
        close(logits, expected.detach())
        softmax = expected.detach().numpy()
        shares = np.exp(softmax) / np.exp(softmax).sum(1, keepdims=True)
        naive: NDArray[np.float64] = -np.log(shares[np.arange(M), case.examples.y.numpy()])
        np.testing.assert_allclose(loss.numpy(), naive, rtol=1e-5)
    plain = losses_of(case.task, iter(models), case.examples)
    assert plain.logits is None
    assert plain.outputs == {}


def test_outputs_of_models_are_those_of_their_logits() -> None:
    case = Case("mlp")
    models = [case.start, case.start + case.updates[0]]
    found = losses_of(case.task, iter(models), case.examples, keep_logits=True, keep_outputs=True)
    assert found.logits is not None
    assert set(found.outputs) == {"top", "spread", "entropy", "modified_entropy"}
    for row, logits in enumerate(found.logits):
        for name, values in outputs_of(logits, case.examples.y).items():
            assert values.dtype == torch.float32
            assert torch.equal(found.outputs[name][row], values)


def outputs_by_hand(logits: list[float], y: int) -> dict[str, Decimal]:
    """The definitions in 400 digits, term by term."""
    with localcontext(prec=400, Emin=-99999):
        shares = [Decimal(z).exp() for z in logits]
        p = [share / sum(shares, Decimal()) for share in shares]
        mean = sum(p, Decimal()) / len(p)
        others = sum((q * (1 - q).ln() for i, q in enumerate(p) if i != y), Decimal())
        return {
            "top": max(p),
            "spread": (sum(((q - mean) ** 2 for q in p), Decimal()) / len(p)).sqrt(),
            "entropy": -sum((q * q.ln() for q in p), Decimal()),
            "modified_entropy": -(1 - p[y]) * p[y].ln() - others,
        }


@pytest.mark.parametrize(
    "logits",
    [
        [0.5, -1.0, 2.0, 0.25],
        [1.0, 1.0, 1.0, 1.0],
        [3.0, 3.0, -2.0, -2.0],
        [30.0, 0.0, -3.0, 1.0],
        [0.0, 200.0, -50.0, 3.0],
        [300.0, -300.0, 0.0, 299.0],
        [-5.0, 40.0],
    ],
)
def test_outputs_are_their_definitions_even_of_sure_models(logits: list[float]) -> None:
    for y in range(len(logits)):
        found = outputs_of(torch.tensor([logits]), torch.tensor([y]))
        for name, naive in outputs_by_hand(logits, y).items():
            least = 1e-15 if name == "spread" else 1e-37
            assert float(found[name]) == pytest.approx(float(naive), rel=1e-6, abs=least), (name, y)


def test_outputs_of_a_model_beyond_doubt_are_finite() -> None:
    logits = torch.tensor([[9000.0, -9000.0, 0.0]] * 2)
    found = outputs_of(logits, torch.tensor([0, 1]))
    assert found["top"].tolist() == [1.0, 1.0]
    assert found["entropy"].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(found["spread"], np.sqrt(2) / 3, rtol=1e-6)
    assert found["modified_entropy"][0] == 0.0
    # Sure of the wrong class: (1 - 0) * 18000 for the label's, and 1 * 9000 for the class it is sure of.
    assert found["modified_entropy"][1] == 27000.0


def test_uploaded_models_are_each_rows_own_start_plus_its_update() -> None:
    updates = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    starts = {0: torch.tensor([10.0, 10.0]), 2: torch.tensor([20.0, 20.0])}
    cohort = Cohort((0, 1, 4), updates, torch.ones(3), (0, 2, 0), starts)
    assert [model.tolist() for model in uploaded(cohort)] == [[11.0, 12.0], [23.0, 24.0], [15.0, 16.0]]


class Tied(nn.Module):
    """The encoder's weight is used once more, outside its own call."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(5, 4)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.linear(torch.tanh(self.enc(x)), self.enc.weight.t()))
        return logits


def test_a_weight_used_outside_its_layer_takes_the_general_way() -> None:
    torch.manual_seed(0)
    task = Task(Tied())
    x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
    examples = Examples(np.array([str(i) for i in range(6)]), x, y)
    updates = torch.randn(2, task.layout.size)
    start = task.state.clone()
    found = align(task, start, updates, examples, [0] * len(task.layout.names))
    task.load(start)
    for i in range(6):
        task.gradient.zero_()
        task.losses(task.logits(x[i : i + 1]), y[i : i + 1]).sum().backward()
        torch.testing.assert_close(found.dot[0, :, i], -(updates @ task.gradient), rtol=1e-4, atol=1e-5)
