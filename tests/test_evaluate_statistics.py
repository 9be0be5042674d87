"""Files of statistics: what is written is read, and nothing damaged, foreign or of another kind is."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from nextscale.evaluate.statistics import (
    NUM_KEPT,
    check_features,
    check_kind,
    is_statistics,
    read_statistics,
    versions,
    write_reference,
)
from scoring_for_tests import ArrayImages, mean_colors, reference_of


@pytest.mark.parametrize("spatial", [False, True])
def test_reading_gives_what_was_written(spatial: bool, tmp_path: Path) -> None:
    reference = reference_of(ArrayImages(300), mean_colors(spatial=spatial))
    file = tmp_path / "deep" / "stats.npz"
    write_reference(file, reference)
    assert is_statistics(file) and [item.name for item in file.parent.iterdir()] == ["stats.npz"]
    again = read_statistics(file, kind=None)
    assert again.record == reference.record and again.digest == reference.digest
    assert again.record.count == 300 and again.record.versions == versions()
    assert again.record.class_names == ("even", "odd") and again.record.image_size == (6, 5)
    assert torch.equal(again.moments.mean_D, reference.moments.mean_D)
    assert torch.allclose(again.moments.covariance_DD, reference.moments.covariance_DD, rtol=1e-14)
    assert again.kept_nD is not None and reference.kept_nD is not None
    assert torch.equal(again.kept_nD, reference.kept_nD) and len(again.kept_nD) == 300 <= NUM_KEPT
    assert (again.spatial is None) == (not spatial)
    if again.spatial is not None and reference.spatial is not None:
        assert torch.equal(again.spatial.mean_D, reference.spatial.mean_D)


def test_other_tools_find_mean_and_covariance(tmp_path: Path) -> None:
    images, extractor = ArrayImages(40), mean_colors()
    write_reference(tmp_path / "a.npz", reference_of(images, extractor))
    pool = extractor(images.pixels)["pool"].double().numpy()
    with numpy.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["mu"] == pytest.approx(pool.mean(axis=0), rel=1e-12)
        assert arrays["sigma"] == pytest.approx(numpy.cov(pool.T), rel=1e-9)


@pytest.mark.parametrize("name", ["mu", "sigma", "features", "record", "count"])
def test_a_changed_number_is_found(name: str, tmp_path: Path) -> None:
    write_reference(tmp_path / "a.npz", reference_of(ArrayImages(40), mean_colors()))
    with numpy.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    if name == "record":
        arrays[name] = numpy.array(str(arrays[name]).replace('"training"', '"validation"'))
    else:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] += 1
    numpy.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="changed or damaged: its digest is not the recorded one"):
        read_statistics(tmp_path / "a.npz", kind=None)


def test_flipped_bits_and_cut_files_are_found(tmp_path: Path) -> None:
    write_reference(tmp_path / "a.npz", reference_of(ArrayImages(40), mean_colors()))
    whole = (tmp_path / "a.npz").read_bytes()
    for place in range(100, len(whole), len(whole) // 40):
        (tmp_path / "b.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            read_statistics(tmp_path / "b.npz", kind=None)
        except ValueError:
            continue
        with numpy.load(tmp_path / "a.npz") as one, numpy.load(tmp_path / "b.npz") as two:
            assert all(numpy.array_equal(one[name], two[name]) for name in one.files)  # a date in a header
    (tmp_path / "b.npz").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"not a readable \.npz file"):
        read_statistics(tmp_path / "b.npz", kind=None)


def _published(path: Path, **changes: numpy.ndarray) -> Path:
    numbers = numpy.random.default_rng(0)
    rows = numbers.normal(size=(50, 2048))
    arrays = {"mu": rows.mean(axis=0), "sigma": numpy.cov(rows.T), **changes}
    numpy.savez(path, **arrays)
    return path


def test_published_statistics(tmp_path: Path) -> None:
    spatial = numpy.random.default_rng(1).normal(size=(50, 7))
    file = _published(tmp_path / "a.npz", mu_s=spatial.mean(axis=0), sigma_s=numpy.cov(spatial.T))
    with pytest.raises(ValueError, match="does not say whether it describes training or validation images"):
        read_statistics(file, kind=None)
    reference = read_statistics(file, kind="training")
    assert (reference.record.metric, reference.record.features) == ("FID", "inception")
    assert reference.record.count is None and reference.record.features_digest is None
    with numpy.load(file) as arrays:
        assert numpy.array_equal(reference.moments.covariance_DD.numpy(), arrays["sigma"])
        assert reference.spatial is not None
        assert numpy.array_equal(reference.spatial.mean_D.numpy(), arrays["mu_s"])
    check_features(reference, features="inception", digest="any", image_size=(256, 256))
    with pytest.raises(ValueError, match=r"mu is \(3,\): expected \(2048,\)"):
        read_statistics(_published(tmp_path / "b.npz", mu=numpy.zeros(3)), kind="training")
    broken = numpy.full((2048, 2048), numpy.nan)
    with pytest.raises(ValueError, match=r"b.npz: statistics hold NaN or infinity"):
        read_statistics(_published(tmp_path / "b.npz", sigma=broken), kind="training")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    reference = reference_of(ArrayImages(40), mean_colors())
    fine = {"features": "cifar", "digest": "d" * 64, "image_size": (6, 5)}
    check_features(reference, **fine)  # type: ignore[arg-type]
    for change, message in (
        ({"features": "inception"}, "of cifar features, not of inception: give --features cifar"),
        ({"digest": "e" * 64}, "by other cifar weights"),
        ({"image_size": (6, 6)}, "images of 6 x 5 pixels, not 6 x 6: make them anew .* --size 6$"),
        ({"image_size": (7, 5)}, "not 7 x 5: make them anew .* --size 7 5$"),
    ):
        with pytest.raises(ValueError, match=message):
            check_features(reference, **{**fine, **change})  # type: ignore[arg-type]
    write_reference(tmp_path / "a.npz", reference)
    assert read_statistics(tmp_path / "a.npz", kind="training").record.kind == "training"
    with pytest.raises(ValueError, match="statistics of training images, not of validation images"):
        read_statistics(tmp_path / "a.npz", kind="validation")


def test_kinds() -> None:
    check_kind("training", "training", source="a", scored="samples")
    with pytest.raises(
        ValueError, match="a stands for validation images, but samples are scored against train"
    ):
        check_kind("validation", "training", source="a", scored="samples")
