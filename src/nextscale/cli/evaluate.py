"""``nextscale evaluate``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from nextscale import checkpoint
from nextscale.cli.output import check_new_folder
from nextscale.cli.sample import sample_images, sampling_options
from nextscale.data.sources import open_source
from nextscale.distributed import choose_device
from nextscale.evaluate.agreement import class_agreement
from nextscale.evaluate.prediction import prediction_scores
from nextscale.evaluate.reconstruction import reconstruction_scores
from nextscale.features.classifier import load_classifier
from nextscale.features.extractor import Extractor, load_extractor
from nextscale.generate.generator import Generator
from nextscale.pixels import enlarge, grid

_GRID_PER_CLASS = 10


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Score a model and print the scores as JSON."""
    if options.num_samples < 0:
        raise ValueError(f"--num-samples {options.num_samples} must be at least 0")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit {options.limit} must be at least 1")
    out = Path(options.out) if options.out else None
    if out is not None:
        check_new_folder(out)
    generator = Generator.load(options.model, device=choose_device(options.device))
    scores: dict[str, Any] = {"model": options.model}
    sheet = None
    if options.data:
        source = open_source(options.data)
        scores["data"] = options.data
        scores["reconstruction"] = reconstruction_scores(
            generator.tokenizer, source, limit=options.limit, extractor=_fitting_extractor(generator)
        )
        if generator.settings.prior is not None:
            if source.class_names != generator.class_names:
                raise ValueError(
                    f"{options.data} has other classes than the model: {', '.join(source.class_names[:5])}"
                )
            scores["prediction"] = prediction_scores(
                generator.tokenizer, generator.prior, source, limit=options.limit
            )
    if options.num_samples and generator.settings.prior is not None:
        scores["samples"], sheet = _score_samples(generator, options)
    if out is not None:
        with checkpoint.new_folder(out) as place:
            checkpoint.write_json(place / "scores.json", scores)
            if sheet is not None:
                Image.fromarray(sheet).save(place / "samples.png")
    print(json.dumps(scores, indent=2))


def _fitting_extractor(generator: Generator) -> Extractor | None:
    """The bundled classifier's features, where the model makes images of its size."""
    extractor = load_extractor("cifar", device=next(generator.tokenizer.parameters()).device)
    side = extractor.image_size
    return extractor if generator.tokenizer.image_size == (side, side) else None


def _score_samples(generator: Generator, options: argparse.Namespace) -> tuple[dict[str, Any], numpy.ndarray]:
    """The share of samples that the bundled classifier assigns to their label, and some to look at, a row per
    class.
    """
    classifier = load_classifier()
    if classifier.settings.class_names != generator.class_names:
        raise ValueError(
            f"the bundled classifier knows {', '.join(classifier.settings.class_names)}; "
            "this model has other classes: give --num-samples 0"
        )
    count = len(generator.class_names)
    labels = [index % count for index in range(options.num_samples)]
    seeds = range(options.seed, options.seed + len(labels))
    settings = sampling_options(options)
    images = sample_images(generator, labels, seeds, batch=50, settings=settings)
    agreed = class_agreement(images, labels, classifier)
    per_class = {
        name: float(agreed[number::count].mean())
        for number, name in enumerate(generator.class_names[: len(images)])
    }
    used = {**generator.settings.sampling.model_dump(), **settings}
    shown = [image for number in range(count) for image in images[number::count][:_GRID_PER_CLASS]]
    sheet = grid(enlarge(numpy.stack(shown), max(1, 64 // images.shape[1])), columns=_GRID_PER_CLASS)
    return {
        "count": len(images), "first_seed": options.seed, "sampling": used,
        "class_agreement": float(agreed.mean()), "class_agreement_per_class": per_class,
    }, sheet  # fmt: skip
