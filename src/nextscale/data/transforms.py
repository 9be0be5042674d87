"""Encoded image files to arrays: decode, upright, sRGB, resize, crop.

Special here: whatever cannot be decoded is refused by name, never skipped in silence. Of an animation or a
file of several pages it is the first picture. JPEGs are decoded at full size: a smaller decoding would be
faster and other pixels. Arrays are uint8 (H, W, 3); `nextscale.pixels` makes floats of them.
"""

from __future__ import annotations

import io
import warnings

import numpy
from PIL import Image, ImageOps

from nextscale.data.color import to_srgb
from nextscale.data.sources.base import BadImageError, Source

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_image(source: Source, index: int) -> Image.Image:
    """An upright sRGB image of a source. Raises BadImageError when it cannot be read."""
    try:
        content = source.read(index)
    except OSError as error:
        raise BadImageError(source.name(index), error.strerror or error) from error
    return decode_image(content, source.name(index))


def decode_image(content: bytes, name: str) -> Image.Image:
    """An upright RGB image in sRGB, transparency on white.

    Raises:
        BadImageError: no image, damaged, values without a known range, or more than Pillow's limit of pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        return _flat(image)
    except Exception as error:  # Pillow raises struct.error, TypeError, SyntaxError ... for damaged files
        raise BadImageError(name, error) from error


def _flat(image: Image.Image) -> Image.Image:
    """sRGB without transparency from an image of any mode."""
    profile = image.info.get("icc_profile")
    if image.mode in _SIXTEEN_BIT or image.mode == "F":
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        color = to_srgb(image.convert("L") if image.mode in ("L", "LA") else rgba.convert("RGB"), profile)
        return Image.composite(color, Image.new("RGB", rgba.size, "white"), rgba.getchannel("A"))
    return to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB"), profile)


def _eight_bits(image: Image.Image) -> Image.Image:
    """L, or LA where one of the values stands for transparency."""
    values = numpy.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values (mode {image.mode}) have no known range: save it with 8 or 16 bits")
    gray = Image.fromarray((values.astype(numpy.float64) / 257).round().astype(numpy.uint8))
    if "transparency" in image.info:
        gray.putalpha(Image.fromarray((values != image.info["transparency"]).astype(numpy.uint8) * 255))
    return gray


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

    Raises:
        ValueError: so long and narrow an image that the resized one would exceed Pillow's limit of pixels.
    """
    height, width = size
    factor = max(height * enlarge / image.height, width * enlarge / image.width)
    resized_size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    if Image.MAX_IMAGE_PIXELS and resized_size[0] * resized_size[1] > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels are too long and narrow for {width} x {height}: crop it"
        )
    if resized_size != image.size:
        image = image.resize(resized_size, Image.Resampling.LANCZOS)
    top = round((image.height - height) * place[0])
    left = round((image.width - width) * place[1])
    return numpy.asarray(image.crop((left, top, left + width, top + height)))


def fit_to_task(image: Image.Image, task: str, size: tuple[int, int]) -> numpy.ndarray:
    """An image as a task of editing wants it, uint8 (H, W, 3): whole for outpaint, but shrunk to twice the
    model's sides at most (it takes a part of the canvas only); small and of the model's proportions for
    upscale; of the model's size otherwise.

    Args:
        image: RGB.
        task: of `nextscale.generate.settings.Task`.
        size: (H, W) of the model.

    Raises:
        ValueError: one for upscale that is not small.
    """
    if task == "outpaint":
        image = image.copy()
        image.thumbnail((2 * size[1], 2 * size[0]), Image.Resampling.LANCZOS)
        return numpy.asarray(image)
    if task == "upscale":
        share = min(image.height / size[0], image.width / size[1])
        if share >= 1:
            raise ValueError(
                f"task upscale needs an image smaller than the model's {size[1]} x {size[0]} pixels, "
                f"given {image.width} x {image.height}"
            )
        size = max(1, round(size[0] * share)), max(1, round(size[1] * share))
    return resize_and_crop(image, size)
