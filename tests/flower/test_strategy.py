"""The Strategy that brings the house's rules into any Flower app."""

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from tapped import Sites, context

from fedsiege.aggregation import aggregate
from fedsiege.aggregators.base import Server
from fedsiege.errors import InputError
from fedsiege.federation.server import Combined
from fedsiege.flower.signature import KEY
from fedsiege.flower.strategy import Defended, Received, in_order, layout_of

pytestmark = pytest.mark.flower

ROOT = Path(__file__).parents[2]

SIZES = {"layer.weight": (3, 4), "layer.bias": (3,)}


@pytest.fixture(autouse=True)
def _identified(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1, raising=False)


class Nodes(Grid):
    """Seven nodes that are never asked anything."""

    def get_node_ids(self) -> Iterable[int]:
        return range(11, 18)

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)

    set_run = create_message = push_messages = pull_messages = send_and_receive = None  # type: ignore[assignment]
    run = None  # type: ignore[assignment]


def model(rng: np.random.Generator, scale: float = 1.0) -> dict[str, np.ndarray[Any, Any]]:
    made = {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in SIZES.items()}
    return {**made, "layer.count": np.array(7, dtype=np.int64)}


def record(arrays: dict[str, np.ndarray[Any, Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def reply(node: int, arrays: dict[str, np.ndarray[Any, Any]], examples: float = 10, **metrics: float) -> Message:
    order = Message(RecordDict(), node, "train")
    order.metadata.__dict__["_message_id"] = f"order {node}"
    content = RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"num-examples": examples, **metrics})})
    return Message(content, reply_to=order)


def ready(strategy: Defended, start: dict[str, np.ndarray[Any, Any]]) -> Defended:
    list(strategy.configure_train(1, record(start), ConfigRecord({}), Nodes()))
    return strategy


