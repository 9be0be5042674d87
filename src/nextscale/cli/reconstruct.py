"""``nextscale reconstruct``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy
from PIL import Image

from nextscale import checkpoint
from nextscale.cli.output import check_new_folder
from nextscale.data.loader import chosen_indices
from nextscale.data.sources import open_source
from nextscale.data.sources.find import SUFFIXES
from nextscale.data.transforms import decode_image, resize_and_crop
from nextscale.distributed import choose_device
from nextscale.evaluate.similarity import psnr
from nextscale.generate.generator import Generator
from nextscale.pixels import side_by_side, to_model, to_uint8


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Show what the tokenizer keeps of some images."""
    out = Path(options.out)
    check_new_folder(out)
    if options.limit < 1:
        raise ValueError(f"--limit {options.limit} must be at least 1")
    generator = Generator.load(options.model, device=choose_device(options.device))
    tokenizer = generator.tokenizer
    names, images = _read(options.images, tokenizer.image_size, options.limit)
    device = next(tokenizer.parameters()).device
    decoded = to_uint8(tokenizer.decode(tokenizer.encode(to_model(images).to(device))))
    ratios = psnr(images, decoded)
    with checkpoint.new_folder(out) as place:
        Image.fromarray(side_by_side(images, decoded)).save(place / "side_by_side.png")
        scores = {
            "psnr_mean": float(ratios.mean()),
            "psnr": [
                {"image": name, "psnr": ratio} for name, ratio in zip(names, ratios.tolist(), strict=True)
            ],
        }
        checkpoint.write_json(place / "scores.json", scores)
    print(f"{len(images)} images, mean PSNR {ratios.mean():.2f} dB: {out / 'side_by_side.png'}")


def _read(paths: Sequence[str], size: tuple[int, int], limit: int) -> tuple[list[str], numpy.ndarray]:
    """Names and center crops uint8 (B, H, W, 3) of files, or of up to ``limit`` images of one source."""
    contents: list[tuple[str, bytes]] = []
    for path in paths:
        if Path(path).is_file() and Path(path).suffix.lower() not in SUFFIXES:
            contents.append((str(Path(path)), Path(path).read_bytes()))
            continue
        source = open_source(path)
        indices = chosen_indices(len(source.labels), limit)
        contents += [(source.name(int(index)), source.read(int(index))) for index in indices]
    images = [resize_and_crop(decode_image(content, name), size) for name, content in contents[:limit]]
    return [name for name, _ in contents[:limit]], numpy.stack(images)
