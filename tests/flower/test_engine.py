"""What becomes of nodes that are missing, late, broken or lie: played by a grid without a network."""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsiege.errors import FedSiegeError, InputError
from fedsiege.experiment.config import EngineSpec, Experiment, load
from fedsiege.experiment.prepare import prepare
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation, invited_to
from fedsiege.federation.state import Models, State
from fedsiege.flower import wire
from fedsiege.flower.client import client_app
from fedsiege.flower.engine import FlowerEngine
from fedsiege.flower.seat import dealt, digest, write_sites
from fedsiege.records import Round

pytestmark = pytest.mark.flower

Change = Callable[[Message], Message | None]
"""What a node makes of its honest reply; None: it never answers."""


def unchanged(reply: Message) -> Message | None:
    return reply


CONFIG: dict[str, Any] = {
    "data": "digits",
    "clients": 3,
    "rounds": 4,
    "threads": 1,
    "device": "cpu",
    "examples_per_client": 40,
    "attacks": [],
}


@pytest.fixture(autouse=True)
def _identified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages say of which run they are."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1, raising=False)


@dataclass
class Played(Grid):
    """Nodes 100, 101, ... in this process; `changes` and `slow` by client and round, slow by so many pulls."""

    experiment: Experiment
    clients: tuple[int, ...]
    changes: dict[tuple[int, int], Change] = field(default_factory=dict)
    slow: dict[tuple[int, int], int] = field(default_factory=dict)
    replies: dict[str, tuple[int, Message]] = field(default_factory=dict)
    contexts: dict[int, Context] = field(default_factory=dict)
    sent: int = 0

    def __post_init__(self) -> None:
        text = json.dumps(self.experiment.model_dump(mode="json"))
        self.app = client_app(lambda context: text)

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [100 + client for client in self.clients]

    def get_nodes(self) -> Iterable[NodeInfo]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def context(self, node: int) -> Context:
        config: dict[str, bool | float | int | str] = {"partition-id": node - 100}
        return self.contexts.setdefault(node, Context(1, node, config, RecordDict(), {}))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self.sent += 1
            name = f"message {self.sent}"
            message.metadata.__dict__["_message_id"] = name
            node = message.metadata.dst_node_id
            reply: Message | None = self.app(message, self.context(node))
            assert reply is not None
            place = (node - 100, int(message.metadata.group_id or 0))
            reply = self.changes.get(place, unchanged)(reply)
            if reply is not None:
                reply.metadata.__dict__["_reply_to_message_id"] = name
                self.replies[name] = (self.slow.get(place, 0), reply)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for name in list(message_ids):
            if name in self.replies:
                left, reply = self.replies[name]
                if left:
                    self.replies[name] = (left - 1, reply)
                else:
                    del self.replies[name]
                    found.append(reply)
        return found


def played(
    clients: tuple[int, ...] = (0, 1, 2), spec: EngineSpec | None = None, **changes: Any
) -> tuple[Played, Federation, Federation]:
    """A grid, the federation on it, and the same on the local engine."""
    experiment = load({**CONFIG, **changes})
    spec = spec or EngineSpec(name="flower", patience=0.01, timeout=0.05)
    grid = Played(experiment, clients)
    engine = FlowerEngine(grid, spec, digest(experiment))
    local = replace(prepare(experiment).federation(keeps=lambda number: True), staleness=spec.staleness)
    return grid, replace(local, engine=engine), replace(local, engine=LocalEngine())


def rounds(federation: Federation) -> list[Round]:
    return list(federation.run(State(0, Models((federation.task.state.clone(),)))))


def broken(**arrays: torch.Tensor) -> Change:
    """A reply with other arrays."""

    def change(reply: Message) -> Message:
        reply.content[wire.ARRAYS] = wire.packed(arrays)
        return reply

    return change


def told(**about: Any) -> Change:
    """A reply that says something else of itself."""

    def change(reply: Message) -> Message:
        before = json.loads(str(reply.content[wire.ABOUT]["json"]))
        reply.content[wire.ABOUT] = ConfigRecord({"json": json.dumps({**before, **about})})
        return reply

    return change


def header(entries: int) -> bytes:
    """The beginning of a .npy file that says it holds so many numbers."""
    about = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({entries},), }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(about).to_bytes(2, "little") + about


