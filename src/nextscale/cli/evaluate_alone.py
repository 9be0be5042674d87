"""``nextscale evaluate`` without a reference: class agreement of samples, reconstruction, likelihood."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from nextscale import checkpoint
from nextscale.cli.output import check_new_folder
from nextscale.cli.sample import sample_images, sampling_options
from nextscale.data.sources import open_source
from nextscale.distributed import choose_device, num_processes
from nextscale.evaluate.agreement import class_agreement
from nextscale.evaluate.prediction import prediction_scores
from nextscale.evaluate.reconstruction import reconstruction_scores
from nextscale.evaluate.scoring import agreement
from nextscale.features.classifier import load_classifier
from nextscale.features.extractor import Extractor, load_extractor
from nextscale.generate.generator import Generator
from nextscale.pixels import enlarge, grid

_GRID_PER_CLASS = 10
_WITH_REFERENCE = (
    "reference_kind", "any_reference", "features", "weights", "protocol", "sweep", "lpips_weights",
    "lpips_heads", "resamples", "dtype",
)  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Score a model and print the scores as JSON."""
    for name in _WITH_REFERENCE:
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} has no effect without --reference: give one")
    if num_processes() > 1:
        raise ValueError("several processes share the work only with --reference: start without torchrun")
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
    num_samples = 1000 if options.num_samples is None else options.num_samples
    if options.class_agreement:
        generator.prior  # noqa: B018  # says what is missing
    if num_samples and generator.settings.prior is not None:
        scores["samples"], sheet = _score_samples(generator, num_samples, options)
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


def _score_samples(
    generator: Generator, num_samples: int, options: argparse.Namespace
) -> tuple[dict[str, Any], numpy.ndarray]:
    """The share of samples that the bundled classifier assigns to their label, and some to look at, a row per
    class.
    """
    classifier = load_classifier()
    if classifier.settings.class_names != generator.class_names:
        raise ValueError(
            f"the bundled classifier knows {', '.join(classifier.settings.class_names)}; "
            "this model has other classes: give --num-samples 0"
        )
    count, first_seed = len(generator.class_names), options.seed or 0
    labels = [index % count for index in range(num_samples)]
    seeds = range(first_seed, first_seed + len(labels))
    settings = sampling_options(options)
    images = sample_images(generator, labels, seeds, batch=options.batch or 50, settings=settings)
    agreed = class_agreement(images, labels, classifier)
    used = generator.sampling(settings)
    shown = [image for number in range(count) for image in images[number::count][:_GRID_PER_CLASS]]
    sheet = grid(enlarge(numpy.stack(shown), max(1, 64 // images.shape[1])), columns=_GRID_PER_CLASS)
    return {
        "count": len(images), "first_seed": first_seed, "sampling": used,
        **agreement(agreed, numpy.array(labels), generator.class_names),
    }, sheet  # fmt: skip
