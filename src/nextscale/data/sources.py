"""Where images come from: a folder of images or a Parquet file, read lazily, classes inferred.

Special here: a source gives encoded bytes and a name for each image, so that whoever decodes can say which
file was bad.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Source(Protocol):
    """Encoded images with labels."""

    class_names: tuple[str, ...]
    labels: numpy.ndarray  # int64 (number of images,), 0 .. len(class_names) - 1

    def read(self, index: int) -> bytes:
        """The encoded file of one image."""
        ...

    def name(self, index: int) -> str:
        """What to call this image in a message."""
        ...


class FolderSource:
    """``root/class name/any.jpg``; a root that holds images and no class folders is one class.

    Raises:
        ValueError: no folder there, or no image in it.
    """

    def __init__(self, root: Path) -> None:
        folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
        groups = {folder.name: _images_below(folder) for folder in folders}
        groups = {name: files for name, files in groups.items() if files}
        loose = sorted(
            item for item in root.iterdir() if item.suffix.lower() in EXTENSIONS and item.is_file()
        )
        if loose and groups:
            raise ValueError(
                f"{root} holds images ({loose[0].name}) beside class folders ({next(iter(groups))}): "
                "put every image into a class folder, or none"
            )
        if loose:
            groups = {root.resolve().name: loose}
        if not groups:
            raise ValueError(
                f"{root} holds no images: expected {', '.join(EXTENSIONS)} files "
                "in it, or in one folder per class"
            )
        self.class_names = tuple(groups)
        self.files = [file for files in groups.values() for file in files]
        counts = [len(files) for files in groups.values()]
        self.labels = numpy.repeat(numpy.arange(len(counts), dtype=numpy.int64), counts)

    def read(self, index: int) -> bytes:
        return self.files[index].read_bytes()

    def name(self, index: int) -> str:
        return str(self.files[index])


class ParquetSource:
    """Columns ``img: struct<bytes, path>`` and ``label``; class names from the file's metadata when it has
    them.

    Raises:
        ValueError: not such a file.
    """

    def __init__(self, file: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError(f"reading {file} needs pyarrow: pip install 'nextscale[train]'") from error
        try:
            table = pyarrow.parquet.read_table(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{file} is not a readable Parquet file ({str(error).splitlines()[0]})"
            ) from error
        names = table.column_names
        if "img" not in names or "label" not in names:
            raise ValueError(
                f"{file} has the columns {names}: expected img (struct of bytes and path) and label"
            )
        if table.num_rows == 0:
            raise ValueError(f"{file} holds no images")
        self.file = file
        self.images = table.column("img")
        if not pyarrow.types.is_struct(self.images.type) or self.images.type.get_field_index("bytes") < 0:
            raise ValueError(
                f"{file}: column img is {self.images.type}, expected struct<bytes: binary, path: string>"
            )
        labels = table.column("label")
        if labels.null_count or not pyarrow.types.is_integer(labels.type):
            raise ValueError(f"{file}: column label must hold whole numbers and no gaps, given {labels.type}")
        self.labels = labels.to_numpy().astype(numpy.int64)
        if self.labels.min() < 0:
            raise ValueError(f"{file}: column label holds {self.labels.min()}: labels count from 0")
        self.class_names = _names_in(table.schema.metadata) or tuple(
            str(i) for i in range(self.labels.max() + 1)
        )
        if self.labels.max() >= len(self.class_names):
            raise ValueError(
                f"{file}: label {self.labels.max()}, but only {len(self.class_names)} class names"
            )

    def read(self, index: int) -> bytes:
        content: bytes = self.images[index]["bytes"].as_py()
        return content

    def name(self, index: int) -> str:
        return f"{self.file} row {index}"


class Subset:
    """Some images of another source, under the same classes."""

    def __init__(self, source: Source, indices: numpy.ndarray) -> None:
        self.source, self.indices = source, indices
        self.class_names, self.labels = source.class_names, source.labels[indices]

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def open_source(path: str | Path) -> Source:
    """The source at a path. Raises ValueError when nothing readable is there."""
    if not str(path):
        raise ValueError(
            "no data source given: expected a folder of images or a .parquet file; set --data.source"
        )
    place = Path(path).expanduser()
    if place.is_dir():
        return FolderSource(place)
    if place.suffix == ".parquet" and place.is_file():
        return ParquetSource(place)
    if place.exists():
        raise ValueError(f"{place} is neither a folder of images nor a .parquet file")
    raise ValueError(f"{place} does not exist: expected a folder of images or a .parquet file")


def hold_out(source: Source, share: float) -> tuple[Source, Source]:
    """Cut a share of each class off for validation: every k-th image, so that a source always splits the same
    way.
    """
    count = len(source.labels)
    every = max(2, round(1 / share))
    by_class = numpy.argsort(source.labels, kind="stable")
    chosen = by_class[every - 1 :: every] if count >= every else by_class[-1:]
    rest = numpy.setdiff1d(numpy.arange(count), chosen)
    return Subset(source, rest if len(rest) else chosen), Subset(source, numpy.sort(chosen))


def _images_below(folder: Path) -> list[Path]:
    return sorted(item for item in folder.rglob("*") if item.suffix.lower() in EXTENSIONS and item.is_file())


def _names_in(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    """Class names from Hugging Face's feature description, or nothing."""
    try:
        description = json.loads((metadata or {})[b"huggingface"])
        return tuple(str(name) for name in description["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