def raw(content: bytes) -> Change:
    """A reply whose array is these bytes."""

    def change(reply: Message) -> Message:
        array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=content)
        reply.content[wire.ARRAYS] = ArrayRecord({"update": array})
        return reply

    return change


def emptied(reply: Message) -> Message:
    reply.__dict__["_content"] = RecordDict()
    return reply


def failing(reply: Message) -> Message:
    made = Message(RecordDict(), reply_to=_order(reply))
    made.__dict__["_content"], made.__dict__["_error"] = None, Error(2, "Traceback:\n  it broke")
    return made


def _order(reply: Message) -> Message:
    order = Message(RecordDict(), reply.metadata.src_node_id, "train")
    order.metadata.__dict__["_message_id"] = "order"
    return order


def test_without_trouble_every_round_is_the_local_engines() -> None:
    _, flower, local = played()
    for one, other in zip(rounds(flower), rounds(local), strict=True):
        assert torch.equal(one.end, other.end)
        assert one.counters == other.counters
        assert not one.absent


BACKDOOR = {"trigger": {"name": "pixel", "row": 0, "column": 0}, "target": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"adversary": "sign_flip", "participation": 0.67},
        {"adversary": {"name": "alie", "knowledge": "full"}, "compromised": {"clients": [0, 2]}},
        {"adversary": {"name": "model_replacement", "gamma": "estimated"}, "backdoor": BACKDOOR},
        {"adversary": "neurotoxin", "backdoor": BACKDOOR, "compromised": {"clients": [1], "every": 2}},
        {"delay": 2, "dropout": 0.3, "training": {"schedule": "factor", "factor": 0.5}},
        {"adversary": "gaussian", "compromised": {"clients": [0, 2]}},
        {"coalition": {"name": "cofedmid", "members": [0, 2]}, "validation": 20},
    ],
    ids=lambda changes: str(next(iter(changes.values()))),
)
def test_attackers_coalitions_and_simulated_delays_are_the_local_engines(changes: dict[str, Any]) -> None:
    grid, flower, local = played(**changes)
    flower.engine.copies = True  # type: ignore[attr-defined]
    for one, other in zip(rounds(flower), rounds(local), strict=True):
        assert torch.equal(one.end, other.end)
        assert one.counters == other.counters
        assert one.attackers == other.attackers
        assert set(one.memory) == set(other.memory)
        for name, kept in one.memory.items():
            assert torch.equal(kept, other.memory[name]), name
    if "adversary" in changes:
        sent = {context.node_id for context in grid.contexts.values()}
        assert sent == {100, 101, 102}


def test_data_that_was_dealt_by_another_seed_is_refused_before_round_1(tmp_path: Path) -> None:
    grid, flower, _ = played(seed=1)
    node = write_sites(load({**CONFIG, "seed": 0}), tmp_path)[2]
    grid.contexts[102] = Context(1, 102, {"partition-id": 2, "data": node["data"]}, RecordDict(), {})
    with pytest.raises(InputError, match="node 102: has other data than the experiment deals to client 2"):
        rounds(flower)


def test_a_compromised_node_with_its_own_data_alone_says_what_it_needs() -> None:
    grid, flower, _ = played(adversary="sign_flip", compromised={"clients": [1]})
    with tempfile.TemporaryDirectory() as folder:
        honest = load({**CONFIG})
        node = write_sites(honest, Path(folder))[1]
        grid.contexts[101] = Context(1, 101, {"partition-id": 1, "data": node["data"]}, RecordDict(), {})
        first = next(flower.run(State(0, Models((flower.task.state.clone(),)))))
    assert first.absent[1][0] == "failed"
    assert "client 1 is compromised, and the adversary knows more than its data" in first.absent[1][1]


