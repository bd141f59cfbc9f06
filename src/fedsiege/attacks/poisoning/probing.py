"""Poisoning that makes membership visible: attackers whose updates ask whether others train on certain examples.

All of them push the global model away from the examples asked about. Who trains on one of these pulls the model
back, nobody pulls it back for the rest: later global models still get a member right, and its confidence shows it.
The attackers are told which examples are asked about, never which of them are members; their own data, correctly
labelled and none of it asked about, is what they hide behind (the *mask* or *cover* set of the papers).

Updates are `local - start`, what the server adds. Where the public code of these attacks takes one optimiser step
on a full batch for "the gradient", so does `step` here: a plain one, or one of the honest clients' optimiser.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsiege.attacks.poisoning.base import Knowledge, Plot, Poisoner, Scene, relabelled
from fedsiege.attacks.poisoning.crafting import check_knowledge
from fedsiege.errors import InputError
from fedsiege.records import Examples, Floats, joined
from fedsiege.streams import stream

Step = Literal["plain", "optimiser"]
"""A full-batch step: against the gradient, or as the honest clients' optimiser takes its first one."""

TIE = 1e-5
"""By which share of it the label's probability may miss the largest and still be it: float32 rounds either."""

SHARDS = 3
"""Into how many parts a lone attacker cuts its own data, to have updates that it can compare."""


class Prober(Poisoner):
    """A poisoning attack that makes membership visible."""

    probes: ClassVar[bool] = True

    def check(self, plot: Plot) -> None:
        """Refuse runs in which nothing is asked, or nobody could be asked about, and to see what nobody sees."""
        check_probe(plot, "full" if self.sees_honest else "partial")


def check_probe(plot: Plot, knowledge: Knowledge = "partial") -> None:
    """InputError for a run in which membership cannot be made visible: no labels, nothing asked, nobody honest."""
    check_knowledge(plot, knowledge)
    if not plot.task.signals:
        raise InputError("makes visible whose examples with one label are; these have one at every position")
    if plot.classes < 2:
        raise InputError(f"needs wrong labels, and the data has {plot.classes} class; expected 2 or more")
    if plot.sizes and len(set(plot.compromised)) >= len(plot.sizes):
        raise InputError(
            f"compromised: got all {len(plot.sizes)} clients, so that nobody can be asked about; "
            f"expected {len(plot.sizes) - 1} at most"
        )
    if not plot.targets:
        raise InputError("attacks: got none, so that no membership is asked about; expected one or more")


def targets_of(scene: Scene) -> Examples:
    """The examples asked about; InputError where a scene has none."""
    if scene.targets is None or not len(scene.targets):
        raise InputError("targets: got no examples to ask about; expected some")
    return scene.targets


def own_of(scene: Scene, most: int | None = None) -> Examples:
    """What all attackers of the round have themselves, or a part of it; the same as long as they are the same."""
    own = joined(scene.shards)
    if most is None or len(own) <= most:
        return own
    return own.take(np.sort(stream(scene.seed, "adversary", "mask").permutation(len(own))[:most]))


def mislabelled(scene: Scene, shuffle: int = 0) -> Examples:
    """The targets with wrong labels, each other class as likely.

    Drawn once for the run, and anew for another `shuffle`.
    """
    targets = targets_of(scene)
    rng = stream(scene.seed, "adversary", "wrong labels", shuffle)
    drawn = torch.as_tensor(rng.integers(0, scene.classes - 1, size=len(targets)), device=targets.y.device)
    return relabelled(targets, drawn + (drawn >= targets.y))


def stepped(scene: Scene, examples: Examples, step: Step, lr: float | None = None) -> Tensor:
    """One step [d] on all examples at once from the global model: `-lr` times the gradient, where it is plain."""
    changed = {"algorithm": "fedsgd"} if step == "plain" else {"epochs": 1, "batch": len(examples)}
    training = scene.training.model_copy(update={**changed, "augment": "none", "clip": None, "weight_decay": 0.0})
    return scene.train(examples, scene.rng("step"), training=training, lr=lr)


def passed_over(scene: Scene, examples: Examples, step: Step, lr: float | None = None) -> Tensor:
    """One pass [d] over the examples from the global model, in batches of the honest clients' size.

    `optimiser` is honest training but for the one epoch; `plain` steps go against the gradient, without momentum,
    weight decay, clipping or augmentation. Passes of a round over as many examples take them in the same order.
    Where honest clients take one step on all of their data, so does this.
    """
    plain = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip": None, "augment": "none"}
    changed = {"epochs": 1, **(plain if step == "plain" else {})}
    return scene.train(examples, scene.rng("pass"), training=scene.training.model_copy(update=changed), lr=lr)


def references(scene: Scene) -> Tensor:
    """The updates [n, d] that attackers measure themselves against: `scene.benign`, where that is two or more.

    A lone attacker that sees nobody else cuts its data in three parts and trains honestly on each. With less than
    two examples there is one update or none to compare with, and whoever calls has to go without.
    """
    if (scene.honest_rows is not None and len(scene.honest_rows)) or len(scene.clients) > 1:
        return scene.benign()
    scene.count("went_by_own_updates")
    rows = [scene.honest(0, part) for part in parts(scene.shards[0])]
    return torch.stack(rows) if rows else scene.start.new_empty(0, len(scene.start))


def parts(examples: Examples) -> Sequence[Examples]:
    """Three parts of as many examples as it goes, every third one in each; fewer where there are fewer examples."""
    return [examples.take(np.arange(first, len(examples), SHARDS)) for first in range(min(SHARDS, len(examples)))]


def from_all(scene: Scene, row: Tensor) -> Tensor:
    """The same update [d] from each attacker [k, d], each in a row of its own."""
    return row.expand(len(scene.clients), -1)


def correct(loss: Floats, top: Floats) -> NDArray[np.bool_]:
    """Whether a model gets each example right: by its cross-entropy there, and its largest probability.

    A tie for the largest, up to rounding of float32, counts as right.
    """
    label, largest = np.exp(-np.asarray(loss, dtype=np.float64)), np.asarray(top, dtype=np.float64)
    found: NDArray[np.bool_] = label >= (1 - TIE) * largest
    return found
