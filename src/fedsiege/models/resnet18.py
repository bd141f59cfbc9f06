"""ResNet18 for small images, with GroupNorm."""

from typing import Literal

from torch import nn

from fedsiege.models.base import image_shape
from fedsiege.models.residual import resnet
from fedsiege.registry import register


@register("resnet18")
class ResNet18:
    """ResNet18 with a 3x3 stem and GroupNorm(32): 11,220,132 parameters at 3 channels and 100 classes.

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289 (architecture: He et al., CVPR 2016)
    """

    norm: Literal["group", "batch", "none"] = "group"
    """group (GroupNorm with 32 groups), batch (BatchNorm, whose running statistics travel) or none."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages stem, stage1 .. stage4 (64, 128, 256, 512 channels, two blocks each) and head."""
        channels, _, _ = image_shape("resnet18", input_shape)
        return resnet(channels, classes, (64, 128, 256, 512), 2, self.norm)
