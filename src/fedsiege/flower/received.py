"""From the messages of a Flower server to a log of updates: rounds, whose answer is whose, and what is missing.

Nothing here touches a message's own records: it reads what was sent and what came back. A round begins with the
first train message that carries another model or another round's number, and ends when the next begins: only then
is the model known that came out of it.
"""

import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message

from fedsiege.errors import InputError
from fedsiege.flower.arrays import UnlikeError, described, flat, same
from fedsiege.flower.signature import Signature
from fedsiege.flower.sites import LOGGER, Clients
from fedsiege.update_log import MOST_CLIENTS, MOST_ROUNDS, LogWriter, Observable, Row, TensorSpec, Why

MASKED = "secaggplus_configs"
"""The record that every message of Flower's SecAgg+ carries; what a site puts into a reply says nothing."""

PATIENCE = 4
"""Rounds for which a start model is kept in memory for answers that are late."""

LONGEST_DECLARATION = 10_000
"""Characters of JSON beyond which a site's list of mods is not kept: it comes from outside."""

DEEPEST_DECLARATION = 8
"""Lists and mappings in each other beyond which it is not kept either: JSON itself fails at some depth."""

LIKELY = 10
"""Times the nodes that are there before the first round: the numbers that sites are believed to have ..."""

ALWAYS_LIKELY = 1000
"""... and numbers below this one, unless the number of clients was given."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is recorded, and where."""

    folder: Path
    """A new or empty folder."""
    source: str = ""
    """What the log says it was recorded from."""
    every: int = 1
    """Every how many rounds one is recorded, beside the last."""
    weight_key: str = "num-examples"
    """The metric that says what a reply weighs in the mean."""
    arrays_key: str = ""
    """The record that is the model; needed where a message carries several and none is called `arrays`."""
    clients: int = 0
    """The number of clients, where there may be more than the first round shows."""
    aggregate: bool = False
    """Record no single update."""


@dataclass(slots=True)
class _Round:
    """The round that is open."""

    number: int
    label: int | None
    start: Row
    asked: set[int] = field(default_factory=set)
    rows: dict[int, Row] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    ages: dict[int, int] = field(default_factory=dict)
    gone: dict[int, tuple[Why, str]] = field(default_factory=dict)
    end: Row | None = None
    """The last model that was sent out for evaluation since somebody answered."""


@dataclass(slots=True)
class Asked:
    """A train message that waits for its reply."""

    node: int
    round: int
    key: str
    start: Row | None
    """The model that it carried; None when it has been waited for too long."""


