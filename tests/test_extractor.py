"""Feature networks behind one call: what they give, which sizes they take, what names their weights."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from nextscale.features.classifier import (
    BUNDLED_CLASSIFIER,
    Classifier,
    load_classifier,
    save_classifier,
)
from nextscale.features.extractor import load_extractor
from nextscale.features.settings import ClassifierSettings
from nextscale.features.weights import weights_digest
from nextscale.pixels import to_model


def pictures(count: int = 4, side: int = 32) -> numpy.ndarray:
    return numpy.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=numpy.uint8)


def test_the_classifier_gives_what_its_last_layer_reads_and_says() -> None:
    extractor, classifier, images = load_extractor("cifar"), load_classifier(), pictures()
    seen = extractor(images)
    assert seen["pool"].shape == (4, extractor.dim) and seen["pool"].dtype == torch.float32
    assert torch.allclose(seen["pool"], classifier.features(to_model(images)), rtol=1e-4, atol=1e-4)
    assert torch.allclose(seen["logits"], classifier(to_model(images)), rtol=1e-4, atol=1e-4)
    assert (extractor.metric_name, extractor.image_size) == ("FD-CIFAR", 32)
    content = (BUNDLED_CLASSIFIER / "classifier.safetensors").read_bytes()
    assert extractor.digest == hashlib.sha256(content).hexdigest()


@torch.no_grad()
def test_another_classifier_is_named_by_its_folder(tmp_path: Path) -> None:
    classifier = Classifier(ClassifierSettings(image_size=16, dims=(8, 12), class_names=("a", "b"))).eval()
    save_classifier(tmp_path / "judge", classifier, dtype=torch.float32)
    extractor, images = load_extractor("classifier", str(tmp_path / "judge")), pictures(side=16)
    seen = extractor(images)
    assert torch.allclose(seen["pool"], classifier.features(to_model(images)), rtol=1e-4, atol=1e-4)
    assert torch.allclose(seen["logits"], classifier(to_model(images)), rtol=1e-4, atol=1e-4)
    assert (extractor.metric_name, extractor.image_size, extractor.dim) == ("FD-CLASSIFIER", 16, 12)
    content = (tmp_path / "judge" / "classifier.safetensors").read_bytes()
    assert extractor.digest == hashlib.sha256(content).hexdigest()


def test_a_mirror_image_is_another_image() -> None:
    extractor, images = load_extractor("cifar"), pictures()
    mirrored = extractor(images[:, :, ::-1])["pool"]
    assert not torch.allclose(mirrored, extractor(images)["pool"], rtol=0.1)


def test_features_are_float32_whatever_surrounds_them() -> None:
    extractor, images = load_extractor("cifar"), pictures()
    expected = extractor(images)["pool"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(images)["pool"], expected)
    allowed = []

    def look(pixels: Tensor) -> dict[str, Tensor]:
        allowed.append(torch.backends.cudnn.allow_tf32)
        return {}

    dataclasses.replace(extractor, look=look)(images)
    assert allowed == [False] and torch.backends.cudnn.allow_tf32


def test_the_digest_is_that_of_the_file_and_keeps_the_promise_of_its_name(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    for name in ("weights.pth", f"weights-{digest[:8]}.pth", f"net-{digest}.safetensors", "vit-b16-2015.pth"):
        (tmp_path / name).write_bytes(b"weights")
        assert weights_digest(str(tmp_path / name), purpose="weights") == digest
    (tmp_path / "weights-01234567.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match=f"starts with 01234567, it has {digest[:8]}: fetch it again"):
        weights_digest(str(tmp_path / "weights-01234567.pth"), purpose="weights")


def test_what_is_refused() -> None:
    extractor = load_extractor("cifar")
    with pytest.raises(ValueError, match="FD-CIFAR is defined on images of 32 x 32 pixels, given 16 x 16"):
        extractor(pictures(side=16))
    with pytest.raises(ValueError, match=r"expected images uint8 \(B, H, W, 3\), given float64"):
        extractor(pictures() / 255)
    with pytest.raises(ValueError, match="cifar is the bundled classifier: leave them out"):
        load_extractor("cifar", "some.pth")
    with pytest.raises(ValueError, match="no weights of classifier given: name its folder; nextscale train"):
        load_extractor("classifier")
    with pytest.raises(ValueError, match="nowhere is no classifier folder"):
        load_extractor("classifier", "nowhere")
    with pytest.raises(ValueError, match="no extractor 'vgg': expected inception, dinov2, cifar or class"):
        load_extractor("vgg")  # type: ignore[arg-type]
