"""From a finished round to the evidence of it on disk."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsiege.countermeasures import Countermeasure, tail_place, taken_off
from fedsiege.errors import TrainingDivergedError
from fedsiege.records import Cohort, Examples, Round
from fedsiege.signals import Alignment, Losses, align, gram, losses_of, sums, uploaded
from fedsiege.task import Task
from fedsiege.trace import Groups, Header, absent, entries, grouping, write_round


@dataclass(frozen=True, slots=True)
class Recorder:
    """Writes the trace of a federation for a fixed list of candidates.

    What is recorded is what the server received: after every client-side defence, before aggregation. With
    `aggregate_only` (secure aggregation) that is the change of the global model and nothing of single clients.
    """

    task: Task
    candidates: Examples
    clients: int
    classes: int
    folder: Path
    groups: Groups = "blocks"
    aggregate_only: bool = False
    keep_logits: bool = False
    recordings: frozenset[str] = frozenset()
    """Evidence that is recorded on request alone.

    `support`: gradients' norms where an update is not zero. `outputs`: what probabilities tell beside the loss.
    `front`: products over the trained entries before the tail.
    """
    tail: int | None = None
    """The last trained entries, in which coalitions' noise is looked for; None where nobody says how many."""
    countermeasures: Mapping[str, Countermeasure] = field(default_factory=dict)
    """What else the server makes of what it received, by name; the evidence of each is a trace of its own."""
    products: Collection[str] | None = None
    """Of which updates (`sent`, or a countermeasure's name) products with gradients are recorded; None: of all."""

    def begin(self) -> None:
        """Write what all rounds share."""
        layout = self.task.layout
        trained = zip(layout.slices(), layout.sizes, strict=True)
        head = tuple(size for (_, place), size in trained if layout.head.start <= place.start < layout.head.stop)
        Header(
            clients=self.clients,
            classes=self.classes,
            groups=grouping(layout, self.groups)[0],
            sizes=entries(layout, self.groups),
            head=head,
            ids=self.candidates.ids,
            labels=self.candidates.y.cpu().numpy(),
            tail=self.tail or 0,
        ).write(self.folder)
        for name in self.countermeasures:
            self._after(name).begin()

    def record(self, done: Round, sent: Cohort | None = None) -> int:
        """Compute and write one round's evidence; returns its bytes.

        The round's file in `folder` comes last: where it is, those of the countermeasures are too.

        Args:
            done: the round.
            sent: what was received, where the round's cohort is what a countermeasure made of it.

        """
        size = sum(
            self._after(name).record(
                replace(done, cohort=done.cohort and counter(done.cohort, done.number)), done.cohort
            )
            for name, counter in self.countermeasures.items()
        )
        broadcast = self._losses(iter([done.end]))
        tensors = {"global_loss": broadcast.loss[0]}
        tensors |= {f"global_{name}": values[0] for name, values in broadcast.outputs.items()}
        if broadcast.logits is not None:
            tensors["global_logits"] = broadcast.logits[0]
        cohort = None if self.aggregate_only else done.cohort
        if self.products is None or "sent" in self.products:
            tensors |= self._aligned(done, cohort)
        if cohort is not None:
            tensors |= self._single(cohort)
            if sent is not None:
                tensors["taken_off"] = absent(taken_off(sent, cohort), cohort.clients, self.clients, axis=0)
        elif not self.aggregate_only:  # nothing that arrived could be used
            tensors["present"] = torch.zeros(self.clients, dtype=torch.uint8)
        _check_finite(done.number, tensors, done.cohort)
        return size + write_round(self.folder, done.number, tensors)

    def _after(self, name: str) -> "Recorder":
        """What writes the trace of a countermeasure."""
        whole = self.products is None or name in self.products
        return replace(self, folder=self.folder / name, countermeasures={}, products=None if whole else ())

    def _single(self, cohort: Cohort) -> dict[str, Tensor]:
        """Losses of the uploaded models, the last layer's updates, and who was there."""
        here = torch.tensor(cohort.clients)
        losses = self._losses(uploaded(cohort))
        tensors = {
            "loss": losses.loss,
            "head": cohort.updates[:, self.task.layout.head],
            "age": torch.tensor(cohort.ages, dtype=torch.float32),
            "weight": cohort.weights,
            **losses.outputs,
        }
        if losses.logits is not None:
            tensors["logits"] = losses.logits
        spread = {name: absent(values, cohort.clients, self.clients, axis=0) for name, values in tensors.items()}
        spread |= self._tails(cohort)
        return {**spread, "present": torch.zeros(self.clients, dtype=torch.uint8).index_fill_(0, here, 1)}

    def _tails(self, cohort: Cohort) -> dict[str, Tensor]:
        """Sums [K] of the updates' tails, and the products [K, K] of each with each, where there is a tail."""
        if not self.tail:
            return {}
        tails = cohort.updates[:, tail_place(self.task.layout, self.tail)]
        products = absent(gram(tails), cohort.clients, self.clients, axis=0)
        return {
            "tail_sum": absent(sums(tails), cohort.clients, self.clients, axis=0),
            "tail_gram": absent(products, cohort.clients, self.clients, axis=1),
        }

    def _losses(self, models: Iterator[Tensor]) -> Losses:
        """The models' losses, and what else is to be kept of their outputs."""
        return losses_of(self.task, models, self.candidates, self.keep_logits, "outputs" in self.recordings)

    def _aligned(self, done: Round, cohort: Cohort | None) -> dict[str, Tensor]:
        """Products with the updates, rows grouped by the model they started from, and with the global change."""
        _, groups = grouping(self.task.layout, self.groups)
        own = {age: [i for i, a in enumerate(cohort.ages) if a == age] for age in cohort.starts} if cohort else {}
        ages = sorted({0, *own})
        support = "support" in self.recordings and cohort is not None
        cut = self.task.layout.trained - (self.tail or 0) if "front" in self.recordings and cohort else None
        found: list[Alignment] = []
        order: list[int] = []
        for age in ages:
            rows = own.get(age, [])
            updates = _rows(cohort, rows) if cohort else done.start.new_empty(0, len(done.start))
            start = cohort.starts[age] if cohort and age in cohort.starts else done.start
            change = done.end - done.start if age == 0 else None
            found.append(
                align(self.task, start, updates, self.candidates, groups, change, support=support, cut=cut)
            )
            order += [cohort.clients[i] for i in rows] if cohort else []
        tensors: dict[str, Any] = {
            "aggregate_dot": found[0].dot[:, -1],
            "aggregate_norm2": found[0].update_norm2[:, -1],
            "gradient_norm2": torch.stack([one.gradient_norm2 for one in found]),
            "start_loss": found[0].start_loss,
        }
        if cohort:
            start_of = torch.zeros(self.clients, dtype=torch.int64)
            start_of[list(cohort.clients)] = torch.tensor([ages.index(age) for age in cohort.ages])
            tensors["start_of"] = start_of
            tensors["gradient_sum"] = torch.stack([one.gradient_sum for one in found])
            counts = [len(own.get(age, [])) for age in ages]
            for name in ("dot", "update_norm2", "update_sum", *(["support_norm2"] if support else [])):
                parts = [getattr(one, name)[:, :count] for one, count in zip(found, counts, strict=True)]
                tensors[name] = absent(torch.cat(parts, 1), order, self.clients, axis=1)
            fronts = [one.front for one in found if one.front is not None]
            if fronts:
                tensors["front_gradient_norm2"] = torch.stack([front.gradient_norm2 for front in fronts])
                for name in ("dot", "update_norm2"):
                    parts = [getattr(front, name) for front in fronts]
                    tensors[f"front_{name}"] = absent(torch.cat(parts), order, self.clients, axis=0)
        return tensors


def _rows(cohort: Cohort, rows: list[int]) -> Tensor:
    """Some rows of a cohort; without a copy when they are all of them."""
    return cohort.updates if len(rows) == len(cohort.clients) else cohort.updates[rows]


def _check_finite(number: int, tensors: Mapping[str, Tensor], cohort: Cohort | None) -> None:
    """Finite weights can still have a loss beyond all numbers; no attack could read such evidence."""
    for client in cohort.clients if cohort and "loss" in tensors else ():
        if not bool(torch.isfinite(tensors["loss"][client]).all()):
            raise TrainingDivergedError(
                f"round {number}, client {client}: the uploaded model's loss is not finite; lower training.lr"
            )
    for name in ("global_loss", "gradient_norm2", "aggregate_dot"):
        if name in tensors and not bool(torch.isfinite(tensors[name]).all()):
            raise TrainingDivergedError(
                f"round {number}: the {name} of the global model is not finite; lower training.lr or server_step"
            )
