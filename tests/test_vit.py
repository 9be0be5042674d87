"""The vision transformer against one that is written down layer by layer, and files of weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nextscale.features.settings import ViTSettings
from nextscale.features.vit import VisionTransformer, load_vit
from vit_for_tests import DEPTH, PATCH, SIDE, SMALL, WIDTH, plain_vit, vit_layout, vit_weights

GRID = SIDE // PATCH


def _cubic(distance: float) -> float:
    """The kernel of bicubic interpolation with a = -0.75."""
    x = abs(distance)
    if x <= 1:
        return (1.25 * x - 2.25) * x * x + 1
    return -0.75 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0


def _positions(trained: Tensor, side: int) -> Tensor:
    """Position embeddings of side * side patches: cell i lies at (i + 0.5) grid / (side + 0.1) - 0.5."""
    weights = numpy.zeros((side, GRID))
    for i in range(side):
        place = (i + 0.5) * GRID / (side + 0.1) - 0.5
        for near in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(near, 0), GRID - 1)] += _cubic(place - near)
    grid = trained[1:].double().view(GRID, GRID, -1).numpy()
    resized = numpy.einsum("ik,jl,kld->ijd", weights, weights, grid).reshape(side**2, -1)
    return torch.cat([trained[:1].double(), torch.from_numpy(resized)])


@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_block_is_as_written_down(layer_scale: bool, suffix: str, tmp_path: Path) -> None:
    tensors = vit_weights(SMALL.model_copy(update={"layer_scale": layer_scale}))
    path = tmp_path / f"vit{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    network = load_vit(str(path), purpose="weights")
    images = torch.rand(2, 3, SIDE, SIDE)
    *expected, normed = plain_vit(tensors, images, tensors["pos_embed"][0])
    found = network.after_blocks(images, range(DEPTH))
    assert len(found) == DEPTH
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), other, atol=2e-5 * float(other.abs().max()))
    assert torch.allclose(network(images).double(), normed, atol=1e-4)
    assert torch.equal(network.after_blocks(images, [1])[0], found[1])
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("side", [2, 5])
def test_positions_are_resized_for_images_of_another_size(side: int, tmp_path: Path) -> None:
    tensors = vit_weights()
    torch.save(tensors, tmp_path / "vit.pth")
    network = load_vit(str(tmp_path / "vit.pth"), purpose="weights")
    assert torch.equal(network.positions(GRID), tensors["pos_embed"])
    expected = _positions(tensors["pos_embed"][0], side)
    assert torch.allclose(network.positions(side)[0].double(), expected, atol=1e-5)
    images = torch.rand(2, 3, side * PATCH, side * PATCH)
    assert torch.allclose(network(images).double(), plain_vit(tensors, images, expected)[-1], atol=1e-4)


_DINOV2 = {"image_size": 518, "patch_size": 14, "layer_scale": True}


@pytest.mark.parametrize(
    ("settings", "num_tensors", "num_weights"),
    [
        (ViTSettings(), 150, 21_665_664),
        (ViTSettings(**_DINOV2), 174, 22_056_192),
        (ViTSettings(width=768, num_heads=12, **_DINOV2), 174, 86_579_712),
        (ViTSettings(width=1024, num_heads=16, depth=24, **_DINOV2), 342, 304_367_616),
    ],
    ids=["dino_deitsmall16", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14"],
)
def test_the_layout_is_the_published_one(settings: ViTSettings, num_tensors: int, num_weights: int) -> None:
    with torch.device("meta"):
        state = VisionTransformer(settings).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == vit_layout(settings) and len(shapes) == num_tensors
    assert sum(math.prod(shape) for shape in shapes.values()) == num_weights


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
