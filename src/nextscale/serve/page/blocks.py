"""The page: what stands where, and which button does what.

Special here: nothing is fetched from elsewhere, fonts included; pixels of small pictures stay squares.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio
from fastapi import FastAPI
from starlette.responses import RedirectResponse
from starlette.routing import Mount

from nextscale.serve.keys import name_of
from nextscale.serve.page.editing import add_edit_tab
from nextscale.serve.page.fields import (
    NO_CLASS,
    buttons,
    class_choice,
    complaints,
    picture_gallery,
    seed_fields,
    setting_sliders,
    status_line,
)
from nextscale.serve.page.making import (
    Made,
    after_cancel,
    followed,
    generation_order,
    given_settings,
    seed_from,
)
from nextscale.serve.service import Service

PATH = "/page"
_CSS = """
footer { display: none !important }
.pictures img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain }
.pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important }
.status { min-height: 1.6em }
"""
_KEYS = "Open with the name and the key that you were given."


def mount_page(app: FastAPI, service: Service, keys: dict[str, str] | None) -> Callable[[], None]:
    """Add the page to an app, at `PATH`; with keys it asks for one.

    Returns:
        What lets go of open pages, to be called in the server's loop: each holds a connection.
    """

    def known(name: str, key: str) -> bool:
        return name_of(key, keys or {}) == name

    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]  # those that are there
    )  # fmt: skip
    gradio.mount_gradio_app(
        app, build_page(service).queue(default_concurrency_limit=32), PATH,
        auth=known if keys is not None else None, auth_message=_KEYS, footer_links=[], run_history=False,
        show_error=False, max_file_size=service.settings.max_body, ssr_mode=False, theme=theme, css=_CSS,
    )  # fmt: skip

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    mounts = [route.app for route in app.routes if isinstance(route, Mount)]
    (mounted,) = [one for one in mounts if isinstance(one, gradio.routes.App)]
    return mounted.stop_event.set


def build_page(service: Service) -> gradio.Blocks:
    """Its tabs."""
    with gradio.Blocks(analytics_enabled=False, title="nextscale", delete_cache=(600, 3600)) as page:
        gradio.Markdown("# nextscale\nPictures that come into focus, scale by scale.")
        history = gradio.State([])
        with gradio.Tab("Generate"):
            generated, fields = _add_generate_tab(service, history)
        with gradio.Tab("Edit"):
            edited = add_edit_tab(service, history)
        with gradio.Tab("History"):
            _add_history_tab(history, [generated, *edited], fields)
    return page


def _add_generate_tab(service: Service, history: gradio.State) -> tuple[Any, dict[str, Any]]:
    engine = service.engine
    most = min(service.settings.max_images, engine.settings.max_batch)
    with gradio.Row():
        with gradio.Column(scale=1, min_width=280):
            label = class_choice(engine, info="type to search")
            count = gradio.Slider(1, most, value=min(4, most), step=1, label="Pictures")
            fresh, seed = seed_fields()
            sliders = setting_sliders(engine)
            make, cancel = buttons("Generate")
        with gradio.Column(scale=2, min_width=280):
            gallery = picture_gallery("pictures", columns=4, height=440, buttons=["download", "download_all"])
            status = status_line("Choose a class, and press Generate.", "status")
    names = tuple(sliders)

    async def generate(
        chosen: str, number: float | None, new: bool, first: float | None, made: list[Made], *values: Any
    ) -> AsyncIterator[tuple[Any, str, list[Made]]]:
        with complaints():
            order = generation_order(chosen, number, seed_from(new, first), given_settings(names, values))
        async for step in followed(service, order, made):
            yield step

    started = make.click(
        generate, [label, count, fresh, seed, history, *sliders.values()], [gallery, status, history],
        show_progress="hidden",
    )  # fmt: skip
    cancel.click(after_cancel, status, status, cancels=[started], show_progress="hidden")
    return started, {"label": label, "fresh": fresh, "seed": seed, **sliders}


def _add_history_tab(history: gradio.State, makers: list[Any], fields: dict[str, Any]) -> None:
    gradio.Markdown("Made on this page since it was opened. Choose a picture to take its settings again.")
    gallery = picture_gallery("history", columns=6, height=440, allow_preview=False, buttons=["download_all"])
    told = status_line("", "taken")
    large = gradio.Image(
        type="pil", format="png", buttons=["download"], interactive=False, visible=False, height=260,
        elem_id="taken-picture", elem_classes="pictures", show_label=False,
    )  # fmt: skip
    for started in makers:
        started.then(
            lambda made: [(one.image, one.caption) for one in made], history, gallery, show_progress="hidden"
        )

    def take(made: list[Made], chosen: gradio.SelectData) -> list[Any]:
        one = made[chosen.index]
        shown = gradio.update(value=one.image, visible=True)
        if one.task:
            told_why = f"{one.caption}: an edit; the picture that it was made from is not kept."
            return [*(gradio.skip() for _ in fields), told_why, shown]
        label = one.label if one.label != "none" else NO_CLASS
        values = {"label": label, "fresh": False, "seed": one.seed, **one.settings}
        settings = ", ".join(f"{name} {value:g}" for name, value in one.settings.items())
        return [
            *(values.get(name, gradio.skip()) for name in fields),
            f"Taken: {one.caption} ({settings}). Its settings stand in the tab Generate.", shown,
        ]  # fmt: skip

    gallery.select(take, history, [*fields.values(), told, large], show_progress="hidden")
