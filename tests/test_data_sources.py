"""Folders and Parquet files as people have them, and the parts that are held out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import MemorySource, encoded, noise
from nextscale.data.sources import FolderSource, ParquetSource, Subset, hold_out, open_source
from nextscale.data.transforms import decode_image

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


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


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"holds no images: expected \.jpg, \.jpeg, \.png"):
        open_source(tmp_path)


def test_paths_that_are_no_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data source given.*--data\.source"):
        open_source("")
    with pytest.raises(
        ValueError, match=r"nowhere does not exist: expected a folder of images or a \.parquet file"
    ):
        open_source(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt is neither a folder of images nor a \.parquet file"):
        open_source(tmp_path / "a.txt")


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _save(tmp_path / "pictures" / "a.png")
    assert len(open_source("~/pictures").labels) == 1


def _table(labels: Any, *, names: list[str] | None = None) -> pyarrow.Table:
    rows = [{"bytes": encoded(noise(i)), "path": f"{i}.png"} for i in range(len(labels))]
    table = pyarrow.table({"img": pyarrow.array(rows, type=IMAGE), "label": pyarrow.array(labels)})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "img": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return table


def _write(table: pyarrow.Table, folder: Path) -> Path:
    pyarrow.parquet.write_table(table, folder / "some.parquet", row_group_size=4)
    return folder / "some.parquet"


def test_parquet_with_class_names(tmp_path: Path) -> None:
    path = _write(_table([2, 0, 1, 2, 0, 0], names=["plane", "cat", "ship", "truck"]), tmp_path)
    source = open_source(path)
    assert isinstance(source, ParquetSource)
    assert source.class_names == ("plane", "cat", "ship", "truck")
    assert source.labels.tolist() == [2, 0, 1, 2, 0, 0] and source.labels.dtype == numpy.int64
    for index in range(6):  # two row groups
        assert source.read(index) == encoded(noise(index))
        assert source.name(index) == f"{path} row {index}"


@pytest.mark.parametrize(
    "metadata", [None, {"other": "x"}, {"huggingface": "{"}, {"huggingface": '{"info": null}'}]
)
def test_parquet_without_class_names(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    source = open_source(_write(_table([0, 2]).replace_schema_metadata(metadata), tmp_path))
    assert source.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: _table([0, None]), r"column label must hold whole numbers and no gaps"),
        (lambda: _table([0.5, 1.0]), r"column label must hold whole numbers and no gaps, given double"),
        (lambda: _table(["cat", "dog"]), r"whole numbers and no gaps, given string"),
        (lambda: _table([-1, 0]), r"column label holds -1: labels count from 0"),
        (lambda: _table([0, 3], names=["a", "b"]), r"label 3, but only 2 class names"),
        (
            lambda: _table([0]).rename_columns(["image", "label"]),
            r"columns \['image', 'label'\]: expected img",
        ),
        (
            lambda: pyarrow.table({"img": [b"x"], "label": [0]}),
            r"column img is binary, expected struct<bytes",
        ),
        (lambda: _table([0]).slice(0, 0), r"holds no images"),
    ],
    ids=["null", "real", "text", "negative", "too many", "columns", "no struct", "empty"],
)
def test_parquet_that_does_not_fit(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"some\.parquet.*{message}"):
        open_source(_write(table(), tmp_path))


def test_what_is_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "some.parquet").write_text("hello")
    with pytest.raises(ValueError, match=r"some\.parquet is not a readable Parquet file"):
        open_source(tmp_path / "some.parquet")


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(_table([0]), tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"some\.parquet.*pip install 'nextscale\[train\]'"):
        open_source(path)


@pytest.mark.parametrize("gap", [None, {"bytes": None, "path": "a.png"}], ids=["row", "bytes"])
def test_a_missing_image_is_refused_by_name(tmp_path: Path, gap: Any) -> None:
    table = _table([0, 1])
    rows = pyarrow.array([gap, *table["img"].to_pylist()[1:]], type=table["img"].type)
    source = open_source(_write(table.set_column(0, "img", rows), tmp_path))
    with pytest.raises(ValueError, match=r"some\.parquet row 0 cannot be read"):
        decode_image(source.read(0), source.name(0))


def test_parquet_beyond_the_reach_of_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of more than 2 GiB come in chunks that cannot be put together."""
    size = 2**28
    buffers = [None, pyarrow.py_buffer(numpy.array([0, size], numpy.int32)), pyarrow.allocate_buffer(size)]
    content = pyarrow.Array.from_buffers(pyarrow.binary(), 1, buffers)
    image = pyarrow.StructArray.from_arrays([content, pyarrow.array([""])], fields=list(IMAGE))
    large = [pyarrow.table({"img": image, "label": [0]})] * 9  # they share their memory
    table = pyarrow.concat_tables([*large, _table([1])])
    monkeypatch.setattr(pyarrow.parquet, "read_table", lambda path: table)
    source = ParquetSource(tmp_path / "some.parquet")
    assert source.labels.tolist() == [0] * 9 + [1]
    assert source.read(9) == encoded(noise(0))


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
