"""Against a defence that an attack is told of, on a small federation that is really trained, telling it pays."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedsiege.attacks.coalitions import detect
from fedsiege.attacks.membership.base import TRAINED
from fedsiege.countermeasures import Countermeasure, as_one, denoised, noiseless
from fedsiege.defences.coalition.noise import Form, Noise
from fedsiege.models.base import build_model
from fedsiege.recorder import Recorder
from fedsiege.records import Cohort, Examples, Round
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.trace import Trace
from fedsiege.training import Training, train
from fedsiege.view import View, apart

CLIENTS, OWN, ROUNDS, CLASSES, CANDIDATES = 5, 60, 8, 10, 800
DEFENDED = (0, 1)
TRAINING = Training(epochs=4, batch=20, lr=0.1)

OnUpdate = Callable[[Tensor, Task, int], Tensor]
"""A client's update [d], the task and the client's number -> what it uploads."""


def as_it_is(update: Tensor, task: Task, client: int) -> Tensor:
    return update


def largest_tenth(update: Tensor, task: Task, client: int) -> Tensor:
    """Every client keeps the largest tenth of each tensor's entries, and uploads zeros for the others."""
    sparse = update.clone()
    for _, place in task.layout.slices():
        size = sparse[place].abs()
        sparse[place][size < size.quantile(0.9)] = 0
    return sparse


def shifted(update: Tensor, task: Task, client: int) -> Tensor:
    """Two clients add constants that cancel in the sum, ten times as long as their updates."""
    sign = {0: 10.0, 1: -10.0}.get(client, 0.0)
    return torch.add(update, sign * float(update.norm()) / math.sqrt(len(update)))


def with_noise(form: Form) -> OnUpdate:
    """Two clients add noise that cancels to the last fifth of their parameters, other noise in each round."""
    rounds = {client: itertools.count(1) for client in DEFENDED}

    def add(update: Tensor, task: Task, client: int) -> Tensor:
        if client not in DEFENDED:
            return update
        size = int(0.2 * task.layout.trained)
        noisy = update.clone()
        for place, values in noise_of(form, next(rounds[client])).blocks(client, size):
            noisy[task.layout.trained - size : task.layout.trained][place] += torch.tensor(values).float()
        return noisy

    return add


def noise_of(form: Form, number: int) -> Noise:
    return Noise(5, number, dict.fromkeys(DEFENDED, 1.0), 0.1, form, cancels=True)


def countered(task: Task, form: Form) -> dict[str, Countermeasure]:
    """What servers make of that noise: one that estimates it, one that sums, and one that knows it."""
    trained, size = task.layout.trained, int(0.2 * task.layout.trained)

    def known(client: int, number: int) -> Tensor | None:
        if client not in DEFENDED:
            return None
        added = torch.zeros(task.layout.size, dtype=torch.float64)
        for place, values in noise_of(form, number).blocks(client, size):
            added[trained - size : trained][place] = torch.tensor(values)
        return added

    return {
        "denoised": lambda cohort, _: denoised(cohort, slice(trained - size, trained)),
        "coalition": lambda cohort, _: as_one(cohort, [dict.fromkeys(DEFENDED, 1.0)]),
        "insider": lambda cohort, number: noiseless(cohort, lambda client: known(client, number)),
    }


class Trained:
    """A recorded federation on digits; clients 0 and 1 leave out half of their classes in each round if asked."""

    def __init__(
        self, folder: Path, on_update: OnUpdate = as_it_is, leave_out: bool = False, noise: Form | None = None
    ) -> None:
        digits = load_digits()
        order = stream(3, "digits").permutation(len(digits.target))[:CANDIDATES]
        self.labels: NDArray[np.int64] = digits.target[order].astype(np.int64)
        ids = np.array([f"{i:05d}" for i in range(len(order))])
        x = torch.tensor(digits.images[order], dtype=torch.float32)[:, None] / 16
        self.examples = Examples(ids, x, torch.tensor(self.labels))
        self.left_out: list[tuple[int, int, NDArray[np.bool_]]] = []
        task = Task(seeded(lambda: build_model("mlp", (1, 8, 8), CLASSES), 0))
        wanted = frozenset({"support"} if on_update is largest_tenth else {"front"} if noise else ())
        recorder = Recorder(
            *(task, self.examples, CLIENTS, CLASSES, folder, "tensors"),
            recordings=wanted,
            tail=int(0.2 * task.layout.trained) if noise else None,
            countermeasures=countered(task, noise) if noise else {},
        )
        recorder.begin()
        start = task.state.clone()
        for number in range(1, ROUNDS + 1):
            rows = [self._rows(client, number, leave_out) for client in range(CLIENTS)]
            updates = torch.stack(
                [
                    on_update(
                        train(
                            task,
                            start,
                            self.examples.take(some),
                            TRAINING,
                            0.1,
                            stream(3, "client", number, client),
                        ),
                        task,
                        client,
                    )
                    for client, some in enumerate(rows)
                ]
            )
            end = start + updates.mean(0)
            cohort = Cohort(tuple(range(CLIENTS)), updates, torch.ones(CLIENTS), (0,) * CLIENTS, {0: start})
            recorder.record(Round(number, start, end, cohort))
            start = end
        self.trace = Trace(folder)

    def _rows(self, client: int, number: int, leave_out: bool) -> NDArray[np.int64]:
        rows = np.arange(client * OWN, (client + 1) * OWN)
        if not leave_out or client not in DEFENDED:
            return rows
        out = np.isin(
            np.arange(CLASSES), stream(3, "left out", number, client).permutation(CLASSES)[: CLASSES // 2]
        )
        self.left_out.append((number - 1, client, out))
        return rows[~out[self.labels[rows]]]

    def aucs(self, name: str, targets: tuple[int, ...], **fields: Any) -> NDArray[np.float64]:
        """Of each target's examples against everybody else's and nobody's."""
        attack = build("membership", {"name": name, **fields}, "test")
        told = self.trace.variant(fields.get("updates", "sent"))
        coalitions = [DEFENDED] if fields.get("updates") == "coalition" else []
        scores = np.concatenate(
            [
                attack.score_targets(View(evidence, "server"), some)
                for evidence, some in apart(told, coalitions, targets)
            ]
        )
        owners = np.arange(CANDIDATES) // OWN
        return np.array([roc_auc_score(owners == one, row) for one, row in zip(targets, scores, strict=True)])

    def gains(self, name: str, targets: tuple[int, ...], **told: Any) -> NDArray[np.float64]:
        """What each target's AUC gains when the attack is told; `pytest -rP` shows the means."""
        published, adapted = self.aucs(name, targets), self.aucs(name, targets, **told)
        print(name, told, f"AUC {published.mean():.3f} to {adapted.mean():.3f}")
        return adapted - published


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("sparse"), on_update=largest_tenth)


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("constant"), on_update=shifted)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("by class"), leave_out=True)


