"""Whether declared privacy mods show in received updates: honest ones always, missing ones where it can be told."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from fedsiege import promises
from fedsiege.cli import execute
from fedsiege.defences.client.base import ClientDefence, Turn
from fedsiege.errors import InputError
from fedsiege.promises.base import Arrived, Finding, unit
from fedsiege.promises.declared import declared_in
from fedsiege.promises.length import Length, excess, longest
from fedsiege.promises.levels import Levels, off_level
from fedsiege.promises.noise import Noise, apart, crowding
from fedsiege.promises.zeros import Zeros
from fedsiege.records import Layout
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task
from fedsiege.update_log import LogWriter, TensorSpec, UpdateLog

Row = NDArray[np.float32]
Specs = Sequence[Mapping[str, Any]]

TENSORS = [("conv.weight", (40, 50)), ("conv.bias", (40,)), ("bn.running_mean", (60,)), ("fc.weight", (1000,))]
TRAINED = np.concatenate([np.ones(2040, bool), np.zeros(60, bool), np.ones(1000, bool)])
SIZE = len(TRAINED)


class Outline(Task):
    """A task that knows its layout alone: trained tensors first, as a flat vector has them."""

    def __init__(self) -> None:
        names = ("conv.weight", "conv.bias", "fc.weight", "bn.running_mean")
        shapes = ((40, 50), (40,), (1000,), (60,))
        self.layout = Layout(names, shapes, ("trained", "trained", "trained", "buffer"), names)
        self.device = torch.device("cpu")


def defended(update: Row, specs: Specs, seed: int, cohort: int = 1) -> Row:
    """What a client's defences make of an update whose tensors lie as the log has them."""
    order = np.concatenate([np.flatnonzero(TRAINED), np.flatnonzero(~TRAINED)])
    flat = torch.from_numpy(update[order])
    for place, spec in enumerate(specs):
        turn = Turn(Outline(), 1, 0, 10, 5, stream(seed, "turn", place), cohort=cohort)
        flat = made(spec).on_update(flat, turn)
    back = np.empty_like(update)
    back[order] = flat.numpy()
    return back


def made(spec: Mapping[str, Any]) -> ClientDefence:
    defence: ClientDefence = build("client_defence", dict(spec), "test")
    return defence


def trained_update(seed: int, scale: float = 1e-3) -> Row:
    """An update as training makes them: a few long entries and many small ones."""
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_t(3, SIZE)).astype(np.float32)


def model(seed: int = 0) -> Row:
    return np.random.default_rng(seed).normal(0, 0.1, SIZE).astype(np.float32)


def arrived(start: Row, update: Row) -> Row:
    """What a server sees of an update: the model that was sent, less its own, both in single precision."""
    sent: Row = start + update
    return sent - start


def received(update: Row, start: Row | None = None) -> Arrived:
    start = model() if start is None else start
    tensors = [TensorSpec(name, shape) for name, shape in TENSORS]
    return Arrived(arrived(start, update), start, tensors)


def logged(
    folder: Path,
    update: Callable[[int, int], Row],
    declared: Mapping[int, Specs],
    clients: int = 1,
    rounds: int = 2,
) -> UpdateLog:
    """A log whose updates are `update(round, client)`."""
    writer = LogWriter(folder, clients, TENSORS, "updates", "test")
    for number in range(1, rounds + 1):
        start = model(number)
        rows = {client: arrived(start, update(number, client)) for client in range(clients)}
        writer.write_round(number, start, start, rows, dict.fromkeys(rows, 1.0))
    for client, specs in declared.items():
        writer.declare(client, specs)
    writer.close()
    return UpdateLog.read(folder)


