"""From what a client sent to an order for the engine.

Letters: H W pixels.
"""

from __future__ import annotations

import secrets
from typing import Any

from nextscale.data.transforms import fit_to_task
from nextscale.generate.request import resolve_label
from nextscale.serve.errors import ApiError
from nextscale.serve.order import EditOrder
from nextscale.serve.schema import Edited, Sampled
from nextscale.serve.uploads import read_mask, read_picture

_SAMPLING = [name for name in Sampled.model_fields if name not in ("seed", "deadline_s")]
_EDITING = ("from_scale", "hide", "paste", "feather", "share")


def label_of(prompt: str, class_names: tuple[str, ...]) -> int | str | None:
    """The class that a prompt names, whatever its case; None: no class."""
    text = prompt.strip()
    if text.lower() in ("", "none"):
        return None
    return {name.lower(): name for name in class_names}.get(text.lower(), text)


def name_of_label(label: int | str | None, class_names: tuple[str, ...]) -> str:
    """For people: the name of a class that was given by name or number."""
    number = resolve_label(label, class_names)
    return class_names[number] if number < len(class_names) else "none"


def sampling_of(given: Sampled) -> dict[str, Any]:
    """The sampling settings that were given."""
    return {name: value for name in _SAMPLING if (value := getattr(given, name)) is not None}


def seeds_from(seed: int | None, count: int) -> tuple[int, ...]:
    """Seeds that count up from one, or from a random one that JSON keeps exactly."""
    first = secrets.randbelow(2**53 - count) if seed is None else seed
    return tuple(range(first, first + count))


def edit_order(
    given: Edited, content: bytes, mask: bytes | None, size: tuple[int, int], *, max_pixels: int
) -> EditOrder:
    """What of an uploaded picture stays.

    Args:
        given: task and settings.
        content: of the picture's file.
        mask: of the mask's file.
        size: (H, W) of the model.
        max_pixels: that an upload may have.

    Raises:
        ValueError: a picture or mask that cannot be read or does not fit.
    """
    picture = read_picture(content, "image", max_pixels=max_pixels)
    small = picture.height < size[0] and picture.width < size[1]
    task = given.task or ("inpaint" if mask is not None else "upscale" if small else "variation")
    keep = None
    if mask is not None:
        keep = read_mask(mask, picture, size, max_pixels=max_pixels)
    settings = {name: value for name in _EDITING if (value := getattr(given, name)) is not None}
    if given.place is not None:
        settings["place"] = _place(given.place)
    return EditOrder(fit_to_task(picture, task, size), task, keep, settings)


def _place(text: str) -> tuple[float, float]:
    parts = text.split(",")
    try:
        down, right = (float(part) for part in parts)
    except ValueError:
        message = f"place {text!r}: expected DOWN,RIGHT, two numbers from 0 to 1"
        raise ApiError(400, message, code="invalid_value", param="place") from None
    return down, right
