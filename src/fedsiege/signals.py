"""Per-example evidence of one recorded round, for all candidates and all clients together.

The gradient of a candidate is that of the global model, so it does not depend on the client. It is formed once,
layer by layer, from the layer's inputs and output gradients, multiplied with the stacked updates of all clients,
and dropped: no [m, d] matrix, no loop over clients, no batch of one. Layers of a kind not known here, or shared,
or called twice, or with rows that are not the examples, take the general way (one vectorised per-example gradient
of just their parameters).

Cost per candidate: one forward and backward pass, the layers' products, and one forward pass a client.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedsiege.products import Piece
from fedsiege.records import Cohort, Examples
from fedsiege.task import Task, tf32

GENERAL = 500_000
"""Entries of per-example gradients that the general way forms at once (2 MB)."""

PATCHES = 2**22
"""Entries of a convolution's inputs, unrolled, that exist at once (16 MB)."""

GATHERED = 16
"""Positions up to which a convolution's inputs are gathered."""

ROOM = 2**26
"""Entries of layers' outputs that a batch may have (256 MB), between `FEWEST` and `MOST` candidates."""

FEWEST, MOST = 16, 256

PerExample = Callable[[Any, Tensor, Tensor], Iterator[Piece]]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Products of candidates' gradients with updates, per parameter group (G groups, n updates, m candidates).

    dot [G, n, m] is with `start - local`: positive when training went down the example's loss, as for a member.
    gradient_norm2 [G, m] and update_norm2 [G, n] are squared norms, gradient_sum and update_sum the sums of all
    entries; start_loss [m] is the loss of the start model. Where it was asked for, support_norm2 [G, n, m] is the
    squared norm of a gradient on those entries that an update (`extra` left out) did not leave at zero, and `front`
    has the products over the first entries alone, `extra` left out too.
    """

    dot: Tensor
    gradient_norm2: Tensor
    gradient_sum: Tensor
    update_norm2: Tensor
    update_sum: Tensor
    start_loss: Tensor
    support_norm2: Tensor | None = None
    front: "Front | None" = None


@dataclass(frozen=True, slots=True)
class Front:
    """As `Alignment`, over the entries before `cut` alone: dot [n, m] and squared norms [m] and [n]."""

    cut: int
    dot: Tensor
    gradient_norm2: Tensor
    update_norm2: Tensor

    @classmethod
    def of(cls, cut: int, updates: Tensor, m: int) -> "Front":
        """Nothing added yet."""
        dot, norm2 = updates.new_zeros(len(updates), m), updates.new_zeros(m)
        return cls(cut, dot, norm2, norms2(updates[:, :cut]).float())

    def add(self, piece: Piece, begin: int, rows: Tensor, found: tuple[Tensor, Tensor], some: slice) -> None:
        """Take a piece of the gradients of some candidates.

        Args:
            piece: the gradients from entry `begin` of the flat vector on.
            begin: its place.
            rows: the updates there [n, entries].
            found: the piece's products, of these updates first, and its squared norms.
            some: the candidates.

        """
        products, squares = found
        kept = min(piece.entries, self.cut - begin)
        if kept <= 0:
            return
        if kept < piece.entries:  # the cut goes through this tensor
            inside = (torch.arange(piece.entries, device=rows.device) < kept).to(rows.dtype)
            (products, _), (squares,) = piece.against([rows * inside]), piece.squares_on(inside[None])
        self.dot[:, some] -= products[: len(rows)]
        self.gradient_norm2[some] += squares


def align(
    task: Task,
    start: Tensor,
    updates: Tensor,
    examples: Examples,
    groups: Sequence[int],
    extra: Tensor | None = None,
    batch: int | None = None,
    support: bool = False,
    cut: int | None = None,
) -> Alignment:
    """Align per-example gradients at the model `start` [d] with updates [n, d].

    Args:
        task: the model and its loss; put into evaluation mode (no dropout, BatchNorm by its running statistics).
        start: the model at which gradients are taken.
        updates: rows `local - start`, in memory or memory-mapped; read one layer at a time.
        examples: the m candidates.
        groups: for each trained tensor the number of its group, 0..G-1.
        extra: one more update [d], which becomes the last row (the change of the global model, say).
        batch: candidates per backward pass; by the model's size when left out. Results do not depend on it.
        support: whether to form `support_norm2`, which takes every layer's gradients.
        cut: where the entries end of which `front` has the products; left out, there is no `front`.

    """
    task.load(start)
    task.module.eval()
    count, n, m = max(groups) + 1, len(updates) + (extra is not None), len(examples)

    def read(entries: slice) -> list[Tensor]:
        stacks = [updates] if extra is None else [updates, extra[None]]
        return [stack[:, entries].to(task.device) for stack in stacks]

    dot = torch.zeros(count, n, m, device=task.device)
    norm2, total = torch.zeros(2, count, m, device=task.device)
    on_support = torch.zeros(count, len(updates), m, device=task.device) if support else None
    losses = torch.zeros(m, device=task.device)
    front = None if cut is None else Front.of(cut, updates.to(task.device), m)
    places = list(task.layout.slices())[: len(groups)]
    where = {name: (group, place) for (name, place), group in zip(places, groups, strict=True)}
    tape = Tape(task, task.inputs(examples.x[:1]))
    batch = batch or tape.affordable()
    with tf32(False):
        for first in range(0, m, batch):
            x, y = task.inputs(examples.x[first : first + batch]), examples.y[first : first + batch]
            losses[first : first + batch] = tape.record(task, x, y)
            for piece in tape.gradients(task, x, y):
                group, place = where[piece.tensor]
                begin, row = place.start + piece.offset, first + piece.first
                stacks = read(slice(begin, begin + piece.entries))
                products, squares = piece.against(stacks)
                some = slice(row, row + len(piece.g))
                dot[group, :, some] += products
                norm2[group, some] += squares
                total[group, some] += piece.total()
                if on_support is not None:
                    on_support[group, :, some] += piece.squares_on(stacks[0])
                if front is not None:
                    front.add(piece, begin, stacks[0], (products, squares), some)
    update_norm2, update_sum = torch.zeros(2, count, n, dtype=torch.float64, device=task.device)
    for (_, place), group in zip(places, groups, strict=True):
        stacks = read(place)
        update_norm2[group] += torch.cat([norms2(rows) for rows in stacks])
        update_sum[group] += torch.cat([sums(rows) for rows in stacks])
    return Alignment(-dot, norm2, total, update_norm2.float(), update_sum.float(), losses, on_support, front)


def sums(rows: Tensor) -> Tensor:
    """Sums [n] of rows [n, d], as `norms2` forms squared norms."""
    return torch.stack([part.sum(1) for part in rows.split(2**15, dim=1)]).sum(0, dtype=torch.float64)


def gram(rows: Tensor) -> Tensor:
    """Products [n, n] of each of rows [n, d] with each, in float64."""
    parts = (part.double() for part in rows.split(2**15, dim=1))
    products: Tensor = sum((part @ part.T for part in parts), rows.new_zeros(len(rows), len(rows)).double())
    return products


def norms2(rows: Tensor) -> Tensor:
    """Squared norms [n] of rows [n, d]: blocks are summed in float32, which is fast, their sums in float64."""
    parts = rows.split(2**15, dim=1)
    return torch.stack([torch.linalg.vecdot(part, part) for part in parts]).sum(0, dtype=torch.float64)


class Tape:
    """The inputs and output gradients of a model's layers for one batch.

    A layer is *direct* when its kind is known, its parameters are trained and its own, and it ran exactly once, one
    row an example. Some models fold positions into rows, or put positions first: a batch of as many examples as
    positions would look right, so a single example (`alone`, prepared input [1, ...]) is looked at too.
    """

    def __init__(self, task: Task, alone: Tensor) -> None:
        owners: dict[int, int] = {}
        for layer in task.module.modules():
            for parameter in layer.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        self.layers = {
            name: layer
            for name, layer in task.module.named_modules()
            if per_example_of(layer)
            and any(p.requires_grad for p in layer.parameters(recurse=False))
            and all(owners[id(p)] == 1 for p in layer.parameters(recurse=False))
        }
        self._copied = self._overwritten(task, alone)
        logits, ran = self._forward(task, alone)
        self._outputs = sum(output.numel() for _, output in ran.values())
        self.layers = {name: self.layers[name] for name in ran}
        self.layers = {name: self.layers[name] for name in self._truthful(logits, ran)}

    def _overwritten(self, task: Task, alone: Tensor) -> frozenset[str]:
        """The layers whose outputs an in-place layer after them writes over: a copy must go on instead."""
        versions: dict[str, tuple[Tensor, int]] = {}

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
                versions[name] = output, output._version

            return hook

        with self._hooked(note):
            task.logits(alone)
        return frozenset(name for name, (output, version) in versions.items() if output._version != version)

    @contextmanager
    def _hooked(self, hook: Callable[[str], Any]) -> Iterator[None]:
        handles = [layer.register_forward_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _truthful(self, logits: Tensor, ran: dict[str, tuple[Tensor, Tensor]]) -> list[str]:
        """The layers whose formed gradients are true: a weight may be used outside its layer's call too."""
        scalar = (logits * torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)).sum()
        own = {name: dict(self.layers[name].named_parameters(recurse=False)) for name in ran}
        if not ran:
            return []
        wanted = [p for parameters in own.values() for p in parameters.values() if p.requires_grad]
        outputs = [output for _, output in ran.values()]
        found = torch.autograd.grad(scalar, [*outputs, *wanted], allow_unused=True, materialize_grads=True)
        true = {id(p): gradient for p, gradient in zip(wanted, found[len(outputs) :], strict=True)}
        kept = []
        for (name, (a, _)), g in zip(ran.items(), found, strict=False):
            per_example = per_example_of(self.layers[name])
            assert per_example is not None
            pieces = [
                piece for piece in per_example(self.layers[name], a, g) if id(own[name][piece.tensor]) in true
            ]
            if all(_agrees(piece, true[id(own[name][piece.tensor])]) for piece in pieces):
                kept.append(name)
        return kept

    def affordable(self) -> int:
        """As many candidates a batch as keep the layers' outputs within `ROOM`."""
        return max(FEWEST, min(MOST, ROOM // max(1, self._outputs)))

    def record(self, task: Task, x: Tensor, y: Tensor) -> Tensor:
        """Run the batch forward and backward; returns the losses [b]."""
        logits, ran = self._forward(task, x)
        with torch.enable_grad():
            losses = task.losses(logits, y)
        outputs = [output for _, output in ran.values()]
        backward = (
            torch.autograd.grad(losses.sum(), outputs, allow_unused=True, materialize_grads=True) if outputs else ()
        )
        self.calls = {name: (a, g) for (name, (a, _)), g in zip(ran.items(), backward, strict=True)}
        return losses.detach()

    def _forward(self, task: Task, x: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The logits, and input and output of the layers that prove direct in this batch."""
        seen: dict[str, list[tuple[tuple[Tensor, ...], Tensor, int]]] = {name: [] for name in self.layers}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                seen[name].append((tuple(a.detach() for a in inputs), output, output._version))
                return output.clone() if name in self._copied else output

            return hook

        with self._hooked(keep):
            logits = task.logits(x)
        once = {name: calls[0] for name, calls in seen.items() if len(calls) == 1}
        return logits, {
            name: (inputs[0], output)
            for name, (inputs, output, version) in once.items()
            if len(inputs) == 1 and len(output) == len(x) and output.requires_grad and output._version == version
        }

    def gradients(self, task: Task, x: Tensor, y: Tensor) -> Iterator[Piece]:
        """Every trained tensor's per-example gradients, in pieces; use each before the next: they share memory."""
        trained = {
            name for name, kind in zip(task.layout.names, task.layout.kinds, strict=True) if kind == "trained"
        }
        covered = set()
        for name, (a, g) in self.calls.items():
            layer = self.layers[name]
            per_example = per_example_of(layer)
            assert per_example is not None
            for piece in per_example(layer, a, g):
                full = f"{name}.{piece.tensor}" if name else piece.tensor
                if full in trained:
                    covered.add(full)
                    yield replace(piece, tensor=full)
        if trained - covered:
            yield from general(task, sorted(trained - covered), x, y)


def _agrees(piece: Piece, gradient: Tensor) -> bool:
    """Whether a piece of one example is that part of a tensor's gradient, up to rounding."""
    formed = piece.formed().reshape(-1)
    part = gradient.reshape(-1)[piece.offset : piece.offset + piece.entries]
    return bool((formed - part).norm() <= 1e-3 * part.norm())


def general(task: Task, names: list[str], x: Tensor, y: Tensor) -> Iterator[Piece]:
    """Per-example gradients of any tensors by automatic differentiation, some examples at a time."""
    everything = {
        **{k: v.detach() for k, v in task.module.named_parameters()},
        **{k: v.detach() for k, v in task.module.named_buffers()},
    }
    chosen = {name: everything.pop(name) for name in names}

    def loss(wanted: dict[str, Tensor], xi: Tensor, yi: Tensor) -> Tensor:
        logits = functional_call(task.module, {**everything, **wanted}, (xi[None],))
        return task.losses(logits, yi[None]).sum()

    block = max(1, GENERAL // sum(t.numel() for t in chosen.values()))
    for first in range(0, len(x), block):
        gradients = _per_example(loss, chosen, x[first : first + block], y[first : first + block])
        for name in names:
            yield Piece(name, 0, gradients[name].flatten(1), first=first)


def _per_example(
    loss: Callable[[dict[str, Tensor], Tensor, Tensor], Tensor], wanted: dict[str, Tensor], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Gradients [b, ...] of the loss of each example; one by one where an operation cannot be vectorised."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            vectorised: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0))(wanted, x, y)
            return vectorised
    except RuntimeError:
        single = [grad(loss)(wanted, xi, yi) for xi, yi in zip(x, y, strict=True)]
        return {name: torch.stack([one[name] for one in single]) for name in wanted}


def per_example_of(layer: nn.Module) -> PerExample | None:
    """How to form a layer's per-example gradients from its input and output gradient; None: the general way."""
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    return KNOWN.get(type(layer))


def _linear(layer: nn.Linear, a: Tensor, g: Tensor) -> Iterator[Piece]:
    a, g = a.reshape(len(a), -1, a.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    yield Piece("weight", 0, g.transpose(1, 2), a.transpose(1, 2))
    if layer.bias is not None:
        yield Piece("bias", 0, g.sum(1))


def _conv2d(layer: nn.Conv2d, a: Tensor, g: Tensor) -> Iterator[Piece]:
    g = g.flatten(2)
    size = a.shape[1] * layer.kernel_size[0] * layer.kernel_size[1] * g.shape[2]
    some = min(len(a), max(1, PATCHES // size))
    room = a.new_empty(some * size)
    for first in range(0, len(a), some):
        seen, offset = patches(layer, a[first : first + some], room), 0
        for out, into in zip(
            g[first : first + some].chunk(layer.groups, 1), seen.chunk(layer.groups, 1), strict=True
        ):
            piece = Piece("weight", offset, out, into, first)
            offset += piece.entries
            yield piece
    if layer.bias is not None:
        yield Piece("bias", 0, g.sum(2))


def patches(layer: nn.Conv2d, a: Tensor, room: Tensor) -> Tensor:
    """What each position of a convolution sees of its input, [b, channels * kernel, positions], as `F.unfold`.

    On a CPU several times as fast: few positions are gathered (a copy of overlapping views would walk along the
    short axes), many are copied out of overlapping views into `room`, which the next examples use again.
    """
    assert not isinstance(layer.padding, str)
    high, wide = layer.padding
    padded = F.pad(a, (wide, wide, high, high))
    if _windows(layer, padded).shape[2:4].numel() <= GATHERED:
        places = torch.arange(padded[0].numel(), device=a.device).view(padded.shape[1:])
        order = _windows(layer, places[None]).permute(0, 2, 3, 1, 4, 5)[0]
        by_position = padded.flatten(1).index_select(1, order.reshape(-1))
        return by_position.view(len(a), order.shape[0] * order.shape[1], -1).transpose(1, 2)
    seen = _windows(layer, padded).permute(0, 1, 4, 5, 2, 3)
    copied = room[: seen.numel()].view(seen.shape).copy_(seen)
    return copied.flatten(4).flatten(1, 3)


def _windows(layer: nn.Conv2d, padded: Tensor) -> Tensor:
    """Overlapping views of a padded input, [b, channels, high, wide, kernel, kernel]; nothing is copied."""
    for side in (0, 1):
        gap, kernel = layer.dilation[side], layer.kernel_size[side]
        padded = padded.unfold(2 + side, gap * (kernel - 1) + 1, layer.stride[side])[..., ::gap]
    return padded


def _group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor) -> Iterator[Piece]:
    return _scale_and_shift(layer, F.group_norm(a, layer.num_groups, eps=layer.eps), g)


def _batch_norm(layer: nn.BatchNorm2d, a: Tensor, g: Tensor) -> Iterator[Piece]:
    standard = F.batch_norm(a, layer.running_mean, layer.running_var, training=False, eps=layer.eps)
    return _scale_and_shift(layer, standard, g)


def _layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor) -> Iterator[Piece]:
    standard = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    # Channels last, as `_scale_and_shift` wants them second: all normalised entries are one channel dimension.
    size = layer.weight.numel() if layer.weight is not None else 1
    shape = (len(a), -1, size)
    return _scale_and_shift(layer, standard.reshape(shape).transpose(1, 2), g.reshape(shape).transpose(1, 2))


def _scale_and_shift(layer: Any, standard: Tensor, g: Tensor) -> Iterator[Piece]:
    """Gradients of a scale and a shift per channel (dimension 1), summed over all positions."""
    shape = (len(g), g.shape[1], -1)
    if layer.weight is not None:
        yield Piece("weight", 0, (g * standard).reshape(shape).sum(2))
    if layer.bias is not None:
        yield Piece("bias", 0, g.reshape(shape).sum(2))


KNOWN: dict[type[nn.Module], PerExample] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
}


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses [n, m] of n models on m candidates and, when they were asked for, their logits [n, m, C].

    `outputs` has, when asked for, what `outputs_of` makes of each model's logits, by name [n, m].
    """

    loss: Tensor
    logits: Tensor | None
    outputs: Mapping[str, Tensor]


def losses_of(
    task: Task,
    models: Iterator[Tensor],
    examples: Examples,
    keep_logits: bool = False,
    keep_outputs: bool = False,
) -> Losses:
    """The loss of each model [d] on each candidate: one forward pass a model."""
    losses, logits, outputs = [], [], []
    for model in models:
        output = task.predict(model, examples)
        losses.append(task.losses(output, examples.y))
        if keep_logits:
            logits.append(output)
        if keep_outputs:
            outputs.append(outputs_of(output, examples.y))
    return Losses(
        torch.stack(losses),
        torch.stack(logits) if keep_logits else None,
        {name: torch.stack([one[name] for one in outputs]) for name in (outputs[0] if outputs else ())},
    )


def outputs_of(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What probabilities p tell beside the loss [m], in float32, from logits [m, C] of two classes or more.

    `top` is the largest p, `spread` the population standard deviation of p over classes, `entropy` is
    -sum p log p, `modified_entropy` is -(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i).

    All in float64, and the complement of the largest p as the sum of the others: a model that is sure, of the right
    class or of a wrong one, has finite values that are right to the last digits.
    """
    best = logits.argmax(1, keepdim=True)
    log_p = F.log_softmax(logits.double(), 1)
    rest = log_p.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True)
    log_p = log_p.scatter(1, best, torch.log1p(-rest.exp()))
    p = log_p.exp()
    log_complement = torch.log1p(-p).scatter(1, best, rest)
    own, others = y[:, None], (p * log_complement).scatter(1, y[:, None], 0.0)
    modified = -(log_complement.gather(1, own).exp() * log_p.gather(1, own)).squeeze(1) - others.sum(1)
    made = {
        "top": p.amax(1),
        "spread": p.std(1, correction=0),
        "entropy": -(p * log_p).sum(1),
        "modified_entropy": modified,
    }
    return {name: values.float() for name, values in made.items()}


def uploaded(cohort: Cohort) -> Iterator[Tensor]:
    """The models that the server received: each row's start model plus its update."""
    for update, age in zip(cohort.updates, cohort.ages, strict=True):
        yield cohort.starts[age] + update
