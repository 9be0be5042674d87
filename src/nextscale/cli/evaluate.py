"""``nextscale evaluate``: a model, or images from anywhere, against a reference or alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nextscale.cli import evaluate_against, evaluate_alone
from nextscale.distributed import joined


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Score, and print the scores as JSON."""
    for name, least in (("num_samples", 0), ("limit", 1), ("batch", 1), ("seed", 0), ("resamples", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    if options.resamples == 1:
        raise ValueError("--resamples 1 gives no interval: give 0 for none, or some hundred")
    if options.reference is None:
        evaluate_alone.run(options)
        return
    with joined(options.device) as ranks:
        try:
            evaluate_against.run(options, ranks)
        except (ValueError, OSError):
            if ranks.is_first:
                raise
            raise SystemExit(2) from None
