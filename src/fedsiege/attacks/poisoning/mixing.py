"""How attackers with a backdoor train: honest local training on batches in which some examples are triggered.

Model replacement, data poisoning, PGD, DBA and Neurotoxin differ in what they add to it and in what they send.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from fedsiege.attacks.poisoning.ball import length
from fedsiege.attacks.poisoning.base import Plot, Scene, require_backdoor
from fedsiege.attacks.poisoning.tactics import Constraint, Tactics
from fedsiege.data.triggers.base import Backdoor
from fedsiege.defences.client.base import means
from fedsiege.errors import InputError
from fedsiege.records import Counters, Examples
from fedsiege.training import Training


class Recipe(Protocol):
    """The fields that these attacks have in common: how an attacker trains."""

    @property
    def poisoned(self) -> int:
        """c, the triggered examples of a full batch."""

    @property
    def batch(self) -> int | None:
        """B; None: as honest clients."""

    @property
    def noise(self) -> float:
        """Deviation of the noise on triggered inputs."""

    @property
    def moved(self) -> bool | None:
        """Whether triggered images are cropped and mirrored; None: those that the trigger found."""

    @property
    def epochs(self) -> int | None:
        """Passes over the clean data; None: as honest clients."""

    @property
    def lr(self) -> float | None:
        """Learning rate; None: the round's."""

    @property
    def step_every(self) -> int | None:
        """Epochs after which the learning rate falls; None: never."""

    @property
    def step_rate(self) -> float:
        """What the learning rate is divided by."""

    @property
    def momentum(self) -> float | None:
        """Momentum; None: as honest clients."""

    @property
    def weight_decay(self) -> float | None:
        """L2 penalty; None: as honest clients."""

    @property
    def stop(self) -> float | None:
        """The loss on triggered examples at which training ends; None: never."""


def check_recipe(recipe: Recipe, plot: Plot, name: str, pooled: int | None = None) -> Backdoor:
    """The backdoor of a run; InputError for a run without one, and for a recipe that leaves no clean examples.

    Args:
        recipe: how the attackers train.
        plot: the run.
        name: the attack's.
        pooled: how many examples they have at most, where they train on all of them together; None where each
            trains on its own.

    """
    backdoor, c = require_backdoor(plot, name), recipe.poisoned
    batch = training_of(recipe, plot.training).step_size
    if batch is not None and c >= batch:
        raise InputError(f"poisoned: got {c} of every {batch} examples; expected fewer than {batch}")
    if batch is None and plot.sizes:
        had = min(plot.sizes[client] for client in plot.compromised) if pooled is None else pooled
        if c >= had:
            raise InputError(
                f"poisoned: got {c} of a step that takes all of an attacker's {had} examples; expected fewer than "
                f"{had}"
            )
    return backdoor


def backdoor_of(scene: Scene) -> Backdoor:
    """What is to be planted; InputError where nothing is."""
    if scene.backdoor is None:
        raise InputError("backdoor: missing; expected one, which the attack plants")
    return scene.backdoor


def training_of(recipe: Recipe, honest: Training) -> Training:
    """How an attacker trains: as honest clients, but for what its recipe says.

    Where honest clients take one plain step on all their data (fedsgd), an attacker with epochs or batches of its
    own trains for them, in batches of `training.batch` if it has none of its own.
    """
    given = {
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
    }
    changed: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if "epochs" in changed or "batch" in changed:
        changed["algorithm"] = "fedavg"
    return honest.model_copy(update=changed)


def stepped(lr: float, epoch: int, every: int | None, by: float) -> float:
    """The learning rate of an epoch, from 0: divided by `by` after every so many epochs."""
    return lr if every is None else lr / by ** (epoch // every)


def mixed(
    scene: Scene,
    recipe: Recipe,
    examples: Examples,
    who: str | int,
    *,
    part: int | None = None,
    anomaly: Callable[[Tensor], Tensor] | None = None,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    after: Sequence[Constraint] = (),
) -> tuple[Tensor, bool]:
    """Train the global model on an attacker's examples, mixed with triggered ones.

    Args:
        scene: the round.
        recipe: how the attacker trains.
        examples: its clean data.
        who: the name of its random streams: a client, or `together`.
        part: which part of the trigger it uses; None for all of it.
        anomaly, alpha, mask, after: as `Tactics` has them.

    Returns:
        X - G [d], before anything is scaled, and whether any triggered example was trained on.

    """
    backdoor, training = backdoor_of(scene), training_of(recipe, scene.training)
    tactics = Tactics(
        scene.task,
        backdoor,
        examples,
        scene.rng("triggers", who),
        poisoned=recipe.poisoned,
        batch=training.step_size,
        noise=recipe.noise,
        moved=backdoor.own is not None if recipe.moved is None else recipe.moved,
        part=part,
        stop=recipe.stop,
        rates=lambda lr, epoch: stepped(lr, epoch, recipe.step_every, recipe.step_rate),
        anomaly=anomaly,
        alpha=alpha,
        mask=mask,
        after=after,
    )
    update = scene.train(examples, scene.rng("train", who), tactics, training, recipe.lr)
    scene.count("epochs", tactics.epochs)
    scene.count("steps", tactics.steps)
    scene.count("poisoned_examples", tactics.shown)
    scene.count("early_stops", float(tactics.stopped))
    return update, tactics.shown > 0


def count_sent(scene: Scene, update: Tensor, gamma: float, poisoned: bool) -> None:
    """Count one attacker's answer: how long X - G [d] was, and by what it was multiplied."""
    if not poisoned:
        scene.count("nothing_planted")
        return
    norm = float(length(update))
    scene.count("poisoned_updates")
    scene.count("gamma", gamma)
    scene.count("trained_norm", norm)
    scene.count("sent_norm", gamma * norm)


def told(counters: Counters) -> Counters:
    """The counters with means of the factor, and of the norms of updates before and after it."""
    return means(counters, "gamma", "trained_norm", "sent_norm", over="poisoned_updates")
