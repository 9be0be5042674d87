"""How far a Fréchet distance would move if other samples had been drawn from the same generator.

Letters: N images, D features.
Special here: a resample is a weight per image, so nothing is copied: per resample one product of the images
that were drawn, and the eigenvalues of one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from nextscale.evaluate.frechet import frechet_distance, root
from nextscale.evaluate.moments import Moments


@dataclass(frozen=True)
class Interval:
    """A distance, the range in which such distances lie, and how it was found."""

    estimate: float  #: the distance of all features as they are
    low: float
    high: float
    bias: float  #: how much larger the resampled distances are in the mean
    level: float  #: share of resampled distances within the range
    num_resamples: int
    seed: int


@torch.no_grad()
def frechet_interval(
    features_ND: Tensor, reference: Moments, *, num_resamples: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """A bootstrap interval (Efron 1979) of `frechet_distance` over the choice of samples.

    Images are drawn with repetition; the reference stays as it is. A resample holds fewer different images,
    which makes its distance larger: quantiles are shifted back by that ``bias``. The interval is about *this
    number of samples*; it does not say what the distance of infinitely many would be.

    Args:
        features_ND: float, of the generated images; the work is done in float64 on the CPU.
        reference: what they are compared with.
        num_resamples: how often images are drawn anew.
        level: share of the resampled distances that the interval holds.
        seed: of the drawing.

    Raises:
        ValueError: no resamples, a level that is no share, or what `frechet_distance` refuses.
    """
    if num_resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f"{num_resamples} resamples at level {level}: expected at least 2 and a level between 0 and 1"
        )
    features_ND = features_ND.to("cpu", torch.float64)
    moments = Moments(features_ND.shape[1])
    moments.add(features_ND)
    estimate = frechet_distance(moments, reference)
    distances = torch.tensor(_resampled(features_ND, reference, num_resamples, seed), dtype=torch.float64)
    bias = float(distances.mean()) - estimate
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (float(value) - bias for value in distances.quantile(tails))
    return Interval(estimate, max(low, 0.0), high, bias, level, num_resamples, seed)


def _resampled(features_ND: Tensor, reference: Moments, num_resamples: int, seed: int) -> list[float]:
    """The distance of each resample from the reference.

    With X the centered rows of a resample and C2 = A A^T, the singular values of X A / sqrt(N - 1) are the
    roots of the eigenvalues of C1 C2: C1 itself is not needed, only its trace.
    """
    numbers, count = numpy.random.default_rng(seed), len(features_ND)
    center_D = features_ND.mean(dim=0)
    rows_ND = features_ND - center_D
    seen_ND, squares_N = rows_ND @ root(reference.covariance_DD), rows_ND.square().sum(dim=1)
    reference_trace = float(reference.covariance_DD.trace())
    distances = []
    for _ in range(num_resamples):
        drawn = numpy.bincount(numbers.integers(count, size=count), minlength=count)
        weights_N = torch.from_numpy(drawn).double()
        mean_D, seen_mean_D = weights_N @ rows_ND / count, weights_N @ seen_ND / count
        kept = weights_N > 0
        weighted = seen_ND[kept] * weights_N[kept].sqrt()[:, None]
        products_DD = weighted.T @ weighted - torch.outer(seen_mean_D, seen_mean_D) * count
        shared = torch.linalg.eigvalsh(products_DD / (count - 1)).clamp(min=0).sqrt().sum()
        trace = (weights_N @ squares_N - mean_D.square().sum() * count) / (count - 1)
        shift = (center_D + mean_D - reference.mean_D).square().sum()
        distances.append(max(float(shift + trace - 2 * shared) + reference_trace, 0.0))
    return distances
