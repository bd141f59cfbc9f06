"""The engine that trains one client after another in this process, on one resident model."""

import time
from collections.abc import Iterator

from torch import Tensor

from fedsiege.aggregation import acceptable
from fedsiege.attacks.poisoning.base import Scene
from fedsiege.defences.client.base import Guard
from fedsiege.federation.rounds import Federation
from fedsiege.federation.state import Answer, ModelLostError, Models
from fedsiege.records import NOTHING, Memory
from fedsiege.streams import stream
from fedsiege.training import train


class LocalEngine:
    """Clients take turns on the device; nothing is copied but the start model and the update."""

    def answers(
        self, federation: Federation, number: int, invited: list[int], models: Models, memory: Memory = NOTHING
    ) -> Iterator[Answer]:
        """Train the invited clients in order. Raises ModelLostError naming the round and the client."""
        for client in invited:
            age = federation.age(number, client, len(models))
            answer = answer_of(federation, number, client, age, models[age], memory)
            if acceptable(answer.update, len(answer.update)) == "nonfinite":
                raise ModelLostError(
                    f"round {number}, client {client}: training gave non-finite weights; "
                    f"lower training.lr ({federation.training.lr:g}) or look at the client's data",
                    number,
                    f"client {client}'s training gave non-finite weights",
                    models[0],
                )
            yield answer

    def poisoned(self, federation: Federation, scene: Scene) -> Iterator[Answer]:
        """The attackers' answers, in order of client number, made all at once."""
        since = time.monotonic()
        sent = crafted(federation, scene)
        scene.seconds = time.monotonic() - since
        for client, update in zip(scene.clients, sent, strict=True):
            yield Answer(client, update, float(len(federation.shards[client])), 0)


def answer_of(
    federation: Federation, number: int, client: int, age: int, start: Tensor, memory: Memory = NOTHING
) -> Answer:
    """What an honest client answers: its training in round `number`, from the model [d] of `age` rounds ago."""
    examples = federation.shards[client]
    turns = federation.turns(number, client, memory)
    update = train(
        federation.task,
        start,
        examples,
        federation.training,
        federation.rate(number - age),
        stream(federation.seed, "client", number, client),
        Guard(list(turns.values())),
        number,
    )
    counters = {label: turn.counters for label, (_, turn) in turns.items()}
    kept = {label: turn.memory for label, (_, turn) in turns.items() if turn.memory}
    return Answer(client, update, float(len(examples)), age, counters, kept)


def crafted(federation: Federation, scene: Scene) -> Tensor:
    """What the attackers of a round send [k, d], in their order; the scene's memory and counters change."""
    assert federation.campaign is not None
    sent: Tensor = federation.campaign.poisoner.poison_updates(scene)
    return sent
