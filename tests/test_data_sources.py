"""Folders as people have them, paths and patterns, and the parts that are held out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import MemorySource, encoded, noise
from nextscale.data.sources import Subset, hold_out, open_source
from nextscale.data.sources.folder import FolderSource


def _save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise(seed)))


def test_a_folder_per_class(tmp_path: Path) -> None:
    for seed, name in enumerate(
        ["dog/1.png", "cat/b.PNG", "cat/a.jpeg", "cat/deeper/c.png", "dog/notes.txt"]
    ):
        _save(tmp_path / name, seed)
    (tmp_path / "empty").mkdir()
    _save(tmp_path / ".hidden" / "x.png")
    (tmp_path / "LICENSE").write_text("beside the folders")
    source = open_source(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1] and source.labels.dtype == numpy.int64
    names = [str(Path(source.name(i)).relative_to(tmp_path)) for i in range(4)]
    assert names == ["cat/a.jpeg", "cat/b.PNG", "cat/deeper/c.png", "dog/1.png"]
    assert source.read(3) == encoded(noise(0))


def test_a_flat_folder_is_one_class(tmp_path: Path) -> None:
    for seed in range(3):
        _save(tmp_path / "holiday" / f"{seed}.png", seed)
    source = open_source(str(tmp_path / "holiday"))
    assert source.class_names == ("holiday",)
    assert source.labels.tolist() == [0, 0, 0]
    assert [source.read(i) for i in range(3)] == [encoded(noise(i)) for i in range(3)]


def test_loose_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    _save(tmp_path / "cat" / "a.png")
    _save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"holds images \(stray\.png\) beside class folders \(cat\)"):
        FolderSource(tmp_path)


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/._a.png", "cat/.thumbnails/a.png", "__MACOSX/cat/a.png"):
        _save(tmp_path / name)
    source = open_source(tmp_path)
    assert source.class_names == ("cat",) and [source.name(0)] == [str(tmp_path / "cat" / "a.png")]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    _save(tmp_path / "elsewhere" / "a.png", 3)
    (tmp_path / "pictures" / "dog").mkdir(parents=True)
    (tmp_path / "pictures" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "dog" / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "pictures" / "dog" / "up").symlink_to(tmp_path / "pictures")
    source = open_source(tmp_path / "pictures")
    assert source.class_names == ("cat", "dog") and source.read(0) == source.read(1) == encoded(noise(3))
    assert len(source.labels) == 2


@pytest.mark.parametrize("name", ["potter's wheel", "Zürich", "猫", "a b"])
def test_names_of_any_letters(tmp_path: Path, name: str) -> None:
    _save(tmp_path / name / f"{name}.png")
    source = open_source(tmp_path)
    assert source.class_names == (name,) and source.name(0) == str(tmp_path / name / f"{name}.png")


def test_names_that_are_no_text_stay_printable(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"Z\xfcrich\nx")
    _save(folder / "a.png")
    source = open_source(tmp_path)
    assert source.class_names == (r"Z\udcfcrich\nx",) and source.read(0) == encoded(noise(0))
    assert source.name(0).encode().endswith(rb"Z\udcfcrich\nx/a.png")


def test_two_hundred_classes(tmp_path: Path) -> None:
    for number in range(200):
        _save(tmp_path / f"{number:03d}" / "a.png", number)
    source = open_source(tmp_path)
    assert len(source.class_names) == 200 and source.labels.tolist() == list(range(200))
    assert source.read(137) == encoded(noise(137))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"holds no images: expected \.jpg, \.jpeg, \.png"):
        open_source(tmp_path)


def test_paths_that_are_no_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data source given.*--data\.source"):
        open_source("")
    with pytest.raises(
        ValueError, match=r"nowhere does not exist: expected a folder of images, \.zip, \.tar or \.parquet"
    ):
        open_source(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt is no data source: expected a folder of images, \.zip"):
        open_source(tmp_path / "a.txt")


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _save(tmp_path / "pictures" / "a.png")
    assert len(open_source("~/pictures").labels) == 1


def test_subset() -> None:
    source = MemorySource(6)
    part = Subset(Subset(source, numpy.array([5, 3, 1])), numpy.array([2, 0]))
    assert part.labels.tolist() == [1, 2] and part.class_names == source.class_names
    assert (part.read(0), part.read(1)) == (source.read(1), source.read(5))
    assert (part.name(0), part.name(1)) == ("image 1", "image 5")


class _Labels(MemorySource):
    """A source that has labels only."""

    def __init__(self, labels: list[int]) -> None:
        self.class_names, self.labels = ("a", "b", "c"), numpy.array(labels)

    def name(self, index: int) -> str:
        return str(index)


def _names(source: Any) -> set[str]:
    return {source.name(i) for i in range(len(source.labels))}


@given(st.lists(st.integers(0, 2), min_size=2, max_size=200), st.sampled_from([0.02, 0.1, 0.25, 0.5]))
def test_what_is_held_out_is_never_trained_on(labels: list[int], share: float) -> None:
    source = _Labels(labels)
    training, validation = hold_out(source, share)
    assert _names(training) | _names(validation) == _names(source)
    assert not _names(training) & _names(validation)
    assert len(validation.labels) == max(1, int(len(labels) * share))
    again = hold_out(source, share)[1]
    assert _names(again) == _names(validation)


def test_every_class_is_held_out_alike() -> None:
    source = _Labels([0] * 500 + [1] * 100 + [2] * 50)
    _, validation = hold_out(source, 0.1)
    assert numpy.bincount(validation.labels).tolist() == [50, 10, 5]
