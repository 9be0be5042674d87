"""Vision transformers with made-up weights, named and shaped as in published files, and one written down."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nextscale.features.settings import ViTSettings

#: Two heads; 3 x 3 patches of 4 pixels a side.
WIDTH, DEPTH, PATCH, SIDE = 128, 5, 4, 12
SMALL = ViTSettings(
    image_size=SIDE, patch_size=PATCH, width=WIDTH, depth=DEPTH, num_heads=2, mlp_ratio=2.0
)  # fmt: skip


def vit_layout(settings: ViTSettings) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published files (those of DINOv2 with `layer_scale` and ``mask_token``)."""
    dim, hidden = settings.width, round(settings.width * settings.mlp_ratio)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim), "pos_embed": (1, 1 + settings.num_patches, dim),
        "patch_embed.proj.weight": (dim, 3, settings.patch_size, settings.patch_size),
        "patch_embed.proj.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,),
    }  # fmt: skip
    for index in range(settings.depth):
        block = {
            "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,),
            "mlp.fc1.weight": (hidden, dim), "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (dim, hidden), "mlp.fc2.bias": (dim,),
            **({"ls1.gamma": (dim,), "ls2.gamma": (dim,)} if settings.layer_scale else {}),
        }  # fmt: skip
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes


def vit_weights(settings: ViTSettings = SMALL) -> dict[str, Tensor]:
    """Weights that matter: no norm, factor, bias or position is the one of a fresh network."""
    numbers = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in vit_layout(settings).items():
        drawn = torch.randn(shape, generator=numbers)
        if name.endswith("weight") and len(shape) > 1:
            tensors[name] = drawn / math.sqrt(math.prod(shape[1:]))
        else:
            tensors[name] = 0.3 * drawn + name.endswith(
                ("gamma", "norm.weight", "norm1.weight", "norm2.weight")
            )
    return tensors


def plain_vit(tensors: dict[str, Tensor], images: Tensor, positions: Tensor) -> list[Tensor]:
    """Every image, patch and head by itself, in float64: what each block gives, then the last norm.

    Args:
        tensors: weights.
        images: (B, 3, H, W) in [0, 1].
        positions: what is added to the tokens (T, D).
    """
    weights = {name: value.double() for name, value in tensors.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        spread = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    mean, std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    kernel, one = weights["patch_embed.proj.weight"], torch.ones(1, dtype=torch.float64)
    size, kept = kernel.shape[-1], []
    for image in (images.double() - mean) / std:
        rows = [weights["cls_token"][0, 0]]
        for top in range(0, image.shape[1], size):
            for left in range(0, image.shape[2], size):
                patch = image[:, top : top + size, left : left + size].flatten()
                rows.append(kernel.flatten(1) @ patch + weights["patch_embed.proj.bias"])
        x, outputs = torch.stack(rows) + positions, []
        for block in range(sum(name.endswith("norm1.bias") for name in weights)):
            start = f"blocks.{block}"
            query, key, value = linear(norm(x, f"{start}.norm1"), f"{start}.attn.qkv").chunk(3, dim=-1)
            heads = []
            for head in range(0, x.shape[1], 64):
                part = slice(head, head + 64)
                heads.append((query[:, part] @ key[:, part].T / 8).softmax(dim=-1) @ value[:, part])
            scale1, scale2 = (weights.get(f"{start}.ls{n}.gamma", one) for n in (1, 2))
            x = x + scale1 * linear(torch.cat(heads, dim=-1), f"{start}.attn.proj")
            hidden = linear(norm(x, f"{start}.norm2"), f"{start}.mlp.fc1")
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + scale2 * linear(hidden, f"{start}.mlp.fc2")
            outputs.append(x)
        kept.append(torch.stack([*outputs, norm(x, "norm")]))
    return list(torch.stack(kept, dim=1))
