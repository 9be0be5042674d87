"""``nextscale reproduce``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

from nextscale import __version__
from nextscale.cli.edit_inputs import mask_from_file, read_picture
from nextscale.data.transforms import fit_to_task
from nextscale.distributed import choose_device
from nextscale.generate.folder import model_digest
from nextscale.generate.generator import Generator
from nextscale.generate.provenance import Record, read_png, write_png
from nextscale.generate.reproduce import compare_pixels, make_again
from nextscale.models import find_model


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Make a picture again; 0: it is the same, 1: it is not, or the model is another."""
    if options.out and Path(options.out).exists():
        raise ValueError(f"{options.out} exists: give another --out, or remove it")
    if options.mask and not options.image:
        raise ValueError("--mask belongs to --image: give the image that was edited too")
    pixels, record = read_png(Path(options.picture))
    if options.alone:
        record = record.model_copy(update={"batch": 1, "row": 0})
    folder = find_model(options.model)
    digest = model_digest(folder)
    if digest != record.model_digest:
        print(
            f"another model: {options.picture} was made by the one with digest {record.model_digest[:12]}, "
            f"{options.model} has {digest[:12]}"
        )
        return 1
    generator = Generator.load(folder, device=choose_device(options.device), dtype=record.dtype)
    if record.laid_out:
        generator.lay_out()
    image, mask = _inputs(options, record, generator)
    again = make_again(generator, record, image=image, mask=mask)
    difference = compare_pixels(pixels, again)
    now = {
        "nextscale": __version__, "torch": str(torch.__version__),
        "device": generator.prior.position.device.type,
    }  # fmt: skip
    if options.out:
        write_png(Path(options.out), again, record.model_copy(update=now))
    others = [f"{name} {getattr(record, name)}" for name in now if getattr(record, name) != now[name]]
    made = f" (made with {', '.join(others)})" if others else ""
    if not difference.num_pixels:
        print(f"same: all {difference.total} pixels{made}")
        return 0
    print(
        f"differs: {difference.num_pixels} of {difference.total} pixels, by at most {difference.largest} "
        f"of 255{made}"
    )
    return 1


def _inputs(
    options: argparse.Namespace, record: Record, generator: Generator
) -> tuple[numpy.ndarray | None, numpy.ndarray | None]:
    """What an edit was given, from files."""
    if not options.image:
        return None, None
    if record.edit is None:
        raise ValueError(f"{options.picture} is a sample, no edit: leave out --image")
    image, size = read_picture(options.image), generator.tokenizer.image_size
    mask = None
    if options.mask:
        mask = mask_from_file(options.mask, image, size, image_path=options.image)
    return fit_to_task(image, record.edit.task, size), mask
