"""Two lines of a Flower app's pyproject.toml, and nothing else: in simulation and in a real deployment."""

import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")
pytest.importorskip("ray", reason="Ray is not installed; it comes with the extra flower")

from fedsiege.experiment import audit
from fedsiege.flower.deployment import HERE, Deployment, answers_in, free_port, listening, surroundings, toml
from fedsiege.flower.processes import Processes
from fedsiege.update_log import UpdateLog

pytestmark = [pytest.mark.flower, pytest.mark.slow]

APP = Path(__file__).resolve().parents[2] / "examples" / "flower_app"
ROUNDS, NODES = 2, 2
"""With two nodes Flower's sum is the same in whichever order they answer."""

TAP, MODS = "fedsiege.flower.server_tap:around", "fedsiege.flower.client_mods:around"


class Simulation:
    """A SuperLink of our own that simulates, at a port that nobody uses."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder
        self.environment = {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray listens on this machine alone
            **surroundings(),
            "FLWR_HOME": str(folder / "home"),
            "FEDSIEGE_TRACE": str(folder / "logs" / "{run}"),
        }
        (folder / "home").mkdir()
        port = free_port()
        command = ["flower-superlink", "--simulation", "--insecure", "--host", HERE, "--port", str(port)]
        superlink = processes.start(command, folder / "superlink.log", self.environment)
        assert listening(superlink, port)
        connection = f'[superlink.here]\naddress = "{HERE}:{port}"\ninsecure = true\n'
        (folder / "home" / "config.toml").write_text(connection)

    def flwr(self, *command: str) -> dict[str, Any]:
        done = subprocess.run(
            ["flwr", *command, "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        answers = answers_in(done.stdout)
        assert answers, done.stdout + done.stderr
        return answers[0]

    def log(self, run: str) -> str:
        """What a run said."""
        command = ["flwr", "log", run, "here", "--show"]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=True
        ).stdout

    def run(self, app: Path, final: Path) -> tuple[str, str, str]:
        """Run an app to its end: the run's id, how it ended, and its log."""
        config = app.parent / "run.toml"
        config.write_text(toml({"rounds": ROUNDS, "final-model": str(final)}, "run-config"))
        size = f"num-supernodes={NODES} client-resources-num-cpus=1 init-args-num-cpus={NODES}"
        begun = self.flwr("run", str(app), "here", "--run-config", str(config), "--federation-config", size)
        assert begun["success"], begun
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            found = self.flwr("list", "here", "--run-id", begun["run-id"])["runs"][0]
            if found["status"].startswith("finished"):
                return begun["run-id"], found["status"], self.log(begun["run-id"])
            time.sleep(0.5)
        pytest.fail(f"run {begun['run-id']} has not ended; see {self.folder / 'superlink.log'}")


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    with Processes() as processes:
        yield Simulation(tmp_path_factory.mktemp("simulation"), processes)
    assert not processes.marked(), "a process was left behind"


