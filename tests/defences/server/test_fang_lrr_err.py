"""LRR and ERR: what is measured without each answer, whom that drops, ties, and who covers for whom."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from server_cohorts import ATTACKER, attacked, bench_of, blobs, cohort_of, model, rows_of, server_of
from torch import Tensor, nn

from fedsiege.aggregators.base import Treatment
from fedsiege.defences.server.fang_lrr_err import FangLrrErr, harmful, without_each
from fedsiege.errors import InputError
from fedsiege.records import Cohort, Examples
from fedsiege.registry import build
from fedsiege.task import Task, seeded

ROOT = blobs(4, 9)


class Told(Task):
    """A model of two numbers: its loss and its error."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1))
        self.measured: list[list[float]] = []

    def measure(self, vector: Tensor, examples: Examples) -> tuple[float, float]:
        assert examples is ROOT
        self.measured.append(vector.tolist())
        return 1 - float(vector[1]), float(vector[0])


def answers(losses: Sequence[float], errors: Sequence[float], **given: Any) -> Cohort:
    """Answers that move the model's loss and error by so much."""
    return cohort_of(torch.tensor([list(losses), list(errors)], dtype=torch.float64).T.contiguous(), **given)


def tried(
    cohort: Cohort, start: tuple[float, float] = (0, 0), **fields: Any
) -> tuple[list[float], Treatment, Told]:
    task = Told()
    server = server_of(task, root=ROOT, start=torch.tensor(start, dtype=torch.float64))
    out, treatment = FangLrrErr(**fields).on_cohort(cohort, server)
    assert torch.equal(out.updates, cohort.updates[treatment.kept.bool()])
    assert treatment.counters["rejected"] == int((treatment.kept == 0).sum())
    return treatment.kept.tolist(), treatment, task


SEVEN = answers([1, 9, 2, 3, 8, 1.5, 2.5], [0.1, 0.2, 0.7, 0.3, 0.6, 0.25, 0.15])
"""The mean without an answer has the lowest loss where the answer has the highest: 1, then 4; errors: 2, then 4."""


def test_the_f_answers_that_raise_the_loss_or_the_error_most_are_dropped() -> None:
    assert tried(SEVEN, mode="lrr")[0] == [1, 0, 1, 1, 1, 1, 1]
    assert tried(SEVEN, mode="lrr", f=2)[0] == [1, 0, 1, 1, 0, 1, 1]
    assert tried(SEVEN, mode="err")[0] == [1, 1, 0, 1, 1, 1, 1]
    assert tried(SEVEN, mode="err", f=2)[0] == [1, 1, 0, 1, 0, 1, 1]
    assert tried(SEVEN)[0] == [1, 0, 0, 1, 1, 1, 1], "what either drops is dropped"
    kept, treatment, _ = tried(SEVEN, f=2)
    assert kept == [1, 0, 0, 1, 0, 1, 1]
    assert treatment.counters == {"rows": 7, "rejected": 3, "f_lowered": 0}
    assert treatment.scale.tolist() == [1.0] * 7


def test_what_is_measured_is_the_model_and_the_plain_mean_of_the_others() -> None:
    cohort = answers([1, 2, 6], [3, 5, 1], weights=[100.0, 1.0, 1.0])
    _, _, task = tried(cohort, start=(10, 20))
    assert task.measured == [[10 + 4.0, 20 + 3.0], [10 + 3.5, 20 + 2.0], [10 + 1.5, 20 + 4.0]]


def test_stale_answers_are_added_to_the_present_model() -> None:
    stale = answers([1, 2, 6], [3, 5, 1], ages=(2, 0, 1), starts={age: torch.full((2,), 99.0) for age in range(3)})
    _, _, task = tried(stale, start=(10, 20))
    assert task.measured == tried(answers([1, 2, 6], [3, 5, 1]), start=(10, 20))[2].measured


