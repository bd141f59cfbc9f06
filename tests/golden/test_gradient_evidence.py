"""The official FedMIA functions' numbers: local training, losses, and gradients aligned with updates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsiege.recorder import Recorder
from fedsiege.records import Cohort, Examples, Round
from fedsiege.task import Task
from fedsiege.trace import Trace
from fedsiege.training import Training, step

CLIENTS, ROUNDS = 10, 4
PARTS = ("member", "test", "mix")


class Micro(nn.Module):
    """The golden files' small network of 2,198 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, 2, 2)
        self.gn = nn.GroupNorm(3, 6)
        self.conv2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.gn(self.conv1(x)))
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


Golden = dict[str, Any]


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> Golden:
    with np.load(shared_golden / "micro_K10_iid_mdm.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def task(golden: Golden) -> Task:
    made = Task(Micro())
    assert list(made.layout.names) == golden["param_names"].tolist()
    return made


@pytest.fixture(scope="module")
def candidates(golden: Golden) -> Examples:
    x = np.concatenate([golden["X"][golden["client_idx"][0]], golden["X_test"][golden["test_idx"]]])
    x = np.concatenate([x, golden["X"][golden["mix_idx"]]])
    y = np.concatenate([golden["Y"][golden["client_idx"][0]], golden["Y_test"][golden["test_idx"]]])
    y = np.concatenate([y, golden["Y"][golden["mix_idx"]]])
    ids = np.array([f"{i:05d}" for i in range(len(y))])
    return Examples(ids, torch.from_numpy(x), torch.from_numpy(y).long())


@pytest.fixture(scope="module")
def trace(golden: Golden, task: Task, candidates: Examples, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder = tmp_path_factory.mktemp("golden") / "trace"
    recorder = Recorder(task, candidates, CLIENTS, 10, folder, groups="blocks")
    recorder.begin()
    for r in range(ROUNDS):
        start, end = (torch.from_numpy(golden[f"global_r{i}"]) for i in (r, r + 1))
        locals_ = torch.stack([torch.from_numpy(golden[f"local_r{r}_c{k}"]) for k in range(CLIENTS)])
        cohort = Cohort(tuple(range(CLIENTS)), locals_ - start, torch.ones(CLIENTS), (0,) * CLIENTS, {0: start})
        recorder.record(Round(r + 1, start, end, cohort))
    return Trace(folder)


def expected(golden: Golden, signal: str, r: int, k: int) -> np.ndarray[Any, Any]:
    return np.concatenate([golden[f"ref64_{signal}_{part}_r{r}_c{k}"] for part in PARTS])


@pytest.mark.parametrize("r", range(ROUNDS))
def test_cosine_agrees_with_float64_autograd(golden: Golden, trace: Trace, r: int) -> None:
    for k in range(CLIENTS):
        np.testing.assert_allclose(trace.cosine(r)[k], expected(golden, "cos", r, k), rtol=0, atol=5e-7)


@pytest.mark.parametrize("r", range(ROUNDS))
def test_difference_and_norm_agree_with_float64_autograd(golden: Golden, trace: Trace, r: int) -> None:
    for k in range(CLIENTS):
        np.testing.assert_allclose(trace.norm2(r), expected(golden, "norm2", r, k), rtol=2e-6)
        np.testing.assert_allclose(trace.diff(r)[k], expected(golden, "diff", r, k), rtol=2e-6)


@pytest.mark.parametrize("r", range(ROUNDS))
def test_loss_agrees_with_the_stored_one(golden: Golden, trace: Trace, r: int) -> None:
    members = len(golden["client_idx"][0])
    mix = len(golden["mix_idx"])
    for k in range(CLIENTS):
        ours = trace.loss(r)[k]
        np.testing.assert_allclose(ours[:members], golden[f"loss_member_r{r}_c{k}"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(ours[-mix:], golden[f"loss_mix_r{r}_c{k}"], rtol=0, atol=2e-6)
        stored = golden[f"loss_testall_r{r}_c{k}"][golden["test_idx"]]
        np.testing.assert_allclose(ours[members:-mix], stored, rtol=0, atol=2e-6)


@pytest.mark.parametrize("r", range(ROUNDS))
def test_local_training_replays_the_official_trainer(golden: Golden, task: Task, r: int) -> None:
    x, y = torch.from_numpy(golden["X"]), torch.from_numpy(golden["Y"]).long()
    for k in range(CLIENTS):
        task.load(torch.from_numpy(golden[f"global_r{r}"]))
        task.module.train()
        lr = float(golden["lr"][r])
        optimiser = Training(momentum=0.9, weight_decay=5e-4).optimiser_of(task, lr)
        order = torch.from_numpy(golden[f"batch_order_r{r}_c{k}"]).long()
        for rows in order.split(int(golden["batch"])):
            step(task, optimiser, x[rows], y[rows])
        np.testing.assert_allclose(task.state.numpy(), golden[f"local_r{r}_c{k}"], rtol=0, atol=1e-5)


def test_head_is_the_last_layer(golden: Golden, trace: Trace) -> None:
    update = golden["local_r0_c3"] - golden["global_r0"]
    np.testing.assert_array_equal(trace.head(0)[3], update[-10:])
