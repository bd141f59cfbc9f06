"""The model, each site's data, training and evaluation."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 360
"""Examples of the 1,797 that no site trains on."""


class Net(nn.Module):
    """Two convolutions and one linear layer, for digits of 1x8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10] of images [n, 1, 8, 8]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(x.flatten(1))


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """Grey images [n, 8, 8] of 0 to 255 in a fixed order, and their labels [n]."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return np.round(digits.images[order] * (255 / 16)).astype(np.uint8), digits.target[order]


def load_data(partition: int, partitions: int) -> tuple[TensorDataset, TensorDataset]:
    """A site's own examples, every `partitions`-th of a fixed order, and the held-out ones that all sites share."""
    images, labels = load_images()
    x, y = torch.from_numpy(images).unsqueeze(1) / 255, torch.from_numpy(labels)
    mine = slice(HELD_OUT + partition, None, partitions)
    return TensorDataset(x[mine], y[mine]), TensorDataset(x[:HELD_OUT], y[:HELD_OUT])


def train(net: Net, data: TensorDataset, epochs: int, learning_rate: float, seed: int) -> float:
    """Train a model in place; the mean loss of the last epoch."""
    batches = DataLoader(data, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(seed))
    optimiser = torch.optim.SGD(net.parameters(), lr=learning_rate)
    net.train()
    for _ in range(epochs):
        total = 0.0
        for x, y in batches:
            optimiser.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimiser.step()
            total += loss.item() * len(y)
    return total / len(data)


@torch.no_grad()
def evaluate(net: Net, data: TensorDataset) -> tuple[float, float]:
    """Mean loss and accuracy."""
    net.eval()
    x, y = data.tensors
    logits = net(x)
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()