@pytest.mark.parametrize(
    ("change", "counter", "said"),
    [
        (lambda reply: None, "late", "no answer in 0.05 s"),
        (emptied, "failed", "the reply is empty, or not one of this experiment's"),
        (failing, "failed", "error 2: Traceback: it broke"),
        (broken(), "failed", "the reply has no update"),
        (broken(update=torch.zeros(3, dtype=torch.float64)), "failed", "the reply has an update of torch.float64"),
        (told(weight=-1.0), "failed", "the reply has weight -1.0; the client has 40 examples"),
        (told(weight="many"), "failed", "the reply has weight many; the client has 40 examples"),
        (told(weight=10**400), "failed", "the reply has weight 1000"),
        (told(client=2), "failed", "the reply is client 2's"),
        (told(problem="\x1b[2J\ud800\nwipe " + "A" * 10**6), "failed", "[2J wipe AAAA"),
        (raw(b"PK\x03\x04"), "failed", "its arrays cannot be read: "),
        (raw(header(10**15)), "failed", "its arrays cannot be read: "),
        (raw(header(10**22)), "failed", "its arrays cannot be read: "),
        (raw(header(1).replace(b"(1,)", b"-" * 3000)), "failed", "its arrays cannot be read: "),
        (told(problem="no such file"), "failed", "no such file"),
    ],
)
def test_a_reply_that_cannot_be_used_is_counted_and_named_and_the_run_goes_on(
    change: Change, counter: str, said: str
) -> None:
    grid, flower, _ = played()
    grid.changes[1, 2] = change
    done = rounds(flower)
    assert [one.number for one in done] == [1, 2, 3, 4]
    why, words = done[1].absent[1]
    assert why == counter
    assert words.startswith(said)
    assert done[1].counters["server"] == {"answers": 2, "dropped_nonfinite": 0, "dropped_misshapen": 0, counter: 1}
    assert done[1].cohort is not None
    assert done[1].cohort.clients == (0, 2)
    assert not done[0].absent
    assert not done[2].absent


@pytest.mark.parametrize(
    ("value", "fault"), [(torch.nan, "nonfinite"), (torch.inf, "nonfinite"), (None, "misshapen")]
)
def test_an_update_that_the_server_cannot_use_is_dropped(value: float | None, fault: str) -> None:
    grid, flower, _ = played()
    size = flower.task.layout.size
    update = torch.zeros(size + 1) if value is None else torch.full((size,), value)
    grid.changes[2, 1] = broken(update=update)
    first = rounds(flower)[0]
    assert first.counters["server"][f"dropped_{fault}"] == 1
    assert first.cohort is not None
    assert first.cohort.clients == (0, 1)
    assert not first.fates[2].usable


def test_a_node_that_is_missing_is_not_waited_for_and_stands_in_every_round() -> None:
    _, flower, _ = played(clients=(0, 2))
    done = rounds(flower)
    assert [one.absent for one in done] == [{1: ("missing", "its node is not there")}] * 4


def test_a_node_that_goes_and_comes_back_with_another_id_is_the_same_client() -> None:
    grid, flower, _ = played()
    seen = list[dict[int, tuple[str, str]]]()
    for done in flower.run(State(0, Models((flower.task.state.clone(),)))):
        seen.append(dict(done.absent))
        grid.clients = (0, 2) if done.number == 1 else (0, 1, 2)
    assert [sorted(one) for one in seen] == [[], [1], [], []]


def test_late_answers_are_dropped_where_no_staleness_is_allowed() -> None:
    grid, flower, _ = played()
    grid.slow[1, 1] = 10**6
    done = rounds(flower)
    grid.replies = {name: (0, reply) for name, (_, reply) in grid.replies.items()}
    assert [sorted(one.absent) for one in done] == [[1], [], [], []]


def slow_grid(staleness: int, participation: float = 1.0) -> tuple[list[Round], list[Round], Played]:
    """Client 1 answers the order of round 1 in round 2."""
    spec = EngineSpec(name="flower", patience=0.01, timeout=0.05, staleness=staleness)
    grid, flower, local = played(spec=spec, participation=participation)
    grid.slow[1, 1] = 10**6
    done = []
    for one in flower.run(State(0, Models((flower.task.state.clone(),)))):
        done.append(one)
        if one.number == 1:
            grid.replies = {name: (0, reply) for name, (_, reply) in grid.replies.items()}
            grid.changes[1, 2] = lambda reply: None
    return done, rounds(local), grid


def test_a_late_answer_is_taken_with_its_age_where_staleness_allows_it() -> None:
    done, local, _ = slow_grid(1)
    cohort, first = done[1].cohort, local[0].cohort
    assert cohort is not None
    assert first is not None
    assert done[0].absent[1][0] == "late"
    assert cohort.clients == (0, 1, 2)
    assert cohort.ages == (0, 1, 0)
    assert torch.equal(cohort.updates[1], first.updates[1])
    assert torch.equal(cohort.starts[1], done[0].start)
    assert done[1].counters["server"]["taken_late"] == 1


