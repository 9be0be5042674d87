"""Uploaded pictures and masks: decoded within limits, and brought to what a task wants.

Letters: H W pixels.
Special here: the size is read from the header and held against the limit before anything is decoded.
"""

from __future__ import annotations

import io

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError

from nextscale.data.sources.base import BadImageError
from nextscale.data.transforms import decode_image, resize_and_crop

#: What is taken; of others Pillow starts programs for some.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO")


def read_picture(content: bytes, name: str, *, max_pixels: int) -> Image.Image:
    """An upright RGB picture.

    Raises:
        ValueError: no picture, a damaged one, or one that is too large.
    """
    check_size(content, name, max_pixels)
    try:
        return decode_image(content, name)
    except BadImageError as error:
        raise ValueError(str(error)) from error


def read_mask(
    content: bytes, picture: Image.Image, size: tuple[int, int], *, max_pixels: int
) -> numpy.ndarray:
    """What of a picture is kept: float32 (H, W) in [0, 1], 1 where the mask is opaque.

    Args:
        content: a picture with transparency, of the same size as ``picture``.
        picture: what it belongs to.
        size: (H, W) of the result, cut out as `resize_and_crop` does.
        max_pixels: see `read_picture`.

    Raises:
        ValueError: no such picture, or nothing in it is transparent.
    """
    check_size(content, "mask", max_pixels)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            opaque = ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")  # as its picture is
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ValueError(f"mask cannot be read: {error}") from error
    if opaque.size != picture.size:
        raise ValueError(
            f"mask has {opaque.width} x {opaque.height} pixels, the image {picture.width} x "
            f"{picture.height}: make them equal"
        )
    kept = resize_and_crop(opaque.convert("RGB"), size)[..., 0]
    if kept.min() == 255:
        raise ValueError("mask is opaque all over: make transparent what shall be generated")
    keep: numpy.ndarray = kept.astype(numpy.float32) / 255
    return keep


def check_size(content: bytes, name: str, max_pixels: int) -> None:
    """Raise ValueError unless the head of a file is that of a picture of at most so many pixels."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            width, height = opened.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no picture of a known format") from error
    except Exception as error:  # as above
        raise ValueError(f"{name} is no picture that can be read: {error}") from error
    if width * height > max_pixels:
        raise ValueError(f"{name} has {width} x {height} pixels: at most {max_pixels:,} are taken; shrink it")
