"""``nextscale neighbours``: samples beside their nearest training images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nextscale import checkpoint
from nextscale.cli.output import check_new_folder
from nextscale.cli.sample import sample_images, sampling_options
from nextscale.data.loader import chosen_indices, evaluation_batches
from nextscale.data.sources import Source, open_source
from nextscale.data.transforms import read_image, resize_and_crop
from nextscale.distributed import choose_device
from nextscale.evaluate.memorization import Memorization, memorization
from nextscale.features.extractor import Extractor, load_extractor
from nextscale.generate.generator import Generator
from nextscale.models import is_model
from nextscale.pixels import enlarge, grid

_BATCH = 100


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Look for samples, or for given images, among training images."""
    out = Path(options.out)
    check_new_folder(out)
    _check(options)
    device = choose_device(options.device)
    extractor = load_extractor(options.features, options.weights, device=device)
    training = open_source(options.training)
    record: dict[str, Any] = {"training": options.training, "features": options.features}
    if is_model(options.images):
        images = _samples(Generator.load(options.images, device=device), options, record)
    else:
        images = _given(open_source(options.images), extractor, options, record)
    size = (images.shape[1], images.shape[2])
    samples_ND = torch.cat([extractor(images[place])["pool"].cpu() for place in _places(len(images))])
    training_MD = _features(training, extractor, size, options.limit)
    found = memorization(samples_ND, training_MD, num_neighbours=options.neighbours)
    numbers = chosen_indices(len(training.labels), options.limit)[found.indices_NK]
    record |= {"num_samples": len(images), "num_training": len(training_MD)} | found.scores()
    with checkpoint.new_folder(out) as place:
        order = numpy.argsort(found.ratios_N, kind="stable")
        sheet = _sheet(images, numbers, order[: options.shown], training, size)
        Image.fromarray(sheet).save(place / "neighbours.png")
        samples = _each(found, numbers, order, training)
        checkpoint.write_json(place / "scores.json", {**record, "samples_nearest_first": samples})
    print(json.dumps(record, indent=2))


def _check(options: argparse.Namespace) -> None:
    for name in ("num_samples", "neighbours", "shown"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if options.limit is not None and options.limit < 2:
        raise ValueError(f"--limit {options.limit} must be at least 2: training images are compared too")


def _samples(generator: Generator, options: argparse.Namespace, record: dict[str, Any]) -> numpy.ndarray:
    """Samples of all classes in turn: uint8 (N, H, W, 3)."""
    if options.size:
        raise ValueError(f"--size {options.size} is for images: a model makes its own size, leave it out")
    labels = [index % len(generator.class_names) for index in range(options.num_samples)]
    settings = sampling_options(options)
    seeds = range(options.seed, options.seed + len(labels))
    record |= {"model": options.images, "first_seed": options.seed}
    record |= {"sampling": generator.sampling(settings)}
    return sample_images(generator, labels, seeds, batch=50, settings=settings)


def _given(
    source: Source, extractor: Extractor, options: argparse.Namespace, record: dict[str, Any]
) -> numpy.ndarray:
    """Center crops, up to --num-samples: uint8 (N, H, W, 3)."""
    if sampling_options(options) or options.seed:
        raise ValueError(
            f"{options.images} holds images, not a model: leave out --seed and sampling settings"
        )
    side = options.size or extractor.image_size
    if side is None:
        raise ValueError(f"{options.features} takes images of any size: give --size, the side of the crops")
    record |= {"images": options.images}
    batches = evaluation_batches(source, size=(side, side), batch_size=_BATCH, limit=options.num_samples)
    return numpy.concatenate([pixels for pixels, _ in batches])


def _places(count: int) -> Iterator[slice]:
    return (slice(start, start + _BATCH) for start in range(0, count, _BATCH))


def _features(source: Source, extractor: Extractor, size: tuple[int, int], limit: int | None) -> Tensor:
    """What the network sees in the center crops of a source: float32 (M, D)."""
    parts = []
    with tqdm(total=min(len(source.labels), limit or len(source.labels)), unit="image", disable=None) as bar:
        for pixels, _ in evaluation_batches(source, size=size, batch_size=_BATCH, limit=limit):
            parts.append(extractor(pixels)["pool"].cpu())
            bar.update(len(pixels))
    return torch.cat(parts)


def _each(
    found: Memorization, numbers_NK: numpy.ndarray, order: numpy.ndarray, training: Source
) -> list[dict[str, Any]]:
    """Every sample by number, with its nearest training image."""
    return [
        {
            "sample": int(row), "nearest": training.name(int(numbers_NK[row, 0])),
            "distance": float(found.distances_NK[row, 0]), "ratio": float(found.ratios_N[row]),
        }
        for row in order
    ]  # fmt: skip


def _sheet(
    images: numpy.ndarray,
    numbers_NK: numpy.ndarray,
    order: numpy.ndarray,
    training: Source,
    size: tuple[int, int],
) -> numpy.ndarray:
    """A row per sample: the sample, a gap, its nearest training images."""
    shown: list[numpy.ndarray] = []
    for row in order:
        found = [resize_and_crop(read_image(training, int(number)), size) for number in numbers_NK[row]]
        shown += [images[row], numpy.full_like(images[row], 255), *found]
    sheet = numpy.stack(shown)
    return grid(enlarge(sheet, max(1, 64 // size[0])), columns=numbers_NK.shape[1] + 2)
