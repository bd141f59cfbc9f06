"""LoDen: a client stops training on examples of its own that somebody seems to attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedsiege.defences.client.base import ClientDefence, Clients, Ground, Turn, leaves_one_over, refuse_sequences
from fedsiege.errors import InputError
from fedsiege.records import Examples, Ids
from fedsiege.registry import register

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@register("loden")
class LoDen(ClientDefence):
    """Drop own examples that the global model had right and now has wrong, or less sure, for good.

    A poisoning membership attack raises the loss of its targets and watches which of them somebody's training
    brings back. From the round after the warm-up on, a client tries each global model that it receives on its own
    examples, as they are and not augmented, and remembers those that are right. A remembered example that a later
    model has wrong is suspicious: the client never trains on it again. In the white box, where the client looks at
    probabilities too, so is one whose true class has fallen by more than `fall`.

    Reconstructed from an account of the authors' code. Choices of ours: examples are remembered in any round after
    the warm-up; a fall is from the model that the client received the time before, and of remembered examples
    alone; models are compared in the order in which they are received, which with delays need not be that of their
    making. A client never drops all: where none would be left to train on in a round, it drops none anew
    (`turns_spared`). Where what is left would end an epoch with a single example, on which BatchNorm cannot train,
    the last one rests for this round.

    Honest training forgets examples too, and they are dropped with the others. The client's weight in the
    aggregation stays as it is. It costs a prediction of all own examples in each round after the warm-up. What an
    attacker inferred during the warm-up stays inferred.

    Paper: Ma et al., LoDen: Making Every Client in Federated Learning a Defender Against the Poisoning Membership
    Inference Attacks, AsiaCCS 2023
    """

    title: ClassVar[str] = "LoDen"
    neutral: ClassVar[Mapping[str, Any] | None] = {"warmup": None}
    proof: ClassVar[str] = "dropped"
    # Whether an example is spared depends on all others.
    couples: ClassVar[bool] = True

    warmup: Annotated[int, Field(ge=0)] | None = 100
    """Rounds of the federation without looking; examples are judged from the second one after them on. null never
    looks, and drops nothing."""
    mode: Literal["black_box", "white_box"] = "black_box"
    """What is suspicious: a wrong class alone, or also a fall of the true class' probability."""
    fall: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """In the white box, a fall of the true class' probability above this is suspicious."""
    clients: Clients = "all"
    """Who uses it: all, a client's number or a list of numbers."""

    def check(self, ground: Ground) -> None:
        """Refuse sequences, and a warm-up after which no two models are received."""
        if self.warmup is None:
            return
        refuse_sequences(self, ground)
        if ground.rounds < 2:
            raise InputError(f"rounds: got {ground.rounds}; loden compares the models of two; expected 2 or more")
        if self.warmup > ground.rounds - 2:
            raise InputError(
                f"warmup: got {self.warmup}; loden judges from round {self.warmup + 2} on, and the federation has "
                f"{ground.rounds}; expected at most {ground.rounds - 2}, or null"
            )

    def on_data(self, examples: Examples, turn: Turn) -> Examples:
        """The examples that were never suspicious; remembers how the received model takes each."""
        if self.warmup is None or turn.number <= self.warmup or not len(examples):
            return examples
        known = Known.of(turn.memory, examples.ids)
        here = np.searchsorted(known.ids, examples.ids)
        right, sure = judgement(examples, turn)
        fallen = known.sure[here] - sure > self.fall if self.mode == "white_box" else np.zeros_like(right)
        trained = ~known.dropped[here]
        judged = trained & known.right[here]
        suspicious = judged & (~right | fallen)
        spared = bool(suspicious.any()) and not (trained & ~suspicious).any()
        if spared:
            suspicious[:] = False
        known.dropped[here] |= suspicious
        known.right[here] |= right
        known.sure[here] = sure
        turn.memory = known.memory()
        rows = np.flatnonzero(trained & ~suspicious)
        if len(rows) < len(examples) and leaves_one_over(len(rows), turn):
            rows = rows[:-1]
        turn.count("judged", int(judged.sum()))
        turn.count("dropped", int(suspicious.sum()))
        turn.count("left_out", len(examples) - len(rows))
        turn.count("turns_spared", float(spared))
        return examples.take(rows) if len(rows) < len(examples) else examples


@dataclass(frozen=True, slots=True)
class Known:
    """What a client knows of its own examples, by id.

    Args:
        ids: [k], sorted.
        right: [k], that a received model had them right.
        sure: [k], the probability of their class in the last received model; NaN where there is none.
        dropped: [k], that they were suspicious.

    """

    ids: Ids
    right: Flags
    sure: Floats
    dropped: Flags

    @classmethod
    def of(cls, memory: Mapping[str, Tensor], ids: Ids) -> "Known":
        """What is in memory, with room for these ids too; nothing is known of those that are new."""
        before = named(memory["ids"]) if memory else ids[:0]
        every = np.union1d(before, ids)
        known = cls(every, np.zeros(len(every), bool), np.full(len(every), np.nan), np.zeros(len(every), bool))
        if memory:
            at = np.searchsorted(every, before)
            known.right[at] = memory["right"].numpy()
            known.sure[at] = memory["sure"].numpy()
            known.dropped[at] = memory["dropped"].numpy()
        return known

    def memory(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        return {
            "ids": numbered(self.ids),
            "right": torch.from_numpy(self.right),
            "sure": torch.from_numpy(self.sure),
            "dropped": torch.from_numpy(self.dropped),
        }


def judgement(examples: Examples, turn: Turn) -> tuple[Flags, Floats]:
    """Which examples [m] the resident model has right, and the probability [m] of each one's class."""
    task = turn.task
    logits = task.predict(task.state.clone(), examples)
    sure = logits.double().softmax(1).gather(1, examples.y[:, None])[:, 0]
    return (logits.argmax(1) == examples.y).cpu().numpy(), sure.cpu().numpy()


def numbered(ids: Ids) -> Tensor:
    """Ids [k] as the numbers of their characters [k, width], for a memory that holds tensors."""
    width = max(1, ids.dtype.itemsize // 4)
    return torch.from_numpy(ids.astype(f"<U{width}").view("<i4").reshape(len(ids), width).copy())


def named(numbers: Tensor) -> Ids:
    """The ids [k] that have these numbers [k, width]."""
    width = numbers.shape[1]
    found: Ids = np.ascontiguousarray(numbers.numpy(), dtype="<i4").view(f"<U{width}")[:, 0]
    return found
