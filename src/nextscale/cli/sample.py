"""``nextscale sample``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from tqdm import tqdm

from nextscale import checkpoint
from nextscale.cli.output import check_new_folder
from nextscale.cli.rejection import best_images
from nextscale.distributed import choose_device
from nextscale.evaluate.npz import LABELS, new_npz
from nextscale.generate.folder import model_digest
from nextscale.generate.generator import Generator
from nextscale.generate.provenance import write_png
from nextscale.generate.reproduce import in_batches, records
from nextscale.generate.request import Label, resolve_label
from nextscale.generate.settings import SamplingSettings
from nextscale.models import find_model
from nextscale.pixels import enlarge, grid


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Make images of the labels asked for."""
    if options.format is not None:
        from nextscale.cli import sample_shards

        return sample_shards.run(options)
    if options.shard_size is not None:
        raise ValueError(f"--shard-size {options.shard_size} belongs to --format: give both, or none")
    out = Path(options.out)
    check_new_folder(out)
    if out.suffix == ".npz" and (options.png or options.npz):
        raise ValueError(f"--out {out} is one file of all images: leave out --png and --npz")
    generator = load_model(options)
    labels, seeds = wanted(options, generator.class_names)
    given, rejection = sampling_options(options), None
    batches: Iterable[numpy.ndarray]
    if options.keep_best is None:
        batches = sample_batches(
            generator, labels, seeds, batch=options.batch, smooth=options.smooth, settings=given
        )
    else:
        images, seeds, rejection = best_images(generator, labels, seeds, settings=given, options=options)
        batches = [images]
    record = _record(labels, seeds, generator, options) | ({"rejection": rejection} if rejection else {})
    drawn = f" of {rejection['drawn']} drawn" if rejection else ""
    if out.suffix == ".npz":
        _write_npz(out, batches, labels, generator, record)
        print(f"{len(labels)} images{drawn}: {out}")
        return
    images = numpy.concatenate(list(batches))
    with checkpoint.new_folder(out) as place:
        _write(place, images, labels, generator, options, record)
    print(f"{len(images)} images{drawn}: {out / 'grid.png'}")


def load_model(options: argparse.Namespace) -> Generator:
    """The model that was typed, signed by whom was asked for."""
    return Generator.load(
        options.model, device=choose_device(options.device), dtype=options.dtype,
        verify_with=options.verify_with,
    )  # fmt: skip


def wanted(options: argparse.Namespace, class_names: Sequence[str]) -> tuple[list[Label], list[int]]:
    """The label and the seed of every image. Raises ValueError for labels or numbers that are none."""
    if options.per_label < 1 or options.batch < 1:
        raise ValueError(f"--per-label {options.per_label} and --batch {options.batch} must be at least 1")
    labels = [label for label in _labels(options.labels, class_names) for _ in range(options.per_label)]
    seeds = options.seeds or list(range(options.seed, options.seed + len(labels)))
    if len(seeds) != len(labels):
        raise ValueError(f"{len(seeds)} seeds for {len(labels)} images: give one per image, or only --seed")
    return labels, seeds


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings that were typed; the others are the model's own."""
    given = {name: getattr(options, name) for name in SamplingSettings.model_fields}
    return {name: value for name, value in given.items() if value is not None}


def sample_images(
    generator: Generator, labels: Sequence[Label], seeds: Sequence[int], *, batch: int,
    settings: Mapping[str, Any],
) -> numpy.ndarray:  # fmt: skip
    """Images uint8 (B, H, W, 3) of any number of labels, ``batch`` at a time, with a progress bar."""
    return numpy.concatenate(list(sample_batches(generator, labels, seeds, batch=batch, settings=settings)))


def sample_batches(
    generator: Generator, labels: Sequence[Label], seeds: Sequence[int], *, batch: int, smooth: bool = False,
    settings: Mapping[str, Any],
) -> Iterator[numpy.ndarray]:  # fmt: skip
    """The same, batch by batch."""
    with tqdm(total=len(labels), unit="image", disable=None) as bar:
        for start in range(0, len(labels), batch):
            place = slice(start, start + batch)
            images = generator(labels[place], seeds=seeds[place], smooth=smooth, **settings).images
            yield images
            bar.update(len(images))


def _labels(words: Sequence[str], class_names: Sequence[str]) -> list[Label]:
    if list(words) == ["all"]:
        return list(range(len(class_names)))
    return [None if word == "none" else resolve_label(word, class_names) for word in words]


def _write(
    place: Path, images: numpy.ndarray, labels: Sequence[Label], generator: Generator,
    options: argparse.Namespace, record: Mapping[str, Any],
) -> None:  # fmt: skip
    columns = options.per_label if options.per_label > 1 else int(numpy.ceil(len(images) ** 0.5))
    sheet = grid(enlarge(images, max(1, 64 // images.shape[1])), columns=columns)
    Image.fromarray(sheet).save(place / "grid.png")
    checkpoint.write_json(place / "settings.json", record)
    if options.png:
        (place / "images").mkdir()
        carried = records(
            generator, labels, record["seeds"],
            places=in_batches(len(labels), 1 if options.keep_best else options.batch),
            model_digest=model_digest(find_model(options.model)),
            sampling=sampling_options(options), smooth=options.smooth,
        )  # fmt: skip
        for index, (image, name, own) in enumerate(zip(images, record["labels"], carried, strict=True)):
            safe = "".join(letter if letter.isalnum() else "_" for letter in name)
            write_png(place / "images" / f"{index:05d}_{safe}_seed{own.seed}.png", image, own)
    if options.npz:
        _write_npz(place / "samples.npz", [images], labels, generator, record)


def _record(
    labels: Sequence[Label], seeds: Sequence[int], generator: Generator, options: argparse.Namespace
) -> dict[str, Any]:
    """What the images depend on."""
    return {
        "model": options.model,
        "labels": ["none" if label is None else generator.class_names[int(label)] for label in labels],
        "seeds": list(seeds), "smooth": options.smooth,
        "sampling": generator.sampling(sampling_options(options)),
        "dtype": str(generator.dtype).removeprefix("torch."),
    }  # fmt: skip


def _write_npz(
    path: Path, batches: Iterable[numpy.ndarray], labels: Sequence[Label], generator: Generator,
    record: Mapping[str, Any],
) -> None:  # fmt: skip
    """One file as evaluators read it: images under ``arr_0``, labels under ``arr_1``; batch by batch."""
    numbers = [len(generator.class_names) if label is None else int(label) for label in labels]
    with new_npz(path, count=len(labels)) as writer:
        for images in batches:
            writer.add(images)
        labels_N = numpy.array(numbers, dtype=numpy.int64)
        writer.finish(**{LABELS: labels_N, "settings": numpy.array(json.dumps(record))})
