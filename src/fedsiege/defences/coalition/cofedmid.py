"""CoFedMID: clients that share out the classes, bring useful examples back, and add noise that cancels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedsiege.defences.client.base import (
    NAMED,
    Batch,
    Circle,
    Ground,
    Turn,
    is_neutral,
    leaves_one_over,
    means,
    refuse_sequences,
)
from fedsiege.defences.coalition import bandit
from fedsiege.defences.coalition.assignment import Decay
from fedsiege.defences.coalition.base import Coalition, Members
from fedsiege.defences.coalition.confidence import Target, regularisation
from fedsiege.defences.coalition.coordinator import Coordinator, Plan
from fedsiege.errors import InputError
from fedsiege.records import Counters, Examples, Layout
from fedsiege.registry import register

FAINT = 0.25
"""Noise whose root mean square is under this share of sigma is faint."""


@dataclass(slots=True)
class Stint:
    """One member's part in a round.

    Args:
        plan: the coalition's.
        tally: over all steps, recycled examples and their regularisation, on the device.
        recycled: which of the examples of this round are recycled [m]; None where none is.
        interval: the interval of loss that they were taken from, where one was chosen.
        before: the mean loss on the validation examples at the start.
        changed: whether the upload is another than without the defence.

    """

    plan: Plan
    tally: Tensor
    recycled: Tensor | None = None
    interval: int | None = None
    before: float = 0.0
    changed: bool = False


@register("cofedmid")
class CoFedMID(Coalition):
    """Members train on classes that overlap little, bring some of the rest back, and add noise that cancels.

    Class-guided partition: in round t each member trains on its examples of m_t classes, fewer every round, so that
    no example is trained on often. The sets are drawn anew each round, and no two share more classes than a bound.

    Utility-aware compensation: from round `start` on, up to `recycle` of a member's examples come back from the
    classes it left out. They are taken from one of `intervals` intervals of loss, chosen by a bandit that is
    rewarded for how much the round lowered the loss on validation examples. The intervals hold equally many
    examples in the first round from `start` on in which the member takes part; it recycles from its next one on.
    Recycled examples carry a regularisation against confidence. A model with BatchNorm cannot train on a step of
    one example: where the last step of an epoch would be that, a random example is left out too.

    Aggregation-neutral perturbation: the last `tail` of the trained parameters of each upload get noise whose
    weighted sum over the members of a round is zero. That holds for a weighted mean only, and where the uploads of
    all of them arrive. In a round with a single member present none is added. A member that has no example of its
    classes uploads its noise alone, so that the others' still cancels, and shows it to who sees single uploads.
    A single number comes out near zero now and then, and a member with most of the weight adds little: the counters
    have the share of uploads whose noise was under a quarter of sigma.

    There is no formal guarantee, and a member cannot have DP-SGD's: an example's loss decides which others come
    back. The paper gives no body for the assignment, no formula for the decays but the linear one, and neither the
    bandit's constants nor `recycle`; what stands here for them is a reconstruction.
    Published settings: m_max and m_min 50 and 20 on CIFAR-100, 10 and 2 on CIFAR-10, 200 and 40 on TinyImageNet;
    sigma and tail 0.1 and 0.2, 0.01 and 0.01, 0.1 and 0.3.

    Paper: Bai et al., United We Defend: Collaborative Membership Inference Defenses in Federated Learning,
    USENIX Security 2026, arXiv 2601.06866
    """

    title: ClassVar[str] = "CoFedMID"
    neutral: ClassVar[Mapping[str, str] | None] = {
        "assignment": "none",
        "compensation": "none",
        "perturbation": "none",
    }
    proof: ClassVar[str] = "changed"
    couples: ClassVar[bool] = True

    members: Members = "pair"
    """The coalition: the first two clients (pair), the first half, all, or a list of their numbers."""
    mode: Literal["together", "alone"] = "together"
    """Whether members act on one plan; alone, each draws its own classes, and noise that does not cancel."""
    assignment: Literal["bounded", "random", "none"] = "bounded"
    """How classes are shared out: with a bound on what two sets share, at random, or not at all."""
    m_max: Annotated[int, Field(ge=1)] | None = None
    """Classes of each member in the first round; null for all."""
    m_min: Annotated[int, Field(ge=1)] | None = None
    """Classes of each member in the last round; null for a fifth of all, rounded up, or m_max if that is less."""
    decay: Decay = "linear"
    """How the number of classes falls from m_max to m_min."""
    coverage: Literal["strict", "maximize"] = "maximize"
    """Cover as many classes as the sets can; strict refuses a run in which that is ever fewer than all."""
    compensation: Literal["bandit", "random", "sequential", "none"] = "bandit"
    """How the interval to recycle from is chosen: by reward, at random, in turn; none recycles nothing."""
    start: Annotated[int, Field(ge=1)] = 10
    """First round in which the intervals may be set; a member recycles from its next round on."""
    intervals: Annotated[int, Field(ge=1)] = 10
    """Number of intervals of loss."""
    recycle: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Most examples that come back in a round, as a share of all the member's."""
    exploration: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the bandit's choices that is uniform."""
    step: Annotated[float, Field(ge=0)] = 0.3
    """Step size of the bandit."""
    history: Annotated[int, Field(ge=2)] = 20
    """How many of the latest rewards a reward is measured against."""
    regularisation: Annotated[float, Field(ge=0)] = 0.005
    """Strength of the reward for the entropy of outputs on recycled examples."""
    cr_target: Literal["predicted", "onehot", "hamp", "none"] = "predicted"
    """Label of the confidence regularisation: the paper's (predicted), one-hot, HAMP's, or no regularisation."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    """With cr_target hamp, smallest entropy of the label, as a share of log C."""
    perturbation: Literal["scalar", "vector", "none"] = "scalar"
    """One number for a member's whole tail, as in the paper, or one for each of its parameters; or no noise."""
    sigma: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise before it is made to cancel; 0 adds none."""
    tail: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the trained parameters, the last ones, that get noise."""

    @property
    def shares(self) -> bool:
        """Not where each member acts alone."""
        return self.mode == "together"

    @property
    def noisy(self) -> bool:
        """Whether noise is wanted at all."""
        return self.perturbation != "none" and self.sigma > 0

    def coordinator(self, circle: Circle) -> Coordinator:
        """What works the rounds' plans out."""
        most = circle.classes if self.m_max is None else self.m_max
        least = min(most, math.ceil(circle.classes / 5)) if self.m_min is None else self.m_min
        sigma = 0.0 if self.perturbation == "none" else self.sigma
        form: Literal["scalar", "vector"] = "vector" if self.perturbation == "vector" else "scalar"
        together = self.mode == "together"
        return Coordinator(circle, most, least, self.decay, self.assignment, together, sigma, form)

    def check(self, ground: Ground) -> None:
        """Refuse what the data's classes, the clients' weights, the model or the validation set do not allow."""
        if is_neutral(self):
            return
        circle = circle_of(ground)
        if self.assignment != "none":
            refuse_sequences(self, ground, "; expected assignment: none, which leaves its noise")
            coordinator = self.coordinator(circle)
            self._check_classes(coordinator)
            if self.coverage == "strict":
                self._check_coverage(coordinator, ground)
        if self.noisy:
            self._check_noise(circle, ground)
        if self.compensation == "bandit" and self._recycles(circle) and ground.validation == 0:
            raise InputError(
                "compensation: got bandit, which sees what helps by validation examples, with validation 0; "
                "expected validation 1 or more, or compensation random, sequential or none"
            )

    def _check_classes(self, coordinator: Coordinator) -> None:
        classes, most, least = coordinator.circle.classes, coordinator.most, coordinator.least
        if most > classes:
            raise InputError(f"m_max: got {most}; expected {classes} or fewer, the data's classes")
        if least > most:
            raise InputError(f"m_min: got {least}; expected {most} or fewer, what m_max is")

    def _check_coverage(self, coordinator: Coordinator, ground: Ground) -> None:
        if self.assignment == "random" or self.mode == "alone":
            by = "mode alone" if self.mode == "alone" else "assignment random"
            raise InputError(f"coverage: got strict with {by}, which leaves it to chance; expected maximize")
        absent = len(ground.sizes) - ground.cohort
        members, last = len(ground.using), coordinator.circle.rounds
        # A round without any member has nothing to cover.
        fewest, m, classes = max(1, members - absent), coordinator.m(last), coordinator.circle.classes
        if fewest * m < classes:
            there = f"{members} members" if fewest == members else f"as few as {fewest} of {members} members"
            raise InputError(
                f"coverage: got strict, but in round {last} {there} with m = {m} classes each cover at most "
                f"{fewest * m} of {classes}; expected m_min {math.ceil(classes / fewest)} or more, or maximize"
            )

    def _check_noise(self, circle: Circle, ground: Ground) -> None:
        for member, weight in circle.volumes.items():
            if not (math.isfinite(weight) and weight > 0):
                raise InputError(
                    f"members: got client {member}, whose weight in the aggregation is {weight:g}; "
                    "expected clients with weight"
                )
        trained = ground.task.layout.trained
        if share_of(self.tail, trained) == 0:
            raise InputError(
                f"tail: got {self.tail:g}, which is none of the model's {trained} trained parameters; "
                f"expected {1 / trained:.2g} or more"
            )

    def _recycles(self, circle: Circle) -> bool:
        """Whether any round of the run recycles."""
        return self.compensation != "none" and self.assignment != "none" and self.start < circle.rounds

    def cautions(self, ground: Ground) -> list[str]:
        """Where the noise does not cancel or is faint, and where the compensation never acts."""
        if is_neutral(self):
            return []
        circle, found = circle_of(ground), list[str]()
        if self.noisy and self.mode == "together":
            found += self._cautions_of_noise(circle, ground)
        if self.noisy and self.mode == "alone":
            found.append("Its members act alone: their noise does not cancel and stays in the aggregate.")
        return found + self._cautions_of_compensation(circle, ground)

    def _cautions_of_compensation(self, circle: Circle, ground: Ground) -> list[str]:
        if self.compensation == "none":
            return []
        if not self._recycles(circle):
            why = "no classes are left out" if self.assignment == "none" else f"there are {circle.rounds} rounds"
            return [f"Nothing is recycled: {why}, and the first that could be is round {self.start + 1}."]
        learns = "; the bandit learns from its choices all the same" * (self.compensation == "bandit")
        if self.coordinator(circle).m(circle.rounds) == circle.classes:
            return [
                f"Nothing is recycled: each member trains on all {circle.classes} classes in every round{learns}."
            ]
        barred = [member for member in circle.volumes if share_of(self.recycle, ground.sizes[member]) == 0]
        if not barred:
            return []
        who = "" if len(barred) == len(circle.volumes) else f" by {listed(barred)}"
        return [f"Nothing is recycled{who}: {self.recycle:g} of the member's examples is less than one{learns}."]

    def _cautions_of_noise(self, circle: Circle, ground: Ground) -> list[str]:
        found = []
        if ground.dropout > 0 and ground.weights is not None:
            found.append(
                f"A share of {ground.dropout:g} of the answers gets lost: in a round without one of the members "
                "announced, the noise of the others stays in the aggregate."
            )
        if ground.weights is None:
            found.append("The aggregation rule is no weighted mean: the members' noise does not cancel in it.")
        if ground.cohort < len(ground.sizes):
            found.append(
                f"Each round invites {ground.cohort} of {len(ground.sizes)} clients: the noise is made to cancel "
                "over the members among them, and a member by itself adds none."
            )
        noise = self.coordinator(circle).plan(1, list(circle.volumes)).noise
        faint = [member for member in circle.volumes if noise.deviation(member) < FAINT * self.sigma]
        return found + [
            f"Client {member} has nearly all of the coalition's weight: for the noise to cancel, its own has a "
            f"standard deviation of only {noise.deviation(member):.2g}, where sigma is {self.sigma:g}."
            for member in faint
        ]

    def remarks(self, counters: Counters) -> list[str]:
        """What noise stayed in the model, and whose was plain to see."""
        if not self.noisy:
            return []
        found, lost = list[str](), counters.get("members_lost", 0)
        missing = f"{lost:.0f} of the members' answers got lost"
        if lost and "residual" not in counters:
            found.append(f"{missing}: what the noise of the others left in the model is not known.")
        if lossy := counters.get("residual_rounds", 0):
            told = self.told(counters)
            found.append(
                f"In {lossy:.0f} of {counters['rounds']:.0f} rounds noise stayed in the global model ({missing}): "
                f"{told['mean_residual']:.2g} root mean square on each parameter of the tail in such a round, and "
                f"{told['residual_accumulated']:.2g} in all, where sigma is {self.sigma:g}."
            )
        if bare := counters.get("noise_alone", 0):
            other = ", and where two members are present the other's too" * (self.mode == "together")
            found.append(
                f"{bare:.0f} of {counters['perturbed']:.0f} noisy uploads were noise and nothing else, for the "
                f"member had no example to train on: who sees single uploads reads the noise off them{other}."
            )
        return found

    @contextmanager
    def during(self, turn: Turn) -> Iterator[Stint | None]:
        """The member's part in the round."""
        if is_neutral(self):
            yield None
            return
        plan = self.coordinator(circle_of(turn)).plan(turn.number, turn.present)
        stint = Stint(plan, torch.zeros(2, device=turn.task.device))
        yield stint
        regularised, strength = stint.tally.tolist()
        turn.count("regularised", regularised)
        turn.count("regularisation", strength)

    def on_data(self, examples: Examples, turn: Turn) -> Examples:
        """The member's examples of its classes, and what comes back of the others."""
        if self.assignment == "none":
            return examples
        stint: Stint = turn.tool
        own = np.array(stint.plan.classes[turn.client])
        labels = examples.y.cpu().numpy()
        assigned = np.isin(labels, own)
        recycled = self._recycled(examples, assigned, turn)
        rows = np.flatnonzero(assigned | recycled)
        if leaves_one_over(len(rows), turn):
            rows = np.delete(rows, turn.rng.integers(len(rows)))
        if recycled[rows].any():
            stint.recycled = torch.as_tensor(recycled[rows], device=turn.task.device)
        stint.changed = len(rows) < len(examples) or stint.recycled is not None
        turn.count("classes", len(own))
        turn.count("classes_without_examples", len(own) - len(np.unique(labels[assigned])))
        turn.count("examples_assigned", int(assigned[rows].sum()))
        turn.count("examples_recycled", int(recycled[rows].sum()))
        turn.count("examples_left_out", len(examples) - len(rows))
        turn.count("turns_without_examples", float(len(rows) == 0))
        return examples.take(rows) if stint.changed else examples

    def _recycled(self, examples: Examples, assigned: NDArray[np.bool_], turn: Turn) -> NDArray[np.bool_]:
        """Which examples come back [n]; in the first round in which any could, the intervals are set instead."""
        recycled = np.zeros(len(examples), dtype=bool)
        if self.compensation == "none" or turn.number < self.start:
            return recycled
        losses = losses_of(examples, turn)
        if not turn.memory:
            turn.memory = bandit.begun(losses, self.intervals)
            return recycled
        stint: Stint = turn.tool
        stint.interval = self._interval(turn)
        if self.compensation == "bandit":
            stint.before = validation_loss(turn)
        left_out = np.flatnonzero((bandit.placed(losses, turn.memory) == stint.interval) & ~assigned)
        most = min(len(left_out), share_of(self.recycle, len(examples)))
        recycled[turn.rng.choice(left_out, size=most, replace=False)] = True
        turn.memory = bandit.chosen(turn.memory, stint.interval)
        turn.count("choices")
        turn.count("choices_without_examples", float(most == 0))
        return recycled

    def _interval(self, turn: Turn) -> int:
        if self.compensation == "sequential":
            return int(turn.memory["choices"].sum()) % self.intervals
        if self.compensation == "random":
            return int(turn.rng.integers(self.intervals))
        return int(turn.rng.choice(self.intervals, p=bandit.probabilities(turn.memory, self.exploration)))

    def on_loss(self, losses: Tensor, logits: Tensor, batch: Batch, turn: Turn) -> Tensor:
        """The losses [b], those of recycled examples with the confidence regularisation."""
        stint: Stint | None = turn.tool
        if stint is None or stint.recycled is None or self.cr_target == "none" or batch.places is None:
            return losses
        target: Target = self.cr_target
        made = batch.weighted(lambda y: regularisation(logits, y, target, self.regularisation, self.gamma))
        recycled = stint.recycled[batch.places]
        added = torch.where(recycled, made, 0.0)
        stint.tally += torch.stack([recycled.sum(), added.detach().sum()])
        return losses + added

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:
        """The update [d], its trained tail with the round's noise; the bandit gets its reward before that."""
        stint: Stint | None = turn.tool
        if stint is None:
            return update
        if stint.interval is not None and self.compensation == "bandit":
            self._reward(stint.interval, stint.before - validation_loss(turn), turn)
        noise = stint.plan.noise
        turn.count("updates")
        turn.count("changed", float(stint.changed or noise.active))
        turn.count("perturbed", float(noise.active))
        if self.noisy:
            turn.count("unperturbed", float(not noise.active))
        return self._perturbed(update, turn) if noise.active else update

    def _reward(self, interval: int, reward: float, turn: Turn) -> None:
        turn.memory = bandit.rewarded(
            turn.memory,
            interval,
            reward,
            exploration=self.exploration,
            step=self.step,
            history=self.history,
        )
        turn.count("rewards")
        turn.count("reward", reward)

    def _perturbed(self, update: Tensor, turn: Turn) -> Tensor:
        changed, layout, squares = update.clone(), turn.task.layout, 0.0
        size = self.disturbed(layout)
        tail = changed[layout.trained - size : layout.trained]
        for place, values in turn.tool.plan.noise.blocks(turn.client, size):
            # Rounded once, so that single precision loses little of what is to cancel.
            added = torch.as_tensor(values, device=update.device)
            tail[place] = (tail[place].double() + added).to(update.dtype)
            squares += float(values @ values)
        rms = math.sqrt(squares / size)
        turn.count("noise_rms", rms)
        turn.count("faint", float(rms < FAINT * self.sigma))
        turn.count("noise_alone", float(not update.any()))
        return changed

    def disturbed(self, layout: Layout) -> int:
        """floor(tail * P) of the P trained entries, the last ones; 0 without noise."""
        return share_of(self.tail, layout.trained) if self.noisy else 0

    def noise(
        self, circle: Circle, number: int, present: Sequence[int], client: int, layout: Layout
    ) -> Tensor | None:
        """What a member adds to its update [d] in a round, in float64; None where it adds nothing."""
        noise, size = self.coordinator(circle).plan(number, present).noise, self.disturbed(layout)
        if not noise.active or client not in present:
            return None
        added = torch.zeros(layout.size, dtype=torch.float64)
        tail = added[layout.trained - size : layout.trained]
        for place, values in noise.blocks(client, size):
            tail[place] = torch.as_tensor(values)
        return added

    def settle(
        self, circle: Circle, number: int, present: Sequence[int], arrived: Mapping[int, float], scale: float | None
    ) -> Counters:
        """The sets of the round, what a coordinator would have sent, and the noise that stays in the global model.

        The latter is left out where the rule is no weighted mean: there is nothing that it would be a formula of.
        """
        if is_neutral(self):
            return {}
        plan = self.coordinator(circle).plan(number, present)
        sent = {"messages": float(plan.messages), "message_bytes": float(plan.bytes)}
        if not present:
            return sent if plan.messages else {}
        sets, left = plan.assignment, dict[str, float]()
        if scale is not None:
            residual = scale * plan.noise.left(arrived)
            left = {
                "residual": residual,
                "residual_squares": residual**2,
                "residual_rounds": float(residual > 0),
            }
        return {
            "rounds": 1.0,
            "classes_covered": float(circle.classes if sets is None else sets.covered),
            "overlap": float(circle.classes * (len(present) > 1) if sets is None else sets.overlap),
            "overlap_allowed": float(circle.classes if sets is None else sets.allowed),
            "restarts": float(0 if sets is None else sets.restarts),
            "members_lost": float(sum(member not in arrived for member in present)),
            **sent,
            **left,
        }

    def told(self, counters: Counters) -> Counters:
        """Means over the members' rounds, the coalition's rounds, recycled examples and rewards; the rest as sums.

        Messages are what a coordinator would send: 2 bytes a class id and 8 a scalar. The residual is the root mean
        square, over the tail, of the noise that stays in the global model: its mean over the rounds in which any
        does, and what is to be expected of all of them together, the root of their summed squares. `faint_share` is
        the share of noisy uploads whose noise came out under a quarter of sigma.
        """
        told = means(counters, "classes", "examples_assigned", "examples_recycled", "examples_left_out")
        told = means(told, "noise_rms", over="perturbed")
        told = means(told, "classes_covered", "overlap", "overlap_allowed", over="rounds")
        told = means(means(told, "regularisation", over="regularised"), "reward", over="rewards")
        if "faint" in told:
            told["faint_share"] = told.pop("faint") / told["perturbed"]
        if "residual_squares" in told:
            told["residual_accumulated"] = math.sqrt(told.pop("residual_squares"))
        return means(told, "residual", over="residual_rounds")


def circle_of(place: Turn | Ground) -> Circle:
    """What the members know; a coalition is never asked without it."""
    assert place.circle is not None, "a coalition has a circle"
    return place.circle


def share_of(share: float, n: int) -> int:
    """floor(share * n), where a share such as 0.29 of 100 is 29."""
    return math.floor(share * n + 1e-9)


def listed(clients: Sequence[int]) -> str:
    """Clients in words: `client 2`, `clients 0, 2 and 3`, and how many from more than ten on."""
    if len(clients) > NAMED:
        return f"{len(clients)} members"
    *first, last = map(str, clients)
    return f"clients {', '.join(first)} and {last}" if first else f"client {last}"


def losses_of(examples: Examples, turn: Turn) -> NDArray[np.float64]:
    """Cross-entropies [m] of the resident model, in evaluation mode and in float64."""
    task = turn.task
    losses = task.losses(task.predict(task.state.clone(), examples), examples.y)
    return losses.double().cpu().numpy()


def validation_loss(turn: Turn) -> float:
    """Mean cross-entropy of the resident model on the validation examples."""
    assert turn.validation is not None, "check refuses a run without validation examples"
    return float(losses_of(turn.validation, turn).mean())
