"""Picture files for clients; finished PNG files say how they were made, as those of `sample` do."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy
from PIL import Image

from nextscale.generate.provenance import KEYWORD, EditRecord, Record, pixels_digest, png_bytes
from nextscale.generate.reproduce import records
from nextscale.generate.settings import EditSettings
from nextscale.serve.order import Order, Update
from nextscale.serve.service import Service


def as_texts(
    update: Update, order: Order, service: Service, output_format: str = "png", quality: int | None = None
) -> list[str]:
    """The pictures of an update as files in base64.

    Args:
        update: pictures on their way carry no record.
        order: that they belong to.
        service: that made them.
        output_format: png, jpeg or webp; the last two carry no record.
        quality: of jpeg and webp, 0 to 100.
    """
    if output_format == "png" and (carried := _records(update, order, service)):
        files = [png_bytes(image, own) for image, own in zip(update.images, carried, strict=True)]
    else:
        files = [_encoded(image, output_format, quality) for image in update.images]
    return [base64.b64encode(file).decode() for file in files]


def as_images(update: Update, order: Order, service: Service) -> list[Image.Image]:
    """The same for whoever writes the files by Pillow: finished pictures have their record in ``info``."""
    images = [Image.fromarray(image) for image in update.images]
    for image, record in zip(images, _records(update, order, service), strict=False):
        image.info[KEYWORD] = record.as_text()
    return images


def _records(update: Update, order: Order, service: Service) -> list[Record]:
    """What `nextscale reproduce` needs: also how many images were made together, since sums round by that.

    Pictures on their way have none, nor has a model of unknown digest.
    """
    if not (update.finished and service.model_digest):
        return []
    more: dict[str, Any] = {}
    if order.edit is not None:
        edit = order.edit
        mask = {} if edit.mask is None else {"mask_digest": pixels_digest(edit.mask)}
        settings = EditSettings(**edit.settings)
        more["edit"] = EditRecord.model_validate(
            {"task": edit.task, "settings": settings, "image_digest": pixels_digest(edit.image), **mask}
        )
    places = [(update.first + row, update.together) for row in range(len(order.seeds))]
    return records(
        service.engine.generator, order.labels, order.seeds, places=places,
        model_digest=service.model_digest, sampling=dict(order.sampling), **more,
    )  # fmt: skip


def _encoded(image: numpy.ndarray, output_format: str, quality: int | None) -> bytes:
    """A file of uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    options = {} if output_format == "png" else {"quality": 90 if quality is None else quality}
    Image.fromarray(image).save(buffer, output_format.upper(), **options)
    return buffer.getvalue()
