"""The pictures of a model's page: all of them from first seeds and first images, nothing chosen by hand.

Letters: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image

from nextscale.data.sources import Source
from nextscale.data.transforms import read_image, resize_and_crop
from nextscale.features.classifier import Classifier
from nextscale.generate.compositing import place_on_canvas
from nextscale.generate.editing import box_mask
from nextscale.generate.generator import Generator
from nextscale.pixels import enlarge, grid, to_model, to_uint8

PER_CLASS, BATCH = 10, 50
BOX = (0.25, 0.25, 0.75, 0.75)
_SIDE = 64  #: pixels, about, of each image on a sheet


def samples(generator: Generator, classes: Sequence[int], out: Path) -> numpy.ndarray:
    """A row per class, seeds counting up from 0: uint8 (B, H, W, 3), class by class."""
    labels = [label for label in classes for _ in range(PER_CLASS)]
    parts = [
        generator(labels[first : first + BATCH], seeds=range(first, min(first + BATCH, len(labels)))).images
        for first in range(0, len(labels), BATCH)
    ]
    images = numpy.concatenate(parts)
    _write(images, out, columns=PER_CLASS)
    return images


def strips(generator: Generator, classes: Sequence[int], out: Path) -> None:
    """A row per class: one image after each scale."""
    steps = [step.images for step in generator.stream(list(classes), seeds=range(len(classes)))]
    _write(numpy.stack(steps, axis=1).reshape(-1, *steps[0].shape[1:]), out, columns=len(steps))


def reconstructions(generator: Generator, real: numpy.ndarray, out: Path) -> None:
    """Real images above what their tokens hold of them."""
    tokens = generator.tokenizer.encode(to_model(real))
    decoded = to_uint8(generator.tokenizer.decode(tokens))
    _write(numpy.concatenate([real, decoded]), out, columns=PER_CLASS)


def fillings(generator: Generator, real: numpy.ndarray, labels: Sequence[int], out: Path) -> None:
    """Real images, the same with a hole, and two fillings."""
    keep = box_mask(BOX, generator.tokenizer.image_size)
    holed = numpy.where(keep[None, :, :, None] > 0, real, 127).astype(numpy.uint8)
    made = [
        numpy.concatenate([
            generator.edit(image, mask=keep, labels=[label], seeds=[first + place]).images
            for place, (image, label) in enumerate(zip(real, labels, strict=True))
        ])
        for first in (0, 1000)
    ]  # fmt: skip
    _write(numpy.concatenate([real, holed, *made]), out, columns=PER_CLASS)


def failures(images: numpy.ndarray, classes: Sequence[int], out: Path, classifier: Classifier) -> bool:
    """Of each class's samples those that the classifier believes least; False: it does not fit."""
    side = classifier.settings.image_size
    if images.shape[1:3] != (side, side) or len(classes) > len(classifier.settings.class_names):
        return False
    labels = numpy.repeat(numpy.asarray(classes), PER_CLASS)
    with torch.no_grad():
        sure = classifier.confidence(to_model(images), torch.from_numpy(labels)).numpy()
    rows = numpy.arange(len(classes)) * PER_CLASS
    worst = sure.reshape(-1, PER_CLASS).argsort(axis=1)[:, :2].T + rows
    _write(images[worst.reshape(-1)], out, columns=len(classes))
    return True


def surroundings(generator: Generator, real: numpy.ndarray, labels: Sequence[int], out: Path) -> None:
    """Real images made smaller, and what is made around them."""
    size = generator.tokenizer.image_size
    canvas_BCHW, _ = place_on_canvas(to_model(real), size, cell=4, share=0.75, place=(0.5, 0.5))
    made = numpy.concatenate([
        generator.edit(image, labels=[label], seeds=[place], task="outpaint", share=0.75).images
        for place, (image, label) in enumerate(zip(real, labels, strict=True))
    ])  # fmt: skip
    _write(numpy.concatenate([to_uint8(canvas_BCHW), made]), out, columns=PER_CLASS)


def first_of_each_class(
    source: Source, size: tuple[int, int], count: int = PER_CLASS
) -> tuple[numpy.ndarray, list[int]]:
    """The first image of each class, and so on, up to a count: uint8 (B, H, W, 3), and their classes."""
    labels = numpy.asarray(source.labels)
    turns = numpy.empty(len(labels), dtype=numpy.int64)  # the how manieth of its class an image is
    for label in range(len(source.class_names)):
        turns[labels == label] = numpy.arange((labels == label).sum())
    numbers = numpy.lexsort((labels, turns))[:count]
    images = [resize_and_crop(read_image(source, int(number)), size) for number in numbers]
    return numpy.stack(images), [int(labels[number]) for number in numbers]


def _write(images: numpy.ndarray, out: Path, *, columns: int) -> None:
    sheet = grid(enlarge(images, max(1, _SIDE // images.shape[1])), columns=columns)
    Image.fromarray(sheet).save(out, optimize=True)
