"""uint8 to floats and back without a loss, and several images in one picture."""

from __future__ import annotations

import numpy
import pytest
import torch

from nextscale.pixels import enlarge, grid, side_by_side, to_model, to_uint8


def _all_values() -> numpy.ndarray:
    return numpy.arange(256, dtype=numpy.uint8).repeat(3).reshape(1, 16, 16, 3)


def test_every_value_comes_back() -> None:
    images = to_model(_all_values())
    assert images.dtype == torch.float32 and images.shape == (1, 3, 16, 16)
    assert (images.min(), images.max()) == (-1, 1)
    assert numpy.array_equal(to_uint8(images), _all_values())


def test_layout_is_kept() -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=numpy.uint8)
    images = to_model(pixels)
    assert images.is_contiguous()
    assert images[1, 2, 3, 4] == pytest.approx(pixels[1, 3, 4, 2] / 127.5 - 1)
    assert numpy.array_equal(to_uint8(images), pixels)
    assert numpy.array_equal(to_uint8(to_model(pixels[:, :, ::-1])), pixels[:, :, ::-1])


def test_back_means_the_nearest_value_within_the_range() -> None:
    values = torch.tensor([-3.0, -1.0, 0.6 / 127.5 - 1, 1.0, 7.0]).view(1, 1, 1, 5).repeat(1, 3, 1, 1)
    assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_a_grid_puts_images_row_by_row_on_white() -> None:
    images = numpy.stack([numpy.full((2, 3, 3), value, numpy.uint8) for value in (10, 20, 30)])
    sheet = grid(images, columns=2, gap=1)
    assert sheet.shape == (2 * 3 + 1, 2 * 4 + 1, 3)
    assert sheet[1, 1, 0] == 10 and sheet[1, 5, 0] == 20 and sheet[4, 1, 0] == 30
    assert sheet[4, 5, 0] == 255 and (sheet[0] == 255).all() and (sheet[:, 4] == 255).all()


def test_enlarging_repeats_pixels() -> None:
    pixels = numpy.arange(12, dtype=numpy.uint8).reshape(1, 2, 2, 3)
    large = enlarge(pixels, 3)
    assert large.shape == (1, 6, 6, 3) and numpy.array_equal(large[:, ::3, ::3], pixels)


def test_pairs_stand_beside_each_other() -> None:
    left, right = numpy.zeros((3, 32, 32, 3), numpy.uint8), numpy.full((3, 32, 32, 3), 9, numpy.uint8)
    sheet = side_by_side(left, right)
    assert sheet[10, 10, 0] == 0 and sheet[10, 8 + 4 * 32 + 2, 0] == 9
