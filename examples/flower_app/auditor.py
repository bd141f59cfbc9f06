"""What an auditor of this app brings: the network, and whose examples are whose.

`python auditor.py sites.npz 2` writes the latter for two sites.
"""

import sys

import numpy as np
from quickstart.task import HELD_OUT, Net, load_images
from torch import nn


def network(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The app's own model; FedSiege asks for it by the shape of its data and the number of classes."""
    assert (input_shape, classes) == ((1, 8, 8), 10)
    return Net()


def write(path: str, sites: int) -> None:
    """Write the examples that sites train on, the number of the site that has each, and the held-out ones."""
    images, labels = load_images()
    x, y = images[HELD_OUT:], labels[HELD_OUT:]
    np.savez(path, x=x, y=y, client=np.arange(len(y)) % sites, x_test=images[:HELD_OUT], y_test=labels[:HELD_OUT])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python auditor.py FILE.npz SITES")
    write(sys.argv[1], int(sys.argv[2]))
