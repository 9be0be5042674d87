"""A plain vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), as DINO (Caron et al. 2021, arXiv
2104.14294) and DINOv2 (Oquab et al. 2023, arXiv 2304.07193) train it.

Letters: B batch, T tokens (the class token first, then patches row by row), D width, N heads, E width of a
head, h w patches, H W pixels.
Special here: names are those of both published files, so that these load without a table of names; the sizes
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
#: The originals add this to the number of patches before they divide, against rounding; positions move a bit.
_OFFSET = 0.1


class SelfAttention(nn.Module):
    """Every token attends to all."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        heads = self.qkv(x_BTD).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 B N T E
        mixed_BNTE = F.scaled_dot_product_attention(*heads)
        return self.proj(mixed_BNTE.transpose(1, 2).flatten(2))


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
        kernel = settings.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, kernel, stride=kernel)})
        self.blocks = nn.ModuleList(ViTBlock(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def after_blocks(self, images_BCHW: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """What stands behind some of the blocks, before the last norm: (B, T, D) each, in their order.

        Args:
            images_BCHW: float (B, 3, H, W) in [0, 1], square, of whole patches.
            blocks: their numbers, the first one is 0.
        """
        side, rest = divmod(images_BCHW.shape[3], self.settings.patch_size)
        assert rest == 0 and images_BCHW.shape[2] == images_BCHW.shape[3]
        mean, spread = (images_BCHW.new_tensor(values)[:, None, None] for values in (_MEAN, _SPREAD))
        patches_BDhw = self.patch_embed["proj"]((images_BCHW - mean) / spread)
        patches_BTD = patches_BDhw.flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.cls_token.expand(len(patches_BTD), -1, -1), patches_BTD], dim=1)
        x_BTD = x_BTD + self.positions(side)
        kept = []
        for index, block in enumerate(self.blocks[: max(blocks) + 1]):
            x_BTD = block(x_BTD)
            if index in blocks:
                kept.append(x_BTD)
        return kept

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images as `after_blocks` takes them -> tokens after the last norm (B, T, D)."""
        return self.norm(self.after_blocks(images_BCHW, [len(self.blocks) - 1])[0])

    def positions(self, side: int) -> Tensor:
        """Position embeddings of ``side * side`` patches: the trained ones, resized, (1, T, D)."""
        trained = self.settings.image_size // self.settings.patch_size
        if side == trained:
            return self.pos_embed
        trained_1Dhw = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (trained, trained))
        resized_1Dhw = F.interpolate(trained_1Dhw, scale_factor=(side + _OFFSET) / trained, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized_1Dhw.flatten(2).transpose(1, 2)], dim=1)


def load_vit(source: str, *, purpose: str) -> VisionTransformer:
    """A vision transformer with the weights of a file, frozen.

    Args:
        source: see `nextscale.features.weights.read_weights`; names and shapes as in the published
            ``dino_deitsmall16_pretrain.pth`` or ``dinov2_vitl14_pretrain.pth``.
        purpose: what the weights are for, for messages.

    Raises:
        ValueError: the file cannot be read, holds no such network, or lacks a tensor (which is named).
    """
    given = read_weights(source, purpose=purpose)
    with torch.device("meta"):
        network = VisionTransformer(_settings_of(given, source))
    # the mask token is for training only
    tensors = {name: value.float() for name, value in given.items() if name != "mask_token"}
    checkpoint.load_into(network, tensors, source=source)
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
