"""Made-up features, their moments, and their Fréchet distance without any covariance."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from nextscale.evaluate.moments import Moments

DIM = 6


def features(count: int, dim: int = DIM, seed: int = 0) -> Tensor:
    """Correlated features whose means differ."""
    numbers = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    drawn = torch.randn(count, dim, dtype=torch.float64, generator=numbers)
    return drawn @ mix + torch.arange(dim) + seed


def moments(rows: Tensor, batch: int = 64) -> Moments:
    found = Moments(rows.shape[1])
    for part in rows.split(batch):
        found.add(part)
    return found


def largest_relative(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).abs().max() / expected.abs().max())


def distance_of_rows(a: Tensor, b: Tensor) -> float:
    """From the rows themselves: the singular values of X1 X2^T are the roots, whatever the rank."""
    shift = a.mean(0) - b.mean(0)
    one, other = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (a, b))
    shared = numpy.linalg.svd((one @ other.T).numpy(), compute_uv=False).sum()
    return float(shift.square().sum() + one.square().sum() + other.square().sum() - 2 * shared)
