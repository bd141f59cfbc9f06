"""Data augmentation: train on images that are moved, turned and recoloured at random."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedsiege.augmentation import Colours, Moves
from fedsiege.defences.client.base import ClientDefence, Clients, Ground, Turn
from fedsiege.errors import InputError
from fedsiege.registry import register

DEGREES, BRIGHTNESS, CONTRAST, PADDING = 45.0, 0.25, 0.8, 4
"""The paper's strengths."""


@register("augment")
class Augment(ClientDefence):
    """Crop, mirror, turn and recolour each image at random, anew in every step.

    In this order: a random crop after padding with 4 black pixels; mirrored left to right, and upside down, with
    probability 1/2 each; turned by up to 45 degrees either way (nearest pixel, black outside); brightness times
    U(0.75, 1.25) and contrast times U(0.2, 1.8), in either order. `strength` scales padding (rounded),
    probabilities, angle and both ranges. Published: all or nothing (FedMIA's code; its paper speaks of different
    amounts). Colours stay in floating point, where that code rounds them to 8 bits.

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289, section 5.3
    """

    title: ClassVar[str] = "Data augmentation"
    neutral: ClassVar[dict[str, float] | None] = {"strength": 0.0}
    proof: ClassVar[str] = "images"

    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the paper's amounts; 0 leaves images as they are."""
    clients: Clients = "all"
    """Who uses it: all, a client's number or a list of numbers."""

    def check(self, ground: Ground) -> None:
        """Refuse data that are no images, and images whose values are not between 0 and 1."""
        if self.strength == 0:
            return
        x = ground.examples.x
        if x.dim() != 4:
            raise InputError(
                f"strength: got {self.strength:g}, which moves images [channels, high, wide]; "
                f"the data's inputs have shape {list(x.shape[1:])}; expected images"
            )
        if x.is_floating_point() and (float(x.min()) < 0 or float(x.max()) > 1):
            raise InputError(
                f"strength: got {self.strength:g}, which recolours images with values from 0 to 1; "
                f"the data's lie from {float(x.min()):g} to {float(x.max()):g}; expected bytes, or values in it"
            )

    def on_images(self, x: Tensor, turn: Turn) -> Tensor:
        """The images [b, channels, high, wide] changed, with values from 0 to 1."""
        if self.strength == 0:
            return x
        s, m = self.strength, len(x)
        turn.count("images", m)
        moves = Moves.drawn(m, turn.rng, x.device, round(PADDING * s), s / 2, DEGREES * s)
        colours = Colours.drawn(m, turn.rng, x.device, BRIGHTNESS * s, CONTRAST * s)
        return colours.of(moves.of(x))
