"""The vision transformer against one that is written down layer by layer, and files of weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nextscale.features.settings import ViTSettings
from nextscale.features.vit import VisionTransformer, load_vit
from vit_for_tests import DEPTH, WIDTH, vit_weights


def _plain_vit(tensors: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Every image, patch and head by itself, in float64."""
    weights = {name: value.double() for name, value in tensors.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        spread = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]
    kernel = weights["patch_embed.proj.weight"]
    size, kept = kernel.shape[-1], []
    for image in images.double():
        image = (image * 0.5 + 0.5 - mean) / std
        rows = [weights["cls_token"][0, 0]]
        for top in range(0, image.shape[1], size):
            for left in range(0, image.shape[2], size):
                patch = image[:, top : top + size, left : left + size].flatten()
                rows.append(kernel.flatten(1) @ patch + weights["patch_embed.proj.bias"])
        x, outputs = torch.stack(rows) + weights["pos_embed"][0], []
        for block in range(DEPTH):
            start = f"blocks.{block}"
            query, key, value = linear(norm(x, f"{start}.norm1"), f"{start}.attn.qkv").chunk(3, dim=-1)
            heads = []
            for head in range(0, WIDTH, 64):
                one = slice(head, head + 64)
                scores = query[:, one] @ key[:, one].T / 8
                heads.append(scores.softmax(dim=-1) @ value[:, one])
            scale1, scale2 = (weights.get(f"{start}.ls{n}.gamma", torch.ones(1).double()) for n in (1, 2))
            x = x + scale1 * linear(torch.cat(heads, dim=-1), f"{start}.attn.proj")
            hidden = linear(norm(x, f"{start}.norm2"), f"{start}.mlp.fc1")
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + scale2 * linear(hidden, f"{start}.mlp.fc2")
            outputs.append(x)
        kept.append(torch.stack([*outputs, norm(x, "norm")]))
    return list(torch.stack(kept, dim=1))


@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_block_is_as_written_down(layer_scale: bool, suffix: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / f"vit{suffix}", vit_weights(layer_scale=layer_scale)
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    network = load_vit(str(path), purpose="weights")
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    *expected, normed = _plain_vit(tensors, images)
    found = network.after_blocks(images, range(DEPTH))
    assert len(found) == DEPTH
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), other, atol=2e-5 * float(other.abs().max()))
    assert torch.allclose(network(images).double(), normed, atol=1e-4)
    assert torch.equal(network.after_blocks(images, [1])[0], found[1])
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_published_layout_of_dino() -> None:
    """Sizes and names of dino_deitsmall16_pretrain.pth: 21.7 million weights in 150 tensors."""
    with torch.device("meta"):
        shapes = {
            name: tuple(item.shape) for name, item in VisionTransformer(ViTSettings()).state_dict().items()
        }
    assert len(shapes) == 4 + 12 * 12 + 2
    assert sum(math.prod(shape) for shape in shapes.values()) == 21_665_664
    assert shapes["pos_embed"] == (1, 197, 384) and shapes["cls_token"] == (1, 1, 384)
    assert shapes["patch_embed.proj.weight"] == (384, 3, 16, 16)
    assert shapes["blocks.11.attn.qkv.weight"] == (1152, 384) and shapes["blocks.0.attn.qkv.bias"] == (1152,)
    assert shapes["blocks.3.mlp.fc1.weight"] == (1536, 384) and shapes["norm.bias"] == (384,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": None}, "holds no vision transformer: expected names such as patch_embed.proj.weight"),
        ({"pos_embed": torch.zeros(1, 9, WIDTH)}, r"pos_embed \(1, 9, 128\) .* fit no published"),
        ({"blocks.1.attn.proj.bias": None}, "blocks.1.attn.proj.bias is missing"),
        ({"head.weight": torch.zeros(3)}, "head.weight is not part of the model"),
    ],
    ids=["other names", "positions", "part", "more"],
)
def test_files_that_do_not_fit(changes: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    tensors = {name: value for name, value in {**vit_weights(), **changes}.items() if value is not None}
    torch.save(tensors, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=message):
        load_vit(str(tmp_path / "vit.pth"), purpose="weights")
