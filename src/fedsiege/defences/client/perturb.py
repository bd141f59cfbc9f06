"""Gradient perturbation: Gaussian noise on the upload."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedsiege.defences.client.base import ClientDefence, Clients, Turn, means
from fedsiege.records import Counters
from fedsiege.registry import register


@register("perturb")
class Perturb(ClientDefence):
    """Add Gaussian noise of standard deviation sigma to every trained parameter of the upload.

    With `clip`, the update is first scaled down to that norm, as the FedMIA paper has it; without, as its code and
    CoFedMID's GradNoise have it, nothing bounds the update and so nothing is guaranteed: there is no epsilon here
    (that is `dp_fedavg`). Published strengths: sigma 0.01 to 0.5 (FedMIA), 0.01 and 0.1 (CoFedMID).

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289, section 5.3
    """

    title: ClassVar[str] = "Perturbation"
    neutral: ClassVar[dict[str, float | None] | None] = {"sigma": 0.0, "clip": None}
    proof: ClassVar[str] = "changed"

    sigma: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise on each parameter; 0 adds none."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the update's trained part before the noise; null leaves it as it is."""
    clients: Clients = "all"
    """Who uses it: all, a client's number or a list of numbers."""

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:
        """The update [d], clipped and with noise; buffers stay as they are."""
        trained = turn.task.layout.trained
        noise = self.sigma * turn.normal(trained) if self.sigma else update.new_zeros(trained)
        norm = float(update[:trained].norm())
        scale = min(1.0, self.clip / norm) if self.clip is not None and norm > 0 else 1.0
        turn.count("updates")
        turn.count("changed", float(self.sigma > 0 or scale < 1))
        turn.count("clipped", float(scale < 1))
        turn.count("update_norm", norm)
        turn.count("noise_norm", float(noise.norm()))
        if self.sigma == 0 and scale == 1:
            return update
        changed = update.clone()
        changed[:trained] = scale * update[:trained] + noise
        return changed

    def told(self, counters: Counters) -> Counters:
        """Mean norms of updates, before clipping, and of the noise; the share of updates that were clipped."""
        return means(counters, "clipped", "update_norm", "noise_norm")
