"""DINOv2 vision transformers with patches of 14 pixels (Oquab et al. 2023, arXiv 2304.07193): ViT-S, -B, -L.

Letters: B batch, C channels, H W pixels, h w patches, T tokens (the class token, then the patches), D width,
N heads, E width of a head, s pixels along a side of the result.
Special here: names are those of the published files, ``dinov2_vits14_pretrain.pth`` and so on; sizes follow
from the tensors. ViT-g (gated MLP) and the variants with registers have other tensors and are refused.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.features.weights import read_weights

IMAGE_SIZE, _PATCH, _HEAD_DIM = 224, 14, 64
_FIXED_POINT_BITS = 22  #: of Pillow's weights
_GRID = 37  #: patches along a side for which position embeddings were trained: 518 pixels
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  #: of ImageNet's colours in [0, 1]
#: The original adds this to the number of patches before it divides, against rounding; positions move a bit.
_OFFSET = 0.1


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        heads = self.qkv(x_BTD).unflatten(2, (3, -1, _HEAD_DIM)).permute(2, 0, 3, 1, 4)  # 3 B N T E
        mixed_BNTE = F.scaled_dot_product_attention(*heads)
        return self.proj(mixed_BNTE.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BTD)))


class _LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.gamma


class _Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = _Attention(dim), _MLP(dim)
        self.ls1, self.ls2 = _LayerScale(dim), _LayerScale(dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.ls1(self.attn(self.norm1(x_BTD)))
        return x_BTD + self.ls2(self.mlp(self.norm2(x_BTD)))


class DINOv2(nn.Module):
    """The network; `load_dinov2` gives it its weights."""

    def __init__(self, *, dim: int, depth: int) -> None:
        super().__init__()
        self.dim = dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _GRID**2, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # for training only; the files hold it
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, _PATCH, _PATCH)})
        self.blocks = nn.ModuleList(_Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """The class token after the last norm, as ``pool`` (B, D): what FD-DINOv2 compares.

        Args:
            pixels_BCHW: uint8 (B, 3, H, W), brought to 224 pixels a side whatever its shape.
        """
        mean, spread = (
            pixels_BCHW.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (_MEAN, _SPREAD)
        )
        images_BCHW = (resize_as_pillow(pixels_BCHW, IMAGE_SIZE).float() / 255 - mean) / spread
        patches_BDhw = self.patch_embed["proj"](images_BCHW)
        patches_BTD = patches_BDhw.flatten(2).transpose(1, 2)
        hidden_BTD = torch.cat([self.cls_token.expand(len(patches_BTD), -1, -1), patches_BTD], dim=1)
        hidden_BTD = hidden_BTD + self.positions(patches_BDhw.shape[-1])
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        return {"pool": self.norm(hidden_BTD[:, 0])}

    def positions(self, side: int) -> Tensor:
        """Position embeddings of ``side * side`` patches: the trained ones, resized, (1, T, D)."""
        if side == _GRID:
            return self.pos_embed
        trained_1Dhw = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (_GRID, _GRID))
        resized_1Dhw = F.interpolate(trained_1Dhw, scale_factor=(side + _OFFSET) / _GRID, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized_1Dhw.flatten(2).transpose(1, 2)], dim=1)


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
        source: see `nextscale.features.weights.read_weights`; names as in the published files.

    Raises:
        ValueError: the file cannot be read, or does not hold exactly the tensors of such a network.
    """
    tensors = read_weights(source, purpose="weights of dinov2")
    token = tensors.get("cls_token")
    if token is None or token.ndim != 3 or token.shape[2] % _HEAD_DIM:
        raise ValueError(
            f"{source} holds no weights of DINOv2: expected cls_token (1, 1, D) and so on, found "
            f"{', '.join(list(tensors)[:3]) or 'nothing'}"
        )
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    with torch.device("meta"):
        network = DINOv2(dim=token.shape[2], depth=depth)
    tensors = {name: value.float() for name, value in tensors.items()}
    checkpoint.load_into(network, tensors, source=source)
    return network.eval().requires_grad_(False)
