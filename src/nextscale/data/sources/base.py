"""What every source of images shares: the protocol, classes from folders or from labels, holding some out.

Special here: a source gives encoded bytes and a name for each image, so that whoever decodes can say which
file was bad. Every source reads any image at any time, so that order and resumption cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

#: A label beyond this is a mistake: a name is made for each class up to the largest label.
_MOST_CLASSES = 1_000_000


class BadImageError(ValueError):
    """One image cannot be read; the source may be fine otherwise."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(name, reason)  # both, so that it survives the way out of a worker process
        self.name, self.reason = name, " ".join(str(reason).split())

    def __str__(self) -> str:
        return f"image {self.name} cannot be read ({self.reason}): repair or remove it"


class Source(Protocol):
    """Encoded images with labels."""

    class_names: tuple[str, ...]
    labels: numpy.ndarray  # int64 (number of images,), 0 .. len(class_names) - 1

    def read(self, index: int) -> bytes:
        """The encoded file of one image. Raises BadImageError or OSError when it cannot be had."""
        ...

    def name(self, index: int) -> str:
        """What to call this image in a message."""
        ...


class Subset:
    """Some images of another source, under the same classes."""

    def __init__(self, source: Source, indices: numpy.ndarray) -> None:
        self.source, self.indices = source, indices
        self.class_names, self.labels = source.class_names, source.labels[indices]

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


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


def printable(name: str) -> str:
    """A name on one line, without the half characters that stand for bytes which are no UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


def is_hidden(parts: Sequence[str]) -> bool:
    """Whether a path (in parts) belongs to the machinery of a file manager or an editor."""
    return any(part.startswith(".") for part in parts) or "__MACOSX" in parts


def classes_of_folders(paths: Sequence[tuple[str, ...]], where: str, fallback: str) -> list[str]:
    """The class of each image from its path: the first folder; images in no folder are one class.

    Args:
        paths: one per image, in parts, below ``where``.
        where: what to call the source in a message.
        fallback: the class of images in no folder.

    Raises:
        ValueError: no images, or some in folders and some not.
    """
    if not paths:
        raise ValueError(
            f"{where} holds no images: expected {', '.join(EXTENSIONS)} files "
            "in it, or in one folder per class"
        )
    loose = next((path for path in paths if len(path) == 1), None)
    nested = next((path for path in paths if len(path) > 1), None)
    if loose and nested:
        raise ValueError(
            f"{where} holds images ({loose[0]}) beside class folders ({nested[0]}): "
            "put every image into a class folder, or none"
        )
    return [path[0] if len(path) > 1 else fallback for path in paths]


def number_classes(
    values: Sequence[str] | numpy.ndarray, where: str, names: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], numpy.ndarray]:
    """Class names and labels int64 (N,) from what a source records for each image.

    Args:
        values: class names, which are numbered in alphabetical order, or whole numbers that count from 0.
        where: what to call the labels in a message.
        names: of the numbers, where the source has them.

    Raises:
        ValueError: labels that are no numbers of classes.
    """
    if not isinstance(values, numpy.ndarray):
        found = sorted(set(values))
        number_of = {name: number for number, name in enumerate(found)}
        labels = numpy.array([number_of[value] for value in values], dtype=numpy.int64)
        return tuple(printable(name) for name in found), labels
    labels = values.astype(numpy.int64)
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise ValueError(f"{where} holds {least}: labels count from 0")
    if names and most >= len(names):
        raise ValueError(f"{where} holds {most}, but there are only {len(names)} class names")
    if most >= _MOST_CLASSES:
        raise ValueError(f"{where} holds {most}: expected numbers of classes, which count from 0")
    return names or tuple(str(number) for number in range(most + 1)), labels