HONEST: dict[str, list[dict[str, Any]]] = {
    "noise": [{"name": "perturb", "sigma": 0.01}],
    "clipped noise": [{"name": "perturb", "sigma": 0.001, "clip": 0.5}],
    "clip alone": [{"name": "perturb", "sigma": 0.0, "clip": 0.02}],
    "whole clients": [{"name": "dp_fedavg", "clip": 0.05, "noise_multiplier": 0.5}],
    "whole clients, clip alone": [{"name": "dp_fedavg", "clip": 0.01, "noise_multiplier": 0.0}],
    "sparse": [{"name": "sparsify", "share": 0.9, "spare": 100}],
    "all of larger tensors zero": [{"name": "sparsify", "share": 0.9999, "spare": 100}],
    "coarse": [{"name": "quantize", "bits": 4}],
    "fine": [{"name": "quantize", "bits": 10}],
    "clipped, then sparse": [{"name": "perturb", "sigma": 0.0, "clip": 0.02}, {"name": "sparsify", "spare": 100}],
    "sparse, then clipped": [{"name": "sparsify", "spare": 100}, {"name": "dp_fedavg", "noise_multiplier": 0.0}],
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_client_keeps_every_promise(name: str, tmp_path: Path) -> None:
    specs = HONEST[name]
    log = logged(tmp_path, lambda t, k: defended(trained_update(10 * t + k), specs, t), {0: specs})
    verdicts = promises.check(log)
    assert verdicts
    hidden = name in {"clipped noise", "whole clients"}  # by training, or the length by the noise
    assert {one.outcome for one in verdicts} == ({"kept", "cannot be told"} if hidden else {"kept"}), verdicts
    assert {one.rounds for one in verdicts} == {2}


@pytest.mark.parametrize("name", sorted(HONEST.keys() - {"clipped noise"}))
def test_a_client_that_ran_nothing_breaks_a_promise(name: str, tmp_path: Path) -> None:
    log = logged(tmp_path, lambda t, k: trained_update(10 * t + k), {0: HONEST[name]})
    verdicts = promises.check(log)
    assert "broken" in {one.outcome for one in verdicts}, verdicts
    assert all(one.outcome != "kept" for one in verdicts if "noise of" in one.promise)


def test_noise_that_is_as_small_as_training_cannot_be_told(tmp_path: Path) -> None:
    specs = [{"name": "perturb", "sigma": 1e-5}]
    log = logged(tmp_path, lambda t, k: trained_update(10 * t + k), {0: specs})
    (verdict,) = promises.check(log)
    assert verdict.outcome == "cannot be told"
    assert "which training alone can make as well" in verdict.why


BREACHES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a tenth less noise": ([{"name": "perturb", "sigma": 0.01}], [{"name": "perturb", "sigma": 0.009}]),
    "clipped to twice the length": (
        [{"name": "perturb", "sigma": 0.0, "clip": 0.02}],
        [{"name": "perturb", "sigma": 0.0, "clip": 0.04}],
    ),
    "clipped by a thousandth too little": (
        [{"name": "dp_fedavg", "clip": 0.02, "noise_multiplier": 0.0}],
        [{"name": "dp_fedavg", "clip": 0.02002, "noise_multiplier": 0.0}],
    ),
    "clipped and noised to twice the length": (
        [{"name": "dp_fedavg", "clip": 0.02, "noise_multiplier": 0.01}],
        [{"name": "dp_fedavg", "clip": 0.04, "noise_multiplier": 0.005}],
    ),
    "a hundredth fewer zeros": (
        [{"name": "sparsify", "share": 0.9, "spare": 100}],
        [{"name": "sparsify", "share": 0.89, "spare": 100}],
    ),
    "a larger tensor spared": (
        [{"name": "sparsify", "share": 0.9, "spare": 999}],
        [{"name": "sparsify", "share": 0.9, "spare": 1000}],
    ),
    "a bit more": ([{"name": "quantize", "bits": 4}], [{"name": "quantize", "bits": 5}]),
    "levels moved by a little": ([{"name": "quantize", "bits": 4}], [{"name": "quantize", "bits": 12}]),
}


@pytest.mark.parametrize("name", BREACHES)
def test_less_than_what_was_promised_is_noticed(name: str, tmp_path: Path) -> None:
    said, ran = BREACHES[name]
    log = logged(tmp_path, lambda t, k: defended(trained_update(10 * t + k), ran, t), {0: said})
    assert "broken" in {one.outcome for one in promises.check(log)}


