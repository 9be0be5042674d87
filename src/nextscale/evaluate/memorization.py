"""Does a generator repeat its training images? Nearest training neighbours of samples, among features.

Letters: N samples, M training images, D features, K neighbours.
Special here: a distance means nothing by itself, so each is held against the distances among the training
images: t_j is the distance of training image j to the nearest *other* training image. Fresh images of the
same distribution would lie within the q-quantile of t in about a share q of cases; a generator that repeats
what it has seen lies there more often. One that makes other images, bad ones among them, lies there less
often: few neighbours are no praise. What the network does not see, nobody sees here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

_BLOCK = 1024

#: Distances below this part of the median of t are rounding: the features of equal images differ so little
#: when they are computed in batches of other sizes.
_ROUNDING = 1e-4


def nearest_neighbours(
    queries_ND: Tensor, others_MD: Tensor, *, count: int = 1, same: bool = False, block: int = _BLOCK
) -> tuple[Tensor, Tensor]:
    """The nearest of others to each query, by Euclidean distance: every pair is looked at, block by block.

    Takes 4 block^2 bytes (4 MiB) beside its arguments and results, whatever N and M. Differences are squared
    one by one, not by way of a matrix product, whose rounding would hide that two features are equal.

    Args:
        queries_ND: float32.
        others_MD: float32.
        count: K, neighbours of each query, nearest first.
        same: query i is others i, which does not count as its own neighbour.
        block: rows and columns of a block.

    Returns:
        distances float32 (N, K) and indices into the others int64 (N, K).

    Raises:
        ValueError: fewer others than neighbours asked for.
    """
    available = len(others_MD) - same
    if not 1 <= count <= available:
        raise ValueError(
            f"{count} neighbours asked for among {available} other images: give 1 to {available}"
        )
    rows = []
    for start in range(0, len(queries_ND), block):
        part = queries_ND[start : start + block]
        distances, indices = part.new_empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.int64)
        for first in range(0, len(others_MD), block):
            found = torch.cdist(
                part, others_MD[first : first + block], compute_mode="donot_use_mm_for_euclid_dist"
            )
            if same and first == start:
                found.fill_diagonal_(torch.inf)
            near, places = found.topk(min(count, found.shape[1]), dim=1, largest=False)
            both = torch.cat([distances, near], dim=1)
            distances, best = both.topk(min(count, both.shape[1]), dim=1, largest=False)
            indices = torch.cat([indices, places + first], dim=1).gather(1, best)
        rows.append((distances, indices))
    return torch.cat([one for one, _ in rows]), torch.cat([other for _, other in rows])


@dataclass(frozen=True)
class Memorization:
    """Samples and their nearest training images."""

    distances_NK: numpy.ndarray  #: float32, nearest first
    indices_NK: numpy.ndarray  #: int64, which training images
    training_M: numpy.ndarray  #: float32, t: of each training image to the nearest other one

    @property
    def ratios_N(self) -> numpy.ndarray:
        """Distance to the nearest training image / that image's own t: float32 (N,).

        Below 1 no other training image is as near to it as the sample. A copy has 0, even of an image that
        the training images hold twice.
        """
        nearest, own = self.distances_NK[:, 0], self.training_M[self.indices_NK[:, 0]]
        with numpy.errstate(divide="ignore", invalid="ignore"):
            ratios: numpy.ndarray = numpy.where(self.copies_N, 0, nearest / own)
        return ratios

    @property
    def copies_N(self) -> numpy.ndarray:
        """Which samples have the features of a training image, but for rounding: bool (N,)."""
        copies: numpy.ndarray = self.distances_NK[:, 0] <= _ROUNDING * numpy.median(self.training_M)
        return copies

    def share_within(self, quantile: float) -> float:
        """Share of samples at most as far from their nearest training image as this quantile of t."""
        return float((self.distances_NK[:, 0] <= numpy.quantile(self.training_M, quantile)).mean())

    def scores(self) -> dict[str, float]:
        """Shares of samples within the median and the lowest 5 % of t, and of copies; ratios, distances."""
        ratios = self.ratios_N
        return {
            "share_within_median": self.share_within(0.5),
            "share_within_5_percent": self.share_within(0.05),
            "share_of_copies": float(self.copies_N.mean()),
            "median_ratio": float(numpy.median(ratios)),
            "smallest_ratio": float(ratios.min()),
            "share_with_ratio_below_half": float((ratios < 0.5).mean()),
            "median_distance": float(numpy.median(self.distances_NK[:, 0])),
            "median_distance_among_training": float(numpy.median(self.training_M)),
        }


def memorization(samples_ND: Tensor, training_MD: Tensor, *, num_neighbours: int = 1) -> Memorization:
    """Look for the training neighbours of samples, and for those of the training images among themselves.

    Takes N M + M^2 distances.

    Args:
        samples_ND: float32, features of the samples.
        training_MD: float32, features of the training images by the same network; at least two.
        num_neighbours: K.

    Raises:
        ValueError: fewer training images than neighbours, or a single one.
    """
    distances, indices = nearest_neighbours(samples_ND, training_MD, count=num_neighbours)
    among, _ = nearest_neighbours(training_MD, training_MD, same=True)
    return Memorization(distances.numpy(), indices.numpy(), among[:, 0].numpy())
