"""What flows through a federation: answers, the models that clients may start from, the state between rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fedsiege.errors import TrainingDivergedError
from fedsiege.records import Counters, Memory, Round


class ModelLostError(TrainingDivergedError):
    """The global model is useless, or honest clients cannot train it any more.

    Args:
        message: what happened, and what to try.
        number: the round, from 1.
        why: what became of the model, in words.
        model: the global model [d] as it is then.
        done: the round, where it came to an end.

    """

    def __init__(self, message: str, number: int, why: str, model: Tensor, done: Round | None = None) -> None:
        super().__init__(message)
        self.number, self.why, self.model, self.done = number, why, model, done


@dataclass(frozen=True, slots=True)
class Answer:
    """One client's reply: its update [d], its number of examples, and the age of the model it started from.

    `counters` is what the client's defences did, by their labels: notes for the report, not seen by any adversary.
    `memory` is what they keep for its next round, by their labels: it stays with the client.
    """

    client: int
    update: Tensor
    weight: float
    age: int
    counters: Mapping[str, Counters] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)


Why = Literal["missing", "failed", "late"]
"""Why an invited client's answer is not there.

`missing`: it could not be asked. `failed`: it could not do it, or its reply could not be read. `late`: its time was
up; should it still come, it may be one of a later round's answers.
"""


@dataclass(frozen=True, slots=True)
class Absence:
    """An answer that is not there, of a client that was invited; `said` is what is known of it, in a line."""

    client: int
    why: Why
    said: str = ""


Reply = Answer | Absence
"""What becomes of an invitation."""


@dataclass(frozen=True, slots=True)
class Models:
    """The global models that clients may start from: `models[age]` is the model `age` rounds ago."""

    window: tuple[Tensor, ...]

    def __getitem__(self, age: int) -> Tensor:
        return self.window[-1 - age]

    def __len__(self) -> int:
        return len(self.window)

    def then(self, model: Tensor, delay: int) -> "Models":
        """The window after one more round; no more models than a late client can ask for."""
        return Models((*self.window, model)[-1 - delay :])


@dataclass(frozen=True, slots=True)
class State:
    """Where a federation stands: `number` rounds are done and `models[0]` is the global model.

    `memory` is what components keep from round to round.
    """

    number: int
    models: Models
    memory: Memory = field(default_factory=dict)

    def then(self, done: Round, delay: int) -> "State":
        """The state after one more round."""
        return State(done.number, self.models.then(done.end, delay), done.memory)