def test_one_round_in_which_a_promise_is_broken_is_enough_and_is_named(tmp_path: Path) -> None:
    specs = HONEST["noise"]

    def update(number: int, client: int) -> Row:
        own = trained_update(10 * number + client)
        return own if (number, client) == (2, 1) else defended(own, specs, 10 * number + client)

    log = logged(tmp_path, update, {0: specs, 1: specs}, clients=2, rounds=3)
    kept, broken = promises.check(log)
    assert (kept.client, kept.outcome, kept.rounds) == (0, "kept", 3)
    assert (broken.client, broken.outcome, broken.round) == (1, "broken", 2)
    assert "(in 1 of 3 rounds)" in broken.why
    assert broken.sentence.startswith("Client 1, perturb(sigma=0.01): broken: round 2: ")
    assert broken.p is not None
    assert broken.level == promises.ALPHA / 6
    assert broken.p < broken.level


def test_a_promise_that_one_round_cannot_tell_is_not_called_kept(tmp_path: Path) -> None:
    specs = HONEST["noise"]

    def update(number: int, client: int) -> Row:
        return defended(trained_update(number + client, 1e-3 if number == 1 else 1.0), specs, number)

    (verdict,) = promises.check(logged(tmp_path, update, {0: specs}))
    assert (verdict.outcome, verdict.round) == ("cannot be told", 2)
    assert "(1 of 2 rounds tell)" in verdict.why


# The tests themselves, against plain statements of what they are.


@pytest.mark.parametrize("size", [1e-4, 0.01])
def test_honest_noise_is_called_broken_no_more_often_than_its_level(size: float) -> None:
    level, many = 0.05, 600
    promise = Noise(0.01, whole=False)
    rng, own = np.random.default_rng(5), trained_update(1, size)
    broken = 0
    for _ in range(many):
        noise = np.where(TRAINED, rng.normal(0, 0.01, SIZE), 0).astype(np.float32)
        broken += promise.found(received(own + noise), level).broken
    assert stats.binomtest(broken, many, level, alternative="greater").pvalue > 1e-4
    if size < 1e-3:
        assert broken > 0, "two tests at half the level each: noise alone should be suspected now and then"


def test_an_honest_length_is_called_broken_no_more_often_than_its_level() -> None:
    level, many = 0.2, 600
    promise = Length(0.3, 0.01, whole=True)
    own = trained_update(1)
    own *= np.float32(0.3 / np.linalg.norm(own))
    rng = np.random.default_rng(6)
    finds = [
        promise.found(received(own + rng.normal(0, 0.01, SIZE).astype(np.float32)), level) for _ in range(many)
    ]
    broken = sum(find.broken for find in finds)
    assert stats.binomtest(broken, many, level, alternative="greater").pvalue > 1e-4
    assert broken > 0, "an update at its bound should be suspected now and then at this level"
    for find in finds:
        assert (
            find.broken == (find.statistic - 1e-6 > find.threshold)
            or abs(find.statistic / find.threshold - 1) < 1e-5
        )


@pytest.mark.parametrize(("d", "clip", "sigma"), [(100, 1.0, 0.1), (2000, 0.5, 0.2), (10_000, 3.0, 0.01)])
def test_the_bound_on_a_noisy_length_holds_and_is_near_the_exact_quantile(
    d: int, clip: float, sigma: float
) -> None:
    for level in (0.05, 1e-3, 1e-6):
        threshold = longest(clip, sigma, d, level)
        exact = stats.ncx2.sf((threshold / sigma) ** 2, d, (clip / sigma) ** 2)
        assert level / 40 < exact <= level
        assert math.exp(-excess(threshold, clip, sigma, d)) == pytest.approx(level, rel=1e-6)


def test_a_length_below_what_is_expected_is_no_evidence_and_tiny_noise_is_as_none() -> None:
    assert excess(0.9, 1.0, 0.1, 100) == 0.0
    assert excess(1.1, 1.0, 0.0, 100) == math.inf
    assert excess(1.1, 1.0, 1e-200, 100) == math.inf


