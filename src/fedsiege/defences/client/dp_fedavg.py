"""DP-FedAvg: a clipped upload with calibrated Gaussian noise, which protects a whole client."""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedsiege.defences.client.base import (
    ClientDefence,
    Clients,
    Ground,
    Guarantee,
    Turn,
    is_neutral,
    means,
)
from fedsiege.defences.privacy import gaussian_epsilon, refuse_batch_statistics
from fedsiege.records import Counters
from fedsiege.registry import register

ROUNDS = "rounds_of_"
"""Counters of how often each client took part begin with this."""


@register("dp_fedavg")
class DPFedAvg(ClientDefence):
    """Scale the whole upload down to the norm `clip`, then add Gaussian noise to every value of it.

    With `local` noise its standard deviation is noise_multiplier * clip: each upload by itself is protected from
    the server. With `distributed` noise it is that over the square root of the number of clients in a round, so
    that the sum of their uploads carries noise_multiplier * clip: the aggregate is protected as by a trusted
    server, a single upload that much less.

    The report gives epsilon against a server that sees single uploads and, where the rule is a weighted mean, all
    clients use the defence and no later one changes the upload, against those who see only the aggregate. Among
    them is any one other client: it knows its own noise, which therefore hides nobody. Neighbouring federations
    differ in one client, whose updates are all zero in one of them. Who takes part in which round, with how many
    examples, is taken to be known: nothing is gained by sampling clients. What a coalition adds to the upload
    afterwards looks at nobody's data, so that the bound against the server stays. The norm of an upload is always
    bounded, so there is no neutral setting.

    Paper: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018, arXiv 1710.06963
    """

    title: ClassVar[str] = "DP-FedAvg"
    neutral: ClassVar[dict[str, float] | None] = None
    proof: ClassVar[str] = "changed"
    private: ClassVar[bool] = True

    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of an upload before the noise."""
    noise_multiplier: Annotated[float, Field(ge=0)] = 1.0
    """Standard deviation of the noise over `clip`, of an upload or of the sum of a round's; 0 clips only."""
    noise: Literal["local", "distributed"] = "local"
    """Whether each upload carries the whole noise, or a round's uploads together."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta at which epsilon is reported."""
    clients: Clients = "all"
    """Who uses it: all, a client's number or a list of numbers."""

    def check(self, ground: Ground) -> None:
        """Refuse models with float buffers."""
        refuse_batch_statistics(ground.task, "dp_fedavg")

    def sigma(self, cohort: int) -> float:
        """Standard deviation of the noise on each value of an upload, in a round with this many clients."""
        return self.noise_multiplier * self.clip / (math.sqrt(cohort) if self.noise == "distributed" else 1.0)

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:
        """The update [d], clipped and with noise."""
        norm = float(update.norm())
        scale = min(1.0, self.clip / norm) if norm > 0 else 1.0
        sigma = self.sigma(turn.cohort)
        noise = sigma * turn.normal(len(update))
        turn.count("updates")
        turn.count("changed", float(sigma > 0 or scale < 1))
        turn.count(f"{ROUNDS}{turn.client}")
        turn.count("clipped", float(scale < 1))
        turn.count("update_norm", norm)
        turn.count("noise_norm", float(noise.norm()))
        return scale * update + noise

    def told(self, counters: Counters) -> Counters:
        """Mean norms of updates, before clipping, and of the noise; the share of updates that were clipped."""
        kept = {name: n for name, n in counters.items() if not name.startswith(ROUNDS)}
        return means(kept, "clipped", "update_norm", "noise_norm")

    def guarantees(self, counters: Counters, ground: Ground) -> list[Guarantee]:
        """What was spent against the server and, where that is known, against who sees the aggregate alone."""
        rounds = {k: int(counters.get(f"{ROUNDS}{k}", 0)) for k in ground.using}
        if not any(rounds.values()):
            return []
        worst = max(rounds, key=lambda k: rounds[k])
        alone = self.sigma(ground.cohort) / self.clip
        found = [self._spent("server", alone, rounds[worst], worst, ground)]
        acting = [one for one in ground.later if not is_neutral(one)]
        changed = any(type(one).on_update is not ClientDefence.on_update for one in acting)
        if ground.weights is not None and len(rounds) == len(ground.sizes) and not changed:
            together = {k: alone * masking(ground.weights, k, ground.cohort) for k in rounds}
            worst = max(rounds, key=lambda k: math.sqrt(rounds[k]) / together[k] if together[k] else math.inf)
            found.append(self._spent("aggregate", together[worst], rounds[worst], worst, ground))
        return found

    def _spent(
        self, against: Literal["server", "aggregate"], multiplier: float, rounds: int, worst: int, ground: Ground
    ) -> Guarantee:
        epsilon = gaussian_epsilon(multiplier, rounds, self.delta)
        note = (
            f"Gaussian noise of {multiplier:.4g} times what client {worst}, the worst, can change, in {rounds} "
            "rounds without amplification; neighbours: all updates of one client replaced by zero, every client's "
            f"number of examples being public{ground.taken_as_public()}"
        )
        whose = ground.whose()
        if math.isinf(epsilon):
            note = f"no noise, no bound: {note}"
            return Guarantee("client", against, None, self.delta, "gaussian", note, whose)
        return Guarantee("client", against, epsilon, self.delta, "gaussian", note, whose)


def masking(weights: Sequence[float], client: int, cohort: int) -> float:
    """How much more noise hides a client in the weighted sum of a cohort than in its own upload.

    sqrt(sum of w_j^2) / w_k over client k and those whose noise nobody knows, where that is least: a cohort of the
    smallest weights and one client more, which looks on and knows its own noise.
    """
    others = sorted(weight for k, weight in enumerate(weights) if k != client)
    return math.hypot(weights[client], *others[: max(cohort - 2, 0)]) / weights[client]
