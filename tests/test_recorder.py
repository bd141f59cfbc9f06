"""What a round leaves on disk: aligned with each row's own start model, for those present, or for nobody alone."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from fedsiege.errors import InputError, TrainingDivergedError
from fedsiege.recorder import Recorder
from fedsiege.records import Cohort, Examples, Round
from fedsiege.task import Task, seeded
from fedsiege.trace import Groups, Trace, grouping, path_of

K, M, CLASSES = 5, 6, 3
PRESENT, AGES = (0, 2, 3), (0, 2, 0)
OF_SINGLE_CLIENTS = (
    *("loss", "dot", "update_norm2", "update_sum", "support_norm2", "gradient_sum"),
    *("head", "age", "weight", "present", "start_of", "logits"),
)
"""What tells of single clients."""
SUPPORT = frozenset({"support"})
OUTPUTS = ("top", "spread", "entropy", "modified_entropy")


def model() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten())
    return nn.Sequential(stem, nn.Sequential(nn.Linear(8, 4, bias=False), nn.Tanh()), nn.Linear(4, CLASSES))


class Made:
    """A round of three of five clients, one of them two rounds late, by hand."""

    def __init__(self, head_bias: bool = True) -> None:
        rng = torch.Generator().manual_seed(4)
        self.examples = Examples(
            np.array([f"{i}" for i in range(M)]),
            torch.randn(M, 1, 3, 3, generator=rng),
            torch.randint(0, CLASSES, (M,), generator=rng),
        )
        self.task = Task(seeded(model, 0))
        size = self.task.layout.size

        def vector(scale: float) -> Tensor:
            moved = scale * torch.randn(size, generator=rng)
            moved[self.task.layout.trained :].abs_()
            return moved

        self.start = self.task.state + vector(0.1)
        self.stale = self.task.state + vector(0.3)
        self.end = self.start + vector(0.05)
        self.updates = torch.stack([vector(0.2) for _ in PRESENT])
        starts = {0: self.start, 2: self.stale}
        weights = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
        self.round = Round(7, self.start, self.end, Cohort(PRESENT, self.updates, weights, AGES, starts))

    def recorder(self, folder: Path, groups: Groups = "blocks", **options: Any) -> Recorder:
        recorder = Recorder(self.task, self.examples, K, CLASSES, folder, groups, **options)
        recorder.begin()
        return recorder

    def starts(self) -> list[Tensor]:
        return [self.stale if age else self.start for age in AGES]

    def _place(self, vector: Tensor) -> nn.Module:
        plain = seeded(model, 0).double().eval()
        state = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
        for (name, place), shape in zip(self.task.layout.slices(), self.task.layout.shapes, strict=True):
            state[name].data = vector[place].double().view(shape)
        return plain

    def gradients(self, at: Tensor) -> Tensor:
        """[m, trained], float64, one example at a time."""
        plain = self._place(at)
        rows = []
        for x, y in zip(self.examples.x.double(), self.examples.y, strict=True):
            loss = F.cross_entropy(plain(x[None]), y[None])
            rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(plain.parameters()))]))
        return torch.stack(rows)

    def losses(self, at: Tensor) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(self._place(at)(self.examples.x.double()), self.examples.y, reduction="none")


@pytest.fixture
def made() -> Made:
    return Made()


def entries(made: Made, chosen: tuple[str, ...] | None) -> Tensor:
    """Which of the trained entries belong to these blocks."""
    layout = made.task.layout
    inside = torch.zeros(layout.trained, dtype=torch.bool)
    parts = zip(layout.slices(), layout.kinds, layout.groups, strict=True)
    for (_, place), kind, group in parts:
        if kind == "trained" and (chosen is None or group in chosen):
            inside[place] = True
    return inside


@pytest.mark.parametrize("chosen", [None, ("0",), ("1",), ("2",), ("0", "2"), ("0", "1", "2")])
def test_cosines_of_any_choice_of_blocks_are_the_naive_ones(
    made: Made, tmp_path: Path, chosen: tuple[str, ...] | None
) -> None:
    made.recorder(tmp_path).record(made.round)
    trace = Trace(tmp_path)
    assert trace.groups == ("0", "1", "2")
    inside = entries(made, chosen)
    found = trace.cosine(0, chosen)
    assert found.shape == (K, M)
    for client, start, update in zip(PRESENT, made.starts(), made.updates, strict=True):
        g, u = made.gradients(start)[:, inside], -update[: made.task.layout.trained][inside].double()
        naive = (g @ u) / (g.norm(dim=1) * u.norm())
        np.testing.assert_allclose(found[client], naive, rtol=1e-4, atol=1e-6)
    assert np.isnan(found[[1, 4]]).all()


@pytest.mark.parametrize("groups", ["total", "blocks", "tensors"])
def test_signals_are_the_naive_ones_whatever_is_kept(made: Made, tmp_path: Path, groups: Groups) -> None:
    made.recorder(tmp_path, groups).record(made.round)
    trace, trained = Trace(tmp_path), made.task.layout.trained
    assert len(trace.groups) == {"total": 1, "blocks": 3, "tensors": 7}[groups]
    for client, start, update in zip(PRESENT, made.starts(), made.updates, strict=True):
        g, u = made.gradients(start), -update[:trained].double()
        norm2 = g.square().sum(1)
        np.testing.assert_allclose(
            trace.cosine(0)[client], (g @ u) / (norm2.sqrt() * u.norm()), rtol=1e-4, atol=1e-6
        )
        naive = u.square().sum() - (u - g).square().sum(1)
        np.testing.assert_allclose(trace.diff(0)[client], naive, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(trace.loss(0)[client], made.losses(start + update), rtol=1e-5)
    g, change = made.gradients(made.start), (made.start - made.end)[:trained].double()
    norm2 = g.square().sum(1)
    np.testing.assert_allclose(trace.norm2(0), norm2, rtol=1e-4)
    np.testing.assert_allclose(
        trace.aggregate_cosine(0), (g @ change) / (norm2.sqrt() * change.norm()), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(trace.aggregate_diff(0), 2 * (g @ change) - norm2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trace.global_loss(0), made.losses(made.end), rtol=1e-5)


@pytest.mark.parametrize("groups", ["total", "blocks", "tensors"])
def test_cosines_over_non_zero_coordinates_are_the_naive_ones(made: Made, tmp_path: Path, groups: Groups) -> None:
    trained = made.task.layout.trained
    made.updates[0][made.updates[0].abs() < 0.2] = 0
    made.updates[1][: trained // 2] = 0
    made.recorder(tmp_path, groups, recordings=SUPPORT).record(made.round)
    found, all_coordinates = Trace(tmp_path).cosine_nonzero(0), Trace(tmp_path).cosine(0)
    for client, start, update in zip(PRESENT, made.starts(), made.updates, strict=True):
        g, u = made.gradients(start), -update[:trained].double()
        on = g[:, u != 0]
        naive = (g @ u) / (on.norm(dim=1) * u.norm())
        np.testing.assert_allclose(found[client], naive, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[3], all_coordinates[3], rtol=1e-5, err_msg="no zeros, nothing changes")
    assert np.abs(found[0] - all_coordinates[0]).max() > 0.01
    assert np.isnan(found[[1, 4]]).all()


@pytest.mark.parametrize("groups", ["total", "blocks", "tensors"])
def test_cosines_without_a_shift_are_the_naive_ones(made: Made, tmp_path: Path, groups: Groups) -> None:
    made.updates[1] += 3.0
    made.recorder(tmp_path, groups).record(made.round)
    layout, found = made.task.layout, Trace(tmp_path).cosine_unshifted(0)
    names, numbers = grouping(layout, groups)
    places = [place for _, place in layout.slices()][: len(numbers)]
    rest = made.updates[:, : layout.trained].double()
    for group in range(len(names)):
        inside = torch.zeros(layout.trained, dtype=torch.bool)
        for place, number in zip(places, numbers, strict=True):
            inside[place] |= number == group
        means = rest[:, inside].mean(1)
        typical = [np.median(np.delete(means.numpy(), row)) for row in range(len(PRESENT))]
        rest[:, inside] -= (means - torch.tensor(typical))[:, None]
    for client, start, update in zip(PRESENT, made.starts(), rest, strict=True):
        g, u = made.gradients(start), -update
        naive = (g @ u) / (g.norm(dim=1) * u.norm())
        np.testing.assert_allclose(found[client], naive, rtol=1e-3, atol=1e-5)
    assert np.abs(found[2] - Trace(tmp_path).cosine(0)[2]).max() > 0.1
    assert np.isnan(found[[1, 4]]).all()


@pytest.mark.parametrize("tail", [1, 9, 15, 20, 51, 58])
def test_cosines_before_the_tail_are_the_naive_ones(made: Made, tmp_path: Path, tail: int) -> None:
    trained = made.task.layout.trained
    made.updates[1, trained - tail : trained] += 100.0
    made.recorder(tmp_path, recordings=frozenset({"front"}), tail=tail).record(made.round)
    found = Trace(tmp_path).cosine_front(0)
    for client, start, update in zip(PRESENT, made.starts(), made.updates, strict=True):
        g, u = made.gradients(start)[:, : trained - tail], -update[: trained - tail].double()
        np.testing.assert_allclose(found[client], (g @ u) / (g.norm(dim=1) * u.norm()), rtol=1e-4, atol=1e-6)
    assert np.isnan(found[[1, 4]]).all()
    assert np.abs(found[2] - Trace(tmp_path).cosine(0)[2]).max() > 0.05


def test_before_no_tail_are_all_coordinates(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path, recordings=frozenset({"front"})).record(made.round)
    trace = Trace(tmp_path)
    np.testing.assert_allclose(trace.cosine_front(0), trace.cosine(0), rtol=1e-5, atol=1e-7)
    made.recorder(tmp_path / "without", tail=5).record(made.round)
    with pytest.raises(InputError, match=r"no front_dot; .* list an attack with coordinates: front"):
        Trace(tmp_path / "without").cosine_front(0)


def test_tails_where_there_is_one(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path / "with", tail=20).record(made.round)
    trace, trained = Trace(tmp_path / "with"), made.task.layout.trained
    tails = made.updates[:, trained - 20 : trained].double().numpy()
    here = list(PRESENT)
    assert trace.tail == 20
    np.testing.assert_allclose(trace.tail_sum(0)[here], [math.fsum(row) for row in tails], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(trace.tail_gram(0)[np.ix_(here, here)], tails @ tails.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(trace.weight(0)[here], [10, 20, 30])
    for absent in (1, 4):
        assert np.isnan(trace.tail_sum(0)[absent])
        assert np.isnan(trace.tail_gram(0)[absent]).all()
        assert np.isnan(trace.tail_gram(0)[:, absent]).all()
    made.recorder(tmp_path / "without").record(made.round)
    assert Trace(tmp_path / "without").tail == 0
    assert "tail" not in json.loads((tmp_path / "without" / "trace.json").read_text())
    with pytest.raises(InputError, match=r"no tail_gram; it was recorded without: set trace.tail and train"):
        Trace(tmp_path / "without").tail_gram(0)


def test_what_a_countermeasure_leaves_has_a_trace_of_its_own(made: Made, tmp_path: Path) -> None:
    numbers: list[int] = []

    def halved(cohort: Cohort, number: int) -> Cohort:
        numbers.append(number)
        return replace(cohort, updates=cohort.updates / 2)

    options: dict[str, Any] = {"recordings": frozenset({"outputs"}), "tail": 7}
    plain = made.recorder(tmp_path / "plain", **options).record(made.round)
    size = made.recorder(tmp_path / "both", countermeasures={"halved": halved}, **options).record(made.round)
    assert numbers == [7]
    names = ["trace.json", path_of(tmp_path, 7).name]
    for name in names:
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert size == plain + path_of(tmp_path / "both" / "halved", 7).stat().st_size
    trace = Trace(tmp_path / "both")
    assert trace.variant("sent") is trace
    assert made.round.cohort is not None
    sent = replace(made.round.cohort, updates=made.updates.clone())
    made.updates /= 2
    made.recorder(tmp_path / "naive", **options).record(made.round, sent)
    taken, off = trace.variant("halved").taken_off(0), made.updates.double()
    for client, row in zip(sent.clients, off, strict=True):
        assert taken[client] == pytest.approx(float(row[row != 0].square().mean().sqrt()), rel=1e-6)
    assert np.isnan(np.delete(taken, list(sent.clients))).all()
    assert trace.variant("halved").rounds == (7,)
    for name in names:
        assert (tmp_path / "both" / "halved" / name).read_bytes() == (tmp_path / "naive" / name).read_bytes()
    made.recorder(tmp_path / "both", countermeasures={"halved": halved}).record(
        Round(8, made.start, made.start.clone(), None)
    )
    assert not Trace(tmp_path / "both").variant("halved").present(1).any(), "nobody's answer, nothing to change"
    assert numbers == [7]


def test_evidence_that_a_countermeasure_did_not_leave_is_named(made: Made, tmp_path: Path) -> None:
    recorder = made.recorder(tmp_path, countermeasures={"denoised": lambda cohort, _: cohort})
    recorder.record(made.round)
    with pytest.raises(InputError, match="no evidence of updates: insider; list an attack that is told so"):
        Trace(tmp_path).variant("insider")
    path_of(tmp_path / "denoised", 7).unlink()
    with pytest.raises(InputError, match=r"denoised: holds rounds \(\); expected \(7,\): train again"):
        Trace(tmp_path).variant("denoised")


def test_what_raised_a_class_is_the_naive_share(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path).record(made.round)
    found, head = Trace(tmp_path).rise(0), made.task.layout.head
    for client, update in zip(PRESENT, made.updates[:, head].double(), strict=True):
        weight = update[: 4 * CLASSES].view(CLASSES, 4)
        for c in range(CLASSES):
            moved = [float(weight[c, i] - weight[:, i].mean()) for i in range(4)]
            share = sum(max(move, 0) for move in moved) / sum(map(abs, moved))
            assert found[client, c] == pytest.approx(share, rel=1e-5)
    assert np.isnan(found[[1, 4]]).all()


def test_gradients_on_a_support_only_where_they_are_asked_for(made: Made, tmp_path: Path) -> None:
    sizes = [made.recorder(tmp_path / name).record(made.round) for name in ("a", "b")]
    more = made.recorder(tmp_path / "more", recordings=SUPPORT).record(made.round)
    assert sizes[0] == sizes[1] < more
    with pytest.raises(InputError, match=r"no support_norm2; .* list an attack with coordinates: nonzero"):
        Trace(tmp_path / "a").cosine_nonzero(0)


def test_outputs_only_where_they_are_asked_for(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path / "with", recordings=frozenset({"outputs"})).record(made.round)
    trace = Trace(tmp_path / "with")
    uploads = [start + update for start, update in zip(made.starts(), made.updates, strict=True)]
    models = dict(zip(PRESENT, uploads, strict=True))
    for client in range(K):
        if client not in PRESENT:
            assert all(np.isnan(getattr(trace, name)(0)[client]).all() for name in OUTPUTS)
            continue
        for name, naive in outputs_by_hand(made, models[client]).items():
            np.testing.assert_allclose(getattr(trace, name)(0)[client], naive, rtol=1e-4, err_msg=name)
    for name, naive in outputs_by_hand(made, made.end).items():
        np.testing.assert_allclose(getattr(trace, f"global_{name}")(0), naive, rtol=1e-4, err_msg=name)
    made.recorder(tmp_path / "hidden", aggregate_only=True, recordings=frozenset({"outputs"})).record(made.round)
    hidden = Trace(tmp_path / "hidden")
    np.testing.assert_array_equal(hidden.global_entropy(0), trace.global_entropy(0))
    made.recorder(tmp_path / "without").record(made.round)
    for name in (*OUTPUTS, *(f"global_{name}" for name in OUTPUTS)):
        with pytest.raises(InputError, match=rf"no {name}; .* list an attack that reads it"):
            getattr(Trace(tmp_path / "without"), name)(0)
        if not name.startswith("global"):
            with pytest.raises(InputError, match=f"no {name}"):
                getattr(hidden, name)(0)


def outputs_by_hand(made: Made, at: Tensor) -> dict[str, Any]:
    p = made._place(at)(made.examples.x.double()).detach().softmax(1).numpy()
    own = made.examples.y.numpy()
    modified = [
        -(1 - row[y]) * np.log(row[y]) - sum(q * np.log(1 - q) for i, q in enumerate(row) if i != y)
        for row, y in zip(p, own, strict=True)
    ]
    entropy = [-sum(q * np.log(q) for q in row) for row in p]
    return {"top": p.max(1), "spread": p.std(1), "entropy": entropy, "modified_entropy": modified}


def test_who_was_there(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path).record(made.round)
    trace = Trace(tmp_path)
    assert trace.rounds == (7,)
    assert np.flatnonzero(trace.present(0)).tolist() == [0, 2, 3]
    for signal in ("loss", "cosine", "diff", "head"):
        rows = getattr(trace, signal)(0)
        assert np.isnan(rows[[1, 4]]).all(), signal
        assert np.isfinite(rows[list(PRESENT)]).all(), signal
    with safe_open(path_of(tmp_path, 7), framework="pt") as file:
        assert file.get_tensor("age").nan_to_num(-1).tolist() == [0, -1, 2, 0, -1]
        assert file.get_tensor("weight").nan_to_num(-1).tolist() == [10, -1, 20, 30, -1]
        assert {str(file.get_tensor(name).dtype) for name in ("loss", "dot", "head")} == {"torch.float32"}


def test_the_last_layers_updates_are_kept(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path).record(made.round)
    trained = made.task.layout.trained
    np.testing.assert_array_equal(Trace(tmp_path).head(0)[[0, 2, 3]], made.updates[:, trained - CLASSES : trained])


def test_a_last_layer_without_bias_gives_the_sums_of_its_rows(tmp_path: Path) -> None:
    task = Task(seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, CLASSES, bias=False)), 0))
    examples = Examples(np.array(["a"]), torch.ones(1, 4), torch.tensor([0]))
    recorder = Recorder(task, examples, 1, CLASSES, tmp_path)
    recorder.begin()
    start, update = task.state.clone(), torch.randn(1, task.layout.size, generator=torch.Generator().manual_seed(0))
    recorder.record(Round(1, start, start + update[0], Cohort((0,), update, torch.ones(1), (0,), {0: start})))
    naive = update[0, 25:].view(CLASSES, 5).sum(1)
    np.testing.assert_allclose(Trace(tmp_path).head(0)[0], naive, rtol=1e-5)


def test_a_last_layer_that_is_no_classifier_is_named(tmp_path: Path) -> None:
    task = Task(seeded(lambda: nn.Sequential(nn.Linear(4, CLASSES), nn.PReLU()), 0))
    examples = Examples(np.array(["a"]), torch.ones(1, 4), torch.tensor([0]))
    recorder = Recorder(task, examples, 1, 3, tmp_path)
    recorder.begin()
    start = task.state.clone()
    cohort = Cohort((0,), torch.zeros(1, task.layout.size), torch.ones(1), (0,), {0: start})
    recorder.record(Round(1, start, start, cohort))
    for read in (Trace(tmp_path).head, Trace(tmp_path).rise):
        with pytest.raises(
            InputError, match=r"last layer has tensors of \(1,\) values; expected a weight and a bias"
        ):
            read(0)


def test_logits_only_where_they_are_asked_for(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path / "with", keep_logits=True).record(made.round)
    logits = Trace(tmp_path / "with").logits(0)
    assert logits.shape == (K, M, CLASSES)
    for client, start, update in zip(PRESENT, made.starts(), made.updates, strict=True):
        naive = made._place(start + update)(made.examples.x.double()).detach()
        np.testing.assert_allclose(logits[client], naive, rtol=1e-4, atol=1e-6)
    assert np.isnan(logits[1]).all()
    with safe_open(path_of(tmp_path / "with", made.round.number), framework="pt") as file:
        broadcast = file.get_tensor("global_logits")
    naive = made._place(made.round.end)(made.examples.x.double()).detach()
    np.testing.assert_allclose(broadcast, naive, rtol=1e-4, atol=1e-6)
    made.recorder(tmp_path / "without").record(made.round)
    with pytest.raises(InputError, match="the trace has no logits; it was recorded without"):
        Trace(tmp_path / "without").logits(0)


def test_secure_aggregation_writes_nothing_of_single_clients(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path, aggregate_only=True, recordings=SUPPORT).record(made.round)
    with safe_open(path_of(tmp_path, 7), framework="pt") as file:
        keys = set(file.keys())
        shapes = {name: tuple(file.get_tensor(name).shape) for name in keys}
    assert keys == {"global_loss", "aggregate_dot", "aggregate_norm2", "gradient_norm2", "start_loss"}
    assert not keys & set(OF_SINGLE_CLIENTS)
    assert shapes["aggregate_dot"] == (3, M), "groups and candidates, no clients"
    assert shapes["gradient_norm2"] == (1, 3, M), "at the global model only, not at what late clients started from"
    trace = Trace(tmp_path)
    made.recorder(tmp_path / "open").record(made.round)
    for signal in ("global_loss", "aggregate_cosine", "aggregate_diff", "norm2"):
        np.testing.assert_allclose(
            getattr(trace, signal)(0), getattr(Trace(tmp_path / "open"), signal)(0), rtol=1e-4
        )
    for signal in ("loss", "cosine", "cosine_nonzero", "cosine_unshifted", "diff", "present", "head", "rise"):
        with pytest.raises(InputError, match="the trace has no"):
            getattr(trace, signal)(0)


def test_a_round_without_a_usable_answer_has_nobody_present(made: Made, tmp_path: Path) -> None:
    made.recorder(tmp_path).record(Round(7, made.start, made.start.clone(), None))
    trace = Trace(tmp_path)
    assert not trace.present(0).any()
    assert trace.aggregate_cosine(0).tolist() == [0.0] * M, "the model did not move"


def test_the_same_round_gives_the_same_bytes_and_their_number(made: Made, tmp_path: Path) -> None:
    sizes = [made.recorder(tmp_path / name).record(made.round) for name in ("a", "b")]
    contents = [path_of(tmp_path / name, 7).read_bytes() for name in ("a", "b")]
    assert contents[0] == contents[1]
    assert sizes == [len(contents[0])] * 2


def test_everybody_late_is_aligned_with_the_old_model_too(made: Made, tmp_path: Path) -> None:
    cohort = Cohort((1, 4), made.updates[:2], torch.ones(2), (2, 2), {2: made.stale})
    made.recorder(tmp_path).record(Round(3, made.start, made.end, cohort))
    trace = Trace(tmp_path)
    for client, update in ((1, made.updates[0]), (4, made.updates[1])):
        g, u = made.gradients(made.stale), -update[: made.task.layout.trained].double()
        naive = (g @ u) / (g.norm(dim=1) * u.norm())
        np.testing.assert_allclose(trace.cosine(0)[client], naive, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trace.norm2(0), made.gradients(made.start).square().sum(1), rtol=1e-4)


@pytest.mark.parametrize("which", ["client", "global"])
def test_losses_beyond_all_numbers_are_a_divergence_that_names_round_and_client(
    made: Made, tmp_path: Path, which: str
) -> None:
    head = made.task.layout.head
    huge = 3e38 * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0] * 3)
    if which == "client":
        made.updates[1, head] = huge
        message = "round 7, client 2: the uploaded model's loss is not finite"
    else:
        made.end[head] = huge
        message = "round 7: the global_loss of the global model is not finite"
    with pytest.raises(TrainingDivergedError, match=message):
        made.recorder(tmp_path).record(made.round)
    assert Trace(tmp_path).rounds == ()
