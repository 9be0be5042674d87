"""DINOv2 vision transformers with patches of 14 pixels (Oquab et al. 2023, arXiv 2304.07193): ViT-S, -B, -L.

Letters: B batch, C channels, H W pixels, D width, s pixels along a side of the result.
Special here: ViT-g (gated MLP) and the variants with registers have other tensors and are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextscale.features.vit import VisionTransformer, load_vit

_IMAGE_SIZE = 224
_FIXED_POINT_BITS = 22  #: of Pillow's weights


class DINOv2(nn.Module):
    """What FD-DINOv2 compares: the class token of a network."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.network, self.dim = network, network.settings.width

    def forward(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """The class token after the last norm, as ``pool`` (B, D).

        Args:
            pixels_BCHW: uint8 (B, 3, H, W), brought to 224 pixels a side whatever its shape.
        """
        images_BCHW = resize_as_pillow(pixels_BCHW, _IMAGE_SIZE).float() / 255
        return {"pool": self.network(images_BCHW)[:, 0]}


def resize_as_pillow(pixels_BCHW: Tensor, side: int) -> Tensor:
    """Bicubic resizing to a square, smoothed where images shrink: uint8 (B, C, H, W) to float64 (B, C, side,
    side), whole numbers in [0, 255].

    Pillow's numbers, which published distances were made with: columns, then rows, each pass in fixed point
    and rounded. Other roundings give another level to up to 2 % of the pixels of smooth images.
    """
    one = 2**_FIXED_POINT_BITS
    images_BCHW = pixels_BCHW.double()
    for dim in (3, 2):
        weights_sH = _pillow_weights(images_BCHW.shape[dim], side).to(images_BCHW.device)
        sums = images_BCHW.movedim(dim, 3) @ weights_sH.T  # exact: below 2^53
        images_BCHW = (sums / one + 0.5).floor().clamp(0, 255).movedim(3, dim)
    return images_BCHW


def _pillow_weights(size: int, side: int) -> Tensor:
    """How much each of ``size`` pixels counts for each of ``side``: float64 (side, size), whole numbers."""
    scale = size / side
    width = max(scale, 1.0)
    weights_sH = torch.zeros(side, size, dtype=torch.float64)
    for i in range(side):
        center = (i + 0.5) * scale
        first, end = max(int(center - 2 * width + 0.5), 0), min(int(center + 2 * width + 0.5), size)
        x = (torch.arange(first, end, dtype=torch.float64) + 0.5 - center).abs() / width
        near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
        weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
        weight = weight / weight.sum() * 2**_FIXED_POINT_BITS
        weights_sH[i, first:end] = (weight + weight.sign() / 2).trunc()
    return weights_sH


def load_dinov2(source: str) -> DINOv2:
    """The network with the weights of a file, frozen.

    Args:
        source: see `nextscale.features.weights.read_weights`; names and shapes as in the published
            ``dinov2_vits14_pretrain.pth`` and so on.

    Raises:
        ValueError: as `load_vit`, or the network is another one, such as DINO's.
    """
    network = load_vit(source, purpose="weights of dinov2")
    settings = network.settings
    if (settings.image_size, settings.patch_size, settings.layer_scale) != (518, 14, True):
        raise ValueError(
            f"{source} holds no weights of DINOv2: expected 37 x 37 positions, patches of 14 pixels and "
            f"factors blocks.0.ls1.gamma, found a network for {settings.image_size} pixels with patches of "
            f"{settings.patch_size}: give dinov2_vitl14_pretrain.pth"
        )
    return DINOv2(network)