def test_a_late_answer_is_dropped_where_the_clients_newer_one_is_there() -> None:
    spec = EngineSpec(name="flower", patience=0.01, timeout=0.05, staleness=2)
    grid, flower, _ = played(spec=spec)
    grid.slow[1, 1] = 10**6
    ages = []
    for one in flower.run(State(0, Models((flower.task.state.clone(),)))):
        assert one.cohort is not None
        ages.append(one.cohort.ages)
        grid.replies = {name: (0, reply) for name, (_, reply) in grid.replies.items()}
    assert ages == [(0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)]


def test_a_node_that_forgot_what_its_defences_keep_is_counted() -> None:
    defence = {"name": "loden", "warmup": 1}
    grid, flower, _ = played(defences=[defence])
    counted = []
    for one in flower.run(State(0, Models((flower.task.state.clone(),)))):
        counted.append(one.counters["server"].get("forgotten", 0))
        if one.number == 2:
            del grid.contexts[101]
    assert counted == [0, 0, 1, 0]


def test_a_run_that_goes_on_with_nodes_that_know_nothing_counts_what_they_forgot() -> None:
    _, flower, _ = played(defences=[{"name": "loden", "warmup": 1}])
    second = rounds(flower)[1]
    again, resumed, _ = played(defences=[{"name": "loden", "warmup": 1}])
    state = State(2, Models((second.end,)), second.memory)
    assert next(resumed.run(state)).counters["server"]["forgotten"] == 3
    assert all("forgotten" not in done.counters["server"] for done in resumed.run(replace(state, number=3)))
    assert again.sent


def test_a_simulation_that_goes_on_gives_its_nodes_what_they_kept() -> None:
    changes: dict[str, Any] = {"defences": [{"name": "loden", "warmup": 1}]}
    _, whole, _ = played(**changes)
    _, half, _ = played(**changes)
    for engine in (whole.engine, half.engine):
        assert isinstance(engine, FlowerEngine)
        engine.copies = True
    done = rounds(whole)
    state = State(2, Models((done[1].end,)), done[1].memory)
    assert any(name.startswith("loden") for name in state.memory)
    left = list(half.run(state))
    assert [one.number for one in left] == [3, 4]
    for one, other in zip(left, done[2:], strict=True):
        assert torch.equal(one.end, other.end)
        assert "forgotten" not in one.counters["server"]


def test_a_late_answer_that_comes_while_a_round_waits_is_taken_in_the_next() -> None:
    spec = EngineSpec(name="flower", patience=0.01, timeout=0.05, staleness=3)
    seed, client = next(
        (seed, client)
        for seed in range(20)
        for client in invited_to(1, 3, 0.67, seed)
        if client not in {*invited_to(2, 3, 0.67, seed), *invited_to(3, 3, 0.67, seed)}
    )
    grid, flower, _ = played(spec=spec, participation=0.67, seed=seed)
    grid.slow[client, 1] = 10**6
    rows = []
    for done in flower.run(State(0, Models((flower.task.state.clone(),)))):
        assert done.cohort is not None
        rows.append(dict(zip(done.cohort.clients, done.cohort.ages, strict=True)))
        if done.number == 1:
            # Not there when round 2 begins, but at its second look for replies.
            grid.replies = {name: (1, reply) for name, (_, reply) in grid.replies.items()}
    assert client not in rows[1]
    assert rows[2][client] == 2
    assert len(rows[2]) == 3  # two were invited
    assert rows[3].get(client, 0) == 0  # taken once


def test_simulated_and_real_delays_add_up() -> None:
    spec = EngineSpec(name="flower", patience=0.01, timeout=0.05, staleness=1)
    grid, flower, _ = played(spec=spec, delay=1, rounds=8)
    old = [(client, n) for client in range(3) for n in range(2, 8) if flower.age(n, client, 2) == 1]
    client, number = old[0]
    grid.slow[client, number] = 10**6
    ages = {}
    for done in flower.run(State(0, Models((flower.task.state.clone(),)))):
        assert done.cohort is not None
        ages[done.number] = dict(zip(done.cohort.clients, done.cohort.ages, strict=True))
        if done.number == number:
            grid.replies = {name: (0, reply) for name, (_, reply) in grid.replies.items()}
            grid.changes[client, number + 1] = lambda reply: None
    assert ages[number + 1][client] == 2


