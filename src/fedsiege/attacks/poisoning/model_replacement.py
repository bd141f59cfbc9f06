"""Model replacement: an update so long that the global model becomes the attacker's."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.aggregators.base import Scope
from fedsiege.attacks.poisoning import gamma as factors
from fedsiege.attacks.poisoning.anomaly import Anomaly, Unusual, anomaly_of
from fedsiege.attacks.poisoning.ball import length, scoped
from fedsiege.attacks.poisoning.base import Knowledge, Plot, Poisoner, Scene
from fedsiege.attacks.poisoning.gamma import LearntGamma
from fedsiege.attacks.poisoning.mixing import backdoor_of, check_recipe, count_sent, mixed, told
from fedsiege.attacks.poisoning.tactics import triggered
from fedsiege.errors import InputError
from fedsiege.records import Counters, Examples, joined
from fedsiege.registry import register


@register("model_replacement")
class ModelReplacement(Poisoner):
    """Train a model X with the backdoor and send gamma (X - G), so that the next global model is X.

    Colluders train one X, on all their examples together, and each sends the same share of what a lone attacker
    would send. Everything that travels is scaled, BatchNorm's running statistics included: with a gamma that is too
    large, running variances can become negative and the model useless.

    X is trained by Algorithm 1: c of the B examples of a batch are triggered, the learning rate falls every few
    epochs, and training ends once the loss on the attackers' own triggered examples is small, which is looked at
    before every epoch, in evaluation mode. `scale` sends gamma (X - G) as it is. `constrain_and_scale` trains
    alpha * classification loss + (1 - alpha) * anomaly. `train_and_scale` sends an update of length `bound`.

    The authors' code divides the learning rate after 20 % and 80 % of the epochs, takes clean examples from the
    whole training set, ships alpha 1, and leaves BatchNorm's statistics out of its norms.

    Paper: Bagdasaryan et al., How To Backdoor Federated Learning, AISTATS 2020, arXiv 1807.00459
    """

    title: ClassVar[str] = "Model replacement"
    plants: ClassVar[bool] = True

    mode: Literal["scale", "constrain_and_scale", "train_and_scale"] = "scale"
    """Scale what was trained; train it to look like others' before; or scale it to the length `bound`."""
    gamma: LearntGamma = "auto"
    """What X - G is multiplied with, by colluders together. `auto`: as much as replaces the global model, worked
    out from the server's step and the attackers' weights, if the rule is a weighted mean. train_and_scale has its
    own."""
    estimator: Literal["regression", "line_search"] = "regression"
    """With gamma `estimated`: learn the server's step from how far sent updates moved the global model (a choice of
    ours); or raise gamma after each attack until the next global model has the backdoor (the paper's)."""
    probe: Annotated[float, Field(gt=0)] = 1.0
    """With `estimated`: gamma of the first attack."""
    growth: Annotated[float, Field(gt=1)] = 2.0
    """With line_search: what gamma is multiplied with after an attack that was too weak."""
    enough: Annotated[float, Field(gt=0, le=1)] = 0.9
    """With line_search: the share of the attackers' own triggered examples that ends the search."""
    most: Annotated[float, Field(gt=0)] = 1000.0
    """With `estimated`: the largest gamma."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """With constrain_and_scale: the weight of the classification loss; 1 leaves the anomaly out."""
    anomaly: Anomaly = "l2"
    """With constrain_and_scale, over trained parameters: |X - G|; 1 - cos(X, G), which hardly changes near G; or
    the distance, or 1 - cos, of X - G and the mean honest update."""
    knowledge: Knowledge = "partial"
    """Whose updates are the honest ones: `full` the other clients' of the round, `partial` those that the attackers
    would have sent."""
    bound: Annotated[float, Field(gt=0)] | None = None
    """With train_and_scale: S, the length of each update that is sent, so that gamma = S / |X - G|."""
    scope: Scope = "all"
    """What that length runs over: all float state, or trained parameters without BatchNorm's statistics."""
    data: Literal["own", "all"] = "own"
    """The clean examples: the attackers' own, or, as in the authors' code, all clients'."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """At most so many clean examples, drawn anew in each round; null: all there are. The authors' code: 12,800."""
    poisoned: Annotated[int, Field(ge=1)] = 20
    """c, how many examples of a full batch are replaced by triggered ones; in smaller batches as large a share."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """B, examples per step; null: as honest clients. The paper: 64."""
    noise: Annotated[float, Field(ge=0)] = 0.05
    """Standard deviation of normal noise on triggered inputs, after normalisation; text has none."""
    moved: bool | None = None
    """Crop and mirror triggered images anew each time; null: those that the trigger found, not stamped ones."""
    epochs: Annotated[int, Field(ge=1)] | None = 6
    """Passes over the clean examples; null: as honest clients."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the first epoch; null: the round's. The paper: 0.05, where honest clients have 0.1."""
    step_every: Annotated[int, Field(ge=1)] | None = 2
    """Epochs after which the learning rate is divided; null: never."""
    step_rate: Annotated[float, Field(ge=1)] = 10.0
    """What it is divided by."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of sgd; null: as honest clients."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """L2 penalty; null: as honest clients."""
    stop: Annotated[float, Field(gt=0)] | None = 1e-4
    """No further epoch once the mean loss on triggered examples is below this; null: all epochs."""

    @property
    def sees_honest(self) -> bool:
        """Whether it reads the honest clients' updates of the round."""
        return self.knowledge == "full" and self._compares

    @property
    def uses_others(self) -> bool:
        """Whether it trains on other clients' data too."""
        return self.data == "all"

    @property
    def _compares(self) -> bool:
        return self.mode == "constrain_and_scale" and self.anomaly in {"l2_to_benign", "cosine_to_benign"}

    def check(self, plot: Plot) -> None:
        """Refuse runs without a backdoor, and a gamma that cannot be had."""
        check_recipe(self, plot, "model_replacement", self._pooled(plot))
        if self.mode != "train_and_scale":
            factors.check_gamma(self.gamma, plot, "a number or estimated")
        elif self.bound is None:
            raise InputError("bound: missing; train_and_scale needs the length of the updates that are sent")

    def poison_updates(self, scene: Scene) -> Tensor:
        """gamma (X - G) for each attacker [k, d], the same for all of them."""
        anomaly = self._anomaly(scene) if self.mode == "constrain_and_scale" else None
        update, poisoned = mixed(scene, self, self._clean(scene), "together", anomaly=anomaly, alpha=self.alpha)
        gamma = self._gamma(scene, update)
        sent = (gamma * update).repeat(len(scene.clients), 1)
        for _ in scene.clients:
            count_sent(scene, update, gamma, poisoned)
        if self._learns("regression"):
            scene.memory = factors.noted(scene.memory, sent.sum(0))
        return sent

    def observe(self, scene: Scene, end: Tensor) -> None:
        """After a round of attack: what the global model tells about the server's step."""
        if not scene.clients:
            return
        if self._learns("regression"):
            scene.memory = factors.regressed(scene.memory, end - scene.start)
        elif self._learns("line_search"):
            shown = triggered(backdoor_of(scene), joined(scene.shards), scene.rng("search"))
            if shown is not None:
                accuracy, _ = scene.task.measure(end, shown)
                tried = factors.from_search(scene.memory, self.probe)
                scene.memory = factors.searched(scene.memory, accuracy, tried, self.growth, self.enough, self.most)

    def told(self, counters: Counters) -> Counters:
        """Means of gamma, and of the norms before and after scaling."""
        return told(counters)

    def _learns(self, estimator: str) -> bool:
        return self.mode != "train_and_scale" and self.gamma == "estimated" and self.estimator == estimator

    def _gamma(self, scene: Scene, update: Tensor) -> float:
        """What each attacker's X - G [d] is multiplied with."""
        if self.mode == "train_and_scale":
            norm = float(length(update[: scoped(scene.task.layout, self.scope)]))
            return self.bound / norm if self.bound is not None and norm > 0 else 1.0
        if self.gamma == "auto":
            return factors.automatic(scene)
        if isinstance(self.gamma, float):
            whole = self.gamma
        elif self.estimator == "regression":
            whole = factors.from_regression(scene.memory, self.probe, self.most)
        else:
            whole = factors.from_search(scene.memory, self.probe)
        return whole / len(scene.clients)

    def _pooled(self, plot: Plot) -> int:
        """How many clean examples they have at most in a round."""
        owners = range(len(plot.sizes)) if self.data == "all" else plot.compromised
        found = sum(plot.sizes[client] for client in owners) if plot.sizes else 0
        return found if self.examples is None else min(found, self.examples)

    def _clean(self, scene: Scene) -> Examples:
        """The clean examples of a round."""
        if self.data == "all" and scene.others is None:
            raise InputError("data: got all, and other clients' data is not there; expected own")
        found = scene.others() if self.data == "all" and scene.others else joined(scene.shards)
        if self.examples is None or self.examples >= len(found):
            return found
        return found.take(scene.rng("clean").choice(len(found), size=self.examples, replace=False))

    def _anomaly(self, scene: Scene) -> Unusual | None:
        """What is kept small besides the loss."""
        if self.alpha == 1:
            return None
        trained = scene.task.layout.trained

        def benign() -> Tensor:
            return scene.benign().mean(0, dtype=torch.float64)[:trained].float()

        return anomaly_of(self.anomaly, scene.start[:trained], benign)
