"""Any Flower app's server with this house's aggregation rules and server defences: a Strategy to put in place.

What Flower's own rules do not: replies are sorted before they are added up, so that a run gives the same model
again; distances are taken between updates, in float64, not between whole models in float32; an answer that is not
finite, or not this model's, is left out and counted before any rule sees it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsiege.aggregation import acceptable
from fedsiege.aggregators.base import Bench, Server
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.siege import aggregator_of, server_defences_of
from fedsiege.federation.rounds import add
from fedsiege.federation.server import RULE, Combined, Command
from fedsiege.flower.arrays import UnlikeError, described, flat
from fedsiege.flower.signature import unsign
from fedsiege.flower.sites import Clients
from fedsiege.promises.base import is_trained
from fedsiege.records import Cohort, Counters, Layout, Memory
from fedsiege.update_log import TensorSpec

Spec = str | dict[str, Any]

MOST = 2**31
"""Numbers of clients that are believed are below this."""


@dataclass(frozen=True, slots=True)
class Received:
    """A usable answer: `client` orders it among the others, `row` [d] is its update, `weight` what it asks for."""

    client: int
    row: torch.Tensor
    weight: float
    message: Message


class Defended(FedAvg):
    """FedAvg, but for how replies are combined: by any of the rules, behind any of the server's defences.

    Rules and defences that need data of the server's own or a model to run (FLTrust, DeepSight, accuracy audits)
    are refused: a Strategy has neither.

    Args:
        aggregator: a rule as a config names it: `krum`, or `{"name": "trimmed_mean", "f": 2}`.
        server_defences: the server's defences, in order, as a config names them.
        seed: of what rules and defences draw.
        server_step: what the combined update is multiplied with.
        options: FedAvg's own.

    Raises InputError for a component or a field that there is not.

    """

    def __init__(
        self,
        aggregator: Spec = "fedavg",
        server_defences: Sequence[Spec] = (),
        *,
        seed: int = 0,
        server_step: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        asked = Experiment(aggregator=aggregator, server_defences=list(server_defences), seed=seed)
        self.command = Command(aggregator_of(asked), server_defences_of(asked))
        self.seed, self.server_step = seed, server_step
        self.memory: Memory = {}
        self._clients: Clients | None = None
        self._start: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's own; the model that is sent out is what answers are compared with."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._start = arrays
        if self._clients is None:
            self._clients = Clients(grid.get_node_ids(), MOST)
        if messages:
            self._check(arrays, len(messages))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new model and the metrics of those that had a say in it, with what rule and defences counted.

        Counters are metrics named `fedsiege/<component>/<counter>`. Without a usable reply the model stays.
        """
        assert self._start is not None
        valid, errors = self._check_and_log_replies(replies, is_train=True, validate=False)
        tensors, skipped = in_order(self._start)
        start = torch.from_numpy(flat(self._start, tensors, skipped))
        server: Counters = {"answers": float(len(valid))}
        add(server, {"failed": float(len(errors))} if errors else {})
        received = self._received(valid, start, server)
        counters: dict[str, Counters] = {"server": server}
        at = Server(number=server_round, start=start, layout=layout_of(tensors))
        combined = self._combined(received, at) if received else None
        end = start
        if combined is not None and combined.update is not None:
            self.memory = combined.memory
            end = self.command.finish(start + self.server_step * combined.update, at, self.seed, combined.counters)
            counters |= combined.counters
        if combined is None or combined.update is None or not bool(torch.isfinite(end).all()):
            end = start
            add(counters.setdefault(RULE, {}), {"kept_old_model": 1.0})
        heard = [one for one in received if combined is not None and combined.fates[one.client].kept > 0]
        return self._model(end), self._metrics(heard, counters)

    def _check(self, arrays: ArrayRecord, cohort: int) -> None:
        """Refuse, before the first round, what the rule or a defence cannot do here."""
        tensors, _ = in_order(arrays)
        bench = Bench(cohort, cohort, 0, layout_of(tensors), head=False, classes=0, rounds=2**31)
        for one in self.command.defences:
            one.defence.check(bench)
        self.command.rule.check(bench)

    def _received(self, valid: Sequence[Message], start: torch.Tensor, server: Counters) -> list[Received]:
        """The usable answers in order of client.

        That is the `partition-id` that a node signs with, unless another node has it, else its place by node id: a
        rule that remembers clients must not take one node for several, nor several for one.
        """
        assert self._start is not None
        assert self._clients is not None
        tensors, skipped = in_order(self._start)
        found: dict[int, Received] = {}
        nodes = {message.metadata.src_node_id for message in valid}
        for message in sorted(valid, key=lambda one: one.metadata.src_node_id):
            signature, node = unsign(message), message.metadata.src_node_id
            if signature is not None and self._clients.number(node) is None:
                self._clients.claim(node, signature.client, nodes)
            client = self._clients.settle(node)
            try:
                (arrays,), (metrics,) = (
                    message.content.array_records.values(),
                    message.content.metric_records.values(),
                )
                row = torch.from_numpy(flat(arrays, tensors, skipped)) - start
                weight = float(cast(float, metrics[self.weighted_by_key]))
            except (UnlikeError, KeyError, TypeError, ValueError, OverflowError):
                fault: str | None = "misshapen"
            else:
                fault = acceptable(row, len(start))
                if fault is None and not (math.isfinite(weight) and weight > 0):
                    fault = "weightless"
            if fault is None:
                found[client] = Received(client, row, weight, message)
            else:
                add(server, {f"dropped_{fault}": 1.0})
        return [found[client] for client in sorted(found)]

    def _combined(self, received: Sequence[Received], at: Server) -> Combined:
        cohort = Cohort(
            clients=tuple(one.client for one in received),
            updates=torch.stack([one.row for one in received]),
            weights=torch.tensor([one.weight for one in received], dtype=torch.float64),
            ages=(0,) * len(received),
            starts={} if at.start is None else {0: at.start},
        )
        return self.command.combine(cohort, at, self.seed, self.memory)

    def _model(self, end: torch.Tensor) -> ArrayRecord:
        """The model [d] as arrays of the types they had; what is not float stays as it was sent out."""
        assert self._start is not None
        layout = layout_of(in_order(self._start)[0])
        parts = {name: end[place].numpy() for name, place in layout.slices()}
        made = dict(self._start)
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            made[name] = Array(parts[name].reshape(shape).astype(made[name].numpy().dtype))
        return ArrayRecord(made)

    def _metrics(self, heard: Sequence[Received], counters: dict[str, Counters]) -> MetricRecord:
        told, alike = MetricRecord(), like_most([one.message.content for one in heard])
        if alike:
            told = self.train_metrics_aggr_fn(alike, self.weighted_by_key)
        for label, own in counters.items():
            for name, n in own.items():
                told[f"fedsiege/{label}/{name}"] = float(n)
        return told


def like_most(contents: Sequence[RecordDict]) -> list[RecordDict]:
    """Those whose metrics have the names and kinds that most of them have: one odd reply must not end the round."""

    def kinds(content: RecordDict) -> tuple[tuple[str, str], ...]:
        (metrics,) = content.metric_records.values()
        return tuple(sorted((name, type(value).__name__) for name, value in metrics.items()))

    usual = Counter(kinds(content) for content in contents).most_common(1)
    return [content for content in contents if kinds(content) == usual[0][0]]


def in_order(record: ArrayRecord) -> tuple[tuple[TensorSpec, ...], list[str]]:
    """The float tensors of a model, trained ones first, as a layout has them; and the names of all others."""
    tensors, skipped = described(record)
    return tuple(sorted(tensors, key=lambda one: not is_trained(one.name))), skipped


def layout_of(tensors: Sequence[TensorSpec]) -> Layout:
    """The layout of these tensors; by their names, since a message says no more of them."""
    return Layout(
        names=tuple(one.name for one in tensors),
        shapes=tuple(tuple(one.shape) for one in tensors),
        kinds=tuple("trained" if is_trained(one.name) else "buffer" for one in tensors),
        groups=tuple(one.name.partition(".")[0] for one in tensors),
    )
