"""Images and arrays in ``.npz`` files, as evaluators of image generators exchange them.

Letters: N images, H W pixels.
Special here: nothing that is pickled is ever loaded, and images pass through in batches: 50,000 images of 256
pixels a side are 10 GB.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy

from nextscale import checkpoint

IMAGES, LABELS = "arr_0", "arr_1"
_EXPECTED = f"{IMAGES} of uint8 (N, H, W, 3)"
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)


def names_in(path: Path) -> set[str]:
    """The arrays of a file. Raises ValueError when it is no whole ``.npz``."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a readable .npz file ({error}): it may be cut short") from error


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, numpy.ndarray]:
    """Some arrays of a file.

    Raises:
        ValueError: one is missing, damaged, or holds pickled objects.
    """
    missing = sorted(set(names) - names_in(path))
    if missing:
        raise ValueError(f"{path} holds no {', '.join(missing)}")
    try:
        with path.open("rb") as stream, numpy.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except _DAMAGE as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it is damaged, or holds pickled objects"
        ) from error


class NpzImages:
    """Images uint8 (N, H, W, 3) under ``arr_0``, and labels under ``arr_1`` where there are some.

    Args:
        path: of the file.

    Raises:
        ValueError: no such arrays, another type or shape, or pickled objects.
    """

    preprocessing = "none: uint8 arrays from a file"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.class_names: tuple[str, ...] | None = None  #: of the labels, which are numbers; None: unknown
        names = names_in(path)
        if IMAGES not in names:
            raise ValueError(f"{path} holds no {IMAGES} but {', '.join(sorted(names)) or 'nothing'}: "
                             f"expected {_EXPECTED}")  # fmt: skip
        self._archive = zipfile.ZipFile(path)
        self._file, shape, dtype = self._open()
        if dtype.hasobject:
            raise ValueError(
                f"{path}: {IMAGES} holds pickled objects, which are never loaded: expected {_EXPECTED}"
            )
        if dtype != numpy.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(
                f"{path}: {IMAGES} is {dtype} {shape}: expected uint8 (N, H, W, 3), rounded to 0..255"
            )
        self.count, self.image_size = shape[0], (shape[1], shape[2])
        self._start = self._file.tell()
        self.labels = self._read_labels() if LABELS in names else None

    def _open(self) -> tuple[IO[bytes], tuple[int, ...], numpy.dtype[Any]]:
        """The member, behind its header; its shape and type."""
        try:
            file = self._archive.open(f"{IMAGES}.npy")
            version = numpy.lib.format.read_magic(file)
            read = numpy.lib.format.read_array_header_1_0
            shape, fortran, dtype = (read if version == (1, 0) else numpy.lib.format.read_array_header_2_0)(
                file
            )
        except _DAMAGE as error:
            raise ValueError(f"{self.path}: {IMAGES} cannot be read ({error})") from error
        if fortran:
            raise ValueError(f"{self.path}: {IMAGES} is in Fortran order: save numpy.ascontiguousarray of it")
        return file, shape, dtype

    def _read_labels(self) -> numpy.ndarray:
        labels = read_arrays(self.path, [LABELS])[LABELS]
        if labels.shape != (self.count,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{self.path}: {LABELS} is {labels.dtype} {labels.shape}: expected {self.count} whole numbers"
            )
        return labels.astype(numpy.int64)

    def read(self, indices: range) -> tuple[numpy.ndarray, dict[str, numpy.ndarray]]:
        """Some images in a row: uint8 (len(indices), H, W, 3)."""
        shape = (len(indices), *self.image_size, 3)
        row = self.image_size[0] * self.image_size[1] * 3
        try:
            self._file.seek(self._start + indices.start * row)
            pixels = numpy.empty(shape, numpy.uint8)
            size = self._file.readinto(pixels.data.cast("B"))  # type: ignore[attr-defined]
        except _DAMAGE as error:
            raise ValueError(
                f"{self.path}: images from {indices.start} on cannot be read ({error})"
            ) from error
        if size < len(indices) * row:
            raise ValueError(f"{self.path} ends after {indices.start + size // row} of {self.count} images")
        return pixels, {}


class NpzWriter:
    """Takes images batch by batch; made by `new_npz`."""

    def __init__(self, archive: zipfile.ZipFile, count: int) -> None:
        self.archive, self.count, self.written = archive, count, 0
        self._file: IO[bytes] | None = None

    def add(self, images_BHWC: numpy.ndarray) -> None:
        """Append images uint8 (B, H, W, 3)."""
        if self._file is None:
            self._file = self.archive.open(f"{IMAGES}.npy", "w", force_zip64=True)
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *images_BHWC.shape[1:])}
            numpy.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(numpy.ascontiguousarray(images_BHWC).data)
        self.written += len(images_BHWC)
        if self.written == self.count:
            self.close()

    def close(self) -> None:
        """Nothing can be written to an archive, nor can it be closed, while one of its files is open."""
        if self._file is not None:
            self._file.close()

    def finish(self, **arrays: numpy.ndarray) -> None:
        """Append whole arrays, after the last image."""
        assert self.written == self.count, "the header promised another number of images"
        for name, array in arrays.items():
            with self.archive.open(f"{name}.npy", "w") as file:
                numpy.lib.format.write_array(file, array, allow_pickle=False)


@contextmanager
def new_npz(path: Path, *, count: int) -> Iterator[NpzWriter]:
    """A file of ``count`` images that is whole or absent."""
    with checkpoint.new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        writer = NpzWriter(archive, count)
        try:
            yield writer
        finally:
            writer.close()
