"""Image files of evaluators: what is written is read, batch by batch, and what is no such file is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy
import pytest

from nextscale.evaluate.npz import NpzImages, new_npz, read_arrays

IMAGES = numpy.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=numpy.uint8)
LABELS = numpy.array([3, 0, 0, 1, 2, 9, 4])


@pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])
def test_files_of_others(save, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", IMAGES, LABELS)
    images = NpzImages(tmp_path / "a.npz")
    assert (images.count, images.image_size) == (7, (5, 4))
    for indices in (range(2), range(2, 7), range(1, 3), range(6, 7)):  # also backwards
        pixels, _ = images.read(indices)
        assert numpy.array_equal(pixels, IMAGES[indices.start : indices.stop])
    assert images.labels is not None and images.labels.tolist() == LABELS.tolist()
    assert images.labels.dtype == numpy.int64


def test_labels_may_be_missing(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "a.npz", arr_0=IMAGES)
    assert NpzImages(tmp_path / "a.npz").labels is None


def test_written_batch_by_batch_it_is_what_numpy_reads(tmp_path: Path) -> None:
    with new_npz(tmp_path / "deep" / "a.npz", count=7) as writer:
        for part in (IMAGES[:3], IMAGES[3:6], IMAGES[6:]):
            writer.add(part)
        writer.finish(arr_1=LABELS, settings=numpy.array('{"a": 1}'))
    with numpy.load(tmp_path / "deep" / "a.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "arr_1", "settings"]
        assert numpy.array_equal(arrays["arr_0"], IMAGES) and arrays["arr_0"].dtype == numpy.uint8
        assert arrays["arr_1"].tolist() == LABELS.tolist() and str(arrays["settings"]) == '{"a": 1}'


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_npz(tmp_path / "a.npz", count=7) as writer:
        writer.add(IMAGES[:3])
        raise KeyError("in the middle")
    assert os.listdir(tmp_path) == []


def _write(kind: str, path: Path) -> None:
    wrong = {
        "floats": IMAGES / 255, "pickled": numpy.array([{"a": 1}], dtype=object), "gray": IMAGES[..., 0],
        "none": IMAGES[:0], "fortran": numpy.asfortranarray(IMAGES),
    }  # fmt: skip
    if kind in wrong:
        numpy.savez(path, arr_0=wrong[kind])
    elif kind == "labels":
        numpy.savez(path, IMAGES, LABELS[:3])
    elif kind == "names":
        numpy.savez(path, pictures=IMAGES)
    else:
        numpy.savez(path, IMAGES)
        path.write_bytes(path.read_bytes()[: -40 if kind == "cut" else 0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("floats", r"arr_0 is float64 \(7, 5, 4, 3\): expected uint8 \(N, H, W, 3\), rounded to 0..255"),
        ("pickled", "arr_0 holds pickled objects, which are never loaded"),
        ("gray", r"arr_0 is uint8 \(7, 5, 4\): expected uint8"),
        ("none", r"arr_0 is uint8 \(0, 5, 4, 3\)"),
        ("fortran", "arr_0 is in Fortran order"),
        ("labels", r"arr_1 is int64 \(3,\): expected 7 whole numbers"),
        ("names", "holds no arr_0 but pictures: expected arr_0 of uint8"),
        ("cut", "is not a readable .npz file"),
        ("empty", "is not a readable .npz file"),
    ],
)
def test_refused(kind: str, message: str, tmp_path: Path) -> None:
    _write(kind, tmp_path / "a.npz")
    with pytest.raises(ValueError, match=message):
        NpzImages(tmp_path / "a.npz")


def test_arrays_that_are_missing_or_pickled(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "a.npz", mu=numpy.array([print], dtype=object))
    with pytest.raises(ValueError, match="holds no sigma"):
        read_arrays(tmp_path / "a.npz", ["mu", "sigma"])
    with pytest.raises(ValueError, match="holds pickled objects"):
        read_arrays(tmp_path / "a.npz", ["mu"])


def test_damaged_pixels_are_found(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "a.npz", arr_0=numpy.zeros((50, 8, 8, 3), numpy.uint8))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[5000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    images = NpzImages(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="images from 25 on cannot be read"):
        for indices in (range(25), range(25, 50)):
            images.read(indices)
