"""What every registered aggregation rule must do, whatever its idea is."""

import functools
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cohorts import cohort_of, rule_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsiege.aggregators.base import Aggregator, Bench, Property, Server, Treatment
from fedsiege.errors import InputError
from fedsiege.records import Cohort, Examples
from fedsiege.registry import index, names
from fedsiege.task import Task, seeded

NAMES = names("aggregator")
BRISK: dict[str, dict[str, Any]] = {"deepsight": {"samples": 16}}
"""Fields at which a rule is quick; its defaults elsewhere."""

Matrix = NDArray[np.float64]
Change = Callable[[Tensor], Tensor]


def model() -> nn.Module:
    """Two features, three classes, 21 numbers, and a last layer that makes the logits."""
    return nn.Sequential(OrderedDict(body=nn.Linear(2, 3), bend=nn.Tanh(), head=nn.Linear(3, 3)))


@functools.cache
def task() -> Task:
    return Task(seeded(model, 0))


@functools.cache
def start() -> Tensor:
    return task().state.clone()


D = 21


@functools.cache
def root() -> Examples:
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    return Examples(np.array([f"root{i}" for i in range(8)]), x, torch.arange(8) % 3)


def train(examples: Examples) -> Tensor:
    """A step of gradient descent from the global model."""
    task().load(start())
    with torch.enable_grad():
        loss = F.cross_entropy(task().logits(task().inputs(examples.x)), examples.y)
        gradient = torch.autograd.grad(loss, list(task().module.parameters()))
    return -torch.cat([one.reshape(-1) for one in gradient])


def server_of() -> Server:
    """What a server knows in the first round; the same each time."""
    return Server(
        rng=np.random.default_rng(7),
        start=start().clone(),
        layout=task().layout,
        task=task(),
        root=root(),
        train=train,
    )


def bench(n: int) -> Bench:
    return Bench(cohort=n, clients=n, root=8, layout=task().layout, head=True, classes=3, rounds=3)


def made(name: str) -> Aggregator:
    return rule_of(name, **BRISK.get(name, {}))


def applied(
    name: str, rows: Tensor, weights: Any = None, clients: tuple[int, ...] | None = None
) -> tuple[Tensor, Treatment]:
    return made(name)(cohort_of(rows, weights, clients), server_of())


def honest(n: int, seed: int = 0) -> Tensor:
    """Updates [n, 21] that have something in common, as those of honest clients do."""
    rng = torch.Generator().manual_seed(100 + seed)
    return torch.randn(n, D, generator=rng) + 0.5 * torch.randn(1, D, generator=rng)


matrices = st.integers(1, 9).flatmap(
    lambda n: arrays(np.float64, (n, D), elements=st.integers(-6, 6).map(lambda k: k / 2))
)
"""Small multiples of a half: sums and products are exact, and ties abound."""


def test_there_are_rules() -> None:
    assert {"fedavg", "median", "trimmed_mean", "krum", "multi_krum", "bulyan"} <= set(NAMES)
    assert {"geometric_median", "centered_clipping", "dnc", "rlr"} <= set(NAMES)
    assert task().layout.size == D


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_and_what_its_fields_are(name: str) -> None:
    entry = index()["aggregator", name]
    assert entry.summary.endswith(".")
    assert entry.paper
    assert all(field.doc and field.default for field in entry.fields)
    rule = made(name)
    assert [field.name for field in fields(rule)] == [field.name for field in entry.fields]  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        rule.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12])
