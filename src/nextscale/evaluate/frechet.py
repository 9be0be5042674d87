"""The Fréchet distance of two sets of features: FID, sFID, FD-DINOv2, FD-CIFAR, by what the features are.

Letters: D features.
Special here: no matrix square root. With C = A A^T the trace of sqrt(C1 C2) is the sum of the singular
values of A1^T A2, which float64 gives to 15 digits of the largest. Square roots of products would keep half
of them, and SciPy's matrix root is wrong under some builds of its linear algebra.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.evaluate.moments import Moments


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2)), in squared units of the features.

    From Dowson and Landau 1982, as the score of generators in Heusel et al. 2017 (arXiv 1706.08500, equation
    6). Covariances may be singular. Never negative: rounding is cut at 0.

    Raises:
        ValueError: features of different widths, or fewer than two samples on a side.
    """
    if len(a.mean_D) != len(b.mean_D):
        raise ValueError(
            f"features of width {len(a.mean_D)} against {len(b.mean_D)}: use one extractor for both sides"
        )
    covariances = a.covariance_DD, b.covariance_DD
    traces = sum(float(covariance_DD.trace()) for covariance_DD in covariances)
    root_a, root_b = (root(covariance_DD) for covariance_DD in covariances)
    shared = float(torch.linalg.svdvals(root_a.T @ root_b).sum())
    distance = float((a.mean_D - b.mean_D).square().sum()) + traces - 2 * shared
    return max(distance, 0.0)


def root(covariance_DD: Tensor) -> Tensor:
    """A matrix A (D, D) with A A^T = the covariance, float64.

    Directions whose variance is below the rounding of the matrix get none: their square roots, small as they
    are, would add up where there are more features than samples.
    """
    variances_D, directions_DD = torch.linalg.eigh(covariance_DD)
    noise = variances_D.abs().max() * len(variances_D) * torch.finfo(torch.float64).eps
    return directions_DD * variances_D.where(variances_D > noise, 0.0).sqrt()
