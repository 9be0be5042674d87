"""Made-up weights of a small vision transformer, named and shaped as in DINO's published files."""

from __future__ import annotations

import torch
from torch import Tensor

#: Two heads; 3 x 3 patches of 4 pixels a side.
WIDTH, DEPTH, PATCH, SIDE = 128, 5, 4, 12


def vit_weights(*, layer_scale: bool = False) -> dict[str, Tensor]:
    """Weights that matter: no norm, bias or position is the one of a fresh network."""
    numbers = torch.Generator().manual_seed(0)

    def draw(*shape: int, spread: float = 0.3, middle: float = 0.0) -> Tensor:
        return middle + spread * torch.randn(shape, generator=numbers)

    def linear(name: str, given: int, made: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(made, given, spread=given**-0.5), f"{name}.bias": draw(made)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(WIDTH, middle=1.0), f"{name}.bias": draw(WIDTH)}

    tensors = {
        "cls_token": draw(1, 1, WIDTH), "pos_embed": draw(1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH, spread=0.15),
        "patch_embed.proj.bias": draw(WIDTH), **norm("norm"),
    }  # fmt: skip
    for block in range(DEPTH):
        start = f"blocks.{block}"
        tensors |= norm(f"{start}.norm1") | norm(f"{start}.norm2")
        tensors |= linear(f"{start}.attn.qkv", WIDTH, 3 * WIDTH) | linear(f"{start}.attn.proj", WIDTH, WIDTH)
        tensors |= linear(f"{start}.mlp.fc1", WIDTH, 2 * WIDTH) | linear(f"{start}.mlp.fc2", 2 * WIDTH, WIDTH)
        if layer_scale:
            tensors |= {f"{start}.ls{number}.gamma": draw(WIDTH, middle=0.5) for number in (1, 2)}
    return tensors
