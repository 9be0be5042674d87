"""Fields that several tabs have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio

from nextscale.serve.engine import Engine
from nextscale.serve.order import OrderError
from nextscale.serve.uploads import check_size

NO_CLASS = "no class"
#: Name, label, smallest, largest, step and what it does, of every sampling setting that has a slider.
_SLIDERS = {
    "guidance": ("Guidance", 0, 10, 0.1, "0 is off; more shows the class more plainly, and varies less"),
    "top_k": ("Top k", 0, 1000, 1, "draw among the k likeliest codes; 0 is off"),
    "top_p": ("Top p", 0.01, 1, 0.01, "draw among the likeliest codes with this probability"),
    "temperature": ("Temperature", 0.1, 2, 0.05, "above 1 is wilder, below is tamer"),
    "num_unguided_scales": ("Scales without guidance", 0, 10, 1, "the last ones; faster"),
    "ssg": ("Spatial guidance", 0, 3, 0.05, "away from the coarser scale; 0 is off"),
    "num_steps": ("Steps", 1, 250, 1, "of diffusion"),
}


@contextmanager
def complaints() -> Iterator[None]:
    """Show what a person can mend, and no traceback."""
    try:
        yield
    except (ValueError, OrderError) as error:
        raise gradio.Error(str(error), title="That did not work", print_exception=False) from error


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


def setting_sliders(engine: Engine) -> dict[str, gradio.Slider]:
    """The sampling settings of the model, folded away."""
    own = {name: value for name, value in engine.generator.sampling({}).items() if name in _SLIDERS}
    with gradio.Accordion("More settings", open=False):
        return {name: _slider(name, value, engine) for name, value in own.items()}


def _slider(name: str, value: Any, engine: Engine) -> gradio.Slider:
    label, low, high, step, info = _SLIDERS[name]
    settings = engine.generator.settings
    most = {
        "top_k": settings.tokenizer.quantizer.vocab_size, "num_unguided_scales": settings.schedule.num_scales
    }  # fmt: skip
    return gradio.Slider(low, most.get(name, high), value=value, step=step, label=label, info=info)


def limit_pixels(editor: gradio.ImageEditor, most: int) -> None:
    """Hold what is uploaded against the server's limit, before gradio decodes it.

    The method is replaced in the one object: of a class of ours gradio would write a stub beside this file.
    """
    decode = editor.convert_and_format_image

    def checked(file: Any, flatten_on_white: bool = False) -> Any:
        if file is not None:
            content = file if isinstance(file, bytes) else Path(file.path).read_bytes()
            with complaints():
                check_size(content, "what was uploaded", most)
        return decode(file, flatten_on_white)

    editor.convert_and_format_image = checked  # type: ignore[method-assign]


def picture_gallery(elem_id: str, **more: Any) -> gradio.Gallery:
    """Pictures, their pixels as squares, to be downloaded as PNG files."""
    return gradio.Gallery(
        format="png", elem_classes="pictures", object_fit="contain", show_label=False, elem_id=elem_id, **more
    )


def status_line(text: str, elem_id: str) -> gradio.Markdown:
    """What is going on."""
    return gradio.Markdown(text, elem_classes="status", elem_id=elem_id)
