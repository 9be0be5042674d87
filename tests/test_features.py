"""The small classifier: shapes, its folder, the disturbances it is trained with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models_for_tests import divided_classifier
from nextscale.features.classifier import Classifier, load_classifier, save_classifier
from nextscale.features.settings import ClassifierSettings
from nextscale.train.classifier_task import cut_out, shift

SETTINGS = ClassifierSettings(image_size=16, dims=(8, 16), class_names=("a", "b", "c"))


def _trained() -> Classifier:
    """A classifier whose norms have seen images, as after training."""
    classifier = Classifier(SETTINGS)
    for _ in range(3):
        classifier(torch.randn(8, 3, 16, 16) * 2 + 1)
    return classifier.eval()


def _images(batch: int = 4) -> Tensor:
    return torch.rand(batch, 3, 16, 16) * 2 - 1


def test_shapes() -> None:
    classifier = _trained()
    assert classifier(_images()).shape == (4, 3)
    assert classifier.features(_images()).shape == (4, 16)
    assert len(classifier.levels) == 2
    with pytest.raises(ValueError, match=r"expected images \(B, 3, 16, 16\), given \(4, 3, 8, 8\)"):
        classifier(torch.zeros(4, 3, 8, 8))


def test_a_whitened_stem_sees_patches_without_correlation() -> None:
    classifier = Classifier(SETTINGS.model_copy(update={"stem_dim": 24}))
    images = torch.rand(500, 3, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3) * 2 - 1
    images = images + 0.3 * torch.randn_like(images)
    images[:, 1] += images[:, 0]  # patches are correlated in space and in color
    classifier.whiten_stem(images)
    seen = classifier.stem(images).transpose(0, 1).flatten(1)
    assert torch.allclose(torch.cov(seen[:12]), torch.eye(12), atol=0.05)
    assert torch.allclose(seen[12:], -seen[:12], atol=1e-5)


def test_an_image_and_its_mirror_image_are_judged_together() -> None:
    images = torch.rand(40, 3, 8, 8) * 2 - 1
    classifier = divided_classifier(images)
    with torch.no_grad():
        together = classifier(images) + classifier(images.flip(3))
        alone = classifier(images).argmax(dim=1)
    assigned = classifier.assign(images)
    assert torch.equal(assigned, together.argmax(dim=1)) and torch.equal(
        assigned, classifier.assign(images.flip(3))
    )
    assert not torch.equal(assigned, alone)


def test_every_parameter_gets_a_gradient() -> None:
    classifier = Classifier(SETTINGS)
    torch.nn.functional.cross_entropy(classifier(_images(8)), torch.arange(8) % 3).backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_folder_brings_the_classifier_back(tmp_path: Path) -> None:
    classifier, images = _trained(), _images()
    save_classifier(tmp_path / "whole", classifier, dtype=torch.float32)
    loaded = load_classifier(tmp_path / "whole")
    assert loaded.settings == SETTINGS and not loaded.training
    assert torch.equal(loaded(images), classifier(images))
    save_classifier(tmp_path / "half", classifier)
    half = load_classifier(tmp_path / "half")
    assert half.head.weight.dtype == torch.float32 and not half.head.weight.requires_grad
    assert torch.allclose(half(images), classifier(images), atol=2e-2)
    assert not torch.equal(half(images), classifier(images))


def test_a_folder_that_holds_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no classifier folder: it holds no config"):
        load_classifier(tmp_path)
    save_classifier(tmp_path / "c", _trained())
    content = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps({**content, "class_names": ["a"]}))
    with pytest.raises(ValueError, match=r"head.weight has shape \(3, 16\), expected \(1, 16\)"):
        load_classifier(tmp_path / "c")


def test_shifts_move_the_image_and_mirror_its_edge() -> None:
    images = torch.arange(25.0).view(1, 1, 5, 5).expand(3, 3, 5, 5)
    moved = shift(images, torch.tensor([[0.5, 0.5], [0.0, 0.5], [0.5, 0.999]]), 1)
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1, :, 1:], images[1, :, :-1]) and torch.equal(moved[1, :, 0], images[1, :, 1])
    assert torch.equal(moved[2, :, :, :-1], images[2, :, :, 1:])
    assert torch.equal(moved[2, :, :, -1], images[2, :, :, -2])
    assert torch.equal(shift(images, torch.rand(3, 2), 0), images)


def test_shifts_are_spread_evenly() -> None:
    images = torch.arange(49.0).view(1, 1, 7, 7).expand(5000, 1, 7, 7)
    centers = shift(images, torch.rand(5000, 2), 2)[:, 0, 3, 3]
    counts = torch.stack([(centers == value).sum() for value in centers.unique()])
    assert len(counts) == 25 and counts.min() > 130 and counts.max() < 280


def test_a_square_is_painted_gray() -> None:
    images = torch.ones(3, 3, 8, 8)
    painted = cut_out(images, torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.25, 1.0]]), 4)
    gray = painted == 0
    assert gray[0].sum() == 3 * 16 and gray[0, :, 2:6, 2:6].all()
    assert gray[1].sum() == 3 * 4 and gray[1, :, :2, :2].all()
    assert gray[2].sum() == 3 * 8 and gray[2, :, 0:4, 6:].all()
    assert torch.equal(cut_out(images, torch.rand(3, 2), 0), images)
