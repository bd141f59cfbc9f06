"""A federation in one process, for tests of the tap: a grid made of functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.serverapp import Grid
from numpy.typing import NDArray

Site = Callable[[Message], Message]
Arrays = Mapping[str, NDArray[Any]]


class Sites(Grid):
    """Nodes that answer at once, unless they are among the `silent`."""

    def __init__(self, sites: Mapping[int, Site]) -> None:
        self.sites = dict(sites)
        self.silent = set[int]()
        self.sent = list[Message]()
        self.held = dict[str, Message]()

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = list[str]()
        for message in messages:
            message.metadata.__dict__["_message_id"] = name = str(uuid4())
            self.sent.append(message)
            self.held[name] = self.sites[message.metadata.dst_node_id](message)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [name for name in message_ids if name in self.held and self._speaks(self.held[name])]
        return [self.held.pop(name) for name in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _speaks(self, reply: Message) -> bool:
        return reply.metadata.src_node_id not in self.silent


def arrays(**values: Sequence[float] | NDArray[Any]) -> ArrayRecord:
    """A model; lists are float32."""
    return ArrayRecord(
        {
            name: Array(value if isinstance(value, np.ndarray) else np.array(value, dtype=np.float32))
            for name, value in values.items()
        }
    )


def adds(step: float, examples: int = 1) -> Site:
    """A site that adds a number to every float entry of whatever it is sent."""

    def site(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
        (key, record), *_ = message.content.array_records.items()
        made = {
            name: Array(np.asarray(value + step, dtype=value.dtype) if value.dtype.kind == "f" else value)
            for name, value in ((name, array.numpy()) for name, array in record.items())
        }
        return replies(message, ArrayRecord(made), examples, key)

    return site


def replies(message: Message, record: ArrayRecord, examples: float = 1, key: str = "arrays") -> Message:
    """A reply with a model and a weight."""
    content = RecordDict({key: record, "metrics": MetricRecord({"num-examples": examples})})
    return Message(content, reply_to=message)


def fails(message: Message) -> Message:
    """A site whose training raised."""
    return Message(Error(code=201, reason="Traceback\n  File\nValueError: out of cheese\n"), reply_to=message)


def asks(
    record: ArrayRecord | Mapping[str, ArrayRecord],
    nodes: Iterable[int],
    number: int | None = None,
    kind: str = "train",
    group: str | None = None,
    **config: Any,
) -> list[Message]:
    """Messages with one model to these nodes."""
    records = {"arrays": record} if isinstance(record, ArrayRecord) else dict(record)
    said = config if number is None else {"server-round": number, **config}
    content = RecordDict({**records, "config": ConfigRecord(said)})
    return [Message(content, node, kind, group_id=group) for node in nodes]


def context(**settings: Any) -> Context:
    """A server's context with these settings in its run-config."""
    config = {name.replace("_", "-"): value for name, value in settings.items()}
    return Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config=config)
