"""Parquet files: one or several, with labels of any kind or none, whole in memory or group by group."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from torch.utils.data import DataLoader

from images import SourceAsDataset, encoded, noise
from nextscale.data.sources import open_source, parquet
from nextscale.data.sources.parquet import ParquetSource
from nextscale.data.transforms import read_image

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


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
        (lambda: _table([0, None]), r"column label must hold whole numbers or class names and no gaps"),
        (lambda: _table([0.5, 1.0]), r"whole numbers or class names and no gaps, given double"),
        (lambda: _table(["cat", None]), r"whole numbers or class names and no gaps, given string"),
        (lambda: _table([-1, 0]), r"column label holds -1: labels count from 0"),
        (lambda: _table([0, 3], names=["a", "b"]), r"column label holds 3, but there are only 2 class names"),
        (
            lambda: _table([0]).rename_columns(["picture", "label"]),
            r"columns \['picture', 'label'\]: expected one named image or img",
        ),
        (
            lambda: pyarrow.table({"img": ["a.png"], "label": [0]}),
            r"column img is string, expected struct<bytes",
        ),
        (lambda: _table([0]).append_column("image", [[b"x"]]), r"expected one named image or img"),
        (lambda: _table([0, 5_000_000]), r"holds 5000000: expected numbers of classes"),
        (lambda: _table([0]).slice(0, 0), r"holds no images"),
    ],
    ids=["null", "real", "text", "negative", "too many", "columns", "kind", "two", "huge", "empty"],
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
        read_image(source, 0)


def test_parquet_without_labels_is_one_class(tmp_path: Path) -> None:
    path = _write(_table([0, 0, 0]).select(["img"]), tmp_path)
    source = open_source(path)
    assert source.class_names == ("some",) and source.labels.tolist() == [0, 0, 0]
    assert source.labels.dtype == numpy.int64 and source.read(2) == encoded(noise(2))


def test_parquet_with_class_names_as_labels(tmp_path: Path) -> None:
    source = open_source(_write(_table(["dog", "cat", "dog"]), tmp_path))
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_parquet_with_plain_bytes(tmp_path: Path, kind: Any) -> None:
    images = pyarrow.array([encoded(noise(0)), None], type=kind)
    source = open_source(_write(pyarrow.table({"image": images, "cls": [1, 0]}), tmp_path))
    assert source.labels.tolist() == [1, 0] and source.read(0) == encoded(noise(0))


def test_the_metadata_says_which_column_is_the_image(tmp_path: Path) -> None:
    features = {
        "image": {"_type": "Value"},
        "photo": {"_type": "Image"},
        "kind": {"_type": "ClassLabel", "names": ["x", "y"]},
    }
    table = _table([1, 0]).rename_columns(["photo", "kind"]).append_column("image", [["a", "b"]])
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    source = open_source(_write(table, tmp_path))
    assert source.class_names == ("x", "y") and source.labels.tolist() == [1, 0]
    assert source.read(1) == encoded(noise(1))


def _parts(folder: Path) -> Path:
    """Nine images in three files of two row groups each."""
    table = _table([0, 1, 2] * 3, names=["a", "b", "c"])
    for part in range(3):
        pyarrow.parquet.write_table(
            table.slice(3 * part, 3), folder / f"part-{part}.parquet", row_group_size=2
        )
    return folder


@pytest.mark.parametrize("pattern", ["", "part-*.parquet", "part-{0..2}.parquet", "part-{0,1,2}.parquet"])
def test_several_parquet_files(tmp_path: Path, pattern: str) -> None:
    source = open_source(_parts(tmp_path) / pattern)
    assert source.class_names == ("a", "b", "c") and source.labels.tolist() == [0, 1, 2] * 3
    assert [source.read(i) for i in range(9)] == [encoded(noise(i)) for i in range(9)]
    assert source.name(7) == f"{tmp_path}/part-2.parquet row 1"


def test_several_parquet_files_must_agree(tmp_path: Path) -> None:
    _parts(tmp_path)
    other = tmp_path / "part-1.parquet"
    pyarrow.parquet.write_table(_table([0, 1], names=["a", "other"]), other)
    with pytest.raises(
        ValueError, match=r"part-1\.parquet names its classes otherwise than .*part-0\.parquet"
    ):
        open_source(tmp_path)
    pyarrow.parquet.write_table(_table([0, 1]).select(["img"]), other)
    with pytest.raises(ValueError, match=r"part-1\.parquet has no column label, though"):
        open_source(tmp_path)
    pyarrow.parquet.write_table(_table([0, 1]).select(["label"]), other)
    with pytest.raises(ValueError, match=r"part-1\.parquet has the columns \['label'\]: expected img"):
        open_source(tmp_path)


def test_beyond_what_is_kept_row_groups_are_read_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_source(_parts(tmp_path))
    monkeypatch.setattr(parquet, "_KEEP_BYTES", 2000)
    source = open_source(tmp_path)
    assert isinstance(whole, ParquetSource) and isinstance(source, ParquetSource)
    assert len(whole.kept) == 6 and not source.kept
    order = numpy.random.default_rng(0).integers(9, size=40)
    assert [source.read(i) for i in order] == [whole.read(i) for i in order]
    assert 1 <= len(source.kept) < 4 and source.kept_bytes <= 2000


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_worker_processes_read_parquet(tmp_path: Path, start_method: str) -> None:
    source = open_source(_parts(tmp_path))
    loader = DataLoader(SourceAsDataset(source), num_workers=2, multiprocessing_context=start_method)
    assert [content[0] for content in loader] == [encoded(noise(i)) for i in range(9)]


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = _write(_table([0] * 6), tmp_path)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.parquet is damaged: row group 0"):
        open_source(path)
