"""DINOv2 against a vision transformer that is written down, its resizing against Pillow's."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from nextscale.features.dinov2 import load_dinov2, resize_as_pillow
from nextscale.features.extractor import load_extractor
from nextscale.features.settings import ViTSettings
from vit_for_tests import plain_vit, vit_weights

DIM = 128


def state() -> dict[str, Tensor]:
    """Weights named and shaped as in the published files."""
    settings = ViTSettings(
        image_size=518, patch_size=14, width=DIM, depth=2, num_heads=2, layer_scale=True
    )  # fmt: skip
    return {**vit_weights(settings), "mask_token": torch.randn(1, DIM)}


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vit_pretrain.pth"
    torch.save(state(), path)
    return path


def _pixels(count: int = 2, height: int = 224, width: int = 224) -> numpy.ndarray:
    coarse = numpy.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=numpy.uint8)
    pictures = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse]
    return numpy.stack([numpy.asarray(one) for one in pictures])


def test_the_class_token_is_that_of_plain_operations(weights_file: Path) -> None:
    pixels = torch.from_numpy(_pixels()).permute(0, 3, 1, 2)
    network = load_dinov2(str(weights_file))
    found = network(pixels)["pool"]
    expected = plain_vit(state(), pixels / 255, network.network.positions(16)[0].double())[-1][:, 0]
    assert found.shape == (2, DIM)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5
    assert (expected[0] - expected[1]).abs().max() > 0.1


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
    with pytest.raises(ValueError, match=r"holds no vision transformer: expected .* found weight"):
        load_dinov2(str(tmp_path / "other.safetensors"))
    torch.save(vit_weights(), tmp_path / "dino.pth")
    with pytest.raises(ValueError, match=r"no weights of DINOv2: .* for 12 pixels with patches of 4"):
        load_dinov2(str(tmp_path / "dino.pth"))
    with pytest.raises(ValueError, match="no weights of dinov2 given"):
        load_extractor("dinov2")
