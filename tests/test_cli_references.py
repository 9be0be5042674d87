"""Opening references and protocols: what a file says, what lies beside it, what is kept for the next call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from nextscale.cli.protocols import read_protocol
from nextscale.cli.references import Opened, default_features, open_images
from nextscale.evaluate.npz import NpzImages
from nextscale.evaluate.protocols import protocol_names
from scoring_for_tests import ALONE, ArrayImages, mean_colors, reference_of


def _opened(images: Any, **changes: Any) -> Opened:
    return replace(Opened("memory", "training", "cifar", mean_colors(), ready=None, images=images), **changes)


def test_images_beside_published_statistics_give_the_pairs(tmp_path: Path) -> None:
    images = ArrayImages(9, seed=3)
    numpy.savez(tmp_path / "a.npz", images.pixels)
    published = replace(reference_of(ArrayImages(40), mean_colors()), kept_nD=None)
    reference = _opened(NpzImages(tmp_path / "a.npz"), ready=published).finish(ALONE, keep=None)
    assert reference.moments is published.moments and reference.record == published.record
    assert reference.kept_nD is not None
    assert torch.allclose(reference.kept_nD, mean_colors()(images.pixels)["pool"])
    assert _opened(None, ready=published).finish(ALONE, keep=None) is published


def test_what_was_made_is_kept(tmp_path: Path) -> None:
    images, keep = ArrayImages(40), tmp_path / "out" / "reference.npz"
    first = _opened(images).finish(ALONE, keep=keep)
    assert images.reads == 40
    second = _opened(images).finish(ALONE, keep=keep)
    assert images.reads == 40 and second.digest == first.digest and second.record == first.record
    with pytest.raises(ValueError, match="statistics of training images, not of validation images"):
        _opened(images, kind="validation").finish(ALONE, keep=keep)
    with pytest.raises(ValueError, match="by other cifar weights"):
        _opened(images, extractor=mean_colors(digest="e" * 64)).finish(ALONE, keep=keep)
    keep.write_bytes(keep.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"not a readable \.npz file"):
        _opened(images).finish(ALONE, keep=keep)


def test_features_where_nothing_was_said() -> None:
    assert default_features((32, 32)) == "cifar"
    with pytest.raises(ValueError, match="images of 256 x 256 pixels: give --features inception, dinov2 or"):
        default_features((256, 256))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"nothing\.npz does not exist"):
        open_images("nothing.npz")


def test_the_bundled_protocols() -> None:
    assert protocol_names() == ["cifar10", "var-paper"]
    paper, small = read_protocol("var-paper"), read_protocol("cifar10")
    assert (paper.num_samples, paper.samples_per_class, paper.reference_kind) == (50_000, 50, "training")
    assert paper.sampling == {"guidance": 1.5, "top_k": 900, "top_p": 0.96, "temperature": 1.0}
    assert (small.num_samples, small.features, small.sampling) == (10_000, "cifar", {})