class Received:
    """What a server receives, written down round by round. Safe to call from several threads.

    `nodes` is asked once, before the first round, which nodes there are. Nothing that goes wrong while recording,
    once the first round began, stops the server: it is logged as an error, and the recording ends there.
    """

    def __init__(self, wishes: Wishes, nodes: Callable[[], Iterable[int]]) -> None:
        self._wishes = wishes
        self._nodes = nodes
        self._lock = threading.RLock()
        self._tensors: tuple[TensorSpec, ...] | None = None
        self._skipped: list[str] = []
        self._clients = Clients((), MOST_CLIENTS)
        self._declared: dict[int, tuple[Mapping[str, Any], ...]] = {}
        self._told: set[str] = set()
        self._open: _Round | None = None
        self._offset = 0
        self._waiting: dict[str, Asked] = {}
        self._unnumbered: dict[tuple[int, int], tuple[Why, str]] = {}
        self._writer: LogWriter | None = None
        self._observes: Observable = "updates"
        self._room = 0
        self._masked = wishes.aggregate
        self._stopped = False
        self._cached: tuple[list[bytes], Row] | None = None

    # What goes out

    def sending(self, messages: Sequence[Message]) -> list[Asked | None]:
        """Look at messages before they are sent together: of each train message, what its reply is held against.

        InputError for a first model that cannot be recorded.
        """
        with self._lock:
            if self._stopped:
                return [None] * len(messages)
            try:
                begun = self._open
                return [self._sent(message, begun) for message in messages]
            except Exception as error:
                if self._open is None:
                    raise
                self._stop(error)
                return [None] * len(messages)

    def sent(
        self, messages: Sequence[Message], asked: Sequence[Asked | None], ids: Sequence[str | None] = ()
    ) -> None:
        """Remember by their ids, which the grid gave them, the messages that were sent."""
        with self._lock:
            for at, (message, one) in enumerate(zip(messages, asked, strict=True)):
                name = message.metadata.message_id or (ids[at] if at < len(ids) else None)
                if one is not None and name:
                    self._waiting[name] = one

    def _sent(self, message: Message, begun: _Round | None) -> Asked | None:
        """Take note of one message; None unless it carries a model to be trained."""
        if not message.has_content():
            return None
        self._look_for_masks(message)
        kind = message.metadata.message_type.partition(".")[0]
        records = message.content.array_records
        if kind == "evaluate":
            self._evaluated(records)
        if kind != "train" or not records:
            return None
        key = _model_key(records, self._wishes.arrays_key)
        if self._tensors is None:
            self._tensors, self._skipped = described(records[key])
            nodes = list(self._nodes())
            likely = min(max(ALWAYS_LIKELY, LIKELY * len(nodes)), MOST_CLIENTS)
            self._clients = Clients(nodes, self._wishes.clients or likely)
        start = self._flat(records[key])
        node, label = message.metadata.dst_node_id, _label(message)
        if self._begins(label, start, node, begun):
            self._begin(label, start)
        assert self._open is not None
        if not same(start, self._open.start):
            self._once(
                f"others {self._open.number}",
                "FedSiege: in round %d nodes were sent different models; each update is taken against its own, and "
                "the log holds the first",
                self._open.number,
            )
        self._open.asked.add(node)
        return Asked(node, self._open.number, key, start)

    def _begins(self, label: int | None, start: Row, node: int, begun: _Round | None) -> bool:
        """Whether a train message begins a round: another number, or a model that its node has not been sent."""
        now = self._open
        if now is None:
            return True
        if label is not None and now.label is not None and label != now.label:
            return True
        if same(start, now.start):
            # Without a number: who has answered and is asked again is asked for the next round.
            return label is None and now is begun and node in now.rows and node not in now.ages
        # Different models in messages that are sent together, to different nodes, are one round.
        return node in now.asked or (label is None and now is begun)

    def _begin(self, label: int | None, start: Row) -> None:
        """Close the round before and open the next."""
        if self._open is not None:
            self._close(start)
        last = 0 if self._open is None else self._open.number
        if self._open is None and label == 0:
            self._offset = 1
        number = last + 1 if label is None else max(label + self._offset, last + 1)
        self._open = _Round(number if number <= MOST_ROUNDS else last + 1, label, start)

    def _evaluated(self, records: Mapping[str, ArrayRecord]) -> None:
        """A model that is sent out for evaluation once somebody has answered is what the round made."""
        if self._open is None or not (self._open.rows or self._open.weights):
            return
        try:
            self._open.end = self._flat(records[_model_key(records, self._wishes.arrays_key)])
        except (InputError, KeyError):
            LOGGER.debug("FedSiege: a model sent out for evaluation is not the one that is trained")

    # What comes back

    def received(
        self, replies: Sequence[tuple[Message, Signature | None]], asked: Sequence[Asked | None] = ()
    ) -> None:
        """Take note of replies and who signed them; of one that names no message, by its node among `asked`."""
        with self._lock:
            by_node = {one.node: one for one in asked if one is not None}
            for reply, signature in replies:
                if self._stopped:
                    return
                one = self._waiting.pop(reply.metadata.reply_to_message_id, None)
                if one is None and not reply.metadata.reply_to_message_id:
                    one = by_node.get(reply.metadata.src_node_id)
                if one is None:
                    continue
                try:
                    self._answered(one, reply, signature)
                except Exception as error:  # what one site sends takes nobody else out of the log
                    self._miss(one, "misshapen", f"cannot be read ({type(error).__name__})")
                    LOGGER.error("FedSiege: the reply of node %d cannot be read", one.node, exc_info=True)

    def _answered(self, asked: Asked, reply: Message, signature: Signature | None) -> None:
        """Take note of one reply: a row of the round, or why there is none."""
        now = self._open
        assert now is not None
        if reply.has_error():
            said = f"error {reply.error.code}: {_last_line(reply.error.reason or '')}"
            self._miss(asked, "failed", said)
            return
        if signature is not None:
            self._clients.claim(asked.node, signature.client, now.asked | set(now.rows))
            self._declare(asked.node, signature.declared)
        if self._masked:
            if asked.round == now.number:
                now.weights[asked.node] = self._weight(reply, asked.node)
            return
        if asked.start is None:
            self._miss(asked, "late", f"its start model, of round {asked.round}, is no longer kept")
            return
        if asked.round != now.number and asked.node in now.rows:
            LOGGER.info("FedSiege: node %d answered round %d after a later one", asked.node, asked.round)
            return
        try:
            row = self._update(asked, reply)
        except UnlikeError as error:
            self._miss(asked, "misshapen" if reply.content.array_records else "empty", str(error))
            return
        if not np.isfinite(row).all():
            self._miss(asked, "nonfinite", f"{np.count_nonzero(~np.isfinite(row))} entries are not finite")
            return
        if asked.node in now.rows and asked.node not in now.ages:
            self._once("twice", "FedSiege: node %d answered twice in a round; the later answer is kept", asked.node)
        # Both or none: a weight that cannot be read leaves no row behind.
        now.weights[asked.node] = self._weight(reply, asked.node)
        now.rows[asked.node] = row
        now.ages.pop(asked.node, None)
        if asked.round != now.number:
            now.ages[asked.node] = now.number - asked.round
        now.gone.pop(asked.node, None)

    def _update(self, asked: Asked, reply: Message) -> Row:
        """What a node's training added [d]; UnlikeError unless its float tensors are the model's."""
        records, tensors = reply.content.array_records, self._tensors
        assert tensors is not None
        assert asked.start is not None
        if asked.key in records:
            record = records[asked.key]
        elif len(records) == 1:
            record = next(iter(records.values()))
        else:
            raise UnlikeError(f"no arrays that could be {asked.key}; it sent {sorted(records) or 'none'}")
        row = flat(record, tensors, self._skipped)
        with np.errstate(over="ignore"):  # infinite then, and found so
            return np.subtract(row, asked.start, out=row)

    def _miss(self, asked: Asked, why: Why, said: str) -> None:
        """Note why there is no row: of the round that is open, or of an answer to an earlier one."""
        now = self._open
        assert now is not None
        if asked.node not in now.rows:
            before = "" if asked.round == now.number else f"to round {asked.round}: "
            now.gone[asked.node] = (why, before + said)

    def _weight(self, reply: Message, node: int) -> float:
        """What a reply weighs: its metric, 1 where it has none, 0 where that is no weight."""
        keys = [self._wishes.weight_key, "num_examples"]  # the second is how Flower's older strategies spell it
        found = (record[key] for key in keys for record in reply.content.metric_records.values() if key in record)
        said = next(found, 1.0)
        if isinstance(said, int | float) and math.isfinite(said) and said >= 0:
            return float(said)
        LOGGER.warning("FedSiege: node %d weighs %s; recorded with weight 0", node, str(said)[:80])
        return 0.0

    def _declare(self, node: int, declared: Sequence[Any]) -> None:
        """Keep what a site says it ran, if it is a list of components and not a trap for whoever reads the log."""
        text = "" if _deeper(declared, DEEPEST_DECLARATION) else _json(declared)
        sound = all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in declared)
        if not (text and sound) or len(text) > LONGEST_DECLARATION:
            self._once(f"declared {node}", "FedSiege: what node %d says it ran is no list of mods", node)
            return
        self._declared[node] = tuple(declared)

    def _look_for_masks(self, message: Message) -> None:
        """From the first message of secure aggregation on, no array of a reply is taken for an update."""
        if self._masked or not message.has_content() or MASKED not in message.content:
            return
        self._masked = True
        LOGGER.warning(
            "FedSiege: this federation aggregates securely (SecAgg+): single updates are not observable; recorded "
            "is the model before and after each round"
        )
        if self._open is not None:
            self._open.rows.clear()

    # What is written

    def close(self) -> None:
        """Write the round that is open, and end the log."""
        with self._lock:
            if self._open is None:
                LOGGER.warning("FedSiege: no model was sent out for training; nothing was recorded")
            if self._stopped or self._open is None:
                self._stopped = True
                return
            try:
                assumed = self._open.end is None
                if not (assumed and self._masked):  # of masked updates nobody knows the mean
                    self._close(self._open.end, last=True)
                if self._writer is not None:
                    self._number_the_silent()
                    self._writer.close(final="assumed_mean" if assumed and not self._masked else "observed")
                    LOGGER.info("FedSiege: recorded up to round %d in %s", self._open.number, self._wishes.folder)
            except Exception as error:
                self._stop(error)
            self._stopped = True

    def _close(self, end: Row | None, last: bool = False) -> None:
        """Write the open round, if it is one to be recorded; without a model that came out of it, by the mean."""
        now = self._open
        assert now is not None
        for node in now.asked - set(now.rows) - set(now.gone) - (set(now.weights) if self._masked else set()):
            now.gone[node] = ("missing", "no answer before the round ended")
        for one in self._waiting.values():
            if one.round <= now.number - PATIENCE:
                one.start = None
        if last or now.number % self._wishes.every == 0:
            self._write(now, end if end is not None else _mean_step(now))
        now.rows.clear()

    def _write(self, now: _Round, end: Row) -> None:
        """Write a round under its clients' numbers."""
        heard = sorted(now.weights if self._masked else now.rows)
        for node in heard:
            self._clients.settle(node)
        writer = self._writing()
        heard = [node for node in heard if node in now.rows or self._observes == "aggregate"]
        numbers = {node: number for node in heard if (number := self._fitting(node)) is not None}
        self._unnumbered |= {(now.number, node): why for node, why in now.gone.items()}
        self._note_absences()
        for node, number in numbers.items():
            if self._declared.get(node):
                writer.declare(number, self._declared[node])
        writer.write_round(
            now.number,
            now.start,
            end,
            {number: now.rows[node] for node, number in numbers.items() if node in now.rows},
            {number: now.weights[node] for node, number in numbers.items()},
            {numbers[node]: age for node, age in now.ages.items() if node in numbers},
        )

    def _writing(self) -> LogWriter:
        """The log, begun with the first round that is written: who the clients are is known by then."""
        if self._writer is None:
            assert self._tensors is not None
            self._room = self._wishes.clients or self._clients.count
            self._observes = "aggregate" if self._masked else "updates"
            self._writer = LogWriter(
                self._wishes.folder, self._room, self._tensors, self._observes, self._wishes.source, self._skipped
            )
        return self._writer

    def _fitting(self, node: int) -> int | None:
        """The client that a node is, named in the log; None where the log was begun for fewer."""
        number = self._clients.number(node)
        if number is None:
            return None
        if number >= self._room:
            self._once(
                f"room {node}",
                "FedSiege: node %d came after the log was begun for %d clients and is not in it; say how many "
                "there can be with fedsiege-clients",
                node,
                self._room,
            )
            return None
        assert self._writer is not None
        self._writer.name(number, ", ".join(f"node {one}" for one in self._clients.nodes.get(number, [node])))
        return number

    def _note_absences(self) -> None:
        """Note what is missing of the nodes whose numbers are settled; the others' waits until they are."""
        assert self._writer is not None
        for round_and_node, (why, said) in list(self._unnumbered.items()):
            number = self._clients.number(round_and_node[1])
            if number is None:
                continue
            del self._unnumbered[round_and_node]
            if self._fitting(round_and_node[1]) is not None:
                self._writer.absent(round_and_node[0], number, why, said)

    def _number_the_silent(self) -> None:
        """Give the nodes that never answered the numbers that are left."""
        for _, node in sorted(self._unnumbered):
            self._clients.settle(node)
        self._note_absences()

    def _stop(self, error: Exception) -> None:
        """Record no more: somebody's training is worth more than its record."""
        self._stopped = True
        known = isinstance(error, InputError | OSError)
        LOGGER.error("FedSiege: the recording ends here, the run goes on: %s", error, exc_info=not known)

    def _once(self, key: str, text: str, *values: object) -> None:
        """Warn about something the first time it is seen."""
        if key not in self._told:
            self._told.add(key)
            LOGGER.warning(text, *values)

    def _flat(self, record: ArrayRecord) -> Row:
        """A model's float tensors in one vector [d]; the same vector for the same bytes as the last time."""
        assert self._tensors is not None
        held = [record[tensor.name].data if tensor.name in record else b"" for tensor in self._tensors]
        if self._cached is None or held != self._cached[0]:
            try:
                self._cached = held, flat(record, self._tensors, self._skipped)
            except UnlikeError as error:
                raise InputError(f"a model was sent out that is not the first round's: {error}") from None
        return self._cached[1]