def test_the_p_of_noise_is_twice_the_smaller_of_two() -> None:
    sigma = 0.01
    rng = np.random.default_rng(2)
    zero = np.zeros(SIZE, np.float32)
    for scale in (0.99, 0.97):
        row = rng.normal(0, scale * sigma, SIZE).astype(np.float32)
        found = Noise(sigma, whole=True).found(received(row, zero), 1e-9)
        squares = float((row.astype(np.float64) ** 2).sum()) / sigma**2
        sizes = np.sort(np.abs(row.astype(np.float64)))
        crowd = stats.ks_1samp(sizes, stats.halfnorm(scale=sigma).cdf, alternative="greater").statistic
        plain = 2 * min(stats.chi2.cdf(squares, SIZE), math.exp(-2 * SIZE * crowd**2))
        assert found.p == pytest.approx(plain, rel=1e-3)
        assert found.statistic == pytest.approx(np.sqrt(np.mean(row.astype(np.float64) ** 2)), rel=1e-6)
        squares_at = (found.threshold / sigma) ** 2 * SIZE
        assert stats.chi2.cdf(squares_at, SIZE) == pytest.approx(0.5e-9, rel=1e-3)


def test_missing_noise_is_seen_under_a_few_long_entries() -> None:
    row = np.full(SIZE, 1e-4, np.float32)
    row[:5] = 10.0  # the sum of squares alone says that there is noise and more
    found = Noise(0.01, whole=True).found(received(row), 1e-6)
    assert found.broken
    assert found.statistic > 0.01


def test_entries_mostly_of_one_size_are_not_taken_for_noise() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, SIZE)
    row = np.sign(noise) * np.maximum(np.abs(noise), 0.013)  # most entries of the same size, none too small
    found = Noise(0.01, whole=True).found(received(row.astype(np.float32)), 1e-6)
    assert found.statistic < 1.5 * 0.01
    assert not found.broken
    assert not found.telling


def test_normal_entries_far_longer_than_the_noise_are_not_taken_for_it() -> None:
    row = np.random.default_rng(0).normal(0, 0.02, SIZE).astype(np.float32)
    found = Noise(0.01, whole=True).found(received(row), 1e-6)
    assert not found.broken
    assert not found.telling
    near = Noise(0.01, whole=True).found(received(row * np.float32(0.6)), 1e-6)
    assert near.telling


def test_crowding_and_distance_are_those_of_kolmogorov_and_smirnov() -> None:
    sizes = np.sort(np.abs(np.random.default_rng(3).normal(0, 1.2, 500)))
    law = stats.halfnorm(scale=1.0).cdf
    assert crowding(sizes, 1.0) == pytest.approx(
        max(0, stats.ks_1samp(sizes, law, alternative="greater").statistic)
    )
    assert apart(sizes, 1.0) == pytest.approx(stats.ks_1samp(sizes, law).statistic)
    assert crowding(sizes * 10, 1.0) < 0.01
    assert apart(sizes * 0, 0.0) == 1.0


SHARED: dict[str, Any] = {"name": "dp_fedavg", "clip": 0.05, "noise_multiplier": 0.5, "noise": "distributed"}


def sharing(folder: Path, among: int, declared: Mapping[str, Any], clients: int = 4) -> list[promises.Verdict]:
    """The verdicts on clients that share out a round's noise among so many."""

    def update(number: int, client: int) -> Row:
        return defended(trained_update(10 * number + client), [SHARED], 10 * number + client, cohort=among)

    return promises.check(
        logged(folder, update, {client: [declared] for client in range(clients)}, clients=clients)
    )


