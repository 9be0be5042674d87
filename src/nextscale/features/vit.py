"""A plain vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), as DINO trains it (Caron et al.
2021, arXiv 2104.14294).

Letters: B batch, T tokens (the class token first, then patches row by row), D width, h w patches, H W pixels.
Special here: names are those of the published files, so that these load without a table of names; the sizes
follow from the shapes in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.features.settings import ViTSettings
from nextscale.features.weights import read_weights

#: Mean and spread of ImageNet's colours in [0, 1].
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: The width of a head in all published sizes; no shape tells it.
_HEAD_DIM = 64


class PatchEmbedding(nn.Module):
    """Images (B, 3, H, W) -> one vector per patch (B, h * w, D)."""

    def __init__(self, settings: ViTSettings) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, settings.width, settings.patch_size, stride=settings.patch_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.proj(images_BCHW).flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Every token attends to all."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        query, key, value = self.qkv(x_BTD).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BTD)))


class LayerScale(nn.Module):
    """A factor per channel on what a block adds (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.gamma


class ViTBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and around a shortcut."""

    def __init__(self, settings: ViTSettings) -> None:
        super().__init__()
        width = settings.width
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = SelfAttention(width, settings.num_heads)
        self.mlp = FeedForward(width, round(width * settings.mlp_ratio))
        self.ls1, self.ls2 = (LayerScale(width) if settings.layer_scale else nn.Identity() for _ in range(2))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.ls1(self.attn(self.norm1(x_BTD)))
        return x_BTD + self.ls2(self.mlp(self.norm2(x_BTD)))


class VisionTransformer(nn.Module):
    """Patches and a class token through blocks of attention."""

    def __init__(self, settings: ViTSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + settings.num_patches, width))
        self.patch_embed = PatchEmbedding(settings)
        self.blocks = nn.ModuleList(ViTBlock(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def after_blocks(self, images_BCHW: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """What stands behind some of the blocks, before the last norm: (B, T, D) each, in their order.

        Args:
            images_BCHW: float (B, 3, H, W) in [-1, 1] of the size in the settings.
            blocks: their numbers, the first one is 0.
        """
        assert images_BCHW.shape[2] == images_BCHW.shape[3] == self.settings.image_size
        shift, spread = (images_BCHW.new_tensor(values)[:, None, None] for values in (_MEAN, _SPREAD))
        patches = self.patch_embed(((images_BCHW + 1) / 2 - shift) / spread)
        x_BTD = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        kept = []
        for index, block in enumerate(self.blocks[: max(blocks) + 1]):
            x_BTD = block(x_BTD)
            if index in blocks:
                kept.append(x_BTD)
        return kept

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [-1, 1] of the size in the settings -> normed tokens (B, T, D)."""
        return self.norm(self.after_blocks(images_BCHW, [len(self.blocks) - 1])[0])


def load_vit(source: str, *, purpose: str) -> VisionTransformer:
    """A vision transformer with the weights of a file, frozen.

    Args:
        source: see `nextscale.features.weights.read_weights`; names and shapes as in the published
            ``dino_deitsmall16_pretrain.pth``.
        purpose: what the weights are for, for messages.

    Raises:
        ValueError: the file cannot be read, holds no such network, or lacks a tensor (which is named).
    """
    given = read_weights(source, purpose=purpose)
    with torch.device("meta"):
        network = VisionTransformer(_settings_of(given, source))
    checkpoint.load_into(
        network, {name: value.float() for name, value in given.items() if name != "mask_token"}, source=source
    )
    return network.eval().requires_grad_(False)


def _settings_of(given: Mapping[str, Tensor], source: str) -> ViTSettings:
    """What the shapes say."""
    names = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    if not all(name in given for name in names):
        raise ValueError(
            f"{source} holds no vision transformer: expected names such as {', '.join(names)}, found "
            f"{', '.join(list(given)[:3]) or 'nothing'}"
        )
    kernel, positions, hidden = (given[name] for name in names)
    width, patch_size = kernel.shape[0], kernel.shape[-1]
    side = math.isqrt(positions[0, 1:].shape[0])
    if width % _HEAD_DIM or positions.shape != (1, 1 + side * side, width):
        raise ValueError(
            f"{source}: pos_embed {tuple(positions.shape)} and patches of width {width} fit no published "
            f"vision transformer: expected (1, 1 + n * n, width), the width a multiple of {_HEAD_DIM}"
        )
    return ViTSettings(
        image_size=side * patch_size, patch_size=patch_size, width=width, num_heads=width // _HEAD_DIM,
        depth=1 + max(int(name.split(".")[1]) for name in given if name.startswith("blocks.")),
        mlp_ratio=hidden.shape[0] / width, layer_scale="blocks.0.ls1.gamma" in given,
    )  # fmt: skip
