"""Do samples lie where real images lie (precision), and the other way round (recall)?

Letters: N M images, D features, C images of one chunk.
Special here: exact, over all pairs, in chunks; distances are float64 and taken from features around their
mean, so that the difference of large squares does not decide who is whose neighbour. (The reference evaluator
takes them in half precision where that does not overflow, so its figures may differ a little.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_PAIRS_AT_A_TIME = 2**24


class PrecisionRecall(NamedTuple):
    """Shares from 0 to 1."""

    precision: float
    recall: float


@torch.no_grad()
def precision_recall(
    samples_ND: Tensor, references_MD: Tensor, *, num_neighbours: int = 3
) -> PrecisionRecall:
    """The share of samples within some reference's ball, and of references within some sample's ball.

    An image's ball reaches to its k-th nearest neighbour on its own side: Kynkäänniemi et al. 2019, arXiv
    1904.06991, equations 1 and 2. The published figures take k = 3, 10,000 references and all samples.

    Args:
        samples_ND: float features; the work is done on their device.
        references_MD: of the same extractor.
        num_neighbours: k.

    Raises:
        ValueError: features of different widths, or k or fewer images on a side.
    """
    if samples_ND.shape[1] != references_MD.shape[1]:
        raise ValueError(
            f"features of width {samples_ND.shape[1]} against {references_MD.shape[1]}: use one extractor"
        )
    least = min(len(samples_ND), len(references_MD))
    if not 1 <= num_neighbours < least:
        raise ValueError(
            f"{num_neighbours} neighbours need more images than that on each side, given {least}"
        )
    center_D = references_MD.double().mean(dim=0)
    samples_ND, references_MD = samples_ND.double() - center_D, references_MD.double() - center_D
    radii_N, radii_M = (_radii(side, num_neighbours) for side in (samples_ND, references_MD))
    realistic, covered_M = 0, torch.zeros_like(radii_M, dtype=torch.bool)
    for start, squares_CM in _chunks(samples_ND, references_MD):
        realistic += int((squares_CM <= radii_M).any(dim=1).sum())
        covered_M |= (squares_CM <= radii_N[start : start + len(squares_CM), None]).any(dim=0)
    return PrecisionRecall(realistic / len(samples_ND), float(covered_M.double().mean()))


def _radii(features_ND: Tensor, num_neighbours: int) -> Tensor:
    """The squared distance of each image to its k-th neighbour, float64 (N,)."""
    radii = []
    for start, squares_CN in _chunks(features_ND, features_ND):
        rows = torch.arange(len(squares_CN), device=squares_CN.device)
        squares_CN[rows, start + rows] = torch.inf  # nobody is its own neighbour
        radii.append(squares_CN.kthvalue(num_neighbours, dim=1).values)
    return torch.cat(radii)


def _chunks(x_ND: Tensor, y_MD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances (C, M) of some rows of x to all rows of y, and the first row's number."""
    norms_M = y_MD.square().sum(dim=1)
    size = max(1, _PAIRS_AT_A_TIME // len(y_MD))
    for start in range(0, len(x_ND), size):
        chunk_CD = x_ND[start : start + size]
        squares_CM = torch.addmm(norms_M, chunk_CD, y_MD.T, alpha=-2)
        yield start, squares_CM.add_(chunk_CD.square().sum(dim=1, keepdim=True)).clamp_(min=0)