@pytest.mark.parametrize("among", [1, 2, 4])
def test_noise_that_a_round_shares_is_judged_by_the_number_that_it_was_shared_by(
    among: int, tmp_path: Path
) -> None:
    found = sharing(tmp_path / "honest", among, {**SHARED, "cohort": among})
    assert {one.outcome for one in found if one.promise.startswith("noise")} == {"kept"}
    assert "broken" not in {one.outcome for one in found}
    noises = [one for one in found if one.promise.startswith("noise")]
    assert len(noises) == 4
    assert all(f"noise of {0.025 / math.sqrt(among):.4g} on each" in one.promise for one in noises)
    less = sharing(tmp_path / "less", 4 * among, {**SHARED, "cohort": among})
    assert {one.outcome for one in less if one.promise.startswith("noise")} == {"broken"}
    more = sharing(tmp_path / "more", 1, {**SHARED, "cohort": 4})
    assert "broken" in {one.outcome for one in more if one.promise.startswith("length")}


@pytest.mark.parametrize(
    ("cohort", "why"),
    [
        (None, "it is not declared among how many"),
        (16, "among 16 clients, and the log is of 4"),
        (0, "among 0 clients"),
        (True, "among True clients"),
        ("4", "among 4 clients"),
        (["\x1b"] * 100, "among ['"),
    ],
)
def test_shared_noise_of_which_nobody_knows_the_share_cannot_be_told(
    cohort: object, why: str, tmp_path: Path
) -> None:
    # An honest client that was told of 16 others has a quarter of the noise that 1 would have.
    declared = SHARED if cohort is None else {**SHARED, "cohort": cohort}
    found = sharing(tmp_path, 16, declared)
    assert [one.outcome for one in found] == ["cannot be told"] * 4
    assert all(why in one.why and one.why.isprintable() and len(one.why) < 200 for one in found)


def test_the_zeros_of_the_worst_tensor_are_counted_by_hand() -> None:
    row = np.zeros(SIZE, np.float32)
    row[:500] = 0.5 + np.arange(500)  # of 2,000 entries a quarter may stay
    row[2100:2349] = 1.0
    found = Zeros(0.75, 100).found(received(row), 0.5)
    assert (found.broken, found.statistic, found.threshold) == (False, 0.75, 0.75)
    row[500] = 0.4
    found = Zeros(0.75, 100).found(received(row), 0.5)
    assert found.broken
    assert found.statistic == pytest.approx(1 - 501 / 2000)
    assert "conv.weight" in found.said


def test_entries_that_equal_the_smallest_kept_are_no_breach() -> None:
    zero = np.zeros(SIZE, np.float32)
    row = zero.copy()
    row[2100:2349] = 1.0
    row[2349:2500] = 0.5  # the 250th largest of 1,000, and all that equal it
    assert not Zeros(0.75, 100).found(received(row, zero), 0.5).broken
    row[2349] = 0.6  # now the 250th largest is this one
    assert Zeros(0.75, 100).found(received(row, zero), 0.5).broken


def test_tensors_that_are_all_spared_tell_nothing(tmp_path: Path) -> None:
    log = logged(tmp_path, lambda t, k: trained_update(t + k), {0: [{"name": "sparsify", "spare": 5000}]})
    (verdict,) = promises.check(log)
    assert verdict.outcome == "cannot be told"
    assert "no tensor has more than 5000 entries" in verdict.why


def test_running_statistics_promise_nothing() -> None:
    row = trained_update(0)
    row[~TRAINED] = 100.0
    assert not Length(1.0, 0.0, whole=False).found(received(row), 0.5).broken
    assert Length(1.0, 0.0, whole=True).found(received(row), 0.5).broken
    assert not Levels(4).found(received(defended(row, HONEST["coarse"], 0)), 0.5).broken


def test_levels_too_close_to_see_cannot_be_told(tmp_path: Path) -> None:
    specs = [{"name": "quantize", "bits": 24}]
    log = logged(tmp_path, lambda t, k: trained_update(t + k), {0: specs})
    (verdict,) = promises.check(log)
    assert verdict.outcome == "cannot be told"
    assert "too close" in verdict.why


def test_how_far_entries_are_from_levels_is_counted_by_hand() -> None:
    entries = np.array([-1.0, -0.5, 0.1, 1.0])
    off, allowed = off_level(entries, np.full(4, 0.01), 2)  # steps of 0.5
    np.testing.assert_allclose(off, [0, 0, 0.2, 0], atol=1e-12)
    assert 0.02 < allowed[2] < 0.15


