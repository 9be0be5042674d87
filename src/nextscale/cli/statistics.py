"""``nextscale statistics``: what images look like to a network, kept in a file to score against."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nextscale.cli.references import check_size, default_features, open_images
from nextscale.distributed import joined
from nextscale.evaluate.measure import make_reference
from nextscale.evaluate.statistics import write_reference
from nextscale.features.extractor import load_extractor


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a file of statistics."""
    with joined(options.device) as ranks:
        try:
            with ranks.together():
                out, size = Path(options.out), _size(options.size)
                if out.suffix != ".npz" or out.exists():
                    raise ValueError(f"--out {out} must be a new .npz file")
                images = open_images(options.source, size=size)
                features = options.features or default_features(images.image_size)
                extractor = load_extractor(features, options.weights, device=ranks.device)
                check_size(extractor, images.image_size, features)
            reference = make_reference(
                images, extractor, features=features, kind=options.kind, name=options.source, ranks=ranks,
                progress="statistics",
            )  # fmt: skip
            if ranks.is_first:
                write_reference(out, reference)
                height, width = images.image_size
                print(
                    f"{images.count} {options.kind} images of {height} x {width} pixels, "
                    f"{reference.record.metric}: {out}"
                )
        except (ValueError, OSError):
            if ranks.is_first:
                raise
            raise SystemExit(2) from None


def _size(given: list[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if len(given) > 2 or min(given) < 1:
        raise ValueError(
            f"--size {' '.join(map(str, given))}: expected a side, or height and width, in pixels"
        )
    return given[0], given[-1]
