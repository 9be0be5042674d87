"""How alike two images are, pixel by pixel (PSNR) and window by window (SSIM).

Letters: B batch, C channels, H W pixels, N planes (channels of images).
Special here: both are computed in float64 from uint8 images as they would be saved, one value per image.
"""

from __future__ import annotations

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

#: Pixels that an image must have along each side for SSIM.
SSIM_WINDOW = 11
_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03


def psnr(images_BHWC: numpy.ndarray, others_BHWC: numpy.ndarray) -> numpy.ndarray:
    """Peak signal-to-noise ratio of each pair of uint8 images (B, H, W, 3), in dB: float64 (B,); equal images
    give inf.
    """
    difference = images_BHWC.astype(numpy.float64) - others_BHWC.astype(numpy.float64)
    error = numpy.square(difference).reshape(len(difference), -1).mean(axis=1)
    with numpy.errstate(divide="ignore"):
        ratio: numpy.ndarray = 10 * numpy.log10(255.0**2 / error)
    return ratio


def ssim(images_BHWC: numpy.ndarray, others_BHWC: numpy.ndarray) -> numpy.ndarray:
    """Structural similarity of each pair of uint8 images (B, H, W, 3): float64 (B,), 1 for equal images.

    Wang, Bovik, Sheikh and Simoncelli 2004, equation 13, in Gaussian windows of 11 x 11 pixels; the mean over
    the windows that lie within the image, as theirs, and over the three channels.

    Raises:
        ValueError: images of different shapes, or smaller than the window.
    """
    shape = images_BHWC.shape
    if shape != others_BHWC.shape or min(shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs pairs of images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, given {shape} and "
            f"{others_BHWC.shape}"
        )
    x, y = (_planes(images) for images in (images_BHWC, others_BHWC))
    mean_x, mean_y = _windows(x), _windows(y)
    variance_x = _windows(x * x) - mean_x * mean_x
    variance_y = _windows(y * y) - mean_y * mean_y
    covariance = _windows(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    similarity: numpy.ndarray = (luminance * structure).view(shape[0], -1).mean(dim=1).numpy()
    return similarity


def _planes(images_BHWC: numpy.ndarray) -> Tensor:
    planes_BCHW = torch.from_numpy(images_BHWC.astype(numpy.float64)).permute(0, 3, 1, 2)
    return planes_BCHW.flatten(0, 1)[:, None]


def _windows(planes_N1HW: Tensor) -> Tensor:
    """The weighted mean of every window: one pass along each side, as the Gaussian is separable."""
    place = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-place.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(planes_N1HW, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