def _model_key(records: Mapping[str, ArrayRecord], wanted: str) -> str:
    """Which of a message's records is the model; InputError where that cannot be known."""
    if wanted:
        if wanted in records:
            return wanted
    elif len(records) == 1:
        return next(iter(records))
    elif "arrays" in records:
        return "arrays"
    raise InputError(
        f"fedsiege-arrays-key: got {wanted!r}; expected the name of the record that is the model, one of "
        f"{sorted(records)}"
    )


def _label(message: Message) -> int | None:
    """The round that an app says a message is of: `server-round` in a config, else a group id that is a number."""
    for record in message.content.config_records.values():
        said = record.get("server-round")
        if isinstance(said, int) and not isinstance(said, bool) and said >= 0:
            return said
    group = message.metadata.group_id
    return int(group) if group.isascii() and group.isdigit() and len(group) < 10 else None


def _mean_step(now: _Round) -> Row:
    """The model [d] that a weighted mean of the round's own rows would make."""
    fresh = [node for node in now.rows if node not in now.ages]
    total = sum(now.weights[node] for node in fresh)
    mean = np.zeros(now.start.shape, dtype=np.float64)
    if total > 0:
        for node in sorted(fresh):
            mean += now.rows[node] * np.float64(now.weights[node] / total)
    return (now.start + mean).astype(np.float32)


def _json(declared: Sequence[Any]) -> str:
    """A list as JSON; empty where it has numbers that JSON has not."""
    try:
        return json.dumps(list(declared), allow_nan=False)
    except ValueError:
        return ""


def _deeper(value: object, most: int) -> bool:
    """Whether a value out of JSON has more than so many lists and mappings in each other."""
    if not isinstance(value, Mapping | list | tuple):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return most == 0 or any(_deeper(one, most - 1) for one in inner)


def _last_line(text: str) -> str:
    """The last line of a traceback, which says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
