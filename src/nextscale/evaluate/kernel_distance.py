"""The kernel distance of two sets of features (KID): unbiased, so it also means something for few images.

Letters: N M images, D features.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor


@torch.no_grad()
def kernel_distance(
    features_ND: Tensor,
    references_MD: Tensor,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the squared maximum mean discrepancy; 0 is best, and being
    unbiased it may lie a little below.

    The unbiased estimator with the kernel (x y / D + 1)^3: Binkowski et al. 2018, arXiv 1801.01401, section
    4. Which images are in a subset follows from the seed alone, drawn without repetition within a subset.

    Args:
        features_ND: float, computed in float64 on their device.
        references_MD: of the same extractor.
        num_subsets: how many subsets of each side.
        subset_size: images per subset.
        seed: of the choice of subsets.

    Raises:
        ValueError: features of different widths, fewer images than a subset, or subsets of less than two.
    """
    least = min(len(features_ND), len(references_MD))
    if features_ND.shape[1] != references_MD.shape[1]:
        raise ValueError(
            f"features of width {features_ND.shape[1]} against {references_MD.shape[1]}: use one extractor"
        )
    if not 2 <= subset_size <= least or num_subsets < 1:
        raise ValueError(
            f"{num_subsets} subsets of {subset_size} images cannot be drawn from {least}: expected from 2 to "
            f"{least} images and at least one subset"
        )
    numbers = numpy.random.default_rng(seed)
    values = []
    for _ in range(num_subsets):
        chosen = [
            side[torch.from_numpy(numbers.choice(len(side), subset_size, replace=False))].double()
            for side in (features_ND, references_MD)
        ]
        values.append(_discrepancy(*chosen))
    per_subset = torch.stack(values)
    return float(per_subset.mean()), float(per_subset.std(correction=0))


def _discrepancy(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Pairs of an image with itself do not count: that is what makes it unbiased."""
    count = len(x_ND)
    within = [kernel.sum() - kernel.diagonal().sum() for kernel in (_kernel(x_ND, x_ND), _kernel(y_ND, y_ND))]
    return (within[0] + within[1]) / (count * (count - 1)) - 2 * _kernel(x_ND, y_ND).mean()


def _kernel(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    return (x_ND @ y_ND.T / x_ND.shape[1] + 1) ** 3
