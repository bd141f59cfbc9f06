"""What the ResNets share: the basic block and the order of stages."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from fedsiege.models.base import Norm, normalisation


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, normalised after each convolution (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride, norm)
        self.conv2 = convolution(outputs, outputs, 3, 1, norm)
        changes = stride != 1 or inputs != outputs
        self.shortcut = convolution(inputs, outputs, 1, stride, norm) if changes else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[m, inputs, h, w] -> [m, outputs, h / stride, w / stride]."""
        hidden = self.relu(self.conv1(x))
        outputs: Tensor = self.relu(self.conv2(hidden) + self.shortcut(x))
        return outputs


def convolution(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """A convolution that keeps the size (at stride 1) and its normalisation, which takes the bias's place."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")
    return nn.Sequential(layer, normalisation(norm, outputs))


def resnet(channels: int, classes: int, widths: Sequence[int], blocks: int, norm: Norm) -> nn.Module:
    """A ResNet for small images: a 3x3 stem without pooling, a stage of `blocks` blocks per width, a linear head.

    The first stage keeps the size, each further one halves it; the head averages over all places.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Sequential(convolution(channels, widths[0], 3, 1, norm), nn.ReLU())
    inputs = widths[0]
    for number, width in enumerate(widths, start=1):
        first = BasicBlock(inputs, width, 1 if number == 1 else 2, norm)
        rest = [BasicBlock(width, width, 1, norm) for _ in range(blocks - 1)]
        stages[f"stage{number}"] = nn.Sequential(first, *rest)
        inputs = width
    stages["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    return nn.Sequential(stages)
