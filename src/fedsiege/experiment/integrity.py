"""Whether the model does what it should: its accuracy, the backdoor's, what attackers sent, who was rejected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fedsiege.aggregators.geometry import cosines, norms
from fedsiege.data.triggers.base import Backdoor
from fedsiege.defences.client.base import is_neutral
from fedsiege.experiment.prepare import Prepared
from fedsiege.experiment.wreck import wreck
from fedsiege.federation.server import Guarding
from fedsiege.metrics.backdoor import persistence, wilson
from fedsiege.records import Counters, Estimate, Examples, Round
from fedsiege.registry import label_of, name_of
from fedsiege.streams import stream
from fedsiege.task import ROOM, Task


@dataclass(frozen=True, slots=True)
class Watch:
    """What the runner measures of the global model, round by round.

    Args:
        task: the resident model and its loss.
        heldout: what accuracy is measured on.
        backdoor: what success is measured on, where something is planted.
        rounds: the rounds of attack.

    """

    task: Task
    heldout: Examples
    backdoor: Backdoor | None
    rounds: tuple[int, ...]

    @classmethod
    def over(cls, prepared: Prepared) -> "Watch":
        """The watch of a run."""
        heldout = prepared.data.heldout.to(prepared.task.device)
        rounds = () if prepared.campaign is None else prepared.campaign.rounds
        return cls(prepared.task, heldout, prepared.backdoor, rounds)

    @property
    def begins(self) -> bool:
        """Whether the model is measured before the first round too: to see what an attack changes."""
        return bool(self.rounds) or self.backdoor is not None

    def around_attack(self, number: int) -> bool:
        """Whether a round is one of attack, or the last before or the first after one."""
        return any(near in self.rounds for near in (number - 1, number, number + 1))

    def model(self, vector: torch.Tensor) -> dict[str, Any]:
        """Accuracy and loss of a model [d]; with a backdoor its success, and the clean examples that it takes."""
        if self.backdoor is None:
            accuracy, loss = self.task.measure(vector, self.heldout)
            return {"accuracy": accuracy, "loss": loss}
        success = {"backdoor": self.task.measure(vector, self.backdoor.test)[0], "mistaken": None}
        if self.heldout.y.dim() > 1:
            accuracy, loss = self.task.measure(vector, self.heldout)
            return {"accuracy": accuracy, "loss": loss, **success}
        logits, y = self.task.predict(vector, self.heldout), self.heldout.y
        taken, others = logits.argmax(1) == self.backdoor.target, y != self.backdoor.target
        return {
            "accuracy": float((logits.argmax(1) == y).double().mean()),
            "loss": float(self.task.losses(logits, y).double().mean()),
            **success,
            "mistaken": float(taken[others].double().mean()) if bool(others.any()) else None,
        }

    def submitted(self, done: Round) -> list[dict[str, Any]]:
        """What attackers sent in a round beside what honest clients did; nothing where none of it could be used.

        Of several attackers the longest update is measured. An output of its model that is no number is a wrong
        answer.
        """
        cohort = done.cohort
        if cohort is None or set(done.attackers).isdisjoint(cohort.clients):
            return []
        bad = torch.tensor([client in done.attackers for client in cohort.clients], device=cohort.updates.device)
        lengths = norms(cohort.updates)
        longest = lengths[bad].max()
        honest = cohort.updates[~bad]
        sent = cohort.updates[bad][lengths[bad].argmax()]
        usual = float(lengths[~bad].quantile(0.5)) if len(honest) else 0.0
        found = wreck(self, done.start + sent)
        return [
            {
                "round": done.number,
                "attackers": int(bad.sum()),
                "kept": sum(done.fates[client].kept for client in done.attackers if client in done.fates),
                "norm": float(longest),
                "norm_ratio": float(longest) / usual if usual > 0 else None,
                "norm_rank": int((lengths > longest).sum()) + 1,
                "of": len(lengths),
                "cosine": float(cosines(torch.stack([sent, honest.mean(0)]))[0, 1]) if len(honest) else None,
                "accuracy": found["accuracy"],
                "success": found.get("backdoor"),
            }
        ]


def poisoning(
    prepared: Prepared,
    history: Sequence[Mapping[str, Any]],
    submitted: Sequence[Mapping[str, Any]],
    detection: Mapping[str, Counters],
) -> dict[str, Any] | None:
    """What result.json says of poisoning and of what the server rejected; None where there was neither."""
    campaign, backdoor = prepared.campaign, prepared.backdoor
    judged = any(not is_neutral(one.defence) for one in prepared.server_defences)
    picks = any(side["kept"] < side["answers"] or side["scale"] != side["answers"] for side in detection.values())
    if campaign is None and backdoor is None and not judged and not picks:
        return None
    n = counted(prepared.data.heldout)
    # Who is not sure to be invited, or whose answer gets lost, attacks in fewer rounds than planned.
    rounds = tuple(one["round"] for one in submitted)
    return {
        "adversary": None
        if campaign is None
        else {
            "name": name_of(campaign.poisoner),
            "label": campaign.label,
            "title": campaign.poisoner.title,
            "compromised": list(campaign.compromised),
            "attack_rounds": list(rounds),
            "planned_rounds": len(campaign.rounds),
            "plants": campaign.poisoner.plants,
            "probes": campaign.poisoner.probes,
        },
        "backdoor": None if backdoor is None else planted_part(prepared, backdoor),
        "main": moments(history, "accuracy", n, rounds),
        "success": None if backdoor is None else success(history, len(backdoor.test), rounds),
        "mistaken": mistaken(prepared, backdoor, history, rounds),
        "detection": {side: shares(detection.get(side, {})) for side in ("attackers", "honest")},
        "attacks": [dict(one) for one in submitted],
    }


def in_use(prepared: Prepared, model: torch.Tensor) -> dict[str, Any] | None:
    """How the final model [d] does for whoever predicts with it as a defence of the server's asks for.

    None where none asks for anything but the model's own predictions; of several the last decides.
    """
    heldout, backdoor = prepared.data.heldout, prepared.backdoor
    for one in reversed(prepared.server_defences):
        found = answers(prepared, one, model, heldout)
        if found is None:
            continue
        planted = answers(prepared, one, model, backdoor.test) if backdoor else None
        return {
            "label": one.label,
            "accuracy": rate(*hits(found, heldout.y)),
            "success": rate(*hits(planted, backdoor.test.y)) if backdoor and planted is not None else None,
            "mistaken": taken(found, heldout.y, backdoor.target) if backdoor and found.dim() == 1 else None,
        }
    return None


def answers(prepared: Prepared, one: Guarding, model: torch.Tensor, examples: Examples) -> torch.Tensor | None:
    """The classes [m] or [m, T] that a defence has the final model [d] predict; None: the model's own.

    Some examples at a time, each time with the same random numbers: whoever uses it draws them once.
    """
    task, seed, found = prepared.task, prepared.experiment.seed, list[torch.Tensor]()
    each = max(1, ROOM // (len(prepared.data.classes) * examples.y[0].numel()))
    for first in range(0, len(examples), each):
        part = examples.take(np.arange(first, min(first + each, len(examples)))).to(task.device)
        rng = stream(seed, "server", f"{name_of(one.defence)} use", one.nth)
        scores = one.defence.predict(task, model, part, rng)
        if scores is None:
            return None
        found.append(scores.argmax(1).to(examples.y.device))
    return torch.cat(found)


def taken(found: torch.Tensor, y: torch.Tensor, target: int) -> dict[str, Any] | None:
    """The share of examples of other classes than the target that are taken for it; None where there are none."""
    others = y != target
    return rate(float((found == target)[others].double().mean()), int(others.sum())) if bool(others.any()) else None


def hits(found: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
    """The share of the labels that count which were found, and how many count."""
    return float((found == y)[y >= 0].double().mean()), int((y >= 0).sum())


def counted(examples: Examples) -> int:
    """How many answers an accuracy is counted over: examples, or positions of sequences that count."""
    return int((examples.y >= 0).sum())


def planted_part(prepared: Prepared, backdoor: Backdoor) -> dict[str, Any]:
    """What was planted, in words and numbers."""
    image = prepared.data.heldout.x.dtype == torch.uint8
    return {
        "trigger": label_of(backdoor.trigger),
        "title": backdoor.trigger.title,
        "target": backdoor.target,
        "target_name": prepared.data.classes[backdoor.target],
        "test": len(backdoor.test),
        "unit": "image" if image else "text" if backdoor.test.y.dim() > 1 else "example",
    }


def rate(share: float, n: int) -> dict[str, Any]:
    """A share of n, with its interval."""
    found: Estimate = wilson(round(share * n), n)
    return {"value": share, "low": found.low, "high": found.high, "n": n}


def moments(history: Sequence[Mapping[str, Any]], key: str, n: int, rounds: Sequence[int] | None) -> dict[str, Any]:
    """A figure of the global model before the first round of attack, after it, at its lowest since, and last."""
    known = [(one["round"], one[key]) for one in history if one.get(key) is not None]
    before = [value for number, value in known if not rounds or number < rounds[0]]
    since = [value for number, value in known if rounds and number >= rounds[0]]
    return {
        "before": rate(before[-1 if rounds else 0], n) if before else None,
        "attacked": rate(since[0], n) if since else None,
        "lowest": rate(min(since), n) if since else None,
        "last": rate(known[-1][1], n),
    }


def success(history: Sequence[Mapping[str, Any]], n: int, rounds: Sequence[int]) -> dict[str, Any]:
    """The backdoor's accuracy at those moments, its mean since the first attack, and how long it lasted."""
    known = [(one["round"], one["backdoor"]) for one in history if one.get("backdoor") is not None]
    since = [(number, value) for number, value in known if rounds and number >= rounds[0]]
    found = moments(history, "backdoor", n, rounds)
    del found["lowest"]
    lasted = None
    if since:
        after = [(number, value) for number, value in since if number >= rounds[-1]]
        lasted = persistence([number for number, _ in after], [value for _, value in after], rounds[-1])
    return {
        **found,
        "mean": mean_of(since) if since else None,
        "persistence": None if lasted is None else {"rounds": lasted[0], "censored": lasted[1]},
    }


