"""How well a model does whose outputs may be no numbers: one that attackers sent, or destroyed."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsiege.records import Examples
from fedsiege.task import BATCH, ROOM, Task

if TYPE_CHECKING:
    from fedsiege.experiment.integrity import Watch


def wreck(watch: "Watch", model: Tensor) -> dict[str, Any]:
    """What a watch measures of a model [d], without a loss; an output that is no number is no answer."""
    found = answered(watch.task, model, watch.heldout)
    row: dict[str, Any] = {"accuracy": share(found, watch.heldout.y, watch.heldout.y >= 0), "loss": None}
    if watch.backdoor is None:
        return row
    test, y, target = watch.backdoor.test, watch.heldout.y, watch.backdoor.target
    mistaken = None
    if y.dim() == 1 and bool((y != target).any()):
        mistaken = share(found, torch.full_like(y, target), y != target)
    return {**row, "backdoor": share(answered(watch.task, model, test), test.y, test.y >= 0), "mistaken": mistaken}


def share(answers: Tensor, y: Tensor, counted: Tensor) -> float:
    """How many of the answers that are counted are y, all of one shape [m] or [m, T]."""
    return float((answers == y)[counted].double().mean())


def answered(task: Task, model: Tensor, examples: Examples) -> Tensor:
    """The class that a model [d] answers examples with [m], or their positions [m, T]; -1 where logits are NaN."""
    one = task.predict(model, examples.take(np.arange(1))).numel()
    size, found = min(BATCH, max(1, ROOM // one)), []
    for first in range(0, len(examples), size):
        rows = np.arange(first, min(first + size, len(examples)))
        logits = task.predict(model, examples.take(rows))
        found.append(logits.argmax(1).masked_fill(logits.isnan().any(1), -1))
    return torch.cat(found)
