"""From what was measured of each image to scores that say in their names which features they are of.

Letters: N images, D features.
"""

from __future__ import annotations

from typing import Any

import torch

from nextscale.evaluate.frechet import frechet_distance
from nextscale.evaluate.measure import Rows
from nextscale.evaluate.moments import Moments
from nextscale.evaluate.reconstruction import CodeUsage
from nextscale.evaluate.statistics import Reference
from nextscale.tokenizer.model import Tokenizer

#: A value, and ``low`` and ``high`` where there is an interval.
Score = dict[str, float]


def distribution_scores(
    rows: Rows, reference: Reference, *, reconstructed: bool = False
) -> tuple[dict[str, Score], list[str]]:
    """Scores of a set of images against a reference, and what a reader must know of them.

    Args:
        rows: of `measure`.
        reference: made by the same network.
        reconstructed: the images are reconstructions, whose distances are called rFID and the like.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    metric, dim = reference.record.metric, rows["pool"].shape[1]
    first = "r" if reconstructed else ""
    moments = moments_of(rows["pool"])
    scores = {f"{first}{metric}": {"value": frechet_distance(moments, reference.moments)}}
    if "spatial" in rows and reference.spatial is not None:
        spatial = moments_of(rows["spatial"])
        scores[f"{first}s{metric}"] = {"value": frechet_distance(spatial, reference.spatial)}
    return scores, _warnings(moments.count, reference.record.count, dim, f"{first}{metric}")


def moments_of(features_ND: Any) -> Moments:
    """The moments of features (N, D) . Raises ValueError for fewer than two, or values not finite."""
    if len(features_ND) < 2:
        raise ValueError(f"{len(features_ND)} images have no covariance: give at least 2")
    moments = Moments(features_ND.shape[1])
    for batch_BD in torch.from_numpy(features_ND).split(1024):
        moments.add(batch_BD)
    return moments


def _warnings(count: int, reference_count: int | None, dim: int, metric: str) -> list[str]:
    warnings = []
    for what, number in (("images", count), ("reference images", reference_count)):
        if number is not None and number <= dim:
            warnings.append(
                f"{number} {what} for {dim} features: the covariance is singular and {metric} far too large; "
                f"give more than {dim}"
            )
    return warnings


def reconstruction_means(rows: Rows, tokenizer: Tokenizer) -> dict[str, float]:
    """Means over the images of what was measured of each pair, and the codes used per scale."""
    usage = CodeUsage(tokenizer.schedule, tokenizer.settings.quantizer.vocab_size)
    usage.add(torch.from_numpy(rows["tokens"]))
    pairs: list[str] = [name for name in ("psnr", "ssim", "lpips") if name in rows]
    means = {name: float(rows[name].mean()) for name in pairs}
    means |= {f"codes_used_{scale}": float(number) for scale, number in enumerate(usage.used())}
    return means | {f"usage_{scale}": share for scale, share in enumerate(usage.shares())}
