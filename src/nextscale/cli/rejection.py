"""``--keep-best`` of ``nextscale sample``, and the classifier that judges candidates."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy
from tqdm import tqdm

from nextscale.features.classifier import Classifier, load_classifier
from nextscale.generate.generator import Generator
from nextscale.generate.rejection import keep_best, num_candidates
from nextscale.generate.request import Label, Sampling


def fitting_classifier(generator: Generator, *, option: str) -> Classifier:
    """The bundled classifier.

    Raises:
        ValueError: it knows other classes than the model, or looks at images of another size.
    """
    classifier = load_classifier()
    if classifier.settings.class_names != generator.class_names:
        raise ValueError(
            f"{option}: the bundled classifier knows {', '.join(classifier.settings.class_names)}; "
            "this model has other classes"
        )
    side = classifier.settings.image_size
    if generator.tokenizer.image_size != (side, side):
        height, width = generator.tokenizer.image_size
        raise ValueError(
            f"{option}: the bundled classifier looks at {side} x {side} pixels, this model makes {height} "
            f"x {width}"
        )
    return classifier


def best_images(
    generator: Generator, labels: Sequence[Label], seeds: Sequence[int], *, settings: Mapping[str, Any],
    options: argparse.Namespace,
) -> tuple[numpy.ndarray, list[int], dict[str, Any]]:  # fmt: skip
    """The candidates that the bundled classifier is surest of: images uint8 (B, H, W, 3), their seeds, and
    what was done.

    Raises:
        ValueError: a share that cannot be kept, or a model that the classifier does not know.
    """
    candidates = num_candidates(options.keep_best)
    if options.smooth:
        raise ValueError("--keep-best needs tokens: leave out --smooth")
    classifier = fitting_classifier(generator, option="--keep-best")
    classifier.to(generator.prior.position.device)
    with tqdm(total=len(labels) * candidates, unit="image", disable=None) as bar:
        kept = keep_best(
            generator, labels, seeds=seeds, candidates=candidates, score=classifier.confidence,
            batch_size=options.batch, on_drawn=bar.update, **cast(Sampling, dict(settings)),
        )  # fmt: skip
    record = {
        "keep_best": options.keep_best, "scorer": "cifar10-classifier", "seeds_of_the_request": list(seeds),
        "drawn": kept.num_drawn, "acceptance_rate": kept.acceptance_rate,
        "log_probabilities": list(kept.scores),
    }  # fmt: skip
    return kept.result.images, list(kept.seeds), record
