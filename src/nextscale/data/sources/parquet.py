"""Parquet files: encoded images and labels as columns, in one file or several.

Special here: what fits is read whole when the source is opened, which workers that are forked share; beyond
that, row groups are read as they are needed and the last few are kept.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from nextscale.data.sources.base import BadImageError, number_classes

_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "cls")
_KEEP_BYTES = 2 * 2**30  # of images, before packing, that are kept in memory


class ParquetSource:
    """A column ``image`` or ``img`` of ``struct<bytes, path>`` or of bytes, and ``label`` where there is one.

    Labels are numbers, which the file's metadata may name, or class names. Without them, all images are one
    class.

    Args:
        files: with the same columns.
        fallback: name of the class of images without labels.

    Raises:
        ValueError: not such files.
    """

    def __init__(self, files: Sequence[Path], fallback: str) -> None:
        _import_pyarrow(files[0])
        self.class_names: tuple[str, ...]
        self.files = list(files)
        opened = [_open(file) for file in self.files]
        self.image_column = _image_column(self.files[0], opened[0].schema_arrow)
        for file, table in zip(self.files, opened, strict=True):
            _check_columns(file, table.schema_arrow, self.image_column)
        self._number(opened, fallback)
        rows = [
            (file, group, table.metadata.row_group(group).num_rows)
            for file, table in enumerate(opened)
            for group in range(table.num_row_groups)
        ]
        self.groups = [(file, group) for file, group, _ in rows]
        self.starts = numpy.cumsum([0, *(count for _, _, count in rows)])
        self.first_of_file = numpy.cumsum([0, *(table.metadata.num_rows for table in opened)])
        self.kept: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self.kept_bytes = 0
        if sum(_image_bytes(table, self.image_column) for table in opened) <= _KEEP_BYTES:
            for number in range(len(self.groups)):
                self._column(number)

    def _number(self, opened: Sequence[Any], fallback: str) -> None:
        """Set labels and class names."""
        column = _label_column(self.files[0], opened[0].schema_arrow)
        names = _names_in(opened[0].schema_arrow.metadata, column)
        counts = [table.metadata.num_rows for table in opened]
        if not sum(counts):
            raise ValueError(f"{self.files[0]} holds no images")
        if column is None:
            self.class_names, self.labels = (fallback,), numpy.zeros(sum(counts), dtype=numpy.int64)
            return
        parts = []
        for file, table in zip(self.files, opened, strict=True):
            if _label_column(file, table.schema_arrow) != column:
                raise ValueError(f"{file} has no column {column}, though {self.files[0]} has one")
            if _names_in(table.schema_arrow.metadata, column) != names:
                raise ValueError(f"{file} names its classes otherwise than {self.files[0]}")
            parts.append(_labels(file, table, column))
        where = f"{self.files[0]}: column {column}"
        joined: Any = (
            numpy.concatenate(parts)
            if all(isinstance(part, numpy.ndarray) for part in parts)
            else [str(label) for part in parts for label in part]
        )
        self.class_names, self.labels = number_classes(joined, where, names)

    def read(self, index: int) -> bytes:
        number = int(numpy.searchsorted(self.starts, index, side="right")) - 1
        value = self._column(number)[int(index - self.starts[number])].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            raise BadImageError(self.name(index), "the row holds no bytes")
        return bytes(content)

    def name(self, index: int) -> str:
        file = int(numpy.searchsorted(self.first_of_file, index, side="right")) - 1
        return f"{self.files[file]} row {index - self.first_of_file[file]}"

    def _column(self, number: int) -> Any:
        """The images of a row group."""
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number][0]
        file, group = self.groups[number]
        try:
            table = _open(self.files[file]).read_row_group(
                group, columns=[self.image_column], use_threads=False
            )
        except _errors() as error:
            raise ValueError(f"{self.files[file]} is damaged: row group {group} ({_line(error)})") from error
        self.kept[number] = table.column(self.image_column), table.nbytes
        self.kept_bytes += table.nbytes
        while self.kept_bytes > _KEEP_BYTES and len(self.kept) > 1:
            self.kept_bytes -= self.kept.popitem(last=False)[1][1]
        return self.kept[number][0]


def _import_pyarrow(file: Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(f"reading {file} needs pyarrow: pip install 'nextscale[train]'") from error


def _errors() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`, of which only the end has been read."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except _errors() as error:
        raise ValueError(f"{file} is not a readable Parquet file ({_line(error)})") from error


def _image_column(file: Path, schema: Any) -> str:
    features = _features(schema.metadata)
    marked = [name for name in schema.names if _kind(features, name) == "Image"]
    found = [name for name in _IMAGE_COLUMNS if name in schema.names and (not marked or name in marked)]
    found = found or marked
    if len(found) != 1:
        raise ValueError(
            f"{file} has the columns {schema.names}: expected one named image or img, a struct of bytes and "
            "path, and label"
        )
    return found[0]


def _check_columns(file: Path, schema: Any, column: str) -> None:
    import pyarrow

    if column not in schema.names:
        raise ValueError(f"{file} has the columns {schema.names}: expected {column}")
    kind = schema.field(column).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise ValueError(
            f"{file}: column {column} is {kind}, expected struct<bytes: binary, path: string> or binary"
        )


def _label_column(file: Path, schema: Any) -> str | None:
    for name in _LABEL_COLUMNS:
        if name in schema.names:
            return name
    features = _features(schema.metadata)
    found = [name for name in schema.names if _kind(features, name) == "ClassLabel"]
    if len(found) > 1:
        raise ValueError(f"{file} has several columns of labels ({', '.join(found)}): name one of them label")
    return found[0] if found else None


def _labels(file: Path, table: Any, column: str) -> Any:
    """An array of whole numbers or a list of names."""
    import pyarrow

    labels = table.read(columns=[column], use_threads=False).column(column)
    text = pyarrow.types.is_string(labels.type) or pyarrow.types.is_large_string(labels.type)
    if labels.null_count or not (text or pyarrow.types.is_integer(labels.type)):
        raise ValueError(
            f"{file}: column {column} must hold whole numbers or class names and no gaps, given {labels.type}"
        )
    return labels.to_pylist() if text else labels.to_numpy()


def _image_bytes(table: Any, column: str) -> int:
    """How large the images of a file are, as its end says."""
    total = 0
    for group in range(table.num_row_groups):
        described = table.metadata.row_group(group)
        columns = (described.column(number) for number in range(described.num_columns))
        total += sum(
            part.total_uncompressed_size for part in columns if part.path_in_schema.split(".")[0] == column
        )
    return total


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Hugging Face's description of the columns, or nothing."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(features: dict[str, Any], name: str) -> str | None:
    feature = features.get(name)
    return feature.get("_type") if isinstance(feature, dict) else None


def _names_in(metadata: dict[bytes, bytes] | None, column: str | None) -> tuple[str, ...]:
    """Class names from Hugging Face's description, or nothing."""
    try:
        return tuple(str(name) for name in _features(metadata)[column or ""]["names"])
    except (KeyError, TypeError):
        return ()