def test_tells_what_became_of_every_row(name: str, n: int) -> None:
    for rows in (honest(n), honest(n) * 100):
        update, treatment = applied(name, rows, weights=range(1, n + 1))
        assert update.shape == (D,)
        assert bool(update.isfinite().all())
        for told in (treatment.kept, treatment.scale):
            assert (told.shape, told.dtype, told.device.type) == ((n,), torch.float64, "cpu")
            assert bool(((told >= 0) & told.isfinite()).all())
        assert float(treatment.kept.max()) <= 1 + 1e-12
        assert treatment.counters["rows"] == n
        assert all(isinstance(count, int | float) and count >= 0 for count in treatment.counters.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_it_has_rejected_decides_nothing_but_who_is_rejected(name: str) -> None:
    """A rejected row may move further away: whoever was kept is kept, and the result is the same."""
    rows = honest(11)
    rows[4] = 40 + 10 * torch.arange(D)
    update, treatment = applied(name, rows)
    rejects = float(treatment.kept[4]) == 0
    rows[4] *= 3
    moved, again = applied(name, rows)
    assert (float(again.kept[4]) == 0) is rejects
    if rejects and torch.equal(again.kept, treatment.kept):
        torch.testing.assert_close(moved, update, rtol=1e-6, atol=1e-6)


def close(found: Tensor, expected: Tensor, size: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * (1 + size))


PROMISED = [(name, kind) for name in NAMES for kind in sorted(made(name).promises)]
DISCLAIMED: list[tuple[str, Property]] = [
    (name, kind)
    for name in NAMES
    for kind in ("permutation", "translation", "unanimity")
    if kind not in made(name).promises
]


@pytest.mark.parametrize("name", [name for name, kind in PROMISED if kind == "permutation"])
@settings(max_examples=40, deadline=None)
@given(rows=matrices, shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_clients_decides_nothing(name: str, rows: Matrix, shuffle: random.Random) -> None:
    n = len(rows)
    order = list(range(n))
    shuffle.shuffle(order)
    weights = np.arange(1, n + 1)
    for made_of in (torch.tensor(rows), torch.tensor(rows) + honest(n).double()):
        update, treatment = applied(name, made_of, weights)
        moved, again = applied(name, made_of[order], weights[order], tuple(order))
        close(moved, update, np.abs(rows).max())
        torch.testing.assert_close(again.kept, treatment.kept[order], rtol=0, atol=1e-5)
        torch.testing.assert_close(again.scale, treatment.scale[order], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, kind in PROMISED if kind == "translation"])
@settings(max_examples=40, deadline=None)
@given(rows=matrices, by=arrays(np.float64, (D,), elements=st.integers(-50, 50)))
def test_a_vector_added_to_every_update_is_added_to_the_result(name: str, rows: Matrix, by: Matrix) -> None:
    for made_of in (torch.tensor(rows), torch.tensor(rows) + honest(len(rows)).double()):
        update, treatment = applied(name, made_of)
        moved, again = applied(name, made_of + torch.tensor(by))
        close(moved, update + torch.tensor(by), np.abs(rows).max())
        torch.testing.assert_close(again.kept, treatment.kept, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, kind in PROMISED if kind == "unanimity"])
@settings(max_examples=40, deadline=None)
@given(
    row=arrays(np.float32, (D,), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)),
    n=st.integers(1, 9),
)
def test_where_all_updates_are_equal_the_result_is_that_update(name: str, row: NDArray[np.float32], n: int) -> None:
    for made_of in (torch.tensor(row), torch.tensor(row).double()):
        update, _ = applied(name, made_of.repeat(n, 1), weights=range(1, n + 1))
        torch.testing.assert_close(update, made_of, rtol=1e-6, atol=1e-37)


def moved(rows: Tensor) -> Tensor:
    return rows + 10 * torch.linspace(-1, 1, D)


def turned(rows: Tensor) -> Tensor:
    return rows.flip(0)


LONG = torch.linspace(1, 30, D)
ZERO = torch.zeros(D)

COUNTEREXAMPLES: dict[tuple[str, str], Tensor] = {
    # Clipped towards zero, wherever the updates are.
    ("centered_clipping", "translation"): honest(5) * 10,
    ("centered_clipping", "unanimity"): LONG.repeat(5, 1),
    # Signs are of distances from zero.
    ("rlr", "translation"): honest(5),
    # Angles and lengths are seen from zero.
    ("angular_trimmed_mean", "translation"): honest(5),
    ("fltrust", "translation"): honest(5),
    ("fltrust", "unanimity"): LONG.repeat(5, 1),
    ("flame", "translation"): honest(5) * torch.linspace(1, 3, 5)[:, None],
    ("flame", "unanimity"): LONG.repeat(5, 1),
    ("foolsgold", "translation"): honest(5)[[0, 0, 1, 2, 3]] * torch.tensor([1, 2, 1, 1, 1])[:, None],
    ("foolsgold", "unanimity"): LONG.repeat(5, 1),
    ("deepsight", "translation"): honest(5) * torch.linspace(1, 3, 5)[:, None],
    ("multi_metrics", "translation"): honest(7),
}
"""Rows for which a rule does not do what it does not promise."""


