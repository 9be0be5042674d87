"""The page: what stands where, and which button does what.

Special here: nothing is fetched from elsewhere, fonts included; pixels of small pictures stay squares.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio
from fastapi import FastAPI
from starlette.responses import RedirectResponse

from nextscale.serve.engine import Engine
from nextscale.serve.keys import name_of
from nextscale.serve.page.editing import add_edit_tab
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
    generation_order,
    given_settings,
    seed_from,
)
from nextscale.serve.settings import ServerSettings

PATH = "/page"
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
_CSS = """
footer { display: none !important }
.pictures img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain }
.pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important }
.status { min-height: 1.6em }
"""
_KEYS = "Open with the name and the key that you were given."


def mount_page(app: FastAPI, engine: Engine, settings: ServerSettings, keys: dict[str, str] | None) -> None:
    """Add the page to an app, at `PATH`; with keys it asks for one."""

    def known(name: str, key: str) -> bool:
        return name_of(key, keys or {}) == name

    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]  # those that are there
    )  # fmt: skip
    gradio.mount_gradio_app(
        app, build_page(engine, settings).queue(default_concurrency_limit=32), PATH,
        auth=known if keys is not None else None, auth_message=_KEYS, footer_links=[], run_history=False,
        max_file_size=settings.max_body, ssr_mode=False, theme=theme, css=_CSS,
    )  # fmt: skip

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")


def build_page(engine: Engine, settings: ServerSettings) -> gradio.Blocks:
    """Its tabs."""
    with gradio.Blocks(analytics_enabled=False, title="nextscale", delete_cache=(600, 3600)) as page:
        gradio.Markdown("# nextscale\nPictures that come into focus, scale by scale.")
        history = gradio.State([])
        with gradio.Tab("Generate"):
            fields = _add_generate_tab(engine, settings, history)
        with gradio.Tab("Edit"):
            add_edit_tab(engine, settings, history)
        with gradio.Tab("History") as tab:
            _add_history_tab(history, tab, fields)
    return page


def _add_generate_tab(engine: Engine, settings: ServerSettings, history: gradio.State) -> dict[str, Any]:
    own = {name: value for name, value in engine.generator.sampling({}).items() if name in _SLIDERS}
    most = min(settings.max_images, engine.settings.max_batch)
    with gradio.Row():
        with gradio.Column(scale=1, min_width=280):
            label = class_choice(engine, info="type to search")
            count = gradio.Slider(1, most, value=min(4, most), step=1, label="Pictures")
            fresh, seed = seed_fields()
            with gradio.Accordion("More settings", open=False):
                sliders = {name: _slider(name, value, engine) for name, value in own.items()}
            make, cancel = buttons("Generate")
        with gradio.Column(scale=2, min_width=280):
            gallery = picture_gallery("pictures", columns=4, height=440, buttons=["download", "download_all"])
            status = status_line("Choose a class, and press Generate.", "status")
    names = tuple(sliders)

    async def generate(
        chosen: str, number: float, new: bool, first: float, made: list[Made], *values: Any
    ) -> AsyncIterator[tuple[Any, str, list[Made]]]:
        with complaints():
            order = generation_order(chosen, number, seed_from(new, first), given_settings(names, values))
        async for step in followed(engine, order, made):
            yield step

    started = make.click(
        generate, [label, count, fresh, seed, history, *sliders.values()], [gallery, status, history],
        show_progress="hidden",
    )  # fmt: skip
    cancel.click(lambda: "Cancelled.", None, status, cancels=[started], show_progress="hidden")
    return {"label": label, "fresh": fresh, "seed": seed, **sliders}


def _slider(name: str, value: Any, engine: Engine) -> gradio.Slider:
    label, low, high, step, info = _SLIDERS[name]
    settings = engine.generator.settings
    most = {
        "top_k": settings.tokenizer.quantizer.vocab_size, "num_unguided_scales": settings.schedule.num_scales
    }  # fmt: skip
    return gradio.Slider(low, most.get(name, high), value=value, step=step, label=label, info=info)


def _add_history_tab(history: gradio.State, tab: gradio.Tab, fields: dict[str, Any]) -> None:
    gradio.Markdown("Made on this page since it was opened. Choose a picture to take its settings again.")
    gallery = picture_gallery("history", columns=6, height=440, allow_preview=False, buttons=["download_all"])
    told = status_line("", "taken")
    tab.select(lambda made: [(one.image, one.caption) for one in made], history, gallery)

    def take(made: list[Made], chosen: gradio.SelectData) -> list[Any]:
        one = made[chosen.index]
        if one.task:
            told_why = f"{one.caption}: an edit; the picture that it was made from is not kept."
            return [*(gradio.skip() for _ in fields), told_why]
        label = one.label if one.label != "none" else NO_CLASS
        values = {"label": label, "fresh": False, "seed": one.seed, **one.settings}
        settings = ", ".join(f"{name} {value:g}" for name, value in one.settings.items())
        return [
            *(values.get(name, gradio.skip()) for name in fields),
            f"Taken: {one.caption} ({settings}). Its settings stand in the tab Generate.",
        ]

    gallery.select(take, history, [*fields.values(), told])
