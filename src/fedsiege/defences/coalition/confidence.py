"""Confidence regularisation: what keeps a model from growing sure of examples that come back."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsiege.defences.client.hamp import divergence, top_probability

Target = Literal["predicted", "onehot", "hamp"]


def regularisation(logits: Tensor, y: Tensor, target: Target, mu: float, gamma: float) -> Tensor:
    """KL(label || p) - mu * H(p) [b], from logits [b, C] and classes y [b].

    Args:
        logits: of any floating type; computed in float32 at least.
        y: the true classes.
        target: the label. `predicted` has the model's own probability of the true class, as a constant, and the
            rest evenly on the others: its divergence draws the others together and leaves the true class alone, and
            is nothing for two classes. `onehot` has all on the true class, `hamp` that defence's fixed label.
        mu: strength of the reward for entropy.
        gamma: of the label `hamp`: its smallest entropy, as a share of log C.

    """
    log_p = F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), 1)
    entropy = -(log_p.exp() * log_p).sum(1)
    if target == "hamp":
        apart = divergence(log_p, y, top_probability(log_p.shape[1], gamma))
    elif target == "onehot":
        apart = -log_p.gather(1, y[:, None]).squeeze(1)
    else:
        label = own_label(log_p.detach(), y)
        apart = (torch.xlogy(label, label) - label * log_p).sum(1)
    return apart - mu * entropy


def own_label(log_p: Tensor, y: Tensor) -> Tensor:
    """Labels [b, C] with p_y on the true class and (1 - p_y) / (C - 1) on every other."""
    own = log_p.gather(1, y[:, None]).exp()
    others = (1 - own) / max(log_p.shape[1] - 1, 1)
    return others.expand_as(log_p).scatter(1, y[:, None], own)