@pytest.mark.parametrize(("name", "kind"), DISCLAIMED)
def test_what_a_rule_does_not_promise_does_fail_somewhere(name: str, kind: Property) -> None:
    rows = COUNTEREXAMPLES[name, kind].double()
    update, _ = applied(name, rows)
    expected = {
        "permutation": lambda: applied(name, turned(rows))[0],
        "translation": lambda: applied(name, moved(rows))[0] - moved(ZERO[None].double())[0],
        "unanimity": lambda: rows[0],
    }[kind]()
    assert float((update - expected).norm()) > 1e-3 * float(rows.norm())


def test_every_counterexample_is_of_something_that_is_not_promised() -> None:
    assert set(COUNTEREXAMPLES) == set(DISCLAIMED)


def attacked(rows: Tensor, b: int, how: str, size: float) -> Tensor:
    """The rows with the first b of them replaced."""
    rng = torch.Generator().manual_seed(11)
    n = len(rows)
    rows = rows.clone()
    bad = {
        "one point": lambda: torch.full((b, D), size),
        "all about": lambda: size * (torch.randn(b, D, generator=rng).clamp(-3, 3) / 3),
        "one coordinate": lambda: rows[:b] + size * F.one_hot(torch.arange(b) % D, D),
        "each further": lambda: torch.full((b, D), size) * torch.logspace(-3, 0, b)[:, None],
        "against": lambda: -size * rows[:b].sign(),
        "copies of one": lambda: rows[b % n].repeat(b, 1),
    }[how]()
    rows[:b] = bad.to(rows.dtype)
    return rows


ATTACKS = ("one point", "all about", "one coordinate", "each further", "against", "copies of one")


@pytest.mark.parametrize("how", ATTACKS)
@pytest.mark.parametrize("name", NAMES)
def test_the_result_stays_within_reach_of_the_others_whatever_the_rest_send(name: str, how: str) -> None:
    """Within ten times n times what honest rows, or the server's own update, measure: attackers send a million."""
    for n in range(1, 12):
        rows = honest(n)
        for b in range(min(made(name).withstands(n), n - 1) + 1):
            reach = 10 * n * (float(rows[b:].norm(dim=1).max()) + float(train(root()).norm()))
            assert reach < 2e4
            for size in (1e6, 1e30, 3e38):
                update, treatment = applied(name, attacked(rows, b, how, size))
                assert float(update.double().norm()) < reach, (n, b, size)
                assert not bool(treatment.kept.isnan().any())
                assert not bool(treatment.scale.isnan().any())


BREAKS = {
    **dict.fromkeys(("fedavg", "rlr"), range(1, 12)),
    **dict.fromkeys(("median", "trimmed_mean"), range(3, 12)),
    "multi_krum": range(5, 12),
    "geometric_median": range(3, 12, 2),
}
"""Numbers of rows at which one attacker more than a rule withstands can take the result anywhere."""


@pytest.mark.parametrize("name", BREAKS)
def test_one_more_than_it_withstands_takes_the_result_anywhere(name: str) -> None:
    for n in BREAKS[name]:
        rows = attacked(honest(n), made(name).withstands(n) + 1, "one point", 1e6)
        assert float(applied(name, rows)[0].norm()) > 1e4, n


def test_dnc_promises_nothing_and_is_taken_anywhere_by_one() -> None:
    """Attackers far apart from each other: the smaller one is as far along the larger one's direction as any."""
    rows = honest(9)
    rows[0] = 1e9 * F.one_hot(torch.tensor(0), D)
    rows[1] = 1e6 * F.one_hot(torch.tensor(1), D)
    found = rule_of("dnc", f=2, niters=1)(cohort_of(rows), server_of())[1]
    assert found.kept[0] == 0
    assert made("dnc").withstands(9) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_type_of_the_rows_writes_to_none_and_does_the_same_again(name: str, dtype: torch.dtype) -> None:
    rows = honest(9).to(dtype)
    before = rows.clone()
    update, treatment = applied(name, rows)
    assert update.dtype == dtype
    assert torch.equal(rows, before)
    update.zero_()
    assert torch.equal(rows, before), "the result is not one of the rows itself"
    again, told = applied(name, rows)
    third, _ = applied(name, rows)
    assert torch.equal(again, third)
    assert torch.equal(told.kept, treatment.kept)
    assert torch.equal(told.scale, treatment.scale)
    assert told.counters == treatment.counters


