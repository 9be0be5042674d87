"""Disturbances of images that gradients pass, driven by uniform numbers that belong to each image.

Letters: B batch, R uniform numbers, H W pixels.
Special here: no function draws a number, so an image is disturbed alike in any batch and after resuming.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.train.adversary_settings import AugmentSettings

#: How many uniform numbers `augment` reads.
NUM_AUGMENT_UNIFORMS = 7


def augment(images_BCHW: Tensor, uniforms_BR: Tensor, settings: AugmentSettings) -> Tensor:
    """Change colours, move, and cut a square out (differentiable augmentation, Zhao et al. 2020, arXiv
    2006.10738).

    Args:
        images_BCHW: float (B, 3, H, W) in [-1, 1] or somewhat beyond.
        uniforms_BR: (B, `NUM_AUGMENT_UNIFORMS`) in [0, 1).
        settings: how strong each is; 0 leaves one out.
    """
    if settings.colour:
        images_BCHW = change_colours(images_BCHW, uniforms_BR[:, :3], settings.colour)
    side = min(images_BCHW.shape[2:])
    if settings.shift:
        images_BCHW = shift(images_BCHW, uniforms_BR[:, 3:5], round(settings.shift * side))
    if settings.cut_out:
        images_BCHW = cut_out(images_BCHW, uniforms_BR[:, 5:7], round(settings.cut_out * side))
    return images_BCHW


def change_colours(images_BCHW: Tensor, uniforms_B3: Tensor, strength: float) -> Tensor:
    """Add up to +-strength / 2, times saturation 1 +- strength, times contrast 1 +- strength / 2."""
    brightness, saturation, contrast = (
        (2 * uniforms_B3 - 1)[:, :, None, None, None].mul(strength).unbind(dim=1)
    )
    images_BCHW = images_BCHW + brightness / 2
    gray = images_BCHW.mean(dim=1, keepdim=True)
    images_BCHW = gray + (images_BCHW - gray) * (1 + saturation)
    mean = images_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images_BCHW - mean) * (1 + contrast / 2)


def shift(images_BCHW: Tensor, uniforms_B2: Tensor, most: int) -> Tensor:
    """Move each image by up to ``most`` pixels along both axes, mirrored at the edge."""
    height, width = images_BCHW.shape[2:]
    padded = F.pad(images_BCHW, (most,) * 4, mode="reflect")
    start = (uniforms_B2 * (2 * most + 1)).long()
    rows = start[:, :1] + torch.arange(height, device=start.device)
    columns = start[:, 1:] + torch.arange(width, device=start.device)
    batch = torch.arange(len(images_BCHW), device=start.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def cut_out(images_BCHW: Tensor, uniforms_B2: Tensor, side: int) -> Tensor:
    """Paint a gray square of ``side`` pixels into each image; its center may lie anywhere."""
    height, width = images_BCHW.shape[2:]
    center = uniforms_B2 * torch.tensor([height, width], device=uniforms_B2.device)
    rows = (torch.arange(height, device=center.device) + 0.5 - center[:, :1]).abs() < side / 2
    columns = (torch.arange(width, device=center.device) + 0.5 - center[:, 1:]).abs() < side / 2
    return images_BCHW.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
