"""The pictures of docs/editing.md: every task of editing on samples of the model itself.

    python benchmarks/edit_pictures.py --out docs/images

Eight samples that the bundled classifier is surest of, and what becomes of them; first seeds, nothing chosen
by hand.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
import torch
from PIL import Image

from nextscale.features.classifier import load_classifier
from nextscale.generate.compositing import place_on_canvas
from nextscale.generate.editing import box_mask
from nextscale.generate.generator import Generator
from nextscale.generate.rejection import keep_best
from nextscale.pixels import enlarge, grid, to_model, to_uint8

LABELS = ["airplane", "automobile", "bird", "deer", "frog", "horse", "ship", "truck"]
BOX = (0.25, 0.25, 0.75, 0.75)
FACTOR = 3


def main() -> None:
    """Write edit-TASK.png for every task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    options = parser.parse_args()
    generator = Generator.load("cifar10-tiny")
    seeds = range(len(LABELS))
    score = load_classifier().confidence
    kept = keep_best(generator, LABELS, seeds=seeds, candidates=40, score=score)
    images = kept.result.images
    for task, rows in _rows(generator, images).items():
        sheet = grid(enlarge(numpy.concatenate(rows), FACTOR), columns=len(LABELS), gap=4)
        Image.fromarray(sheet).save(options.out / f"edit-{task}.png", optimize=True)
        print(options.out / f"edit-{task}.png", sheet.shape)


def _rows(generator: Generator, images: numpy.ndarray) -> dict[str, list[numpy.ndarray]]:
    """The rows of each task's picture, uint8 (8, H, W, 3) each."""
    size = generator.tokenizer.image_size
    keep = box_mask(BOX, size)
    half = box_mask((0.0, 0.5, 1.0, 1.0), size)
    others = LABELS[1:] + LABELS[:1]

    def edit(
        given: object, labels: list[str] = LABELS, *, first: int = 0, **settings: object
    ) -> numpy.ndarray:
        seeds = range(first, first + len(labels))
        return generator.edit(given, labels=labels, seeds=seeds, **settings).images  # type: ignore[arg-type]

    canvas_BCHW, keep_BHW = place_on_canvas(to_model(images), size, cell=4, share=0.75, place=(0.5, 0.5))
    canvas = _holed(to_uint8(canvas_BCHW), keep_BHW.numpy())
    small = numpy.stack([numpy.asarray(Image.fromarray(image).resize((16, 16))) for image in images])
    return {
        "inpaint": [
            images, _holed(images, keep), edit(images, mask=keep), edit(images, mask=keep, first=100),
            _holed(images, half), edit(images, mask=half), edit(images, mask=half, first=100),
        ],
        "replace": [images, _holed(images, keep), edit(images, others, mask=keep, task="replace"),
                    _holed(images, half), edit(images, others, mask=half, task="replace")],
        "outpaint": [images, canvas, edit(images, task="outpaint", share=0.75),
                     edit(images, task="outpaint", share=0.75, first=100)],
        "variation": [images, *(edit(images, task="variation", from_scale=k) for k in (3, 2, 1))],
        "upscale": [enlarge(small, 2), edit(small, task="upscale"), images],
    }  # fmt: skip


def _holed(images: numpy.ndarray, keep: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(keep[..., None] == 1, images, numpy.uint8(128))


if __name__ == "__main__":
    with torch.no_grad():
        main()
