"""PSNR and SSIM against loops over the definition."""

from __future__ import annotations

import math

import numpy
import pytest

from nextscale.evaluate.similarity import psnr, ssim


def _random_images(seed: int = 0) -> numpy.ndarray:
    images: numpy.ndarray = numpy.random.default_rng(seed).integers(0, 256, (3, 4, 5, 3), dtype=numpy.uint8)
    return images


def test_psnr_against_loops() -> None:
    images, others = _random_images(), _random_images(1)
    others[2] = images[2]
    others[2, 0, 0, 0] ^= 1
    expected = []
    for one, other in zip(images.tolist(), others.tolist(), strict=True):
        pairs = zip(_flat(one), _flat(other), strict=True)
        error = sum((a - b) ** 2 for a, b in pairs) / (4 * 5 * 3)
        expected.append(10 * math.log10(255**2 / error))
    assert psnr(images, others).tolist() == pytest.approx(expected)
    assert psnr(images, others)[2] == pytest.approx(10 * math.log10(255**2 * 60))


def _flat(image: list[list[list[int]]]) -> list[int]:
    return [value for row in image for pixel in row for value in pixel]


def test_equal_images_have_no_error() -> None:
    assert psnr(_random_images(), _random_images()).tolist() == [math.inf] * 3


def _smooth_images(seed: int, shape: tuple[int, ...] = (2, 13, 15, 3)) -> numpy.ndarray:
    numbers = numpy.random.default_rng(seed)
    slopes = numbers.uniform(-8, 8, (2, shape[0], 1, 1, 3))
    place = numpy.arange(shape[1])[None, :, None, None], numpy.arange(shape[2])[None, None, :, None]
    values = 128 + slopes[0] * place[0] + slopes[1] * place[1] + numbers.normal(0, 5, shape)
    return values.clip(0, 255).astype(numpy.uint8)


def _ssim_by_loops(image: numpy.ndarray, other: numpy.ndarray) -> float:
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    kernel = numpy.array(weights)[:, :, None] / total
    values = []
    for top in range(image.shape[0] - 10):
        for left in range(image.shape[1] - 10):
            x, y = (given[top : top + 11, left : left + 11].astype(numpy.float64) for given in (image, other))
            mean_x, mean_y = (kernel * x).sum((0, 1)), (kernel * y).sum((0, 1))
            variances = (kernel * (x - mean_x) ** 2).sum((0, 1)) + (kernel * (y - mean_y) ** 2).sum((0, 1))
            covariance = (kernel * (x - mean_x) * (y - mean_y)).sum((0, 1))
            luminance = (2 * mean_x * mean_y + 2.55**2) / (mean_x**2 + mean_y**2 + 2.55**2)
            values.append(luminance * (2 * covariance + 7.65**2) / (variances + 7.65**2))
    return float(numpy.mean(values))


def test_ssim_against_loops() -> None:
    images, others = _smooth_images(0), _smooth_images(1)
    others[1] = (0.8 * images[1] + 0.2 * others[1]).astype(numpy.uint8)
    expected = [_ssim_by_loops(one, other) for one, other in zip(images, others, strict=True)]
    assert ssim(images, others) == pytest.approx(expected, rel=1e-12)
    assert abs(expected[0]) < 0.5 < expected[1] < 0.99
    assert ssim(images, images) == pytest.approx([1, 1], rel=1e-14)
    assert ssim(others, images) == pytest.approx(expected, rel=1e-12)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    small = _smooth_images(0, (1, 10, 20, 3))
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, given \(1, 10, 20, 3\)"):
        ssim(small, small)
    with pytest.raises(ValueError, match="needs pairs"):
        ssim(_smooth_images(0), _smooth_images(0)[:1])
