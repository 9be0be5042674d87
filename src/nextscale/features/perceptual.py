"""How different two images look to a network (LPIPS, Zhang et al. 2018, arXiv 1801.03924, equation 1).

Letters: B batch, C channels, H W pixels or cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from nextscale.features.classifier import load_classifier
from nextscale.features.settings import PerceptualSettings
from nextscale.features.vgg import load_heads, load_vgg16

_EPS = 1e-10


class Network(Protocol):
    """What looks at images: VGG16, or the classifier."""

    @property
    def smallest_side(self) -> int:
        """Pixels that an image must have along each side."""
        ...

    def maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """What each level sees, (B, C, H, W) each."""
        ...


class PerceptualDistance(nn.Module):
    """Squared differences of unit-length features, weighted per channel, averaged over space, summed over
    levels.
    """

    def __init__(self, network: Network, heads: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        assert isinstance(network, nn.Module)
        self.network = network
        self.heads = nn.ParameterList(heads or ()).requires_grad_(False)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ValueError for images (H, W) that are too small for the network."""
        least = self.network.smallest_side
        if min(size) < least:
            raise ValueError(
                f"the perceptual network needs images of at least {least} pixels a side, given {size}: set "
                "losses.perceptual 0, or train on larger images"
            )

    def forward(self, images_BCHW: Tensor, references_BCHW: Tensor) -> Tensor:
        """The distance of each image from its reference: float32 (B,), with gradient to the images alone.

        Args:
            images_BCHW: float (B, 3, H, W) in [-1, 1].
            references_BCHW: the same shape.

        Raises:
            ValueError: images that are too small for the network.
        """
        self.check_size((images_BCHW.shape[2], images_BCHW.shape[3]))
        with torch.no_grad():
            references = [_unit(map_BCHW) for map_BCHW in self.network.maps(references_BCHW)]
        distance_B = images_BCHW.new_zeros(len(images_BCHW), dtype=torch.float32)
        for level, map_BCHW in enumerate(self.network.maps(images_BCHW)):
            squares = (_unit(map_BCHW) - references[level]).square()
            if self.heads:
                squares = squares * self.heads[level][:, None, None]
            distance_B = distance_B + squares.sum(dim=1).mean(dim=(1, 2))
        return distance_B


def _unit(map_BCHW: Tensor) -> Tensor:
    """Every cell's features at length one; the small number keeps the gradient of a cell of zeros finite."""
    map_BCHW = map_BCHW.float()
    return map_BCHW * (map_BCHW.square().sum(dim=1, keepdim=True) + _EPS).rsqrt()


def load_perceptual(settings: PerceptualSettings) -> PerceptualDistance:
    """The distance that settings describe, frozen.

    Raises:
        ValueError: names what is missing, see `load_vgg16` and `load_heads`.
    """
    if settings.network == "classifier":
        return PerceptualDistance(load_classifier()).eval()
    heads = load_heads(settings.heads) if settings.heads else None
    return PerceptualDistance(load_vgg16(settings.weights), heads).eval()
