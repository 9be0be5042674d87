"""Pixels at the edges of the library: uint8 arrays to the floats that models read and back, and arrays to one
picture.

Letters: B batch, H W pixels.
Special here: arrays are uint8 (B, H, W, 3), model images float (B, 3, H, W) in [-1, 1]; going back rounds
to the nearest (truncation darkens every picture by half a level).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from torch import Tensor


def to_model(images_BHWC: numpy.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    import torch

    pixels = torch.from_numpy(numpy.ascontiguousarray(images_BHWC))
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1


def to_uint8(images_BCHW: Tensor) -> numpy.ndarray:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), rounded to the nearest."""
    import torch

    pixels = ((images_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    array: numpy.ndarray = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def enlarge(images_BHWC: numpy.ndarray, factor: int) -> numpy.ndarray:
    """Repeat every pixel ``factor`` times along both sides, so that small images can be looked at."""
    return images_BHWC.repeat(factor, axis=1).repeat(factor, axis=2)


def grid(images_BHWC: numpy.ndarray, *, columns: int, gap: int = 2) -> numpy.ndarray:
    """Images row by row on white: uint8 (H', W', 3)."""
    count, height, width, _ = images_BHWC.shape
    rows = -(-count // columns)
    sheet = numpy.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, numpy.uint8)
    for index, image in enumerate(images_BHWC):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def side_by_side(
    left_BHWC: numpy.ndarray, right_BHWC: numpy.ndarray, *, pairs_per_row: int = 4
) -> numpy.ndarray:
    """Each image beside its counterpart, small ones enlarged: uint8 (H', W', 3)."""
    both = numpy.concatenate([left_BHWC, right_BHWC], axis=2)
    return grid(enlarge(both, max(1, 128 // both.shape[1])), columns=pairs_per_row, gap=8)
