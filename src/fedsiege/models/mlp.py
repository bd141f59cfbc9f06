"""The multi-layer perceptron for tabular data."""

import math
from collections import OrderedDict
from typing import Annotated

from pydantic import Field
from torch import nn

from fedsiege.registry import register


@register("mlp")
class MLP:
    """Fully connected layers with ReLU (d-512-128-C by default); images are flattened.

    Paper: Mo et al., Find a scapegoat (FedPoisonMIA), ICCV 2025, arXiv 2507.00423
    """

    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (512, 128)
    """Width of each hidden layer, from the input on; empty makes a linear model."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages hidden1, hidden2, ... and head, all with bias."""
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = math.prod(input_shape)
        for number, width in enumerate(self.hidden, start=1):
            stages[f"hidden{number}"] = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())
            inputs = width
        stages["head"] = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
        return nn.Sequential(stages)
