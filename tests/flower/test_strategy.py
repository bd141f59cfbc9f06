"""The Strategy that brings the house's rules into any Flower app."""

import importlib
import re
import sys
from collections.abc import Iterable, Iterator
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
from fedsiege.errors import InputError
from fedsiege.flower.signature import KEY
from fedsiege.flower.strategy import Defended

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

    made["app"](Sites(dict.fromkeys(contexts, site)), context())
    assert len(seen) == 6  # half of the nodes evaluate in each of three rounds
    assert seen[-1] < seen[0] - 0.05
    assert all(one.state["seen"]["rounds"] == 3 for one in contexts.values())
