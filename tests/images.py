"""Small images that tests make: encoded bytes, and a source of them that needs no disk."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from torch.utils.data import Dataset

from nextscale.data.sources import Source


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A random RGB image; ``size`` is (width, height)."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


def write_tar(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    """A tar of these files, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of these files."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


class MemorySource:
    """A source of ``count`` different images in three classes."""

    def __init__(self, count: int) -> None:
        self.class_names = ("a", "b", "c")
        self.labels = numpy.arange(count, dtype=numpy.int64) % 3
        self.contents = [encoded(noise(index)) for index in range(count)]

    def read(self, index: int) -> bytes:
        return self.contents[index]

    def name(self, index: int) -> str:
        return f"image {index}"


class SourceAsDataset(Dataset):  # type: ignore[type-arg]
    """What worker processes read of a source: its bytes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> bytes:
        return self.source.read(index)