@pytest.mark.parametrize("name", NAMES)
def test_only_rules_that_say_so_draw_random_numbers(name: str) -> None:
    rows = honest(9)
    server = server_of()
    before = server.rng.bit_generator.state
    rule = made(name)
    rule(cohort_of(rows), server)
    if not rule.draws:
        assert server.rng.bit_generator.state == before


@pytest.mark.parametrize("name", NAMES)
def test_columns_that_are_a_view_of_a_larger_matrix_give_the_same(name: str) -> None:
    wide = torch.randn(9, 3 * D, generator=torch.Generator().manual_seed(0)) * 1e3
    wide[:, D : 2 * D] = honest(9)
    close(applied(name, wide[:, D : 2 * D])[0], applied(name, honest(9))[0], 1.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_rows_of_zeros_give_zeros(name: str, n: int) -> None:
    update, treatment = applied(name, torch.zeros(n, D))
    assert update.tolist() == [0.0] * D
    assert not bool(treatment.kept.isnan().any() | treatment.scale.isnan().any())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1e-42), (torch.float32, 3e38), (torch.float64, 1e-300), (torch.float64, 1e300)],
)
def test_the_smallest_and_largest_numbers_are_numbers_like_others(
    name: str, dtype: torch.dtype, size: float
) -> None:
    for n in (1, 2, 9):
        rows = honest(n).to(dtype)
        rows = rows / rows.abs().max() * size
        update, treatment = applied(name, rows)
        assert bool(update.isfinite().all())
        assert float(update.abs().max()) <= 2 * size + 10
        assert not bool(treatment.kept.isnan().any() | treatment.scale.isnan().any())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "size", "least"), [(torch.float32, 3e38, 2), (torch.float64, 1e150, 2), (torch.float64, 1e300, 9)]
)
def test_one_enormous_row_makes_nothing_that_is_not_a_number(
    name: str, dtype: torch.dtype, size: float, least: int
) -> None:
    for n in (2, 3, 9):
        for at in (0, n - 1) if n >= least else ():
            rows = honest(n).to(dtype)
            rows[at] = size
            update, treatment = applied(name, rows)
            assert not bool(update.isnan().any())
            assert not bool(treatment.kept.isnan().any() | treatment.scale.isnan().any())
            if made(name).withstands(n):
                assert float(update.double().norm()) < 1e4


@pytest.mark.parametrize("name", NAMES)
def test_a_second_round_remembers_only_tensors(name: str) -> None:
    server, rule = server_of(), made(name)
    for number in (1, 2):
        server.number = number
        update, _ = rule(cohort_of(honest(9, seed=number)), server)
        assert bool(update.isfinite().all())
        assert all(isinstance(kept, Tensor) for kept in server.memory.values())


@pytest.mark.parametrize("name", NAMES)
def test_passes_its_own_check_where_clients_are_many(name: str) -> None:
    made(name).check(bench(20))


def refusal(rule: Aggregator, n: int) -> str:
    """What a rule has against n clients; empty where nothing."""
    try:
        rule.check(bench(n))
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "f" in {f.name for f in index()["aggregator", name].fields}]
)
def test_an_f_that_is_too_large_is_refused_and_the_largest_is_not(name: str) -> None:
    for n in range(1, 30):
        refusals = [refusal(rule_of(name, f=f), n) for f in range(n + 1)]
        largest = refusals.index(next(filter(None, refusals))) - 1
        assert largest >= 0
        for f, message in enumerate(refusals):
            if f <= largest:
                assert message == ""
                continue
            assert f"f: got {f}; {name} needs" in message
            assert message.endswith(f"{n} clients answer a round; expected {largest} at most")


def test_the_made_up_training_depends_on_the_examples() -> None:
    assert float(train(root()).norm()) > 0.01
    flipped = Examples(root().ids, root().x, (root().y + 1) % 3)
    assert not torch.equal(train(root()), train(flipped))
    assert isinstance(cohort_of(honest(3)), Cohort)
