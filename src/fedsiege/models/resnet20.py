"""ResNet-20 for small images."""

from typing import Literal

from torch import nn

from fedsiege.models.base import image_shape
from fedsiege.models.residual import resnet
from fedsiege.registry import register


@register("resnet20")
class ResNet20:
    """ResNet-20 (16, 32, 64 channels, three blocks each): 272,474 parameters at 3 channels and 10 classes.

    Paper: He et al., Deep residual learning for image recognition, CVPR 2016, arXiv 1512.03385, section 4.2
    """

    norm: Literal["group", "batch", "none"] = "group"
    """group (GroupNorm with up to 32 groups), batch (as in the paper) or none."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages stem, stage1 .. stage3 and head; shortcuts that change the shape are 1x1 convolutions."""
        channels, _, _ = image_shape("resnet20", input_shape)
        return resnet(channels, classes, (16, 32, 64), 3, self.norm)
