"""From what was measured of each image to scores that say in their names which features they are of.

Letters: N images, D features.
"""

from __future__ import annotations

import numpy
import torch

from nextscale.evaluate.bootstrap import frechet_interval
from nextscale.evaluate.frechet import frechet_distance
from nextscale.evaluate.inception_score import LOGITS, inception_score
from nextscale.evaluate.kernel_distance import kernel_distance
from nextscale.evaluate.measure import Rows
from nextscale.evaluate.moments import Moments
from nextscale.evaluate.precision_recall import precision_recall
from nextscale.evaluate.reconstruction import CodeUsage
from nextscale.evaluate.statistics import Reference
from nextscale.tokenizer.model import Tokenizer

#: A value, with ``low`` and ``high`` where there is an interval, ``std`` where it is a mean over parts.
Score = dict[str, float]
_SUBSET = 1000  # images that a kernel distance takes at a time
_NEIGHBOURS = 3


def frechet_score(rows: Rows, reference: Reference, *, num_resamples: int) -> Score:
    """The Fréchet distance with a 95 % interval over the choice of images, where resamples are asked for.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    features_ND = torch.from_numpy(rows["pool"])
    distance = frechet_distance(moments_of(rows["pool"]), reference.moments)
    if not num_resamples:
        return {"value": distance}
    interval = frechet_interval(features_ND, reference.moments, num_resamples=num_resamples)
    return {"value": distance, "low": interval.low, "high": interval.high}


def sample_scores(
    rows: Rows, reference: Reference, *, num_resamples: int, sorted_by_class: bool
) -> dict[str, Score]:
    """Every score that the features allow: Fréchet distances, kernel distance, precision, recall, and how
    sure and varied the network's guesses are.

    Args:
        rows: of `measure`.
        reference: made by the same network.
        num_resamples: of the interval; 0: none.
        sorted_by_class: the images are, so that splits of them must be drawn.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    metric = reference.record.metric
    of = metric.removeprefix("FD") if metric.startswith("FD-") else ""  # Inception's have no ending
    scores = {metric: frechet_score(rows, reference, num_resamples=num_resamples)}
    if "spatial" in rows and reference.spatial is not None:
        spatial = frechet_distance(moments_of(rows["spatial"]), reference.spatial)
        scores[f"s{metric}"] = {"value": spatial}
    if f"IS{of}" in LOGITS:
        logits = rows[LOGITS[f"IS{of}"]]
        if sorted_by_class:
            logits = logits[numpy.random.default_rng(0).permutation(len(logits))]
        scores[f"IS{of}"] = _mean(inception_score(torch.from_numpy(logits)))
    kept = reference.kept_nD
    least = min(len(rows["pool"]), 0 if kept is None else len(kept))
    if kept is not None and least > _NEIGHBOURS:
        features_ND = torch.from_numpy(rows["pool"])
        subset = min(_SUBSET, least)
        scores[f"KID{of}"] = _mean(kernel_distance(features_ND, kept, subset_size=subset))
        pair = precision_recall(features_ND, kept, num_neighbours=_NEIGHBOURS)
        scores |= {f"precision{of}": {"value": pair.precision}, f"recall{of}": {"value": pair.recall}}
    return scores


def _mean(given: tuple[float, float]) -> Score:
    return {"value": given[0], "std": given[1]}


def singular_warnings(count: int, reference: Reference) -> list[str]:
    """What a reader must know of distances between few images."""
    warnings, dim = [], len(reference.moments.mean_D)
    for what, number in (("images", count), ("reference images", reference.record.count)):
        if number is not None and number <= dim:
            warnings.append(
                f"{number} {what} for {dim} features: the covariance is singular and "
                f"{reference.record.metric} far too large; give more than {dim}"
            )
    return warnings


def moments_of(features_ND: numpy.ndarray) -> Moments:
    """The moments of features (N, D) . Raises ValueError for fewer than two, or values not finite."""
    if len(features_ND) < 2:
        raise ValueError(f"{len(features_ND)} images have no covariance: give at least 2")
    moments = Moments(features_ND.shape[1])
    for batch_BD in torch.from_numpy(features_ND).split(1024):
        moments.add(batch_BD)
    return moments


def reconstruction_means(rows: Rows, tokenizer: Tokenizer) -> dict[str, float]:
    """Means over the images of what was measured of each pair, and the codes used per scale, if any were."""
    pairs: list[str] = [name for name in ("psnr", "ssim", "lpips") if name in rows]
    means = {name: float(rows[name].mean()) for name in pairs}
    if "tokens" not in rows:
        return means
    usage = CodeUsage(tokenizer.schedule, tokenizer.settings.quantizer.vocab_size)
    usage.add(torch.from_numpy(rows["tokens"]))
    means |= {f"codes_used_{scale}": float(number) for scale, number in enumerate(usage.used())}
    return means | {f"usage_{scale}": share for scale, share in enumerate(usage.shares())}
