"""What a server makes of uploads that a coalition defended, against loops over clients and coordinates."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsiege import countermeasures as module
from fedsiege.countermeasures import (
    as_one,
    coalitions_in,
    countermeasures,
    denoised,
    noiseless,
    shifted_elsewhere,
    tail_of,
    tail_place,
    taken_off,
)
from fedsiege.defences.client.base import Posted
from fedsiege.defences.client.perturb import Perturb
from fedsiege.defences.coalition.base import Circle, Coalition, Members
from fedsiege.defences.coalition.cofedmid import CoFedMID
from fedsiege.defences.coalition.noise import Noise
from fedsiege.errors import InputError
from fedsiege.recorder import Recorder
from fedsiege.records import Cohort, Examples, Layout, Round
from fedsiege.registry import register
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.trace import Trace

LAYOUT = Layout(
    names=("stem.weight", "head.weight", "head.bias", "stem.mean"),
    shapes=((7, 4), (3, 4), (3,), (5,)),
    kinds=("trained", "trained", "trained", "buffer"),
    groups=("stem", "head", "head", "stem"),
)
TRAINED, SIZE = 43, 48
CLIENTS, AGES = (0, 2, 3, 6), (1, 0, 1, 0)


def cohort(seed: int = 0, clients: Sequence[int] = CLIENTS, ages: Sequence[int] = AGES, size: int = SIZE) -> Cohort:
    rng = torch.Generator().manual_seed(seed)
    updates = torch.randn(len(clients), size, generator=rng)
    starts = {age: torch.randn(size, generator=rng) for age in sorted(set(ages))}
    weights = torch.arange(1.0, len(clients) + 1, dtype=torch.float64)
    return Cohort(tuple(clients), updates, weights, tuple(ages), starts)


def test_a_shift_is_what_a_tails_mean_exceeds_the_median_of_the_others_by() -> None:
    given, place = cohort(), tail_place(LAYOUT, 9)
    assert place == slice(34, 43), "buffers lie behind it"
    before = given.updates.clone()
    found = denoised(given, place)
    means = [sum(float(v) for v in row[34:43]) / 9 for row in before]
    for row, own in enumerate(means):
        first, middle, last = sorted(mean for other, mean in enumerate(means) if other != row)
        naive = before[row].double().clone()
        for entry in range(34, 43):
            naive[entry] -= own - middle
        np.testing.assert_allclose(found.updates[row], naive, rtol=1e-5, atol=1e-6)
        assert first <= middle <= last
    assert torch.equal(given.updates, before), "what was received stays as it was"
    assert (found.clients, found.ages, found.weights) == (given.clients, given.ages, given.weights)


def test_a_client_alone_keeps_its_tail() -> None:
    given = cohort(clients=(4,), ages=(0,))
    assert torch.equal(denoised(given, slice(30, 43)).updates, given.updates)


@settings(max_examples=30, deadline=None)
@given(
    sigma=st.floats(0.005, 0.5),
    members=st.sets(st.integers(0, 9), min_size=2, max_size=4),
    seed=st.integers(0, 100),
)
def test_a_scalar_shift_is_recovered(sigma: float, members: set[int], seed: int) -> None:
    n, tail = 40_000, 20_000
    rng = stream(seed, "denoised")
    # Heavy tails, a drift that all share, and entries as large as the noise's hundredth to its half.
    plain = 0.002 * rng.standard_t(4, size=(10, n)) + 1e-3
    honest = Cohort(
        tuple(range(10)), torch.tensor(plain, dtype=torch.float32), torch.ones(10), (0,) * 10, {0: torch.zeros(n)}
    )
    weights = {client: float(rng.integers(1, 5)) for client in sorted(members)}
    noise = Noise(seed, 3, weights, sigma, "scalar", cancels=True)
    noisy = honest.updates.clone()
    shifts = {}
    for client in weights:
        for place, values in noise.blocks(client, tail):
            noisy[client, n - tail :][place] += torch.tensor(values, dtype=torch.float32)
            shifts[client] = values[0]
    place = slice(n - tail, n)
    found = denoised(Cohort(honest.clients, noisy, honest.weights, honest.ages, honest.starts), place)
    untouched = denoised(honest, place)
    for client in range(10):
        # Without noise the same estimate takes off next to nothing; what differs is what the noise did to it.
        taken = float((noisy - found.updates)[client, place].double().mean())
        error = taken - shifts.get(client, 0.0)
        assert abs(error) < 1e-3 * max(sigma, *map(abs, shifts.values())) + 2e-4
        np.testing.assert_allclose(found.updates[client, : n - tail], honest.updates[client, : n - tail], rtol=0)
        assert float((untouched.updates - honest.updates)[client].abs().max()) < 2e-4


def test_the_shift_of_a_pair_is_recovered_to_a_thousandth() -> None:
    n, shift = 400_000, 0.071
    rng = stream(1, "pair")
    plain = torch.tensor(1e-3 * rng.standard_normal((8, n)) + 2e-4, dtype=torch.float32)
    noisy = plain.clone()
    noisy[0] += shift
    noisy[1] -= shift
    made = Cohort(tuple(range(8)), noisy, torch.ones(8), (0,) * 8, {0: torch.zeros(n)})
    taken = (noisy - denoised(made, slice(0, n)).updates).double().mean(1)
    np.testing.assert_allclose(taken[:2], [shift, -shift], rtol=1e-3)
    assert float(taken[2:].abs().max()) < 1e-3 * shift


def test_members_become_the_weighted_mean_of_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    given = cohort()
    before = given.updates.double()
    found = as_one(given, [{0: 2.0, 1: 9.0, 6: 6.0}, {5: 1.0}, {3: 4.0}])
    for entry in range(SIZE):
        mean = (2.0 * before[0, entry] + 6.0 * before[3, entry]) / 8.0
        for row in (0, 3):
            assert float(found.updates[row, entry]) == pytest.approx(float(mean), rel=1e-6, abs=1e-6)
    assert torch.equal(found.updates[[1, 2]], given.updates[[1, 2]]), "the others, and a member by itself"
    assert found.ages == (0, 0, 1, 0), "a member that is late counts from the latest model of any"
    assert found.starts.keys() == {0, 1}
    assert torch.equal(given.updates, cohort().updates)
    everyone = as_one(given, [dict.fromkeys(CLIENTS, 1.0)])
    assert everyone.starts.keys() == {0}
    np.testing.assert_allclose(everyone.updates, before.mean(0).expand(4, -1), rtol=1e-5, atol=1e-6)


def test_in_the_mean_of_a_coalition_its_noise_cancels() -> None:
    given = cohort(clients=(1, 2, 5), ages=(0, 0, 0))
    weights = {1: 120.0, 2: 35.0, 5: 260.0}
    noisy = given.updates.clone()
    for form in ("scalar", "vector"):
        noise = Noise(7, 4, weights, 10.0, form, cancels=True)
        for row, client in enumerate(given.clients):
            for place, values in noise.blocks(client, 20):
                noisy[row, 23:43][place] += torch.tensor(values, dtype=torch.float32)
    made = Cohort(given.clients, noisy, given.weights, given.ages, given.starts)
    plain, found = as_one(given, [weights]).updates, as_one(made, [weights]).updates
    assert float((noisy - given.updates).abs().max()) > 5
    np.testing.assert_allclose(found, plain, rtol=0, atol=5e-6)


def test_noise_that_is_known_comes_off() -> None:
    given = cohort()
    added = {2: torch.linspace(-1, 1, SIZE, dtype=torch.float64), 6: torch.full((SIZE,), 3.0, dtype=torch.float64)}
    noisy = given.updates.clone()
    for row, client in enumerate(CLIENTS):
        if client in added:
            noisy[row] = (noisy[row].double() + added[client]).float()
    made = Cohort(CLIENTS, noisy, given.weights, AGES, given.starts)
    found = noiseless(made, added.get)
    np.testing.assert_allclose(found.updates, given.updates, rtol=0, atol=5e-7)
    assert torch.equal(found.updates[0], given.updates[0])
    assert torch.equal(made.updates, noisy)


@register("known_noise")
class KnownNoise(Coalition):
    """Adds its round, its number and how many were invited, so that a test can tell what was subtracted."""

    title: ClassVar[str] = "Known noise"
    neutral: ClassVar[Mapping[str, Any] | None] = None
    proof: ClassVar[str] = "changed"

    members: Members = "pair"
    entries: int = 10

    def noise(
        self, circle: Circle, number: int, present: Sequence[int], client: int, layout: Layout
    ) -> Tensor | None:
        if client == 6:
            return None
        return torch.full((layout.size,), circle.secret + 100.0 * number + 10.0 * len(present) + client)

    def disturbed(self, layout: Layout) -> int:
        return min(self.entries, layout.trained)


def seated(members: Sequence[int], entries: int = 10, secret: int = 1000) -> Posted:
    circle = Circle(secret, {member: float(member + 1) for member in members}, 3, 9)
    return Posted(KnownNoise(members=tuple(members), entries=entries), "known", frozenset(members), circle=circle)


ALONE = Posted(Perturb(), "perturb", frozenset({0, 3}))


def test_the_countermeasures_of_a_run() -> None:
    defences = [ALONE, seated([0, 1, 2, 6]), seated([3, 4], entries=4, secret=5000)]
    assert [one.label for one in coalitions_in(defences)] == ["known", "known"]
    wanted = {"updates:insider", "updates:denoised", "updates:coalition", "support"}
    made = countermeasures(wanted, LAYOUT, 10, defences, lambda number: [0, 2, 3, number])
    assert list(made) == ["denoised", "coalition", "insider"]
    given = cohort()
    assert torch.equal(made["denoised"](given, 8).updates, denoised(given, slice(33, 43)).updates)
    naive = as_one(given, [{0: 1.0, 1: 2.0, 2: 3.0, 6: 7.0}, {3: 4.0, 4: 5.0}])
    assert torch.equal(made["coalition"](given, 8).updates, naive.updates)
    assert made["coalition"](given, 8).ages == naive.ages
    for number, (first, second) in {8: (2, 1), 1: (3, 1), 4: (2, 2)}.items():
        taken = (given.updates - made["insider"](given, number).updates)[:, 0]
        expected = [
            1000 + 100 * number + 10 * first + 0,
            1000 + 100 * number + 10 * first + 2,
            5000 + 100 * number + 10 * second + 3,
            0,
        ]
        np.testing.assert_allclose(taken, expected, rtol=1e-6)
    assert countermeasures({"support"}, LAYOUT, 10, defences, lambda _: []) == {}
    without = countermeasures({"updates:denoised"}, LAYOUT, 0, defences, lambda _: [])
    assert without["denoised"](given, 1) is given, "a coalition that adds no noise leaves nothing to take off"


def sleeping(members: Sequence[int], secret: int = 9000) -> Posted:
    """A coalition that is set to do nothing, though whoever asks it for noise gets some."""

    class Sleeping(KnownNoise):
        neutral: ClassVar[Mapping[str, Any] | None] = {"entries": 0}

    circle = Circle(secret, dict.fromkeys(members, 5.0), 3, 9)
    return Posted(Sleeping(members=tuple(members), entries=0), "sleeping", frozenset(members), circle=circle)


def test_a_neutral_coalition_hides_no_other() -> None:
    off, on, apart, over = sleeping([0, 3]), seated([0, 1, 2, 6]), sleeping([3, 4]), sleeping([4, 5])
    for listed, kept in (
        ([off, on], [on]),
        ([on, off], [on]),
        ([off, on, apart], [on, apart]),
        ([ALONE, apart, over], [apart]),
    ):
        found = coalitions_in(listed)
        assert [id(one) for one in found] == [id(one) for one in kept]
        naive = {client for one in kept for client in one.clients}
        assert sum(len(one.clients) for one in found) == len(naive), "no client in two"
    given = cohort()
    wanted = {"updates:insider", "updates:coalition"}
    for listed in ([off, on], [on, off]):
        made = countermeasures(wanted, LAYOUT, 10, listed, lambda _: [0, 2, 3, 6])
        alone = countermeasures(wanted, LAYOUT, 10, [on], lambda _: [0, 2, 3, 6])
        for name in ("coalition", "insider"):
            assert torch.equal(made[name](given, 4).updates, alone[name](given, 4).updates), name
            assert not torch.equal(made[name](given, 4).updates, given.updates)


def test_members_that_act_alone_tell_nobodys_noise() -> None:
    class Private(KnownNoise):
        @property
        def shares(self) -> bool:
            return False

    circle = Circle(7, {0: 1.0, 2: 1.0}, 3, 9)
    private = Posted(Private(members=(0, 2)), "private", frozenset({0, 2}), circle=circle)
    given = cohort()
    made = countermeasures({"updates:insider"}, LAYOUT, 10, [private], lambda _: [0, 2])["insider"]
    assert torch.equal(made(given, 4).updates, given.updates)
    made = countermeasures({"updates:insider"}, LAYOUT, 10, [private, seated([3, 4])], lambda _: [0, 2, 3])[
        "insider"
    ]
    changed = (made(given, 4).updates != given.updates).any(1).tolist()
    assert changed == [False, False, True, False]
    assert CoFedMID().shares
    assert not CoFedMID(mode="alone").shares


def test_what_a_countermeasure_took_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    given = cohort()
    seen = given.updates.clone()
    seen[1, 3], seen[1, 40] = seen[1, 3] - 3.0, seen[1, 40] + 4.0
    seen[2] += 0.25
    found = taken_off(given, Cohort(CLIENTS, seen, given.weights, AGES, given.starts))
    np.testing.assert_allclose(found, [0.0, math.sqrt((9 + 16) / 2), 0.25, 0.0], rtol=1e-5)


def test_tails_of_unlike_length_are_named_and_half_cleaned() -> None:
    listed = [ALONE, seated([0, 1], 4), sleeping([5, 6])]
    assert shifted_elsewhere(10, listed, LAYOUT) == {"known": 4}
    assert shifted_elsewhere(4, listed, LAYOUT) == {}
    # One of five adds 2 to the last fifth of the tail: 0.4 of it comes off everywhere.
    updates = torch.zeros(5, 40)
    updates[0, 36:] = 2.0
    made = Cohort(tuple(range(5)), updates, torch.ones(5), (0,) * 5, {0: torch.zeros(40)})
    found = denoised(made, slice(20, 40)).updates
    np.testing.assert_allclose(found[0], [0.0] * 20 + [-0.4] * 16 + [1.6] * 4, atol=1e-6)
    assert not found[1:].any()


def test_new_updates_go_where_there_is_room() -> None:
    asked: list[int] = []

    def room(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return torch.empty_like(rows)

    made = countermeasures(
        {"updates:insider", "updates:denoised", "updates:coalition"},
        LAYOUT,
        10,
        [seated([0, 2])],
        lambda _: [],
        room,
    )
    for name, one in made.items():
        assert len(one(cohort(), 1).updates) == 4, name
    assert asked == [4, 4, 4]


def test_where_the_tail_begins() -> None:
    assert tail_of(None, [ALONE], LAYOUT) is None
    assert tail_of(None, [ALONE, seated([0, 1], 4), seated([2, 3], 9)], LAYOUT) == 9, "the longest"
    assert tail_of(0.5, [seated([0, 1], 4)], LAYOUT) == 21, "the config goes first"
    assert tail_of(1.0, [], LAYOUT) == TRAINED
    hundred = Layout(("w",), ((100,),), ("trained",), ("w",))
    assert tail_of(0.29, [], hundred) == 29
    with pytest.raises(
        InputError, match=r"trace.tail: got 0.01, which is none of the model's 43 trained .* expected 0.023 or more"
    ):
        tail_of(0.01, [], LAYOUT)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("perturbation", ["scalar", "vector"])
def test_an_insiders_evidence_is_that_of_updates_without_noise(tmp_path: Path, perturbation: Any) -> None:
    rng = torch.Generator().manual_seed(2)
    task = Task(seeded(model, 0))
    layout, members = task.layout, (0, 1, 3)
    examples = Examples(
        np.array([f"{i}" for i in range(12)]),
        torch.randn(12, 6, generator=rng),
        torch.randint(0, 3, (12,), generator=rng),
    )
    circle = Circle(17, {0: 10.0, 1: 30.0, 3: 25.0}, 3, 9)
    defence = CoFedMID(members=members, perturbation=perturbation, sigma=0.3, tail=0.6)
    one = Posted(defence, "cofedmid", frozenset(members), circle=circle)
    plain = 0.1 * torch.randn(4, layout.size, generator=rng)
    noisy, clients, invited = plain.clone(), (0, 1, 3, 4), [0, 1, 2, 3, 4]
    for row, client in enumerate(clients[:3]):
        added = defence.noise(circle, 5, one.present(invited), client, layout)
        assert added is not None
        noisy[row] = (plain[row].double() + added).float()
    start = task.state.clone()
    wanted = {"updates:insider", "updates:denoised"}
    tail = tail_of(None, [one], layout)
    assert tail == math.floor(0.6 * layout.trained)
    made = countermeasures(wanted, layout, tail, [one], lambda _: invited)
    recordings = frozenset({"outputs", "support"})
    for name, updates in (("noisy", noisy), ("plain", plain)):
        recorder = Recorder(
            task, examples, 5, 3, tmp_path / name, recordings=recordings, tail=tail, countermeasures=made
        )
        recorder.begin()
        weights = torch.tensor([10.0, 30.0, 25.0, 20.0], dtype=torch.float64)
        recorder.record(Round(5, start, start + 0.1, Cohort(clients, updates, weights, (0,) * 4, {0: start})))
    found, naive = Trace(tmp_path / "noisy").variant("insider"), Trace(tmp_path / "plain")
    received = Trace(tmp_path / "noisy")
    for signal in (
        "loss",
        "top",
        "entropy",
        "cosine",
        "cosine_nonzero",
        "cosine_unshifted",
        "diff",
        "head",
        "rise",
    ):
        ours, theirs = getattr(found, signal)(0), getattr(naive, signal)(0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=signal)
    assert np.abs(received.cosine(0)[:2] - naive.cosine(0)[:2]).max() > 1e-3
    np.testing.assert_array_equal(received.loss(0)[4], naive.loss(0)[4])
