"""Building blocks of the convolutional autoencoder.

Letters: B batch, C channels, H W pixels or cells. All tensors are (B, C, H, W).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def group_norm(num_channels: int, num_groups: int) -> nn.GroupNorm:
    """GroupNorm with the epsilon of the released weights."""
    return nn.GroupNorm(num_groups, num_channels, eps=1e-6)


def silu(x: Tensor) -> Tensor:
    """SiLU of what a norm has just made, in its place where no backward pass will ask for it."""
    return F.silu(x, inplace=not x.requires_grad)


def through(part: nn.Module, x_BCHW: Tensor, *, recompute: bool) -> Tensor:
    """What a part of the autoencoder makes of its input.

    Args:
        part: nothing random happens in it.
        x_BCHW: its input.
        recompute: of a block keep the input alone, and compute the inside again in the backward pass.
    """
    if not recompute or not isinstance(part, (ResidualBlock, AttentionBlock)):
        return part(x_BCHW)
    again: Tensor = checkpoint(part, x_BCHW, use_reentrant=False, preserve_rng_state=False)
    return again


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut."""

    def __init__(self, dim_in: int, dim_out: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(dim_in, norm_groups)
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1)
        self.norm2 = group_norm(dim_out, norm_groups)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.shortcut = nn.Conv2d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden = self.conv1(silu(self.norm1(x_BCHW)))
        hidden = silu(self.norm2(hidden))  # a name of its own for neither, so that no tensor outlives its use
        hidden = self.conv2(hidden)
        return hidden.add_(self.shortcut(x_BCHW))


class AttentionBlock(nn.Module):
    """Self-attention with one head over all cells."""

    def __init__(self, dim: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(dim, norm_groups)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        batch, dim, height, width = x_BCHW.shape
        # one head over H*W cells: (B, 3C, H, W) -> three times (B, 1, H*W, C)
        qkv = self.qkv(self.norm(x_BCHW)).reshape(batch, 3, dim, height * width).transpose(2, 3)
        query, key, value = qkv.split(1, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x_BCHW + self.proj(mixed.squeeze(1).transpose(1, 2).reshape(batch, dim, height, width))


class Downsample(nn.Module):
    """Halve the resolution; the padding is right and below only, as the released weights expect."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
