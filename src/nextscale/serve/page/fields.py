"""Fields that several tabs have."""

from __future__ import annotations

from typing import Any

import gradio

from nextscale.serve.engine import Engine

NO_CLASS = "no class"


def class_choice(engine: Engine, *, info: str, first: str | None = None) -> gradio.Dropdown:
    """All classes, to be searched by typing."""
    names = [*engine.generator.class_names, NO_CLASS]
    return gradio.Dropdown(names, value=first or names[0], label="Class", info=info, filterable=True)


def seed_fields() -> tuple[gradio.Checkbox, gradio.Number]:
    """Whether every time is another, and the seed if not."""
    fresh = gradio.Checkbox(True, label="Something new every time")
    seed = gradio.Number(0, label="Seed", info="the same makes the same again", precision=0, visible=False)
    fresh.change(lambda new: gradio.update(visible=not new), fresh, seed, show_progress="hidden")
    return fresh, seed


def buttons(name: str) -> tuple[gradio.Button, gradio.Button]:
    """One that starts, one that stops."""
    with gradio.Row():
        make = gradio.Button(name, variant="primary", elem_id=name.lower())
        cancel = gradio.Button("Cancel", elem_id=f"cancel-{name.lower()}")
    return make, cancel


def picture_gallery(elem_id: str, **more: Any) -> gradio.Gallery:
    """Pictures, their pixels as squares, to be downloaded as PNG files."""
    return gradio.Gallery(
        format="png", elem_classes="pictures", object_fit="contain", show_label=False, elem_id=elem_id, **more
    )


def status_line(text: str, elem_id: str) -> gradio.Markdown:
    """What is going on."""
    return gradio.Markdown(text, elem_classes="status", elem_id=elem_id)
