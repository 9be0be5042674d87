"""Encoded image files to arrays: decode, upright, RGB, resize, crop, flip.

Special here: whatever cannot be decoded is refused by name, never skipped in silence. Arrays are uint8 (H,
W, 3); `nextscale.pixels` makes floats of them.
"""

from __future__ import annotations

import io
import warnings

import numpy
from PIL import Image, ImageOps

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def decode_image(content: bytes, name: str) -> Image.Image:
    """An upright RGB image. Raises ValueError with the name of the file when it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        if image.mode in _SIXTEEN_BIT or image.mode == "F":
            image = _eight_bits(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return image.convert("RGB")
    except Exception as error:  # Pillow raises struct.error, TypeError, SyntaxError ... for damaged files
        raise ValueError(f"image {name} cannot be read ({error}): repair or remove it") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    values = numpy.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values (mode {image.mode}) have no known range: save it with 8 or 16 bits")
    return Image.fromarray((values.astype(numpy.float64) / 257).round().astype(numpy.uint8))


def resize_and_crop(
    image: Image.Image,
    size: tuple[int, int],
    *,
    enlarge: float = 1.0,
    place: tuple[float, float] = (0.5, 0.5),
) -> numpy.ndarray:
    """Resize so that the image covers ``size * enlarge``, then cut ``size`` out.

    Args:
        image: RGB.
        size: (H, W) in pixels of the result.
        enlarge: how much larger than the crop the resized image is; the paper uses 1.125.
        place: where the crop lies, (0, 0) top left, (1, 1) bottom right; one half is the center.

    Returns:
        uint8 (H, W, 3).
    """
    height, width = size
    factor = max(height * enlarge / image.height, width * enlarge / image.width)
    resized_size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    if resized_size != image.size:
        image = image.resize(resized_size, Image.Resampling.LANCZOS)
    top = round((image.height - height) * place[0])
    left = round((image.width - width) * place[1])
    return numpy.asarray(image.crop((left, top, left + width, top + height)))
