"""The perceptual distance: its formula, its networks, files of weights under two families of names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from images import MemorySource
from models_for_tests import model_settings, random_generator
from nextscale.data.loader import evaluation_batches
from nextscale.evaluate.reconstruction import reconstruction_scores
from nextscale.features.classifier import load_classifier
from nextscale.features.perceptual import PerceptualDistance, load_perceptual
from nextscale.features.settings import PerceptualSettings
from nextscale.features.vgg import VGG16, load_heads, load_vgg16
from nextscale.pixels import to_model, to_uint8

#: Where torchvision's list has its convolutions, and the slices of LPIPS they are in.
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
SLICES = (1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)
DIMS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def _weights(style: str = "torchvision") -> dict[str, Tensor]:
    numbers, tensors, before = torch.Generator().manual_seed(0), {}, 3
    for place, part, dim in zip(PLACES, SLICES, DIMS, strict=True):
        name = f"features.{place}" if style == "torchvision" else f"net.slice{part}.{place}"
        tensors[f"{name}.weight"] = torch.randn(dim, before, 3, 3, generator=numbers) * (before * 4.5) ** -0.5
        tensors[f"{name}.bias"] = torch.randn(dim, generator=numbers) * 0.1
        before = dim
    return tensors


def _heads() -> dict[str, Tensor]:
    return {
        f"lin{i}.model.1.weight": torch.rand(1, dim, 1, 1) for i, dim in enumerate((64, 128, 256, 512, 512))
    }


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({**_weights(), "classifier.0.weight": torch.zeros(3)}, path)
    return path


def _images(count: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, (side, side), mode="bilinear")


def _plain_vgg(images: Tensor) -> list[Tensor]:
    """Torchvision's list of layers, walked one by one."""
    mean, spread = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = (images - mean.view(3, 1, 1)) / spread.view(3, 1, 1)
    tensors, taps = _weights(), []
    for place in range(30):
        if place in PLACES:
            weight, bias = tensors[f"features.{place}.weight"], tensors[f"features.{place}.bias"]
            hidden = nn.functional.conv2d(hidden, weight, bias, padding=1)
        elif place in (4, 9, 16, 23):
            hidden = nn.functional.max_pool2d(hidden, 2)
        else:
            hidden = hidden.relu()
        if place in (3, 8, 15, 22, 29):
            taps.append(hidden)
    return taps


def test_lpips_of_reconstructions(vgg_file: Path, tmp_path: Path) -> None:
    torch.save(_heads(), tmp_path / "lpips.pth")
    settings = PerceptualSettings(network="vgg16", weights=str(vgg_file), heads=str(tmp_path / "lpips.pth"))
    lpips = load_perceptual(settings)
    tokenizer, source = random_generator(model_settings(sizes=((1, 1), (8, 8)))).tokenizer, MemorySource(3)
    pixels, _ = next(evaluation_batches(source, size=(16, 16), batch_size=3))
    decoded = to_uint8(tokenizer.decode(tokenizer.encode(to_model(pixels))))
    expected = lpips(to_model(decoded), to_model(pixels)).mean().item()
    scores = reconstruction_scores(tokenizer, source, batch_size=2, lpips=lpips)
    assert scores["lpips"] == pytest.approx(expected, rel=1e-5) and expected > 0
    assert "lpips" not in reconstruction_scores(tokenizer, source)
    without_heads = load_perceptual(settings.model_copy(update={"heads": ""}))
    with pytest.raises(ValueError, match="LPIPS is defined by its heads"):
        reconstruction_scores(tokenizer, source, lpips=without_heads)


