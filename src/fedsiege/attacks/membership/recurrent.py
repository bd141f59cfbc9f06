"""A recurrent network with attention that tells members from non-members by a sequence of signals."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsiege.streams import entropy, stream
from fedsiege.task import seeded
from fedsiege.view import Flags, Values

Sequences = NDArray[np.float32]

HIDDEN = 50
"""Width of the LSTM's state."""

BATCH = 100
"""Sequences of a training step."""

RATE, DECAY, EVERY, LOWEST = 1e-2, 0.9, 10, 5e-4
"""Adam's step size, times `DECAY` after each `EVERY` epochs, not below `LOWEST`."""

WEIGHT_DECAY = 1e-4
"""Added to the gradient as this share of the weights."""

TOGETHER = 4096
"""Sequences that are scored at a time."""


class Attentive(nn.Module):
    """An LSTM over time steps; its last state h_T looks back at all states, and both decide.

    The weight of state h_s is softmax over s of h_T . h_s; the weighted mean of the states is the context.
    """

    def __init__(self, signals: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(signals, HIDDEN)
        self.decide = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of non-member and member [n, 2] for sequences of T signals [T, n, signals]."""
        states, _ = self.lstm(x)
        last = states[-1]
        weights = torch.softmax((states * last).sum(dim=2), dim=0)
        context = (weights.unsqueeze(2) * states).sum(dim=0)
        logits: Tensor = self.decide(torch.cat([last, context], dim=1))
        return logits


@dataclass(frozen=True, slots=True)
class Learnt:
    """A trained network, and the moments of the sequences that it was trained on, by signal."""

    network: nn.Module
    mean: Values
    deviation: Values

    def log_odds(self, sequences: Sequences) -> Values:
        """Logarithm of the odds of being a member [n], of sequences [n, T, signals].

        In float64, in which the place of a sequence among others makes no difference that matters.
        """
        with torch.no_grad(), _one_thread():
            parts = np.split(sequences, range(TOGETHER, len(sequences), TOGETHER))
            logits = torch.cat([self.network(_steps((part - self.mean) / self.deviation)) for part in parts])
        odds: Values = (logits[:, 1] - logits[:, 0]).numpy()
        return odds


def learn(sequences: Sequences, members: Flags, epochs: int, seed: int) -> Learnt:
    """Train the network to tell which of these sequences [n, T, signals] are members' [n].

    Each signal is centred and scaled by its mean and deviation over all sequences and time steps. Weights and the
    order of examples are drawn from `seed` alone; torch's global generator is left as it was.
    """
    mean = sequences.mean(axis=(0, 1), dtype=np.float64)
    deviation = sequences.std(axis=(0, 1), dtype=np.float64)
    deviation[deviation == 0] = 1.0
    network = seeded(lambda: Attentive(sequences.shape[2]), entropy(seed, "seqmia", "weights") % 2**63)
    x = _steps((sequences - mean) / deviation).float()
    y = torch.as_tensor(members, dtype=torch.int64)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    rng = stream(seed, "seqmia", "batches")
    with _one_thread():
        for epoch in range(epochs):
            for group in optimiser.param_groups:
                group["lr"] = rate(epoch)
            for rows in torch.as_tensor(rng.permutation(len(y))).split(BATCH):
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(x[:, rows]), y[rows]).backward()
                optimiser.step()
    network.double()
    return Learnt(network, mean, deviation)


def rate(epoch: int) -> float:
    """Adam's step size in an epoch, counted from 0."""
    return max(LOWEST, RATE * DECAY ** (epoch // EVERY))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are added up in one order, whatever the number of threads; tensors this small gain nothing by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _steps(sequences: Values) -> Tensor:
    """Sequences [n, T, signals] as the network takes them [T, n, signals]."""
    return torch.as_tensor(sequences).transpose(0, 1).contiguous()
