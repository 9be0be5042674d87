"""DINOv2 against plain operations on its tensors, position embeddings and resizing against other ways."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from nextscale.features.dinov2 import DINOv2, load_dinov2, resize_as_pillow
from nextscale.features.extractor import load_extractor

DIM, DEPTH, HEADS, GRID = 128, 2, 2, 37


def layout(dim: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published files."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim), "pos_embed": (1, 1370, dim), "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, 14, 14), "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,), "norm.bias": (dim,),
    }  # fmt: skip
    for index in range(depth):
        block = {
            "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,),
            "ls1.gamma": (dim,), "ls2.gamma": (dim,),
        }  # fmt: skip
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes


def state(dim: int = DIM, depth: int = DEPTH) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in layout(dim, depth).items():
        drawn = torch.randn(shape, generator=numbers)
        if name.endswith("weight") and len(shape) > 1:
            drawn = drawn / math.sqrt(math.prod(shape[1:]))
        tensors[name] = 1 + 0.2 * drawn if name.endswith(("gamma", "norm1.weight", "norm2.weight")) else drawn
    return tensors


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vit_pretrain.pth"
    torch.save(state(), path)
    return path


def _pixels(count: int = 2, height: int = 224, width: int = 224) -> numpy.ndarray:
    coarse = numpy.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=numpy.uint8)
    pictures = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse]
    return numpy.stack([numpy.asarray(one) for one in pictures])


def _cubic(distance: float) -> float:
    """The kernel of bicubic interpolation with a = -0.75."""
    x = abs(distance)
    if x <= 1:
        return (1.25 * x - 2.25) * x * x + 1
    return -0.75 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0


def _interpolation(side: int) -> numpy.ndarray:
    """Weights (side, 37) of the trained positions: cell i lies at (i + 0.5) 37 / (side + 0.1) - 0.5."""
    weights = numpy.zeros((side, GRID))
    for i in range(side):
        place = (i + 0.5) * GRID / (side + 0.1) - 0.5
        for near in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(near, 0), GRID - 1)] += _cubic(place - near)
    return weights


def _plain_dinov2(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """Image by image, head by head, in float64."""
    t = {name: value.double() for name, value in tensors.items()}
    weights = torch.from_numpy(_interpolation(16))
    trained = t["pos_embed"][0, 1:].view(GRID, GRID, DIM)
    positions = torch.einsum("ik,jl,kld->ijd", weights, weights, trained).reshape(256, DIM)

    def norm(x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    results = []
    mean, spread = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    for image in images.double():
        colors = ((image / 255).permute(1, 2, 0) - mean) / spread
        cells = colors.view(16, 14, 16, 14, 3).permute(0, 2, 4, 1, 3).reshape(256, -1)
        patches = cells @ t["patch_embed.proj.weight"].view(DIM, -1).T + t["patch_embed.proj.bias"]
        x = torch.cat([t["cls_token"][0] + t["pos_embed"][0, :1], patches + positions])
        for index in range(DEPTH):
            at = f"blocks.{index}."
            q, k, v = linear(norm(x, at + "norm1"), at + "attn.qkv").split(DIM, dim=1)
            heads = []
            for h in range(HEADS):
                part = slice(64 * h, 64 * h + 64)
                heads.append((q[:, part] @ k[:, part].T / 8).softmax(dim=1) @ v[:, part])
            x = x + linear(torch.cat(heads, dim=1), at + "attn.proj") * t[at + "ls1.gamma"]
            hidden = linear(norm(x, at + "norm2"), at + "mlp.fc1")
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + linear(hidden, at + "mlp.fc2") * t[at + "ls2.gamma"]
        results.append(norm(x[0], "norm"))
    return torch.stack(results)


def test_the_class_token_is_that_of_plain_operations(weights_file: Path) -> None:
    pixels = torch.from_numpy(_pixels()).permute(0, 3, 1, 2)
    found = load_dinov2(str(weights_file))(pixels)["pool"]
    expected = _plain_dinov2(state(), pixels)
    assert found.shape == (2, DIM)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_trained_positions_are_taken_as_they_are(weights_file: Path) -> None:
    network = load_dinov2(str(weights_file))
    assert torch.equal(network.positions(GRID), network.pos_embed)
    assert network.positions(16).shape == (1, 257, DIM)


@pytest.mark.parametrize(("dim", "depth", "count"), [(384, 12, 175), (768, 12, 175), (1024, 24, 343)])
def test_the_layout_is_the_published_one(dim: int, depth: int, count: int) -> None:
    with torch.device("meta"):
        network = DINOv2(dim=dim, depth=depth)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == layout(dim, depth)
    assert len(network.state_dict()) == count


@pytest.mark.parametrize("size", [(32, 32), (100, 224), (256, 256), (300, 500)], ids=str)
def test_resizing_is_pillows(size: tuple[int, int]) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=numpy.uint8)
    for pixels in (noise, _pixels(1, *size)):
        expected = numpy.asarray(Image.fromarray(pixels[0]).resize((224, 224), Image.Resampling.BICUBIC))
        found = resize_as_pillow(torch.from_numpy(pixels).permute(0, 3, 1, 2), 224)[0].permute(1, 2, 0)
        assert numpy.array_equal(found.numpy(), expected)


def test_the_extractor(weights_file: Path) -> None:
    extractor = load_extractor("dinov2", str(weights_file))
    assert (extractor.metric_name, extractor.dim, extractor.image_size) == ("FD-DINOv2-128", DIM, None)
    assert extractor(_pixels(3, 40, 50))["pool"].shape == (3, DIM)


def test_other_files_are_refused(tmp_path: Path) -> None:
    tensors = {**state(), "register_tokens": torch.zeros(1, 4, DIM)}
    save_file(tensors, tmp_path / "registers.safetensors")
    with pytest.raises(ValueError, match="register_tokens is not part of the model"):
        load_dinov2(str(tmp_path / "registers.safetensors"))
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds no weights of DINOv2: expected cls_token .* found weight"):
        load_dinov2(str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="no weights of dinov2 given"):
        load_extractor("dinov2")
