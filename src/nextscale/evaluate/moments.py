"""Mean and covariance of features that come in batches, exact enough for Fréchet distances.

Letters: B batch, R rows of a product, D features.
Special here: everything is float64 on the CPU, and what is summed is deviations from a mean, never squares
(Chan, Golub and LeVeque 1979, equation 2.1): sums of squares would lose the variance of features that lie far
from zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nextscale.distributed import Distributed


_NAMES = ("count", "mean_D", "covariance_DD")


class Moments:
    """Number, mean and covariance of rows that were added, whatever the batches.

    Attributes:
        count: how many rows.
        mean_D: float64 (D,); zeros before the first row.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean_D = torch.zeros(dim, dtype=torch.float64)
        self._scatter_DD = torch.zeros(dim, dim, dtype=torch.float64)  # sum of products of deviations

    @property
    def covariance_DD(self) -> Tensor:
        """The unbiased covariance (divided by N - 1), float64 (D, D).

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, given {self.count}: give more images")
        return self._scatter_DD / (self.count - 1)

    @torch.no_grad()
    def add(self, features_BD: Tensor) -> None:
        """Take in a batch of any float type and device, B from 0 up.

        Raises:
            ValueError: rows of another width, or with a value that is not finite.
        """
        if features_BD.ndim != 2 or features_BD.shape[1] != len(self.mean_D):
            raise ValueError(
                f"expected features (B, {len(self.mean_D)}), given {tuple(features_BD.shape)}: "
                "use one extractor throughout"
            )
        batch_BD = features_BD.to("cpu", torch.float64)
        if bad := int((~batch_BD.isfinite().all(dim=1)).sum()):
            raise ValueError(
                f"{bad} of {len(batch_BD)} rows of features hold NaN or infinity: look at the images, "
                "or compute the features in float32"
            )
        if len(batch_BD) == 0:
            return
        mean_D, total = batch_BD.mean(dim=0), self.count + len(batch_BD)
        shift_D = mean_D - self.mean_D
        # between the means of old and new rows lies one more deviation, so one product in place does it all
        between_D = shift_D * math.sqrt(self.count * len(batch_BD) / total)
        deviations_RD = torch.cat([batch_BD - mean_D, between_D[None]])
        self._scatter_DD.addmm_(deviations_RD.T, deviations_RD)
        self.mean_D = self.mean_D + shift_D * (len(batch_BD) / total)
        self.count = total

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows.

        Raises:
            ValueError: rows of another width.
        """
        if len(other.mean_D) != len(self.mean_D):
            raise ValueError(
                f"moments of {len(self.mean_D)} features cannot be joined with those of {len(other.mean_D)}: "
                "use one extractor throughout"
            )
        merged = Moments(len(self.mean_D))
        merged.count = self.count + other.count
        share = other.count / max(merged.count, 1)
        shift_D = other.mean_D - self.mean_D
        merged.mean_D = self.mean_D + shift_D * share
        merged._scatter_DD = self._scatter_DD + other._scatter_DD
        merged._scatter_DD.addr_(shift_D, shift_D, alpha=self.count * share)
        return merged

    def reduced(self, ranks: Distributed) -> Moments:
        """The moments of the rows of all processes, equal to the bit on each; all of them must call it."""
        if ranks.world_size == 1:
            return self.merge(Moments(len(self.mean_D)))
        count, sum_D = torch.tensor(self.count), self.mean_D * self.count
        ranks.sum_([count, sum_D])
        whole = Moments(len(self.mean_D))
        if not count:
            return whole
        whole.count, whole.mean_D = int(count), sum_D / count
        shift_D = self.mean_D - whole.mean_D
        whole._scatter_DD = self._scatter_DD + torch.outer(shift_D, shift_D) * self.count
        ranks.sum_([whole._scatter_DD])
        return whole

    def tensors(self) -> dict[str, Tensor]:
        """What a file of statistics holds: ``count`` int64, ``mean_D`` and ``covariance_DD`` float64.

        Raises:
            ValueError: fewer than two rows.
        """
        values = torch.tensor(self.count), self.mean_D, self.covariance_DD
        return dict(zip(_NAMES, values, strict=True))

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Moments:
        """Moments from what `tensors` gave, up to the last bit of the covariance.

        Raises:
            ValueError: a tensor is missing, of another shape, not finite, or the covariance is not symmetric.
        """
        if missing := [name for name in _NAMES if name not in tensors]:
            raise ValueError(f"statistics lack {', '.join(missing)}: expected {', '.join(_NAMES)}")
        mean_D, covariance_DD = (tensors[name].to("cpu", torch.float64) for name in _NAMES[1:])
        count, dim = int(tensors["count"]), mean_D.numel()
        if mean_D.shape != (dim,) or covariance_DD.shape != (dim, dim) or count < 2:
            raise ValueError(
                f"statistics of {count} samples with mean_D {tuple(mean_D.shape)} and covariance_DD "
                f"{tuple(covariance_DD.shape)}: expected (D,), (D, D) and at least 2 samples"
            )
        if not (mean_D.isfinite().all() and covariance_DD.isfinite().all()):
            raise ValueError("statistics hold NaN or infinity: make them anew")
        if not torch.allclose(covariance_DD, covariance_DD.T, rtol=1e-6, atol=1e-12):
            raise ValueError("statistics hold a covariance that is not symmetric: make them anew")
        moments = Moments(dim)
        moments.count, moments.mean_D = count, mean_D.clone()
        moments._scatter_DD = covariance_DD * (count - 1)
        return moments