@pytest.fixture(scope="module")
def task() -> Iterator[ModuleType]:
    """The example's own training."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(APP))
    try:
        yield importlib.import_module("quickstart.task")
    finally:
        sys.path.remove(str(APP))
        for name in [name for name in sys.modules if name.partition(".")[0] in {"quickstart", "auditor"}]:
            del sys.modules[name]


def copied(folder: Path, server: str, client: str = "quickstart.client_app:app") -> Path:
    """The example with these two lines."""
    app = folder / "app"
    for source in APP.rglob("*"):
        if source.is_file() and source.suffix in {".py", ".toml"}:
            there = app / source.relative_to(APP)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(source.read_bytes())
    project = app / "pyproject.toml"
    text = re.sub(r"^serverapp = .*$", f'serverapp = "{server}"', project.read_text(), flags=re.M)
    text = re.sub(r"^clientapp = .*$", f'clientapp = "{client}"', text, flags=re.M)
    project.write_text(text)
    changed = sum(one != other for one, other in zip(text.splitlines(), _lines(APP), strict=True))
    assert changed <= 2
    return app


def _lines(app: Path) -> list[str]:
    return (app / "pyproject.toml").read_text().splitlines()


def flat(state: dict[str, torch.Tensor]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return torch.cat([values.flatten() for values in state.values()]).numpy()


def trained(task: ModuleType, start: Any, partition: int, number: int) -> Any:
    """What a site of the example makes of a model in a round, less the model."""
    net = task.Net()
    state, place = net.state_dict(), 0
    for values in state.values():
        values.copy_(torch.from_numpy(np.array(start[place : place + values.numel()])).view_as(values))
        place += values.numel()
    task.train(net, task.load_data(partition, NODES)[0], epochs=1, learning_rate=0.1, seed=number - 1)
    return flat(net.state_dict()) - start


def check(log: UpdateLog, task: ModuleType, partitions: dict[int, int]) -> None:
    """The log holds what every site trained, to the bit."""
    assert log.observable == "updates"
    assert log.clients == NODES
    assert log.rounds == tuple(range(1, ROUNDS + 1))
    assert not log.absences
    assert [(tensor.name, tensor.shape) for tensor in log.tensors] == [
        (name, tuple(values.shape)) for name, values in task.Net().state_dict().items()
    ]
    for number in log.rounds:
        one = log.round(number)
        for client, row, weight in zip(one.clients, one.updates, one.weights, strict=True):
            partition = partitions[client]
            np.testing.assert_array_equal(row, trained(task, one.start, partition, number))
            assert weight == len(task.load_data(partition, NODES)[0])
    torch.manual_seed(0)
    np.testing.assert_array_equal(log.round(1).start, flat(task.Net().state_dict()))
    np.testing.assert_array_equal(log.round(1).end, log.round(2).start)


def order(log: UpdateLog, task: ModuleType) -> dict[int, int]:
    """Which partition each client has, where nobody signs: by what it trained in round 1."""
    one = log.round(1)
    expected = [trained(task, one.start, partition, 1) for partition in range(NODES)]
    return {
        client: next(place for place, update in enumerate(expected) if np.array_equal(update, row))
        for client, row in zip(one.clients, one.updates, strict=True)
    }


@pytest.fixture(scope="module")
def strategy(simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> UpdateLog:
    """The log of the example with its strategy, both lines changed."""
    folder = tmp_path_factory.mktemp("strategy")
    app = copied(folder, f"{TAP}.quickstart.server_app.app", f"{MODS}.quickstart.client_app.app")
    number, ending, said = simulation.run(app, folder / "final.pt")
    assert ending == "finished:completed", said
    assert f"recorded in {simulation.folder / 'logs' / number}" in said
    return UpdateLog.read(simulation.folder / "logs" / number)


def test_the_log_of_a_strategy_holds_what_every_site_trained(strategy: UpdateLog, task: ModuleType) -> None:
    # The mods sign: a client's number is its partition.
    check(strategy, task, {client: client for client in range(NODES)})
    assert strategy.final == "observed"
    assert all(re.fullmatch(r"node \d+", name) for name in strategy.names.values())


def test_the_log_of_the_app_can_be_audited(
    strategy: UpdateLog, task: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = tmp_path / "sites.npz"
    importlib.import_module("auditor").write(str(sites), NODES)
    monkeypatch.chdir(tmp_path)
    data = f"{{name: npz, path: {sites}, natural: [client], mean: [0], std: [1]}}"
    overrides = ["candidates={members: 50, ifl: 50, ofl: 50}", "attacks=[loss_series]"]
    audited = audit(strategy.folder, data, "auditor:network", tmp_path / "run", overrides=overrides, progress=False)
    net = task.Net()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.array(strategy.round(ROUNDS).end)), net.parameters())
    assert audited.accuracy == pytest.approx(task.evaluate(net, task.load_data(0, NODES)[1])[1], abs=1e-6)


def test_the_run_is_the_same_to_the_bit_without_the_two_lines(
    simulation: Simulation, strategy: UpdateLog, tmp_path: Path
) -> None:
    before = set((simulation.folder / "logs").iterdir())
    app = copied(tmp_path, "quickstart.server_app:app")
    assert _lines(app) == _lines(APP)
    _, ending, said = simulation.run(app, tmp_path / "final.pt")
    assert ending == "finished:completed", said
    assert set((simulation.folder / "logs").iterdir()) == before
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    np.testing.assert_array_equal(strategy.round(ROUNDS).end, flat(final))


def test_the_log_of_a_loop_of_its_own_holds_what_every_site_trained(
    simulation: Simulation, task: ModuleType, tmp_path: Path
) -> None:
    app = copied(tmp_path, f"{TAP}.quickstart.loop.app")
    number, ending, said = simulation.run(app, tmp_path / "final.pt")
    assert ending == "finished:completed", said
    log = UpdateLog.read(simulation.folder / "logs" / number)
    check(log, task, order(log, task))
    assert log.final == "assumed_mean"
    final = flat(torch.load(tmp_path / "final.pt", weights_only=True))
    np.testing.assert_allclose(log.round(ROUNDS).end, final, atol=1e-6)


def test_a_name_that_leads_nowhere_fails_the_run_and_says_why(simulation: Simulation, tmp_path: Path) -> None:
    _, ending, said = simulation.run(copied(tmp_path, f"{TAP}.quickstart.server_app.ap"), tmp_path / "final.pt")
    assert ending == "finished:failed"
    assert "AttachError: app: module quickstart.server_app has no ap; expected app" in said


def test_the_same_app_is_recorded_in_a_real_deployment(task: ModuleType, tmp_path: Path) -> None:
    app = copied(tmp_path, f"{TAP}.quickstart.loop.app", f"{MODS}.quickstart.client_app.app")
    nodes = [{"partition-id": place, "num-partitions": NODES} for place in range(NODES)]
    told = {"FEDSIEGE_TRACE": str(tmp_path / "log"), "OMP_NUM_THREADS": "1"}
    with Deployment(tmp_path / "deployment", nodes, environment=told) as deployment:
        final = tmp_path / "final.pt"
        outcome = deployment.run(app, {"rounds": ROUNDS, "final-model": str(final)}, timeout=400)
    assert outcome.status == "completed", outcome.said
    log = UpdateLog.read(tmp_path / "log")
    check(log, task, {client: client for client in range(NODES)})
    np.testing.assert_allclose(log.round(ROUNDS).end, flat(torch.load(final, weights_only=True)), atol=1e-6)
    assert json.loads((tmp_path / "log" / "log.json").read_text())["source"].endswith("server tap")