@torch.no_grad()
def naive(cohort: Cohort, start: Tensor, root: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Loss and error without each answer, by a model of its own in float64."""
    losses, errors = [], []
    for i in range(len(cohort.updates)):
        rest = [row.double() for j, row in enumerate(cohort.updates) if j != i]
        vector = start.double() + sum(rest) / len(rest)
        module = seeded(model, 0).double().eval()
        # The layout: trained parameters, then float buffers.
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        for tensor in [*module.parameters(), *buffers]:
            tensor.data = vector[: tensor.numel()].view(tensor.shape)
            vector = vector[tensor.numel() :]
        logits = module(root.x.double())
        losses.append(float(F.cross_entropy(logits, root.y)))
        errors.append(float((logits.argmax(1) != root.y).double().mean()))
    return np.array(losses), np.array(errors)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_naive_one(seed: int) -> None:
    round_ = attacked()
    rows = torch.cat([round_.honest, round_.replaced[None] / 5])
    rows = rows + rows_of(10, rows.shape[1], seed) / 50
    cohort, root = cohort_of(rows, starts={0: round_.start}), blobs(60, 30 + seed)
    losses, errors = naive(cohort, round_.start, root)
    found = without_each(rows, round_.start, round_.task, root)
    np.testing.assert_allclose(found[0], losses, rtol=1e-4)
    np.testing.assert_allclose(found[1], errors, rtol=0, atol=1e-9)
    for f in (1, 2, 4):
        by_loss = set(np.argsort(losses)[:f].tolist())
        # Of equal errors the higher numbers go, but none that is as high as any.
        wrong = [round(error * 60) for error in errors.tolist()]
        first = sorted(range(10), key=lambda i: (wrong[i], -i))[:f]
        by_error = {i for i in first if wrong[i] < max(wrong)}
        for mode, dropped in (("lrr", by_loss), ("err", by_error), ("both", by_loss | by_error)):
            defence = FangLrrErr(f=f, mode=mode)  # type: ignore[arg-type]
            _, treatment = defence.on_cohort(cohort, server_of(round_.task, start=round_.start, root=root))
            assert set((treatment.kept == 0).nonzero()[:, 0].tolist()) == dropped, (f, mode)


def test_of_equal_figures_the_lowest_client_numbers_stay() -> None:
    assert harmful(torch.tensor([1.0, 1.0, 1.0, 2.0]), 2).tolist() == [2, 1]
    assert harmful(torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0]), 1).tolist() == [4]
    assert sorted(harmful(torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0]), 4).tolist()) == [1, 2, 3, 4]


def test_an_answer_whose_removal_helps_no_more_than_any_others_stays() -> None:
    assert harmful(torch.tensor([2.0, 2.0, 2.0]), 1).tolist() == []
    assert harmful(torch.tensor([2.0, 1.0, 2.0]), 2).tolist() == [1]
    kept, treatment, _ = tried(answers([1, 1, 1, 1, 1], [1, 1, 1, 2, 1]), f=2)
    assert kept == [1, 1, 1, 0, 1]
    assert treatment.counters["rejected"] == 1


def test_f_answers_go_even_where_nobody_attacks() -> None:
    losses = (1 + torch.rand(9, generator=torch.Generator().manual_seed(0)) / 1000).tolist()
    assert sum(tried(answers(losses, losses), f=3)[0]) == 6


def test_a_figure_that_is_not_finite_is_the_worst() -> None:
    class Odd(Told):
        def measure(self, vector: Tensor, examples: Examples) -> tuple[float, float]:
            accuracy, loss = super().measure(vector, examples)
            return (accuracy, float("nan")) if loss > 5 else (accuracy, loss)

    # Without the last: 1; without the others: 34 or more, no number, and an error of 0.
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [100.0, 0.9]])
    losses, errors = without_each(rows, torch.zeros(2), Odd(), ROOT)
    assert losses.tolist() == [np.inf] * 3 + [1.0]
    assert errors.tolist() == [np.inf] * 3 + [0.0]
    assert harmful(losses, 1).tolist() == harmful(errors, 1).tolist() == [3]


def test_an_enormous_answer_leaves_nothing_of_itself_in_the_mean_without_it() -> None:
    rows = torch.cat([rows_of(6, 2, 1).abs(), torch.full((1, 2), 3e38)])
    task = Told()
    without_each(rows, torch.zeros(2), task, ROOT)
    np.testing.assert_allclose(task.measured[6], rows[:6].double().mean(0), rtol=1e-6)


def test_two_who_each_ruin_the_mean_cover_for_each_other() -> None:
    class Saturated(Told):
        def measure(self, vector: Tensor, examples: Examples) -> tuple[float, float]:
            super().measure(vector, examples)
            return 0.1 if float(vector[0]) > 5 else 0.9, min(float(vector[0]), 5.0)

    for attackers, dropped in ((1, 1), (2, 0)):
        rows = torch.ones(9, 2)
        rows[:attackers, 0] = 1000.0
        own = server_of(Saturated(), root=ROOT, start=torch.zeros(2))
        _, treatment = FangLrrErr(f=3).on_cohort(cohort_of(rows), own)
        assert treatment.kept[:attackers].tolist() == [0.0 if dropped else 1.0] * attackers
        assert treatment.counters["rejected"] == dropped


@pytest.mark.parametrize("mode", ["lrr", "err", "both"])
def test_model_replacement_at_full_strength_is_found(mode: Any) -> None:
    round_ = attacked()
    _, treatment = FangLrrErr(mode=mode).on_cohort(round_.cohort(round_.replaced), round_.server())
    assert treatment.kept.tolist() == [float(k != ATTACKER) for k in range(10)]


def test_where_fewer_answers_arrive_f_is_lowered_and_that_is_counted() -> None:
    five = replace(
        SEVEN, clients=SEVEN.clients[:5], updates=SEVEN.updates[:5], weights=SEVEN.weights[:5], ages=(0,) * 5
    )
    kept, treatment, _ = tried(five, f=3, mode="lrr")
    assert kept == [1, 0, 1, 1, 0]
    assert treatment.counters == {"rows": 5, "rejected": 2, "f_lowered": 1}
    for n in (1, 2):
        few = answers([1.0, 9.0][:n], [0.1, 0.9][:n])
        kept, treatment, task = tried(few)
        assert kept == [1.0] * n
        assert treatment.counters == {"rows": n, "rejected": 0, "f_lowered": 1}
        assert task.measured == []


def test_at_an_f_of_0_nothing_is_measured() -> None:
    out, treatment = FangLrrErr(f=0).on_cohort(SEVEN, server_of())
    assert out is SEVEN
    assert treatment.counters == {"rows": 7, "rejected": 0, "f_lowered": 0}


def test_it_costs_one_evaluation_an_answer() -> None:
    for mode in ("lrr", "err", "both"):
        assert len(tried(SEVEN, mode=mode)[2].measured) == 7


def test_a_server_that_cannot_measure_is_refused_naming_root() -> None:
    FangLrrErr().check(bench_of(7, root=1))
    FangLrrErr(f=0).check(bench_of(1, root=0))
    with pytest.raises(
        InputError, match=r"root: got 0; fang_lrr_err needs examples of the server's own.*expected 1"
    ):
        FangLrrErr().check(bench_of(7, root=0))
    with pytest.raises(InputError, match="set root"):
        FangLrrErr().on_cohort(SEVEN, server_of(Told(), start=torch.zeros(2)))
    with pytest.raises(InputError, match="set root"):
        FangLrrErr().on_cohort(SEVEN, server_of(root=ROOT, start=torch.zeros(2)))
    with pytest.raises(InputError, match="got no global model"):
        FangLrrErr().on_cohort(SEVEN, server_of(Told(), root=ROOT, start=None))


def test_an_f_of_half_the_answers_is_refused_before_the_run() -> None:
    FangLrrErr(f=3).check(bench_of(7))
    with pytest.raises(InputError, match=r"f: got 3; fang_lrr_err needs n > 2 f, and 6 clients .* 2 at most"):
        FangLrrErr(f=3).check(bench_of(6))


@pytest.mark.parametrize(("field", "value"), [("f", -1), ("f", 0.5), ("mode", "union")])
def test_bad_fields_of_fang_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"d\.{field}: got {value!r}"):
        build("server_defence", {"name": "fang_lrr_err", field: value}, "d")


def test_sequences_are_measured_by_the_positions_that_count() -> None:
    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.b[None, :, None].expand(len(x), 2, x.shape[1])

    task, y = Task(seeded(Next, 0), sequences=True), torch.tensor([[0, 0, 1], [0, -100, -100]])
    examples = Examples(np.array(["a", "b"]), torch.zeros(2, 3, dtype=torch.int64), y)
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 4.0]])
    losses, errors = without_each(rows, torch.zeros(2), task, examples)
    assert errors.tolist() == pytest.approx([3 / 4, 3 / 4, 1 / 4])
    p = torch.tensor([1.0, 0.0]).log_softmax(0)
    assert float(losses[2]) == pytest.approx(-float(3 * p[0] + p[1]) / 4)
