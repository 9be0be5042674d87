"""The tab where a part of a picture is made anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import gradio
from PIL import Image

from nextscale.generate.editing import box_mask
from nextscale.serve.engine import Engine
from nextscale.serve.order import ALL, EditOrder, Order
from nextscale.serve.orders import seeds_from
from nextscale.serve.page.fields import (
    NO_CLASS,
    buttons,
    class_choice,
    complaints,
    limit_pixels,
    picture_gallery,
    seed_fields,
    setting_sliders,
    status_line,
)
from nextscale.serve.page.making import (
    Made,
    after_cancel,
    filled,
    followed,
    given_settings,
    label_from,
    last_of,
    on_canvas,
    painted_mask,
    seed_from,
)
from nextscale.serve.service import Service
from nextscale.serve.settings import ServerSettings

_TASKS = {
    "inpaint": "Fill a hole from what is around it",
    "replace": "Put something else there",
    "variation": "Keep the coarse scales, make the fine ones anew",
    "outpaint": "Make the surroundings",
    "upscale": "Make a small picture larger",
}
_MASKED = ("inpaint", "replace")


class _Fields(NamedTuple):
    """What stands on the tab."""

    editor: gradio.ImageEditor
    take: gradio.Button
    task: gradio.Radio
    label: gradio.Dropdown
    where: gradio.Group
    place: gradio.Radio
    box: gradio.Row
    sides: list[gradio.Slider]  #: top, left, bottom, right, in per cent
    first: gradio.Slider
    share: gradio.Slider
    number: gradio.Slider
    fresh: gradio.Checkbox
    seed: gradio.Number
    sliders: dict[str, gradio.Slider]  #: of sampling
    make: gradio.Button
    cancel: gradio.Button


def add_edit_tab(service: Service, history: gradio.State) -> list[Any]:
    """All of it; other families than next-scale cannot edit.

    Returns:
        The event that makes pictures, if there is one.
    """
    engine = service.engine
    prior = engine.generator.settings.prior
    if prior is None or prior.kind != "next_scale":
        gradio.Markdown("Only next-scale models keep tokens scale by scale: this one cannot edit.")
        return []
    picture = gradio.State(None)
    fields = _add_fields(engine, service.settings)
    gallery = picture_gallery("edited", columns=5, height=260, buttons=["download", "download_all"])
    status = status_line("Upload a picture, or take the last one.", "edit-status")
    _show_what_a_task_takes(fields)
    names = tuple(fields.sliders)

    def take_last(made: list[Made]) -> tuple[Image.Image, dict[str, Any], str]:
        with complaints():
            return _onto_canvas(last_of(made), engine)

    def uploaded(value: dict[str, Any]) -> tuple[Image.Image, dict[str, Any], str]:
        with complaints():
            return _onto_canvas(value["background"], engine)

    async def edit(*given: Any) -> AsyncIterator[tuple[Any, str, list[Made]]]:
        made, *values = given
        with complaints():
            values, settings = values[: -len(names)], given_settings(names, tuple(values[-len(names) :]))
            order = _order(engine, settings, *values)
        assert order.edit is not None
        async for step in followed(service, order, made, before=order.edit.image):
            yield step

    fields.take.click(take_last, history, [picture, fields.editor, status])
    fields.editor.upload(uploaded, fields.editor, [picture, fields.editor, status])
    asked = [fields.task, fields.label, fields.place, fields.first, fields.share, fields.number, fields.fresh]
    started = fields.make.click(
        edit, [history, picture, fields.editor, *asked, fields.seed, *fields.sides, *fields.sliders.values()],
        [gallery, status, history], show_progress="hidden",
    )  # fmt: skip
    fields.cancel.click(after_cancel, status, status, cancels=[started], show_progress="hidden")
    return [started]


def _add_fields(engine: Engine, settings: ServerSettings) -> _Fields:
    scales = engine.generator.settings.schedule.num_scales
    with gradio.Row():
        with gradio.Column(scale=1, min_width=280):
            editor = gradio.ImageEditor(
                label="Paint what shall be new", type="pil", format="png",
                sources=["upload", "clipboard"], transforms=(), layers=False, height=420, elem_id="editor",
                brush=gradio.Brush(default_size=48, colors=["#e6194b"], color_mode="fixed"),
                elem_classes="pictures",
            )  # fmt: skip
            limit_pixels(editor, settings.max_pixels)
            take = gradio.Button("Take the last picture that was made", elem_id="take-last")
        with gradio.Column(scale=1, min_width=280):
            choices = [(text, name) for name, text in _TASKS.items()]
            task = gradio.Radio(choices, value="inpaint", label="Task")
            label = class_choice(engine, info="what it shall show", first=NO_CLASS)
            with gradio.Group() as where:
                place = gradio.Radio(["what is painted", "a box"], value="what is painted", label="Made anew")
                with gradio.Row(visible=False) as box:
                    sides = [
                        gradio.Slider(0, 100, value=value, step=1, label=side, min_width=170)
                        for side, value in (("Top %", 25), ("Left %", 25), ("Bottom %", 75), ("Right %", 75))
                    ]
            first = gradio.Slider(
                0, scales, value=(scales + 1) // 2, step=1, visible=False, label="Scales that are kept"
            )
            share = gradio.Slider(
                0.2, 0.9, value=0.5, step=0.05, visible=False, label="Share of the sides that it takes"
            )
            count = gradio.Slider(1, min(4, settings.max_images), value=1, step=1, label="Candidates")
            fresh, seed = seed_fields()
            sliders = setting_sliders(engine)
            make, cancel = buttons("Edit")
    return _Fields(
        editor, take, task, label, where, place, box, sides, first, share, count, fresh, seed, sliders, make,
        cancel,
    )  # fmt: skip


def _show_what_a_task_takes(fields: _Fields) -> None:
    def show(chosen: str, how: str) -> list[Any]:
        shown = (chosen in _MASKED, how == "a box", chosen == "variation", chosen == "outpaint")
        return [gradio.update(visible=visible) for visible in shown]

    asked = [fields.task, fields.place]
    for field in asked:
        field.change(
            show, asked, [fields.where, fields.box, fields.first, fields.share], show_progress="hidden"
        )


def _order(
    engine: Engine, settings: dict[str, Any], given: Image.Image | None, painted: dict[str, Any], task: str,
    *rest: Any,
) -> Order:  # fmt: skip
    """What the tab asks for. Raises ValueError."""
    name, how, first, share, count, new, start, *sides = rest
    if given is None:
        raise ValueError("no picture yet: upload one, or take the last one that was made")
    small, _ = on_canvas(given, engine, task)
    size, mask = engine.generator.tokenizer.image_size, None
    if task in _MASKED and how == "a box":
        names = ("Top", "Left", "Bottom", "Right")
        top, left, bottom, right = (filled(side, one) / 100 for side, one in zip(sides, names, strict=True))
        mask = box_mask((top, left, bottom, right), size)
    elif task in _MASKED:
        mask = painted_mask(painted["layers"], size)
    own: dict[str, Any] = {}
    if task == "variation":
        own = {"from_scale": filled(first, "Scales that are kept")}
    elif task == "outpaint" and share is not None:
        own = {"share": share}
    number = filled(count, "Candidates")
    return Order(
        (label_from(name),) * number, seeds_from(seed_from(new, start), number), settings,
        edit=EditOrder(small, task, mask, own), previews=ALL,
    )  # fmt: skip


def _onto_canvas(given: Image.Image, engine: Engine) -> tuple[Image.Image, dict[str, Any], str]:
    """The picture itself, the same to paint on, and what to do now."""
    _, large = on_canvas(given, engine, "inpaint")
    canvas = {"background": Image.fromarray(large), "layers": [], "composite": None}
    return given, canvas, "Paint over what shall be new, and press Edit."
