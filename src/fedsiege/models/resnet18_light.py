"""The lightweight ResNet18 of the model replacement attack."""

from typing import Literal

from torch import nn

from fedsiege.models.base import image_shape
from fedsiege.models.residual import resnet
from fedsiege.registry import register


@register("resnet18_light")
class ResNet18Light:
    """ResNet18 at half the width: 2,797,610 parameters at 3 channels and 10 classes.

    Paper: Bagdasaryan et al., How to backdoor federated learning, AISTATS 2020, arXiv 1807.00459
    """

    norm: Literal["group", "batch", "none"] = "group"
    """group (GroupNorm with up to 32 groups), batch (as in the paper) or none."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages stem, stage1 .. stage4 (32, 64, 128, 256 channels, two blocks each) and head."""
        channels, _, _ = image_shape("resnet18_light", input_shape)
        return resnet(channels, classes, (32, 64, 128, 256), 2, self.norm)
