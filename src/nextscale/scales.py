"""The pyramid of token maps: how many cells each scale has, and where its tokens stand in the flat sequence.

Letters: B batch, S scales, L tokens of all scales, T tokens of one scale.
Special here: tokens of a whole image are always one flat ``(B, L)`` tensor, coarse to fine, rows before
columns; the schedule is the only one who knows where a scale begins. It imports no torch, so that settings
can hold one cheaply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy
from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Size = tuple[int, int]


class ScaleSchedule(BaseModel):
    """Sizes ``(h, w)`` of the token maps in cells, coarse to fine; the last one is the size of the latent
    map.

    Raises:
        ValueError: no scale at all, a size below 1, or a scale that is larger than the last one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sizes: tuple[Size, ...] = Field(description="(h, w) of each token map in cells, coarse to fine")

    @field_validator("sizes")
    @classmethod
    def _check_sizes(cls, sizes: tuple[Size, ...]) -> tuple[Size, ...]:
        if not sizes:
            raise ValueError(
                "a schedule needs at least one scale, for example sizes=((1, 1), (2, 2), (4, 4))"
            )
        last_h, last_w = sizes[-1]
        for h, w in sizes:
            if not (1 <= h <= last_h and 1 <= w <= last_w):
                raise ValueError(
                    f"scale ({h}, {w}) does not fit: each side must lie between 1 and that of the last scale "
                    f"({last_h}, {last_w}); list the scales coarse to fine"
                )
        return sizes

    @classmethod
    def square(cls, sides: Sequence[int]) -> ScaleSchedule:
        """A schedule of square maps, for example ``ScaleSchedule.square([1, 2, 3, 4])``."""
        return cls(sizes=tuple((side, side) for side in sides))

    @classmethod
    def for_latent(cls, height: int, width: int, num_scales: int) -> ScaleSchedule:
        """A schedule that grows by a constant factor from one cell along the shorter side to ``(height,
        width)``.

        Args:
            height: rows of the latent map in cells.
            width: columns of the latent map in cells.
            num_scales: how many maps; fewer come out where two neighbours would have the same size.
        """
        sizes: list[Size] = []
        for index in range(num_scales):
            exponent = index / max(num_scales - 1, 1)
            shrink = min(height, width) ** (exponent - 1) if num_scales > 1 else 1.0
            size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
            if not sizes or size != sizes[-1]:
                sizes.append(size)
        return cls(sizes=tuple(sizes))

    @property
    def num_scales(self) -> int:
        """S."""
        return len(self.sizes)

    @property
    def latent_size(self) -> Size:
        """(h, w) of the last and largest map, in cells."""
        return self.sizes[-1]

    @property
    def num_cells(self) -> tuple[int, ...]:
        """T of each scale."""
        return tuple(h * w for h, w in self.sizes)

    @property
    def num_tokens(self) -> int:
        """L."""
        return sum(self.num_cells)

    @property
    def offsets(self) -> tuple[int, ...]:
        """S + 1 numbers: scale k holds the tokens ``offsets[k]:offsets[k + 1]`` of the flat sequence."""
        return (0, *(int(end) for end in numpy.cumsum(self.num_cells)))

    @property
    def level_ids(self) -> tuple[int, ...]:
        """L numbers: the scale that each token of the flat sequence belongs to."""
        return tuple(scale for scale, cells in enumerate(self.num_cells) for _ in range(cells))

    def slice(self, scale: int) -> slice:
        """Where scale ``scale`` (0 is the coarsest) stands in the flat sequence."""
        return slice(self.offsets[scale], self.offsets[scale + 1])

    def split(self, sequence: Tensor) -> list[Tensor]:
        """Cut ``(B, L, ...)`` into S views ``(B, T, ...)``.

        Raises:
            ValueError: the second dimension is not L.
        """
        if sequence.ndim < 2 or sequence.shape[1] != self.num_tokens:
            raise ValueError(
                f"expected (B, {self.num_tokens}, ...) for the scales {self.sizes}, "
                f"given {tuple(sequence.shape)}"
            )
        return list(sequence.split(self.num_cells, dim=1))

    def join(self, maps: Sequence[Tensor]) -> Tensor:
        """Put S tensors ``(B, T, ...)`` together as ``(B, L, ...)``; the inverse of `split`.

        Raises:
            ValueError: a map is missing or has another number of cells than its scale.
        """
        import torch

        given = tuple(item.shape[1] for item in maps)
        if given != self.num_cells:
            raise ValueError(f"expected maps of {self.num_cells} cells, given {given}")
        return torch.cat(list(maps), dim=1)

    def phi_of_scale(self, num_phis: int) -> tuple[int, ...]:
        """Which of ``num_phis`` convolutions smooths each scale, as the released models choose it.

        Scale k sits at k / (S - 1) on a line, the convolutions at evenly spaced ticks (whose margin differs
        for four of them), and each scale takes the nearest. Several cases are ties that float64 rounding
        decides, so models store the result (section 3.2 of the paper speaks of K extra convolutions; the
        released ones share four).
        """
        if num_phis < 1:
            raise ValueError(f"num_phis must be at least 1, given {num_phis}")
        margin = 1 / 3 / num_phis if num_phis == 4 else 1 / 2 / num_phis
        ticks = numpy.linspace(margin, 1 - margin, num_phis)
        places = [k / (self.num_scales - 1) if self.num_scales > 1 else 0.0 for k in range(self.num_scales)]
        return tuple(int(numpy.argmin(numpy.abs(ticks - place))) for place in places)


#: The schedules of the published models, by image side in pixels, at a reduction of 16.
PRESETS: dict[int, ScaleSchedule] = {
    256: ScaleSchedule.square([1, 2, 3, 4, 5, 6, 8, 10, 13, 16]),
    512: ScaleSchedule.square([1, 2, 3, 4, 6, 9, 13, 18, 24, 32]),
}
