"""The tab where a part of a picture is made anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio
import numpy
from PIL import Image

from nextscale.generate.editing import box_mask
from nextscale.serve.engine import Engine
from nextscale.serve.order import ALL, EditOrder, Order
from nextscale.serve.orders import seeds_from
from nextscale.serve.page.fields import (
    NO_CLASS,
    buttons,
    class_choice,
    picture_gallery,
    seed_fields,
    status_line,
)
from nextscale.serve.page.making import (
    Made,
    complaints,
    followed,
    label_from,
    last_of,
    on_canvas,
    painted_mask,
    seed_from,
)
from nextscale.serve.settings import ServerSettings

_TASKS = {
    "inpaint": "Fill a hole from what is around it",
    "replace": "Put something else there",
    "variation": "Keep the coarse scales, make the fine ones anew",
    "outpaint": "Make the surroundings",
    "upscale": "Make a small picture larger",
}
_MASKED = ("inpaint", "replace")


def add_edit_tab(engine: Engine, settings: ServerSettings, history: gradio.State) -> None:
    """All of it; other families than next-scale cannot edit."""
    model = engine.generator.settings
    kind = model.prior.kind if model.prior else "none"
    if kind != "next_scale":
        gradio.Markdown(f"This model is of kind {kind}: only next_scale models keep tokens scale by scale.")
        return
    picture = gradio.State(None)
    with gradio.Row():
        with gradio.Column(scale=1, min_width=280):
            editor = gradio.ImageEditor(
                label="Paint what shall be new", type="pil", format="png",
                sources=["upload", "clipboard"], transforms=(), layers=False, height=420, elem_id="editor",
                brush=gradio.Brush(default_size=48, colors=["#e6194b"], color_mode="fixed"),
                elem_classes="pictures",
            )  # fmt: skip
            take = gradio.Button("Take the last picture that was made", elem_id="take-last")
        with gradio.Column(scale=1, min_width=280):
            task = gradio.Radio(
                [(text, name) for name, text in _TASKS.items()], value="inpaint", label="Task"
            )
            label = class_choice(engine, info="what it shall show", first=NO_CLASS)
            with gradio.Group() as where:
                place = gradio.Radio(["what is painted", "a box"], value="what is painted", label="Made anew")
                with gradio.Row(visible=False) as box:
                    sides = [
                        gradio.Slider(0, 100, value=value, step=1, label=side, min_width=170)
                        for side, value in (("Top %", 25), ("Left %", 25), ("Bottom %", 75), ("Right %", 75))
                    ]
            scales = model.schedule.num_scales
            first = gradio.Slider(
                0, scales, value=(scales + 1) // 2, step=1, visible=False, label="Scales that are kept"
            )
            share = gradio.Slider(
                0.2, 0.9, value=0.5, step=0.05, visible=False, label="Share of the sides that it takes"
            )
            count = gradio.Slider(1, min(4, settings.max_images), value=1, step=1, label="Candidates")
            fresh, seed = seed_fields()
            make, cancel = buttons("Edit")
    gallery = picture_gallery("edited", columns=5, height=260, buttons=["download", "download_all"])
    status = status_line("Upload a picture, or take the last one.", "edit-status")

    def show_fields(chosen: str, how: str) -> list[Any]:
        return [
            gradio.update(visible=shown)
            for shown in (
                chosen in _MASKED, how == "a box", chosen == "variation", chosen == "outpaint"
            )
        ]  # fmt: skip

    for field in (task, place):
        field.change(show_fields, [task, place], [where, box, first, share], show_progress="hidden")

    def take_last(made: list[Made]) -> tuple[Image.Image, dict[str, Any], str]:
        with complaints():
            return _onto_canvas(last_of(made), engine)

    def uploaded(value: dict[str, Any]) -> tuple[Image.Image, dict[str, Any], str]:
        with complaints():
            return _onto_canvas(value["background"], engine)

    take.click(take_last, history, [picture, editor, status])
    editor.upload(uploaded, editor, [picture, editor, status])

    async def edit(
        given: Image.Image | None, painted: dict[str, Any], chosen: str, name: str, how: str, *rest: Any
    ) -> AsyncIterator[tuple[Any, str, list[Made]]]:
        top, left, bottom, right, kept, part, number, new, start, made = rest
        with complaints():
            if given is None:
                raise ValueError("no picture yet: upload one, or take the last one that was made")
            small, _ = on_canvas(given, engine, chosen)
            mask = None
            if chosen in _MASKED:
                size = engine.generator.tokenizer.image_size
                sides_of_box = (top / 100, left / 100, bottom / 100, right / 100)
                mask = (
                    box_mask(sides_of_box, size) if how == "a box" else painted_mask(painted["layers"], size)
                )
        more = {"variation": {"from_scale": int(kept)}, "outpaint": {"share": part}}.get(chosen, {})
        order = Order(
            (label_from(name),) * int(number), seeds_from(seed_from(new, start), int(number)),
            edit=EditOrder(small, chosen, mask, more), previews=ALL,
        )  # fmt: skip
        before: numpy.ndarray = small
        async for step in followed(engine, order, made, before=before):
            yield step

    started = make.click(
        edit, [picture, editor, task, label, place, *sides, first, share, count, fresh, seed, history],
        [gallery, status, history], show_progress="hidden",
    )  # fmt: skip
    cancel.click(lambda: "Cancelled.", None, status, cancels=[started], show_progress="hidden")


def _onto_canvas(given: Image.Image, engine: Engine) -> tuple[Image.Image, dict[str, Any], str]:
    """The picture itself, the same to paint on, and what to do now."""
    _, large = on_canvas(given, engine, "inpaint")
    canvas = {"background": Image.fromarray(large), "layers": [], "composite": None}
    return given, canvas, "Paint over what shall be new, and press Edit."
