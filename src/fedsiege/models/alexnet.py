"""The AlexNet of the FedMIA paper's code."""

from collections import OrderedDict

from torch import nn

from fedsiege.models.base import image_shape
from fedsiege.registry import register

SMALLEST = 13
"""Pixels a side below which the second pooling has nothing left to pool."""


@register("alexnet")
class AlexNet:
    """Five convolutions and a global max-pool: 2,495,396 parameters at 3 channels and 100 classes.

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289
    """

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages conv1 .. conv5 and head, all with bias, without norm or dropout."""
        channels, _, _ = image_shape("alexnet", input_shape, SMALLEST)
        # Pooled before ReLU: the same values and gradients as after it, from a quarter of the entries.
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Sequential(nn.Conv2d(channels, 64, 11, stride=4, padding=5), nn.MaxPool2d(2), nn.ReLU()),
                conv2=nn.Sequential(nn.Conv2d(64, 192, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()),
                conv3=nn.Sequential(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
                conv4=nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
                conv5=nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
                head=nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(256, classes)),
            )
        )