@pytest.fixture(scope="module", params=["scalar", "vector"])
def noisy(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Form, Trained]:
    form: Form = request.param
    return form, Trained(tmp_path_factory.mktemp(form), on_update=with_noise(form), noise=form)


def test_noise_in_the_tail_is_seen_through(noisy: tuple[Form, Trained]) -> None:
    form, trained = noisy
    # Products with noise for each entry are next to nothing: it shortens a mean of cosines and ranks them no worse.
    for name in ("fedmia_ii", "avg_cosine") if form == "scalar" else ("fedmia_ii",):
        gains = {
            told: trained.gains(name, DEFENDED, **{field: told}).mean()
            for field, told in (
                ("coordinates", "front"),
                ("updates", "denoised"),
                ("updates", "coalition"),
                ("updates", "insider"),
            )
        }
        assert gains["front"] > 0.02, name
        assert gains["insider"] > 0.02, name
        if form == "scalar":
            assert gains["denoised"] == pytest.approx(gains["insider"], abs=0.01), "one number is estimated exactly"
        else:
            assert abs(gains["denoised"]) < 0.01, "nobody can estimate a number for each entry"


def test_a_coalition_that_hides_in_its_tail_is_found(noisy: tuple[Form, Trained]) -> None:
    form, trained = noisy
    (found,) = detect(trained.trace).coalitions
    assert (found.members, found.form) == (DEFENDED, form)


def test_non_zero_coordinates_against_sparse_updates(sparse: Trained) -> None:
    gains = sparse.gains("fedmia_ii", tuple(range(CLIENTS)), coordinates="nonzero")
    assert gains.mean() > 0.002, "little, but for every client"
    assert (gains > -0.002).all()


@pytest.mark.parametrize("name", ["grad_cosine", "avg_cosine", "fedmia_ii"])
def test_unshifted_coordinates_against_a_constant(constant: Trained, name: str) -> None:
    assert (constant.gains(name, DEFENDED, coordinates="unshifted") > 0.04).all()
    others = tuple(client for client in range(CLIENTS) if client not in DEFENDED)
    lost = -constant.gains(name, others, coordinates="unshifted")
    assert abs(lost.mean()) < 0.03, "clients that add nothing lose little"


@pytest.mark.parametrize("name", ["loss_series", "avg_cosine", "fedmia_i", "fedmia_ii"])
def test_trained_rounds_against_classes_left_out(by_class: Trained, name: str) -> None:
    assert by_class.gains(name, DEFENDED, average="trained").mean() > 0.015


def test_the_update_shows_which_classes_were_left_out(by_class: Trained) -> None:
    out = np.array([out for _, _, out in by_class.left_out])
    rise = np.array([by_class.trace.rise(t)[client] for t, client, _ in by_class.left_out])
    assert (rise[out] < TRAINED).mean() > 0.95
    assert (rise[~out] >= TRAINED).mean() > 0.9
    complete = np.array([by_class.trace.rise(t)[2:] for t in range(ROUNDS)])
    assert (complete >= TRAINED).mean() > 0.9, "of clients that leave out nothing"


def test_a_constant_does_not_hide_which_classes_were_trained(constant: Trained) -> None:
    rise = np.array([constant.trace.rise(t) for t in range(ROUNDS)])
    assert (rise[:, :2] >= TRAINED).mean() > 0.9
