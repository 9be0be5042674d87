"""Colours as a file's ICC profile means them, brought to sRGB, which is what every picture here is in.

Special here: a profile that is broken, or made for other channels than the image has, is ignored as browsers
do: the pixels themselves are whole.
"""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageCms

_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB image in sRGB from one in mode L, RGB or CMYK with its profile, perceptual intent.

    Without a profile, L and RGB count as sRGB, and CMYK is converted by Pillow's plain formula.
    """
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where there is nothing to do: sRGB itself, or a profile that does not fit."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = ImageCms.getProfileDescription(opened)
        if opened.profile.xcolor_space != _SPACES[mode] or (mode == "RGB" and "sRGB" in description):
            return None
        return ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None
