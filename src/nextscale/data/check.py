"""What a source holds, found out by reading every image once: classes, sizes, bad files, duplicates.

Letters: H W pixels.
Special here: an image is read as training reads it, so what passes here does not stop a run.
"""

from __future__ import annotations

import hashlib
import io
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy
from PIL import Image, ImageDraw

from nextscale.data.sources import BadImageError, Source
from nextscale.data.transforms import decode_image, resize_and_crop
from nextscale.pixels import grid

#: Sides of models that people train; how many images are smaller is counted.
COMMON_SIDES = (32, 64, 128, 256, 512)
_TILE, _STRIP, _PER_CLASS, _MOST_CLASSES = 96, 14, 8, 200


@dataclass
class _Findings:
    """What has been seen so far."""

    bad: list[dict[str, str]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    by_digest: dict[bytes, list[int]] = field(default_factory=dict)
    tiles: dict[int, list[numpy.ndarray]] = field(default_factory=dict)


def check_source(
    source: Source, *, on_image: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], numpy.ndarray | None]:
    """Read every image of a source. ``on_image`` is called after each.

    Returns:
        What was found, as it goes into JSON, and a sheet of pictures, a row per class as training would see
        them: uint8 (H, W, 3); None when none can be read.
    """
    found = _Findings()
    shown = set(_spread(source.labels))
    for index in range(len(source.labels)):
        try:
            _look(source, index, found, show=index in shown)
        except BadImageError as error:
            found.bad.append({"image": error.name, "reason": error.reason})
        on_image()
    return _report(source, found), _sheet(source, found.tiles)


def _look(source: Source, index: int, found: _Findings, *, show: bool) -> None:
    try:
        content = source.read(index)
    except OSError as error:
        raise BadImageError(source.name(index), error.strerror or error) from error
    found.by_digest.setdefault(hashlib.sha256(content).digest(), []).append(index)
    image = decode_image(content, source.name(index))
    found.widths.append(image.width)
    found.heights.append(image.height)
    with Image.open(io.BytesIO(content)) as stored:
        found.modes[stored.mode] += 1
        found.formats[stored.format or "unknown"] += 1
    if show:
        try:
            tile = resize_and_crop(image, (_TILE, _TILE))
        except ValueError as error:
            raise BadImageError(source.name(index), error) from error
        found.tiles.setdefault(int(source.labels[index]), []).append(tile)


def _report(source: Source, found: _Findings) -> dict[str, Any]:
    counts = numpy.bincount(source.labels, minlength=len(source.class_names)).tolist()
    short = [min(pair) for pair in zip(found.widths, found.heights, strict=True)]
    duplicates = list(_duplicates(source, found.by_digest))
    return {
        "images": len(source.labels),
        "readable": len(short),
        "classes": dict(zip(source.class_names, counts, strict=True)),
        "unreadable": found.bad,
        "width": _range(found.widths),
        "height": _range(found.heights),
        "short_side": _range(short),
        "short_side_below": {str(side): sum(value < side for value in short) for side in COMMON_SIDES},
        "modes": dict(found.modes.most_common()),
        "formats": dict(found.formats.most_common()),
        "duplicates": duplicates,
        "duplicates_with_different_labels": sum(len(set(group["labels"])) > 1 for group in duplicates),
    }


def _range(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _duplicates(source: Source, by_digest: dict[bytes, list[int]]) -> Iterator[dict[str, Any]]:
    """Groups of images whose files are equal to the byte."""
    for digest, indices in by_digest.items():
        if len(indices) > 1:
            yield {
                "sha256": digest.hex(),
                "images": [source.name(index) for index in indices],
                "labels": [source.class_names[source.labels[index]] for index in indices],
            }


def _spread(labels: numpy.ndarray) -> Iterator[int]:
    """A few images of each class, spread over it; of very many classes some."""
    classes = numpy.unique(labels)
    if len(classes) > _MOST_CLASSES:
        classes = classes[numpy.linspace(0, len(classes) - 1, _MOST_CLASSES).round().astype(int)]
    order = numpy.argsort(labels, kind="stable")
    for label in classes:
        first, last = numpy.searchsorted(labels[order], [label, label + 1])
        members = order[first:last]
        places = numpy.linspace(0, len(members) - 1, min(_PER_CLASS, len(members))).round().astype(int)
        yield from (int(index) for index in members[places])


def _sheet(source: Source, tiles: dict[int, list[numpy.ndarray]]) -> numpy.ndarray | None:
    """A row per class below its name."""
    if not tiles:
        return None
    columns = max(4, *(len(row) for row in tiles.values()))  # so that names fit
    rows = []
    for label in sorted(tiles):
        white = numpy.full((columns - len(tiles[label]), _TILE, _TILE, 3), 255, numpy.uint8)
        row = grid(numpy.concatenate([numpy.stack(tiles[label]), white]), columns=columns)
        strip = Image.new("RGB", (row.shape[1], _STRIP), "white")
        count = int((source.labels == label).sum())
        ImageDraw.Draw(strip).text((3, 1), f"{source.class_names[label]} ({count})", fill="black")
        rows += [numpy.asarray(strip), row]
    return numpy.concatenate(rows)
