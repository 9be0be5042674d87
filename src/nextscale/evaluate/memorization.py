"""Does a generator repeat its training images? Nearest training neighbours of samples, among features.

Letters: N samples, M training images, D features, K neighbours.
Special here: a distance means nothing by itself, so each is held against the distances among the training
images: t_j is the distance of training image j to the nearest *other* training image. Fresh images of the
same distribution would lie within the q-quantile of t in about a share q of cases; a generator that repeats
what it has seen lies there more often. One that makes other images, bad ones among them, lies there less
often: few neighbours are no praise. What the network does not see, nobody sees here; near copies may have
ratios close to 1 (docs/log.md), so look at the nearest ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from nextscale.evaluate.precision_recall import squared_distances

#: Distances below this part of the median of t are rounding: the features of equal images differ so little
#: when they are computed in batches of other sizes.
_ROUNDING = 1e-4


@torch.no_grad()
def nearest_neighbours(
    queries_ND: Tensor, others_MD: Tensor, *, count: int = 1, same: bool = False
) -> tuple[Tensor, Tensor]:
    """The nearest of others to each query, by Euclidean distance: every pair is looked at, chunk by chunk.

    Takes the memory of `squared_distances` and of both features in float64, whatever N.

    Args:
        queries_ND: float.
        others_MD: float.
        count: K, neighbours of each query, nearest first.
        same: query i is others i, which does not count as its own neighbour.

    Returns:
        distances float64 (N, K), right to about 1e-7 of the features' size, and indices into the others int64
        (N, K).

    Raises:
        ValueError: fewer others than neighbours asked for.
    """
    available = len(others_MD) - same
    if not 1 <= count <= available:
        raise ValueError(
            f"{count} neighbours asked for among {available} other images: give 1 to {available}"
        )
    center_D = others_MD.double().mean(dim=0)
    queries_ND, others_MD = queries_ND.double() - center_D, others_MD.double() - center_D
    distances, indices = [], []
    for start, squares_CM in squared_distances(queries_ND, others_MD):
        if same:
            rows = torch.arange(len(squares_CM), device=squares_CM.device)
            squares_CM[rows, start + rows] = torch.inf
        near_CK, places_CK = squares_CM.topk(count, dim=1, largest=False)
        distances.append(near_CK.sqrt())
        indices.append(places_CK)
    return torch.cat(distances), torch.cat(indices)


@dataclass(frozen=True)
class Memorization:
    """Samples and their nearest training images."""

    distances_NK: numpy.ndarray  #: float64, nearest first
    indices_NK: numpy.ndarray  #: int64, which training images
    training_M: numpy.ndarray  #: float64, t: of each training image to the nearest other one

    @property
    def ratios_N(self) -> numpy.ndarray:
        """Distance to the nearest training image / that image's own t: float64 (N,).

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
        samples_ND: float, features of the samples.
        training_MD: float, features of the training images by the same network; at least two.
        num_neighbours: K.

    Raises:
        ValueError: fewer training images than neighbours, or a single one.
    """
    distances, indices = nearest_neighbours(samples_ND, training_MD, count=num_neighbours)
    among, _ = nearest_neighbours(training_MD, training_MD, same=True)
    return Memorization(distances.numpy(), indices.numpy(), among[:, 0].numpy())