def mean_of(measured: Sequence[tuple[int, float]]) -> float:
    """The mean over rounds of a figure that was measured after some of them, from the first of these to the last.

    Each figure stands for the rounds until the next one. Were all to count alike, those around an attack, which are
    measured however rarely others are, would count for too much.

    Args:
        measured: round and figure, rounds rising, at least one.

    """
    rounds = [number for number, _ in measured]
    spans = [*(later - number for number, later in pairwise(rounds)), 1]
    return sum(span * value for span, (_, value) in zip(spans, measured, strict=True)) / sum(spans)


def mistaken(
    prepared: Prepared, backdoor: Backdoor | None, history: Sequence[Mapping[str, Any]], rounds: Sequence[int]
) -> dict[str, Any] | None:
    """The share of clean examples of other classes that are taken for the target."""
    if backdoor is None or not any(one.get("mistaken") is not None for one in history):
        return None
    n = int((prepared.data.heldout.y != backdoor.target).sum())
    found = moments(history, "mistaken", n, rounds)
    del found["lowest"]
    return found


def shares(sums: Mapping[str, float]) -> dict[str, Any]:
    """What the server made of some answers; of those that it could use, on average."""
    answers, unusable = int(sums.get("answers", 0)), int(sums.get("unusable", 0))
    n = answers - unusable
    return {
        "answers": answers,
        "unusable": unusable,
        "rejected": rate(sums["rejected"] / n, n) if n else None,
        "kept": sums["kept"] / n if n else None,
        "scale": sums["scale"] / n if n else None,
    }
