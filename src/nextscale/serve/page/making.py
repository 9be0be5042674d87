"""What the buttons of the page do: orders for the engine, and what is shown of their making.

Letters: H W pixels.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import gradio
import numpy
from PIL import Image

from nextscale.data.transforms import fit_to_task, resize_and_crop
from nextscale.pixels import enlarge
from nextscale.serve.engine import Engine
from nextscale.serve.order import ALL, Order, OrderError, Ticket, Update
from nextscale.serve.orders import name_of_label, seeds_from
from nextscale.serve.page.fields import NO_CLASS

#: Pictures of one session that are remembered.
_MOST = 60
#: Pixels of the side of the canvas to paint on, about.
_CANVAS = 512


class Made(NamedTuple):
    """A picture of this session, and what it was made with."""

    image: numpy.ndarray  #: uint8 (H, W, 3)
    label: str
    seed: int
    settings: dict[str, Any]
    task: str | None  #: of an edit

    @property
    def caption(self) -> str:
        """What stands below it."""
        name = self.label if self.label != "none" else NO_CLASS
        return f"{name} · {self.seed}" + (f" · {self.task}" if self.task else "")


@contextmanager
def complaints() -> Any:
    """Show what a person can mend, and no traceback."""
    try:
        yield
    except (ValueError, OrderError) as error:
        raise gradio.Error(str(error), title="That did not work", print_exception=False) from error


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
    engine: Engine, order: Order, history: list[Made], *, before: numpy.ndarray | None = None
) -> AsyncIterator[tuple[Any, str, list[Made]]]:
    """Gallery, status and history, after every scale.

    Args:
        engine: makes them.
        order: with previews.
        history: of the session.
        before: a picture to show first.
    """
    start = time.monotonic()
    with complaints():
        ticket = engine.submit(order)
    try:
        with complaints():
            async for update in ticket.updates():
                seconds = time.monotonic() - start
                shown = _shown(order, update, engine, before)
                if update.finished:
                    history = [*_made(order, update, engine), *history][:_MOST]
                yield shown, _status(order, update, ticket, seconds), history
    finally:
        ticket.cancel()  # of no effect on one that ended; the button closes this generator


def _shown(order: Order, update: Update, engine: Engine, before: numpy.ndarray | None) -> list[Any]:
    captions = [made.caption for made in _made(order, update, engine)]
    first = [] if before is None else [(before, "given")]
    return first + list(zip(update.images, captions, strict=True))


def _made(order: Order, update: Update, engine: Engine) -> list[Made]:
    names, task = engine.generator.class_names, order.edit.task if order.edit else None
    return [
        Made(image, name_of_label(label, names), seed, dict(order.sampling), task)
        for image, label, seed in zip(update.images, order.labels, order.seeds, strict=True)
    ]


def _status(order: Order, update: Update, ticket: Ticket, seconds: float) -> str:
    if update.finished:
        return f"Done in {seconds:.1f} s, from seed {order.seeds[0]}."
    return f"Scale {update.scale + 1} of {ticket.num_stages} · {seconds:.1f} s"


def generation_order(choice: str | None, count: float, seed: int, settings: Mapping[str, Any]) -> Order:
    """What the first tab asks for."""
    number = int(count)
    return Order((label_from(choice),) * number, seeds_from(seed, number), settings, previews=ALL)


def seed_from(fresh: bool, seed: float | None) -> int:
    """The seed that was typed, or a new one that is easily typed.

    Raises:
        ValueError: none was typed, or one below 0.
    """
    if fresh:
        return secrets.randbelow(10**6)
    if seed is None or seed < 0:
        raise ValueError(f"seed {seed}: expected a whole number from 0")
    return int(seed)


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
    return Image.fromarray(history[0].image)
