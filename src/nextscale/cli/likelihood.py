"""``nextscale likelihood``: bits of images under a model, and the model as a classifier."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from nextscale.data.sources import open_source
from nextscale.distributed import choose_device
from nextscale.evaluate.likelihood import TokenPrior, likelihood_scores
from nextscale.generate.generator import Generator


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Print the scores as JSON."""
    if options.batch < 1 or (options.limit is not None and options.limit < 1):
        raise ValueError(f"--batch {options.batch} and --limit {options.limit} must be at least 1")
    generator = Generator.load(options.model, device=choose_device(options.device))
    prior, source = generator.prior, open_source(options.data)
    if not isinstance(prior, TokenPrior):
        raise ValueError(f"{options.model} is a diffusion prior, which gives tokens no probability")
    if source.class_names != generator.class_names:
        raise ValueError(
            f"{options.data} has other classes than the model: {', '.join(source.class_names[:5])}"
        )
    scores = likelihood_scores(
        generator.tokenizer, prior, source, limit=options.limit, batch_size=options.batch,
        classify=options.classify,
    )  # fmt: skip
    print(json.dumps({"model": options.model, "data": options.data, **scores}, indent=2))
