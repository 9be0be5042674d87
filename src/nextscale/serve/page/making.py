"""What the buttons of the page do: orders for the engine, and what is shown of their making.

Letters: H W pixels.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import gradio
import numpy
from PIL import Image

from nextscale.data.transforms import fit_to_task, resize_and_crop
from nextscale.pixels import enlarge
from nextscale.serve.carried import as_images
from nextscale.serve.engine import Engine
from nextscale.serve.order import ALL, Order, Ticket, Update
from nextscale.serve.orders import name_of_label, seeds_from
from nextscale.serve.page.fields import NO_CLASS, complaints
from nextscale.serve.service import Service

#: Pictures of one session that are remembered.
_MOST = 60
#: Pixels of the side of the canvas to paint on, about.
_CANVAS = 512
_ON_THE_WAY = "Scale"  #: how the status begins until all is done


class Made(NamedTuple):
    """A picture of this session, and what it was made with."""

    image: Image.Image  #: RGB; its text is the record of how it was made
    label: str
    seed: int
    settings: dict[str, Any]
    task: str | None  #: of an edit

    @property
    def caption(self) -> str:
        """What stands below it."""
        name = self.label if self.label != "none" else NO_CLASS
        return f"{name} · {self.seed}" + (f" · {self.task}" if self.task else "")


def label_from(choice: str | None) -> str | None:
    """The class that was chosen."""
    return None if choice in (None, "", NO_CLASS) else choice


def given_settings(names: tuple[str, ...], values: tuple[Any, ...]) -> dict[str, Any]:
    """The fields that are not empty, whole numbers as such."""
    filled = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    return {
        name: int(value) if name.startswith(("top_k", "num_")) and value == int(value) else value
        for name, value in filled.items()
    }


async def followed(
    service: Service, order: Order, history: list[Made], *, before: numpy.ndarray | None = None
) -> AsyncIterator[tuple[Any, str, list[Made]]]:
    """Gallery, status and history, after every scale.

    Args:
        service: makes them.
        order: with previews.
        history: of the session; grows in place, as another tab may be at work on it too.
        before: a picture to show first.
    """
    start = time.monotonic()
    with complaints():
        ticket = service.engine.submit(order)
    try:
        with complaints():
            yield gradio.skip(), f"{_ON_THE_WAY} 0 of {ticket.num_stages} · in the queue", history
            async for update in ticket.updates():
                seconds = time.monotonic() - start
                made = _made(order, update, service)
                if update.finished:
                    history[:] = [*made, *history][:_MOST]
                shown = [] if before is None else [(before, "given")]
                yield (
                    [*shown, *((one.image, one.caption) for one in made)],
                    _status(order, update, ticket, seconds),
                    history,
                )
    finally:
        ticket.cancel()  # of no effect on one that ended; the button closes this generator


def _made(order: Order, update: Update, service: Service) -> list[Made]:
    names, task = service.engine.generator.class_names, order.edit.task if order.edit else None
    return [
        Made(image, name_of_label(label, names), seed, dict(order.sampling), task)
        for image, label, seed in zip(
            as_images(update, order, service), order.labels, order.seeds, strict=True
        )
    ]


def _status(order: Order, update: Update, ticket: Ticket, seconds: float) -> str:
    if update.finished:
        return f"Done in {seconds:.1f} s, from seed {order.seeds[0]}."
    return f"{_ON_THE_WAY} {update.scale + 1} of {ticket.num_stages} · {seconds:.1f} s"


def after_cancel(status: str) -> str:
    """What to say when somebody cancels; nothing new when nothing was being made."""
    return "Cancelled." if status.startswith(_ON_THE_WAY) else status


def generation_order(
    choice: str | None, count: float | None, seed: int, settings: Mapping[str, Any]
) -> Order:
    """What the first tab asks for."""
    number = filled(count, "Pictures")
    return Order((label_from(choice),) * number, seeds_from(seed, number), settings, previews=ALL)


def filled(value: float | None, name: str) -> int:
    """A whole number of a field. Raises ValueError when somebody emptied it."""
    if value is None:
        raise ValueError(f"{name} is empty: give a number")
    return int(value)


def seed_from(fresh: bool, seed: float | None) -> int:
    """The seed that was typed, or a new one that is easily typed.

    Raises:
        ValueError: none was typed, or one below 0.
    """
    if fresh:
        return secrets.randbelow(10**6)
    typed = filled(seed, "Seed")
    if typed < 0:
        raise ValueError(f"seed {typed}: expected a whole number from 0")
    return typed


def on_canvas(picture: Image.Image, engine: Engine, task: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """A picture as a task wants it, and large enough to paint on: uint8 (H, W, 3) both."""
    size = engine.generator.tokenizer.image_size
    factor = max(1, _CANVAS // max(size))
    pixels = numpy.asarray(picture.convert("RGB"))
    few = pixels[::factor, ::factor]
    if few.shape[:2] == size and numpy.array_equal(enlarge(few[None], factor)[0], pixels):
        picture = Image.fromarray(few)  # a canvas that comes back from the browser
    small = fit_to_task(picture.convert("RGB"), task, size)
    return small, enlarge(small[None], factor)[0]


def painted_mask(layers: list[Image.Image], size: tuple[int, int]) -> numpy.ndarray:
    """What is kept: float32 (H, W), 0 where anything was painted.

    Raises:
        ValueError: nothing was.
    """
    keep = numpy.ones(size, dtype=numpy.float32)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        factor = max(1, min(alpha.height // size[0], alpha.width // size[1]))
        painted = resize_and_crop(alpha.convert("RGB"), (size[0] * factor, size[1] * factor))[..., 0]
        blocks = painted.reshape(size[0], factor, size[1], factor).astype(numpy.float32)
        keep[blocks.mean(axis=(1, 3)) > 64] = 0  # a quarter of a pixel
    if keep.all():
        raise ValueError("nothing is painted: paint over what shall be made anew, or choose a box")
    return keep


def last_of(history: list[Made]) -> Image.Image:
    """The newest picture of the session.

    Raises:
        ValueError: there is none.
    """
    if not history:
        raise ValueError("no picture was made in this session yet: make one, or upload one")
    return history[0].image
