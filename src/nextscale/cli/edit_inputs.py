"""The image and the mask that an edit is given, as files, brought to what `Generator.edit` takes.

Special here: in a mask file white is generated anew, as in other programs; the library's masks say what is
kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image

from nextscale.data.transforms import decode_image, resize_and_crop


def read_picture(path: str) -> Image.Image:
    """An upright RGB image. Raises ValueError when there is none."""
    if not Path(path).is_file():
        raise ValueError(f"no image {path!r}: give the path of a picture file")
    return decode_image(Path(path).read_bytes(), path)


def mask_from_file(path: str, image: Image.Image, size: tuple[int, int], *, image_path: str) -> numpy.ndarray:
    """What is kept: float32 (H, W) in [0, 1].

    Args:
        path: of the mask.
        image: that it belongs to.
        size: (H, W) of the model.
        image_path: for messages.

    Raises:
        ValueError: no picture, of another size than the image, or black all over.
    """
    mask = read_picture(path)
    if mask.size != image.size:
        raise ValueError(
            f"--mask {path} has {mask.width} x {mask.height} pixels, {image_path} has "
            f"{image.width} x {image.height}: make them equal"
        )
    white = resize_and_crop(mask.convert("L").convert("RGB"), size)[..., 0]
    if not white.any():
        raise ValueError(f"--mask {path} is black all over: make white what shall be generated")
    keep: numpy.ndarray = (255 - white.astype(numpy.float32)) / 255
    return keep