def flat(arrays: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate([arrays[name].reshape(-1) for name in SIZES])


def made(n: int = 7) -> tuple[dict[str, np.ndarray[Any, Any]], list[dict[str, np.ndarray[Any, Any]]]]:
    rng = np.random.default_rng(3)
    start = model(rng, 50)
    answers = [
        {name: value + model(rng, 0.01 * (1 + 9 * (i == 2)))[name] for name, value in start.items()}
        for i in range(n)
    ]
    return start, answers


@pytest.mark.parametrize("rule", ["fedavg", "median", {"name": "krum", "f": 1}, {"name": "trimmed_mean", "f": 1}])
def test_the_new_model_is_the_start_plus_what_the_rule_makes_of_the_updates(rule: str | dict[str, Any]) -> None:
    start, answers = made()
    strategy = ready(Defended(rule), start)
    arrays, metrics = strategy.aggregate_train(1, [reply(11 + i, one, 10 + i) for i, one in enumerate(answers)])
    rows = torch.from_numpy(np.stack([flat(one) - flat(start) for one in answers]))
    expected, _ = aggregate(rule, rows, weights=torch.arange(10.0, 17.0))
    assert arrays is not None
    assert metrics is not None
    found = {name: array.numpy() for name, array in arrays.items()}
    np.testing.assert_array_equal(flat(found), flat(start) + expected.numpy())
    assert list(arrays) == list(start)
    assert found["layer.count"].dtype == np.int64
    assert metrics["fedsiege/server/answers"] == 7


def test_plain_fedavg_is_flowers_but_for_rounding_and_the_order_of_replies_does_not_matter() -> None:
    start, answers = made()
    replies = [reply(11 + i, one, 10 + i) for i, one in enumerate(answers)]
    theirs, _ = FedAvg().aggregate_train(1, replies)
    one, _ = ready(Defended(), start).aggregate_train(1, replies)
    other, _ = ready(Defended(), start).aggregate_train(1, replies[::-1])
    assert one is not None
    assert other is not None
    assert theirs is not None
    for name in SIZES:
        np.testing.assert_array_equal(one[name].numpy(), other[name].numpy())
        np.testing.assert_allclose(one[name].numpy(), theirs[name].numpy(), rtol=1e-6)


def test_answers_that_cannot_be_used_are_left_out_and_counted() -> None:
    start, answers = made()
    broken = answers[0] | {"layer.bias": np.full(3, np.nan, dtype=np.float32)}
    other = answers[1] | {"layer.bias": np.zeros(4, dtype=np.float32)}
    failed = reply(17, answers[6])
    failed.__dict__["_content"], failed.__dict__["_error"] = None, Error(2, "broke")
    replies = [
        reply(11, broken),
        reply(12, other),
        *(reply(13 + i, one) for i, one in enumerate(answers[2:5])),
        reply(16, answers[5], -1.0),
        failed,
    ]
    arrays, metrics = ready(Defended("median"), start).aggregate_train(1, replies)
    rows = np.stack([flat(one) - flat(start) for one in answers[2:5]])
    assert arrays is not None
    assert metrics is not None
    found = {name: array.numpy() for name, array in arrays.items()}
    np.testing.assert_allclose(flat(found), flat(start) + np.median(rows, axis=0), rtol=1e-6)
    counted = {name: metrics[f"fedsiege/server/{name}"] for name in ("answers", "failed")}
    assert counted == {"answers": 6, "failed": 1}
    for name in ("nonfinite", "misshapen", "weightless"):
        assert metrics[f"fedsiege/server/dropped_{name}"] == 1


def test_without_a_usable_answer_the_model_stays() -> None:
    start, answers = made()
    nan = {name: np.full_like(value, np.nan) if name in SIZES else value for name, value in answers[0].items()}
    arrays, metrics = ready(Defended(), start).aggregate_train(1, [reply(11, nan)])
    assert arrays is not None
    assert metrics is not None
    np.testing.assert_array_equal(flat({name: array.numpy() for name, array in arrays.items()}), flat(start))
    assert metrics["fedsiege/aggregator/kept_old_model"] == 1


def test_metrics_are_of_those_alone_that_had_a_say() -> None:
    start, answers = made()
    far = {name: value + 1000 if name in SIZES else value for name, value in answers[0].items()}
    replies = [reply(11, far, loss=100.0), *(reply(12 + i, one, loss=1.0) for i, one in enumerate(answers[1:]))]
    strategy = ready(Defended("fedavg", [{"name": "norm_detector"}]), start)
    _, metrics = strategy.aggregate_train(1, replies)
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(1.0)


def test_signatures_order_the_answers_and_are_gone_from_what_metrics_see() -> None:
    start, answers = made(3)
    replies = [reply(13 - i, one) for i, one in enumerate(answers)]
    for i, one in enumerate(replies):
        one.content[KEY] = ConfigRecord({"client": i, "declared": "[]"})
    strategy = Defended({"name": "krum", "f": 0})
    seen = list[list[str]]()

    def noted(contents: list[RecordDict], key: str) -> MetricRecord:
        seen.extend(list(one) for one in contents)
        return MetricRecord()

    strategy.train_metrics_aggr_fn = noted
    ready(strategy, start).aggregate_train(1, replies)
    assert seen == [["arrays", "metrics"]]


def signed(replies: list[Message], numbers: Iterable[int]) -> list[Message]:
    for one, number in zip(replies, numbers, strict=True):
        one.content[KEY] = ConfigRecord({"client": number, "declared": "[]"})
    return replies


def ends(record: ArrayRecord | None) -> bytes:
    assert record is not None
    return b"".join(array.numpy().tobytes() for array in record.values())


def test_the_same_clients_on_other_nodes_give_the_same_bits() -> None:
    start, answers = made()
    one = signed([reply(11 + i, answer, 10 + i) for i, answer in enumerate(answers)], range(7))
    other = signed([reply(17 - i, answer, 10 + i) for i, answer in enumerate(answers)], range(7))
    assert ends(ready(Defended(), start).aggregate_train(1, one)[0]) == ends(
        ready(Defended(), start).aggregate_train(1, other)[0]
    )


def test_rules_see_the_answers_in_order_of_client() -> None:
    seen = list[tuple[int, ...]]()

    class Seen(Defended):
        def _combined(self, received: Sequence[Received], at: Server) -> Combined:
            seen.append(tuple(one.client for one in received))
            return super()._combined(received, at)

    start, answers = made(3)
    strategy = Seen("median")
    ready(strategy, start).aggregate_train(
        1, signed([reply(11 + i, one) for i, one in enumerate(answers)], [2, 0, 1])
    )
    assert seen == [(0, 1, 2)]


def test_a_step_of_the_server_multiplies_what_the_rule_made() -> None:
    start, answers = made()
    replies = [reply(11 + i, one) for i, one in enumerate(answers)]
    whole, half = (
        ready(Defended("median", server_step=step), start).aggregate_train(1, replies)[0] for step in (1, 0.5)
    )
    assert whole is not None
    assert half is not None
    for name in SIZES:
        moved = whole[name].numpy() - start[name]
        np.testing.assert_allclose(half[name].numpy() - start[name], moved / 2, rtol=1e-3, atol=1e-5)


def test_a_rule_with_history_remembers_clients_and_a_node_cannot_be_several() -> None:
    start, answers = made(4)
    strategy = Defended("foolsgold")
    ready(strategy, start).aggregate_train(
        1, signed([reply(11 + i, one) for i, one in enumerate(answers)], range(4))
    )
    first = dict(strategy.memory)
    assert first
    shifted = signed([reply(11 + i, one) for i, one in enumerate(answers)], [1, 2, 3, 0])
    strategy.aggregate_train(2, shifted)
    clients = [strategy._clients.number(node) for node in range(11, 15)]  # type: ignore[union-attr]
    assert clients == [0, 1, 2, 3]
    strategy.aggregate_train(3, signed([reply(11, answers[0])], [3]))  # client 3's node is not there
    assert strategy._clients.number(11) == 0  # type: ignore[union-attr]
    assert {name: len(kept) for name, kept in strategy.memory.items()} == {
        name: len(kept) for name, kept in first.items()
    }
    assert any(not torch.equal(kept, first[name]) for name, kept in strategy.memory.items())


def test_a_second_node_with_a_number_is_another_client() -> None:
    start, answers = made(3)
    replies = signed([reply(11 + i, one) for i, one in enumerate(answers)], [5, 5, 5])
    _, metrics = ready(Defended("median"), start).aggregate_train(1, replies)
    assert metrics is not None
    assert metrics["fedsiege/aggregator/rows"] == 3


def test_what_is_not_float_stays_as_it_was_sent_out_whatever_anybody_answers() -> None:
    start, answers = made(3)
    answers[0]["layer.count"] = np.array(99, dtype=np.int64)
    answers[1]["layer.count"] = np.array([1.5], dtype=np.float32)
    broken = reply(13, answers[2])
    held: Any = broken.content["arrays"]
    held["layer.count"] = Array(dtype="int64", shape=(), stype="numpy.ndarray", data=b"PK")
    arrays, metrics = ready(Defended("median"), start).aggregate_train(
        1, [reply(11, answers[0]), reply(12, answers[1]), broken]
    )
    assert arrays is not None
    assert metrics is not None
    assert metrics["fedsiege/server/answers"] == 3
    assert arrays["layer.count"].numpy() == 7
    assert arrays["layer.count"].numpy().dtype == np.int64


def test_metrics_of_another_kind_do_not_end_the_round() -> None:
    start, answers = made(4)
    replies = [reply(11 + i, one, loss=1.0) for i, one in enumerate(answers)]
    odd: Any = replies[0].content["metrics"]
    odd["loss"] = [1.0, 2.0]
    replies[1].content["more"] = MetricRecord({"num-examples": 1})
    _, metrics = ready(Defended(), start).aggregate_train(1, replies)
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(1.0)
    assert metrics["fedsiege/server/dropped_misshapen"] == 1


def test_running_statistics_are_no_trained_parameters() -> None:
    record = ArrayRecord({name: Array(np.zeros(2, dtype=np.float32)) for name in ("bn.running_mean", "bn.weight")})
    tensors, _ = in_order(record)
    layout = layout_of(tensors)
    assert layout.names == ("bn.weight", "bn.running_mean")
    assert layout.trained == 2


@pytest.mark.parametrize(
    ("rule", "defences", "said"),
    [
        ("krumm", [], "aggregator: unknown aggregator 'krumm'"),
        ("fltrust", [], "root"),
        ({"name": "krum", "f": 9}, [], "f: got 9"),
        ("fedavg", ["accuracy_audit"], "root"),
    ],
)
def test_what_a_strategy_cannot_do_is_refused(rule: Any, defences: list[Any], said: str) -> None:
    start, _ = made()
    with pytest.raises(InputError, match=said):
        ready(Defended(rule, defences), start)


@pytest.fixture
def _app_on_path() -> Iterator[None]:
    """The example app's modules, as Flower finds them in the app's folder."""
    folder = str(ROOT / "examples" / "flower_app")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "quickstart"]:
        del sys.modules[name]


@pytest.mark.usefixtures("_app_on_path")
def test_the_server_of_the_documentation_runs_with_the_example_apps_clients() -> None:
    page = (ROOT / "docs" / "flower.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "Defended" in block]
    made: dict[str, Any] = {}
    exec(code, made)
    client = importlib.import_module("quickstart.client_app").app
    settings: dict[str, bool | float | int | str] = {"epochs": 2, "learning-rate": 0.2}
    contexts = {
        node: Context(1, node, {"partition-id": node - 1, "num-partitions": 4}, RecordDict(), settings)
        for node in range(1, 5)
    }
    seen = list[float]()

    def site(message: Message) -> Message:
        reply: Message = client(message, contexts[message.metadata.dst_node_id])
        if message.metadata.message_type == "evaluate":
            seen.append(float(str(reply.content["metrics"]["eval-loss"])))
        return reply

    made["app"](Sites(dict.fromkeys(contexts, site)), context(rounds=3))
    assert len(seen) == 6  # half of the nodes evaluate in each of three rounds
    assert seen[-1] < seen[0] - 0.05
    assert all(one.state["seen"]["rounds"] == 3 for one in contexts.values())
