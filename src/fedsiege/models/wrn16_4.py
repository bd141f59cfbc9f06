"""WRN-16-4: a wide residual network, normalised before each convolution."""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from fedsiege.models.base import Norm, image_shape, normalisation
from fedsiege.registry import register

STEM = 16
WIDTHS = (64, 128, 256)


@register("wrn16_4")
class WideResNet16x4:
    """Wide ResNet of depth 16 and width 4: 2,748,890 parameters at 3 channels and 10 classes.

    Paper: Zagoruyko and Komodakis, Wide residual networks, BMVC 2016, arXiv 1605.07146
    """

    norm: Literal["group", "batch", "none"] = "group"
    """group (GroupNorm with up to 32 groups), batch (as in the paper) or none."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages stem, stage1 .. stage3 (two blocks each; the last norm belongs to stage3) and head."""
        channels, _, _ = image_shape("wrn16_4", input_shape)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stages["stem"] = nn.Conv2d(channels, STEM, 3, padding=1, bias=self.norm == "none")
        inputs = STEM
        for number, width in enumerate(WIDTHS, start=1):
            first = PreactivationBlock(inputs, width, 1 if number == 1 else 2, self.norm)
            stages[f"stage{number}"] = nn.Sequential(first, PreactivationBlock(width, width, 1, self.norm))
            inputs = width
        last = f"stage{len(WIDTHS)}"
        stages[last] = nn.Sequential(stages[last], normalisation(self.norm, inputs), nn.ReLU())
        stages["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
        return nn.Sequential(stages)


class PreactivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice, and a shortcut; one that changes the shape starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "none"
        self.norm1 = normalisation(norm, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.norm2 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=bias) if changes else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[m, inputs, h, w] -> [m, outputs, h / stride, w / stride]."""
        active = self.relu(self.norm1(x))
        hidden = self.conv2(self.relu(self.norm2(self.conv1(active))))
        outputs: Tensor = hidden + (x if self.shortcut is None else self.shortcut(active))
        return outputs
