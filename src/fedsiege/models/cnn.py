"""The small convolutional network: two convolutions and three linear layers."""

from collections import OrderedDict

from torch import nn

from fedsiege.models.base import image_shape
from fedsiege.registry import register

SMALLEST = 4
"""Pixels a side below which the second pooling has nothing left to pool."""
PADDED_BELOW = 16
"""Images with a smaller side are padded by 2 at each convolution: 5x5 kernels would eat them up."""


@register("cnn")
class CNN:
    """Small CNN (6 and 16 channels, 120-84 hidden): 62,006 parameters at 3x32x32 and 10 classes.

    Digits of 1x8x8 and 10 classes make it 21,386 parameters; larger images widen the first linear layer.

    Paper: LeCun et al., Gradient-based learning applied to document recognition, 1998 (LeNet-5, with ReLU)
    """

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages conv1, conv2, hidden1, hidden2 and head, all with bias, without norm."""
        channels, height, width = image_shape("cnn", input_shape, SMALLEST)
        padding = 2 if min(height, width) < PADDED_BELOW else 0
        features = 16 * _left(height, padding) * _left(width, padding)
        # Pooled before ReLU: the same values and gradients as after it, from a quarter of the entries.
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Sequential(nn.Conv2d(channels, 6, 5, padding=padding), nn.MaxPool2d(2), nn.ReLU()),
                conv2=nn.Sequential(nn.Conv2d(6, 16, 5, padding=padding), nn.MaxPool2d(2), nn.ReLU()),
                hidden1=nn.Sequential(nn.Flatten(), nn.Linear(features, 120), nn.ReLU()),
                hidden2=nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
                head=nn.Linear(84, classes),
            )
        )


def _left(side: int, padding: int) -> int:
    """Pixels a side after both convolutions and poolings."""
    shrink = 4 - 2 * padding
    return ((side - shrink) // 2 - shrink) // 2