def test_rounding_of_large_models_is_allowed_for() -> None:
    start = 1000 * model()
    row = defended(trained_update(0), HONEST["coarse"], 0)
    found = Levels(4).found(received(row, start), 0.5)
    assert not found.broken
    whole = received(row, start)
    moved = np.abs(whole.update - row)
    assert moved.max() > 0
    assert (moved <= whole.slack).all()
    clipped = defended(trained_update(0), HONEST["clip alone"], 0)
    assert not Length(0.02, 0.0, whole=False).found(received(clipped, start), 0.5).broken


def test_models_that_travel_in_half_precision_are_rounded_more() -> None:
    start = (model().astype(np.float16)).astype(np.float32)
    assert unit(start) == 2.0**-11
    assert unit(model()) == 2.0**-24
    assert unit(np.zeros(5, np.float32)) == 2.0**-24
    row = defended(trained_update(0), HONEST["coarse"], 0)
    sent = (start + row).astype(np.float16).astype(np.float32)
    tensors = [TensorSpec(name, shape) for name, shape in TENSORS]
    assert not Levels(4).found(Arrived(sent - start, start, tensors), 0.5).broken


# What is not looked for, and why.


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"name": "mixup"}, "it acts on the batches, and an update does not show how it was trained"),
        ({"name": "dp_sgd"}, "it acts on the order of examples and the gradients"),
        ({"name": "sample"}, "it acts on the order of examples, and"),
        ({"name": "loden"}, "it acts on the data"),
        ({"name": "cofedmid"}, "only its members know"),
        ({"name": "nonsense"}, "no client defence 'nonsense' is known here"),
        ({"name": "os:system"}, "no client defence 'os:system' is known here"),
        ({"name": "perturb", "sigma": -1}, "declared.sigma: got -1"),
        ({"name": "perturb", "sgima": 1}, "perturb has no such field (did you mean 'sigma'?)"),
    ],
)
def test_what_leaves_no_trace_cannot_be_told_and_says_why(spec: dict[str, Any], why: str, tmp_path: Path) -> None:
    log = logged(tmp_path, lambda t, k: trained_update(t + k), {0: [spec]})
    (verdict,) = promises.check(log)
    assert verdict.outcome == "cannot be told"
    assert why in verdict.why
    assert verdict.statistic is None
    assert verdict.rounds == 0


