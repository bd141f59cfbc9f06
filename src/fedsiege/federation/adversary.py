"""The compromised clients' side of a round: what they see, and what they answer among the honest ones."""

from collections.abc import Iterator
from heapq import merge
from typing import TYPE_CHECKING

import torch

from fedsiege.aggregation import acceptable
from fedsiege.aggregators.base import LinearAggregator
from fedsiege.attacks.poisoning.base import Scene
from fedsiege.federation.state import Answer, Reply, State
from fedsiege.records import joined

if TYPE_CHECKING:
    from fedsiege.federation.rounds import Federation

ADVERSARY = "adversary"
"""What counters and memory of the adversary are filed under."""


def scene_of(federation: "Federation", number: int, invited: list[int], state: State) -> Scene:
    """A round as the adversary sees it, before it knows any honest update."""
    campaign, rule, shards = federation.campaign, federation.aggregator, federation.shards
    assert campaign is not None
    attackers = campaign.attackers(number, invited)
    weigh = rule.weigh if isinstance(rule, LinearAggregator) else lambda _: 1.0
    weights = {client: weigh(float(len(shards[client]))) for client in invited}
    total, place = sum(weights.values()), f"{ADVERSARY}/"
    return Scene(
        number=number,
        rounds=federation.rounds,
        start=state.models[0],
        clients=attackers,
        shards=tuple(shards[client] for client in attackers),
        weights=tuple(weights[client] / total for client in attackers),
        step=federation.server_step if isinstance(rule, LinearAggregator) else None,
        cohort=len(invited),
        task=federation.task,
        training=federation.training,
        lr=federation.rate(number),
        classes=federation.classes,
        seed=federation.seed,
        backdoor=campaign.backdoor,
        others=(lambda: joined(shards)) if campaign.poisoner.uses_others else None,
        compromised=campaign.compromised,
        targets=campaign.targets,
        memory={name.removeprefix(place): kept for name, kept in state.memory.items() if name.startswith(place)},
    )


def answers_of(
    federation: "Federation", number: int, invited: list[int], state: State, scene: Scene | None
) -> Iterator[Reply]:
    """The answers of all invited clients, in order of client number; attackers' are the adversary's."""
    attackers = () if scene is None else scene.clients
    honest = [client for client in invited if client not in attackers]
    replies = federation.engine.answers(federation, number, honest, state.models, state.memory)
    if scene is None or federation.campaign is None or not attackers:
        return replies
    if federation.campaign.poisoner.sees_honest:
        known = list(replies)
        updates = [one.update for one in known if isinstance(one, Answer)]
        usable = [update for update in updates if acceptable(update, len(scene.start)) is None]
        scene.honest_rows = torch.stack(usable) if usable else None
        replies = iter(known)
    return merge(replies, federation.engine.poisoned(federation, scene), key=lambda reply: reply.client)