def test_a_late_answer_of_an_attacker_is_never_an_honest_one() -> None:
    spec = EngineSpec(name="flower", patience=0.01, timeout=0.05, staleness=2)
    grid, flower, _ = played(spec=spec, adversary="sign_flip", compromised={"clients": [1], "rounds": [1]})
    grid.slow[1, 1] = 10**6
    for done in flower.run(State(0, Models((flower.task.state.clone(),)))):
        grid.replies = {name: (0, reply) for name, (_, reply) in grid.replies.items()}
        grid.changes[1, 2] = lambda reply: None
        assert done.cohort is not None
        assert (1 in done.cohort.clients) == (done.number > 2)


def test_a_clients_seat_is_not_taken_while_its_node_is_there() -> None:
    grid, flower, _ = played()
    grid.clients = (0, 1)
    seen = []
    for done in flower.run(State(0, Models((flower.task.state.clone(),)))):
        seen.append(sorted(done.absent))
        if done.number == 1:
            grid.clients = (0, 1, 2)
            grid.changes[2, 0] = told(client=0, data=dealt(flower.shards[0]))
        if done.number == 2:
            grid.changes.clear()
    assert seen == [[2], [2], [], []]


def test_a_node_speaks_of_its_own_clients_components_alone() -> None:
    grid, flower, _ = played(defences=[{"name": "perturb", "sigma": 0.01, "clients": [1, 2]}])
    label = flower.defences[0].label
    lies = {
        "server": {"answers": -3, "missing": 5},
        "aggregator": {"rows": 9},
        label: {"a": 1e308, "b": 10**400, "c": "x", "updates": 1},
    }
    grid.changes[1, 1] = told(counters=lies)
    grid.changes[0, 1] = told(counters={label: {"updates": 7}})

    def remembering(reply: Message) -> Message:
        names = ("aggregator/2/x", "adversary/2/y", f"{label}/2/z", f"{label}/1/z")
        reply.content[wire.MEMORY] = wire.packed({name: torch.ones(1) for name in names})
        return reply

    grid.changes[2, 1] = remembering
    first = rounds(flower)[0]
    assert first.counters["server"] == {"answers": 3, "dropped_nonfinite": 0, "dropped_misshapen": 0}
    assert first.counters[label]["updates"] == 2  # its own, and client 2's: not client 0's
    assert first.counters["aggregator"] == {"rows": 3}
    assert not first.memory


def test_a_site_of_its_own_neither_hands_out_nor_takes_what_defences_keep(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"defences": [{"name": "loden", "warmup": 1}]}
    grid, flower, local = played(**changes)
    flower.engine.copies = True  # type: ignore[attr-defined]
    for client, node in enumerate(write_sites(grid.experiment, tmp_path)):
        config: dict[str, bool | float | int | str] = {"partition-id": client, "data": node["data"]}
        grid.contexts[100 + client] = Context(1, 100 + client, config, RecordDict(), {})
    for one, other in zip(rounds(flower), rounds(local), strict=True):
        assert torch.equal(one.end, other.end)
        assert not one.memory


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"experiment": "another"}, "node 101: carries out another experiment, or has another version"),
        ({"client": 7}, "node 101: says it is client 7; expected 0 to 2"),
        ({"client": 0, "data": 0}, "node 101: says it is client 0, as node 100 does"),
        ({"problem": "node-config: no data"}, "node 101: node-config: no data"),
        ({"data": "0123"}, "node 101: has other data than the experiment deals to client 1"),
    ],
)
def test_a_node_that_has_no_place_in_the_experiment_is_refused_before_round_1(
    about: dict[str, Any], said: str
) -> None:
    grid, flower, _ = played()
    if about.get("data") == 0:
        about = {**about, "data": dealt(flower.shards[0])}
    grid.changes[1, 0] = told(**about)
    with pytest.raises(InputError, match=said):
        rounds(flower)


def test_without_any_node_the_run_ends_with_what_to_do() -> None:
    _, flower, _ = played(clients=())
    with pytest.raises(FedSiegeError, match=r"no client's node came in 0\.01 s; start them, or raise engine"):
        rounds(flower)


def test_what_ends_the_nodes_ends_the_wait() -> None:
    grid, flower, _ = played(spec=EngineSpec(name="flower"))
    grid.changes[1, 1] = lambda reply: None

    def check() -> None:
        raise FedSiegeError("the simulation ended")

    engine = flower.engine
    assert isinstance(engine, FlowerEngine)
    engine.check = check
    with pytest.raises(FedSiegeError, match="the simulation ended"):
        rounds(flower)