def test_what_a_client_writes_reaches_no_terminal_as_it_is(tmp_path: Path, capsys: Any) -> None:
    specs: Specs = [{"name": "\x1b[2Jperturb" + "x" * 500}, {"name": "perturb", "\x1b[2J": 1}]
    logged(tmp_path, lambda t, k: trained_update(t + k), {0: specs})
    assert execute(["verify", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert all(
        "\x1b" not in one.sentence and len(one.sentence) < 600 for one in promises.check(UpdateLog.read(tmp_path))
    )


def test_a_name_that_a_client_declares_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_of_a_client.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"name": "trap_of_a_client:Defence"}
    log = logged(tmp_path / "log", lambda t, k: trained_update(t + k), {0: [spec]})
    assert [one.outcome for one in promises.check(log)] == ["cannot be told"]


@pytest.mark.parametrize(
    ("specs", "outcomes"),
    [
        ([{"name": "perturb", "sigma": 0.01}, {"name": "quantize"}], ["cannot be told", "kept"]),
        ([{"name": "sparsify", "spare": 100}, {"name": "perturb", "sigma": 0.01}], ["cannot be told", "kept"]),
        ([{"name": "perturb", "sigma": 0.01}, {"name": "who knows"}], ["cannot be told", "cannot be told"]),
        ([{"name": "perturb", "sigma": 0.01}, {"name": "mixup"}], ["kept", "cannot be told"]),
        ([{"name": "quantize"}, {"name": "perturb", "sigma": 0.0}], ["kept"]),
    ],
)
def test_what_a_later_mod_changes_cannot_be_told(specs: Specs, outcomes: list[str], tmp_path: Path) -> None:
    ran = [spec for spec in specs if spec["name"] not in {"who knows", "mixup"}]
    log = logged(tmp_path, lambda t, k: defended(trained_update(t + k), ran, t), {0: specs})
    assert [one.outcome for one in promises.check(log)] == outcomes


def test_neutral_settings_promise_nothing(tmp_path: Path) -> None:
    specs: Specs = [
        {"name": "perturb", "sigma": 0.0},
        {"name": "sparsify", "share": 0.0},
        {"name": "quantize", "bits": None},
    ]
    log = logged(tmp_path, lambda t, k: trained_update(t + k), {0: specs})
    assert promises.check(log) == []


def test_of_an_aggregate_and_of_a_silent_client_nothing_can_be_told(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "sum", 2, TENSORS, "aggregate", "test")
    writer.write_round(1, model(), model(1), {}, {0: 1.0, 1: 1.0})
    writer.declare(0, HONEST["noise"])
    writer.close()
    (verdict,) = promises.check(UpdateLog.read(tmp_path / "sum"))
    assert verdict.outcome == "cannot be told"
    assert "aggregate" in verdict.why
    assert verdict.promise
    writer = LogWriter(tmp_path / "one", 2, TENSORS, "updates", "test")
    writer.write_round(1, model(), model(1), {0: trained_update(0)}, {0: 1.0})
    writer.declare(1, HONEST["noise"])
    writer.close()
    (verdict,) = promises.check(UpdateLog.read(tmp_path / "one"))
    assert verdict.outcome == "cannot be told"
    assert verdict.why == "no update of this client was received"


def test_a_late_update_is_rounded_at_the_model_it_started_from(tmp_path: Path) -> None:
    old, new = 1000 * model(1), model(2)
    row = arrived(old, defended(trained_update(0), HONEST["coarse"], 0))
    writer = LogWriter(tmp_path, 1, TENSORS, "updates", "test")
    writer.write_round(1, old, new, {}, {})
    writer.write_round(2, new, new, {0: row}, {0: 1.0}, {0: 1})
    writer.declare(0, HONEST["coarse"])
    writer.close()
    (verdict,) = promises.check(UpdateLog.read(tmp_path))
    assert verdict.outcome != "broken"


def test_a_late_update_s_start_may_be_what_the_round_before_it_ended_with(tmp_path: Path) -> None:
    old, new = 1000 * model(1), model(2)
    row = arrived(old, defended(trained_update(0), HONEST["coarse"], 0))
    writer = LogWriter(tmp_path, 1, TENSORS, "updates", "test")
    writer.write_round(1, new, old, {}, {})
    writer.write_round(3, new, new, {0: row}, {0: 1.0}, {0: 1})
    writer.declare(0, HONEST["coarse"])
    writer.close()
    (verdict,) = promises.check(UpdateLog.read(tmp_path))
    assert verdict.outcome != "broken"
    assert verdict.rounds == 1


def test_bonferroni_counts_the_tests_of_chance_alone(tmp_path: Path) -> None:
    both: Specs = [{"name": "dp_fedavg", "clip": 0.05, "noise_multiplier": 0.5}]
    bound = HONEST["sparse"]

    def update(number: int, client: int) -> Row:
        return defended(trained_update(number + client), bound if client else both, number)

    declared: dict[int, Specs] = {0: both, 1: bound}
    log = logged(tmp_path, update, declared, clients=2, rounds=3)
    length, noise, zeros = promises.check(log, alpha=0.06)
    assert length.level == noise.level == 0.01  # two promises in three rounds
    assert zeros.level is None
    assert zeros.p is None


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_an_alpha_that_is_none_is_refused(alpha: float, tmp_path: Path) -> None:
    log = logged(tmp_path, lambda t, k: trained_update(t + k), {})
    with pytest.raises(InputError, match="alpha"):
        promises.check(log, alpha=alpha)
    assert promises.check(log) == []


def test_a_declared_client_that_there_is_not_is_refused(tmp_path: Path) -> None:
    log = logged(tmp_path, lambda t, k: trained_update(t + k), {})
    with pytest.raises(InputError, match="got client 3; expected clients from 0 to 0"):
        promises.check(log, {3: HONEST["noise"]})


def test_numbers_beyond_any_model_do_not_break_the_check() -> None:
    row = received(trained_update(0))
    for sigma in (1e-300, 1e300, math.inf):
        found: Finding = Noise(sigma, whole=True).found(row, 1e-6)
        assert found.broken == (sigma > 1)
    assert not Length(1e300, 1e-300, whole=True).found(row, 1e-6).broken
    nothing = received(np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32))
    assert Noise(0.01, whole=True).found(nothing, 1e-6).broken
    assert not Zeros(0.9, 0).found(nothing, 0.5).broken
    assert not Levels(4).found(nothing, 0.5).broken


