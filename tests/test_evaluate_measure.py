"""Measuring: in parts, in batches, on processes, after a kill; every score against its definition."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from nextscale.evaluate.bootstrap import frechet_interval
from nextscale.evaluate.frechet import frechet_distance
from nextscale.evaluate.inception_score import inception_score
from nextscale.evaluate.kernel_distance import kernel_distance
from nextscale.evaluate.measure import Looker, Rows, measure
from nextscale.evaluate.precision_recall import precision_recall
from nextscale.evaluate.scores import moments_of, sample_scores, singular_warnings
from nextscale.evaluate.scoring import Scorer, picture
from scoring_for_tests import ALONE, DIM, ArrayImages, mean_colors, reference_of


def _measure(images: ArrayImages, *, batch: int = 50, parts: Path | None = None, **options: Any) -> Rows:
    look = Looker(images, mean_colors(**options), num_shown=30)
    return measure(look, images.count, batch=batch, ranks=ALONE, parts=parts, progress=None)


def test_rows_are_in_the_order_of_the_images_whatever_the_batch() -> None:
    images = ArrayImages(600)  # more than two parts
    expected = mean_colors()(images.pixels)
    for batch in (7, 64, 1000):
        rows = _measure(images, batch=batch)
        assert sorted(rows) == ["logits", "pool", "shown"]
        assert numpy.allclose(rows["pool"], expected["pool"].numpy(), rtol=1e-6)
        assert numpy.array_equal(rows["shown"], images.pixels[:30])


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    images = ArrayImages(600)
    whole = _measure(images, parts=tmp_path / "parts")
    assert images.reads == 600
    files = sorted((tmp_path / "parts").iterdir())
    assert len(files) == 3
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-20])  # a damaged part is done again
    again = _measure(images, parts=tmp_path / "parts")
    assert images.reads == 600 + 512
    assert all(numpy.array_equal(whole[name], again[name]) for name in whole)


def test_a_reference_is_the_same_whatever_passes_by_at_a_time() -> None:
    images = ArrayImages(300)
    reference = reference_of(images, mean_colors(spatial=True))
    expected = mean_colors(spatial=True)(images.pixels)
    assert torch.allclose(reference.moments.mean_D, expected["pool"].double().mean(dim=0), rtol=1e-6)
    assert reference.spatial is not None and reference.spatial.count == reference.moments.count == 300
    assert reference.kept_nD is not None and torch.allclose(reference.kept_nD, expected["pool"])


def test_only_some_features_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextscale.evaluate.measure.NUM_KEPT", 3)
    images = ArrayImages(300)
    kept = reference_of(images, mean_colors()).kept_nD
    assert kept is not None
    assert torch.allclose(kept, mean_colors()(images.pixels[[0, 150, 299]])["pool"])


def test_every_score_is_what_its_function_says() -> None:
    images, others = ArrayImages(300), ArrayImages(200, seed=1)
    reference = reference_of(others, mean_colors(spatial=True))
    rows = _measure(images, spatial=True)
    scores = sample_scores(rows, reference, num_resamples=20, sorted_by_class=False)
    pool, moments = torch.from_numpy(rows["pool"]), moments_of(rows["pool"])
    assert list(scores) == [
        "FD-CIFAR", "sFD-CIFAR", "IS-CIFAR", "KID-CIFAR", "precision-CIFAR", "recall-CIFAR"
    ]  # fmt: skip
    assert scores["FD-CIFAR"]["value"] == frechet_distance(moments, reference.moments)
    interval = frechet_interval(pool, reference.moments, num_resamples=20)
    assert (scores["FD-CIFAR"]["low"], scores["FD-CIFAR"]["high"]) == (interval.low, interval.high)
    assert reference.spatial is not None and reference.kept_nD is not None
    spatial = frechet_distance(moments_of(rows["spatial"]), reference.spatial)
    assert scores["sFD-CIFAR"] == {"value": spatial} and spatial > 0
    mean, std = inception_score(torch.from_numpy(rows["logits"]))
    assert scores["IS-CIFAR"] == {"value": mean, "std": std}
    mean, std = kernel_distance(pool, reference.kept_nD, subset_size=200)
    assert scores["KID-CIFAR"] == {"value": mean, "std": std}
    pair = precision_recall(pool, reference.kept_nD)
    assert scores["precision-CIFAR"] == {"value": pair.precision}
    assert scores["recall-CIFAR"] == {"value": pair.recall}
    assert "low" not in sample_scores(rows, reference, num_resamples=0, sorted_by_class=False)["FD-CIFAR"]


def test_images_in_the_order_of_their_classes_are_mixed_before_they_are_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else every split of a folder would hold one class, and look as if the classifier saw nothing else."""
    halves = functools.partial(inception_score, split_size=50)
    monkeypatch.setattr("nextscale.evaluate.scores.inception_score", halves)
    rows = {"pool": numpy.random.default_rng(0).random((100, DIM)), "logits": numpy.zeros((100, 2))}
    rows["logits"][:50, 0] = rows["logits"][50:, 1] = 20
    reference = reference_of(ArrayImages(20), mean_colors())
    found = {
        mixed: sample_scores(rows, reference, num_resamples=0, sorted_by_class=mixed)["IS-CIFAR"]["value"]
        for mixed in (False, True)
    }
    assert found[False] == pytest.approx(1, abs=1e-6) and found[True] > 1.9


def test_few_images_are_warned_of() -> None:
    reference = reference_of(ArrayImages(5), mean_colors())
    assert singular_warnings(4, reference) == []
    assert singular_warnings(DIM, reference)[0].startswith(
        "3 images for 3 features: the covariance is singular"
    )
    few = reference_of(ArrayImages(3), mean_colors())
    assert singular_warnings(9, few)[0].startswith("3 reference images for 3 features")


def test_too_few_images_and_features_that_are_no_numbers() -> None:
    reference = reference_of(ArrayImages(9), mean_colors())
    rows = _measure(ArrayImages(1))
    with pytest.raises(ValueError, match="1 images have no covariance: give at least 2"):
        sample_scores(rows, reference, num_resamples=0, sorted_by_class=False)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        sample_scores(_measure(ArrayImages(9), nan=True), reference, num_resamples=0, sorted_by_class=False)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        reference_of(ArrayImages(9), mean_colors(nan=True))
    with pytest.raises(ValueError, match="at least 2 samples"):
        reference_of(ArrayImages(1), mean_colors())  # no covariance to keep


def test_a_finished_folder_is_read_and_a_result_names_all_that_it_depends_on(tmp_path: Path) -> None:
    images = ArrayImages(40)
    reference = reference_of(ArrayImages(50, seed=1), mean_colors())
    scorer = Scorer(mean_colors(), reference, None, batch=16, ranks=ALONE, num_resamples=5, progress=False)
    result = scorer(images, description={"scored": "images", "warnings": ["w"]}, folder=tmp_path / "out")
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["images.png", "scores.json"]
    assert result["reference"]["kind"] == "training" and result["reference"]["count"] == 50
    assert result["features_digest"] == "d" * 64 and result["warnings"] == ["w"]
    assert set(result["versions"]) == {"nextscale", "torch", "numpy", "python"}
    assert scorer(images, description={}, folder=tmp_path / "out") == result and images.reads == 40
    assert picture(images.pixels[:12], images).shape == (2 * (6 * 10 + 2) + 2, 10 * (5 * 10 + 2) + 2, 3)