def test_the_distance_is_that_of_lpips(vgg_file: Path, tmp_path: Path) -> None:
    torch.save(_heads(), tmp_path / "lpips.pth")
    settings = PerceptualSettings(network="vgg16", weights=str(vgg_file), heads=str(tmp_path / "lpips.pth"))
    one, other = _images(), _images(seed=1)
    heads = load_heads(settings.heads)
    expected = torch.zeros(2)
    for level, (a, b) in enumerate(zip(_plain_vgg(one), _plain_vgg(other), strict=True)):
        a, b = (item / item.norm(dim=1, keepdim=True).clamp_min(1e-10) for item in (a, b))
        expected += ((a - b) ** 2 * heads[level].view(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
    found = load_perceptual(settings)(one, other)
    assert torch.allclose(found, expected, rtol=1e-4)
    without = load_perceptual(settings.model_copy(update={"heads": ""}))(one, other)
    assert not torch.allclose(found, without, rtol=0.05)


@pytest.mark.parametrize("style", ["torchvision", "lpips"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_families_of_names_in_both_kinds_of_file(
    style: str, suffix: str, vgg_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"vgg{suffix}"
    tensors = {**_weights(style), "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    mine, theirs = load_vgg16(str(path)).state_dict(), load_vgg16(str(vgg_file)).state_dict()
    assert mine.keys() == theirs.keys() == VGG16().state_dict().keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_the_bundled_classifier_compares_images_of_many_sizes() -> None:
    distance = load_perceptual(PerceptualSettings())
    assert not any(module.training for module in distance.modules())
    for side in (9, 16, 32, 48):
        clean = _images(side=side)
        assert distance(clean, clean).abs().max() < 1e-4
        noisy = [
            distance(clean + share * torch.randn_like(clean), clean).mean() for share in (0.05, 0.2, 0.8)
        ]
        assert 0 < noisy[0] < noisy[1] < noisy[2]
    with pytest.raises(
        ValueError, match=r"at least 9 pixels a side, given \(8, 8\): set losses.perceptual 0"
    ):
        distance(_images(side=8), _images(side=8))
    maps = load_classifier().maps(_images())
    assert [item.shape[1:] for item in maps] == [(64, 15, 15), (256, 7, 7), (256, 3, 3)]


def test_gradients_reach_the_image_alone_and_stay_finite_where_nothing_is_seen() -> None:
    class Blind(nn.Module):
        smallest_side = 1

        def maps(self, images_BCHW: Tensor) -> list[Tensor]:
            return [(images_BCHW - 5).relu()]

    for distance in (load_perceptual(PerceptualSettings()), PerceptualDistance(Blind())):
        images, references = _images().requires_grad_(), _images(seed=1).requires_grad_()
        distance(images, references).sum().backward()
        assert images.grad is not None and images.grad.isfinite().all()
        assert references.grad is None
        assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_a_step_against_the_gradient_makes_images_look_more_alike() -> None:
    distance = load_perceptual(PerceptualSettings())
    images, references = _images().requires_grad_(), _images(seed=1)
    before = distance(images, references).sum()
    (gradient,) = torch.autograd.grad(before, images)
    after = distance((images - 0.01 * gradient.sign()).detach(), references).sum()
    assert after < 0.99 * before.detach()


class Harmful:
    """A pickle of this would call something."""

    def __reduce__(self) -> Any:
        return (print, ("called",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.b": torch.zeros(2)}, "holds no weights of vgg16: expected names such as features.0.weight"),
        ({}, "holds no weights of vgg16: .* found nothing"),
        ([1, 2], "is no state dict: expected tensors by name"),
        ({"features.0.weight": Harmful()}, r"was not loaded.*builtins.print; give a file with tensors only"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "blocks.0.0.bias is missing"),
        (
            {**_weights(), "features.0.bias": torch.zeros(2)},
            r"blocks.0.0.bias has shape \(2,\), expected \(64,\)",
        ),
    ],
    ids=["other names", "empty", "list", "code", "part", "shape"],
)
def test_files_that_do_not_fit_are_refused(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        load_vgg16(str(tmp_path / "file.pth"))
    assert "called" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no weights of vgg16 given: name a .safetensors or .pth file"),
        ({"weights": "nowhere.pth"}, "weights of vgg16: nowhere.pth is not a file"),
        ({"weights": "hub:somebody"}, "names no file of the hub: expected hub:OWNER/NAME/FILE"),
        ({"weights": "x.pth", "heads": "nowhere.pth"}, "heads of LPIPS: nowhere.pth is not a file"),
    ],
    ids=str,
)
def test_missing_files_are_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_perceptual(PerceptualSettings(network="vgg16", **settings))


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    for change in ({"lin3.model.1.weight": torch.zeros(1, 9, 1, 1)}, {"lin3.model.1.weight": None}):
        heads = {name: value for name, value in {**_heads(), **change}.items() if value is not None}
        torch.save(heads, tmp_path / "heads.pth")
        with pytest.raises(ValueError, match=r"expected lin3.model.1.weight with 512 numbers"):
            load_heads(str(tmp_path / "heads.pth"))


def test_files_of_vgg16_for_the_classifier() -> None:
    with pytest.raises(ValueError, match="weights and heads are those of vgg16"):
        PerceptualSettings(weights="x.pth")


def test_the_hub_is_asked_only_when_named(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(vgg_file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    load_vgg16("hub:somebody/networks/folder/vgg16.pth")
    assert asked == [("somebody/networks", "folder/vgg16.pth")]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="needs the package huggingface_hub"):
        load_vgg16("hub:somebody/networks/vgg16.pth")

    def fail(*_: str) -> str:
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=fail))
    with pytest.raises(ValueError, match=r"could not be fetched \(no network\): give a local file"):
        load_vgg16("hub:somebody/networks/vgg16.pth")