# The command.


def written(folder: Path, honest: bool) -> Path:
    specs = HONEST["noise"]
    logged(folder, lambda t, k: defended(trained_update(t), specs if honest else [], t), {0: specs})
    return folder


def test_the_command_says_who_kept_what_and_its_exit_code_whether_all_did(tmp_path: Path, capsys: Any) -> None:
    assert execute(["verify", str(written(tmp_path / "kept", True))]) == 0
    said = capsys.readouterr().out
    assert "1 promise: 1 kept, 0 broken, 0 cannot be told" in " ".join(said.split())
    assert execute(["verify", str(written(tmp_path / "broken", False))]) == 1
    assert "broken" in capsys.readouterr().out


def test_the_command_gives_json(tmp_path: Path, capsys: Any) -> None:
    assert execute(["verify", str(written(tmp_path, False)), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["counts"] == {"broken": 1}
    (verdict,) = said["verdicts"]
    assert (verdict["client"], verdict["component"], verdict["outcome"]) == (0, "perturb(sigma=0.01)", "broken")
    assert verdict["p"] < verdict["level"]


@pytest.mark.parametrize(
    "text",
    [
        "- {name: perturb, sigma: 0.01}\n",
        "0: [{name: perturb, sigma: 0.01}]\n",
        '{"0": [{"name": "perturb", "sigma": 0.01}]}',
        "- {name: perturb, sigma: 0.01, clients: [0]}\n",
    ],
)
def test_a_file_may_say_what_was_declared(text: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "said.yaml").write_text(text)
    folder = tmp_path / "log"
    logged(folder, lambda t, k: trained_update(t + k), {})
    assert execute(["verify", str(folder), "--declared", str(tmp_path / "said.yaml"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"broken": 1}


def test_a_component_of_some_clients_is_asked_of_them_alone(tmp_path: Path) -> None:
    path = tmp_path / "said.yaml"
    path.write_text("[{name: quantize}, {name: perturb, clients: [2]}]")
    found = declared_in(path, 3)
    assert {client: [one["name"] for one in specs] for client, specs in found.items()} == {
        0: ["quantize"],
        1: ["quantize"],
        2: ["quantize", "perturb"],
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "not YAML"),
        ("a: []", "expected a list of components"),
        ("3", "expected a list of components"),
        ("[{sigma: 1}]", "expected [{name"),
        ("[{name: perturb, clients: [7]}]", "got client 7; expected clients from 0 to 0"),
        ("[{name: nonsense}]", "no client defence 'nonsense'"),
    ],
)
def test_a_file_that_declares_nothing_sensible_is_refused(text: str, why: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "said.yaml").write_text(text)
    logged(tmp_path / "log", lambda t, k: trained_update(t + k), {})
    assert execute(["verify", str(tmp_path / "log"), "--declared", str(tmp_path / "said.yaml")]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert "said.yaml" in said


def test_a_log_in_which_nobody_declares_anything_is_refused(tmp_path: Path, capsys: Any) -> None:
    logged(tmp_path / "log", lambda t, k: trained_update(t + k), {})
    assert execute(["verify", str(tmp_path / "log")]) == 2
    assert "nobody declares a defence" in capsys.readouterr().err
    assert execute(["verify", str(tmp_path / "log"), "--declared", str(tmp_path / "no.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err
