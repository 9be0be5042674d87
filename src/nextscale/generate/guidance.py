"""Guidance of a next-scale prior: where each scale's logits are pushed to before tokens are drawn.

Letters: B batch, S scales, T tokens of one scale, V codes, h w cells.
Special here: two ways of pushing. Classifier-free guidance goes away from the unconditional guess at the same
scale and costs a second branch. Scaled spatial guidance (SSG, Shin, Hur and Kim, arXiv 2602.05534) goes away
from the guess at the coarser scale, which is there already.

From the paper: logits_k + beta (logits_k - prior), nothing at the coarsest scale; the prior comes of its
"discrete spatial enhancement": enlarge the logits of the scale before by interpolation, take the DCT of
both, put the coefficients of the small map in the place of the lowest ones of the large, transform back.
Our reading, as we know the paper by its abstract and by summaries alone: bilinear interpolation between the
cells' centres; an orthonormal DCT-II whose coefficients are scaled with the size, so that a constant map
stays what it is; on both sides the logits after classifier-free guidance and before SSG; one beta for all
scales, where the paper lets it change from scale to scale.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from nextscale.scales import Size


def ramp(scale: int, num_scales: int) -> float:
    """The share of the guidance that scale ``scale`` gets: k / (S - 1), none at the coarsest; all of it when
    S is 1.
    """
    return scale / (num_scales - 1) if num_scales > 1 else 1.0


def guidance_weights(guidance_B: Tensor, num_unguided_B: Tensor, num_scales: int) -> Tensor:
    """What each scale of each image gets: the ramp, cut off before the last scales: float32 (S, B).

    Args:
        guidance_B: float32, the guidance at the last scale; 0 is off.
        num_unguided_B: int64 in [0, S], how many scales at the end get none.
        num_scales: S.
    """
    rows = [
        guidance_B * ramp(scale, num_scales) * (scale < num_scales - num_unguided_B)
        for scale in range(num_scales)
    ]
    return torch.stack(rows)


def num_guided_scales(weights_SB: Tensor) -> int:
    """How many scales need the unconditional branch: up to the last guided one, which reads all others."""
    guided = (weights_SB > 0).any(dim=1).nonzero()
    return int(guided[-1]) + 1 if len(guided) else 0


def guide(conditional_BTV: Tensor, unconditional_BTV: Tensor, weight_B: Tensor) -> Tensor:
    """(1 + t) conditional - t unconditional, one t per image: float32 (B, T, V)."""
    weight = weight_B[:, None, None].to(conditional_BTV.dtype)
    return (1 + weight) * conditional_BTV - weight * unconditional_BTV


def sharpen(logits_BTV: Tensor, coarser_BTV: Tensor, weight_B: Tensor, *, sizes: tuple[Size, Size]) -> Tensor:
    """Scaled spatial guidance: logits + beta (logits - enlarged coarser logits): float32 (B, T, V).

    Args:
        logits_BTV: float32, of this scale.
        coarser_BTV: float32, of the scale before, another T.
        weight_B: float32, beta of each image; 0 leaves it as it is, to the bit.
        sizes: (h, w) of the scale before and of this one.
    """
    enlarge = torch.from_numpy(enlarging_matrix(*sizes)).to(logits_BTV)
    return logits_BTV + weight_B[:, None, None].to(logits_BTV.dtype) * (logits_BTV - enlarge @ coarser_BTV)


def enlarging_matrix(size: Size, larger: Size) -> numpy.ndarray:
    """Discrete spatial enhancement as one matrix: float64 (cells of ``larger``, cells of ``size``).

    The lowest coefficients are those of the small map itself. What lies above them is that of its
    interpolation A, that is A - P A with P the projection onto the lowest coefficients.
    """
    (rows, low_rows, whole_rows), (columns, low_columns, whole_columns) = (
        _enlarge_axis(*counts) for counts in zip(size, larger, strict=True)
    )
    interpolated = numpy.kron(rows, columns)
    lowest_of_interpolated = numpy.kron(low_rows @ rows, low_columns @ columns)
    return numpy.kron(whole_rows, whole_columns) + interpolated - lowest_of_interpolated


def _enlarge_axis(count: int, larger: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Interpolation, projection onto the lowest coefficients, enlargement by these alone."""
    kept = min(count, larger)
    low = dct_matrix(larger)[:kept]
    whole = (larger / count) ** 0.5 * low.T @ dct_matrix(count)[:kept]
    return _interpolation_matrix(count, larger), low.T @ low, whole


def dct_matrix(count: int) -> numpy.ndarray:
    """The orthonormal DCT-II: float64 (count, count), a frequency per row."""
    frequency, place = numpy.ogrid[:count, :count]
    matrix: numpy.ndarray = numpy.cos(numpy.pi * frequency * (2 * place + 1) / (2 * count))
    matrix *= numpy.where(frequency == 0, 1, 2**0.5) / count**0.5
    return matrix


def _interpolation_matrix(count: int, larger: int) -> numpy.ndarray:
    """Linear interpolation between cell centres, constant beyond the outermost: float64 (larger, count)."""
    centres = ((numpy.arange(larger) + 0.5) * count / larger - 0.5).clip(0, count - 1)
    return (1 - numpy.abs(centres[:, None] - numpy.arange(count))).clip(0)
