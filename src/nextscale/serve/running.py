"""From a model's name to a server that listens, until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from nextscale.generate.generator import Generator
from nextscale.serve.app import create_app
from nextscale.serve.engine import Engine
from nextscale.serve.keys import read_keys
from nextscale.serve.metrics import Metrics
from nextscale.serve.settings import EngineSettings, ServerSettings


def build_app(
    generator: Generator, name: str, *, engine: EngineSettings, server: ServerSettings,
    model_digest: str = "",
) -> FastAPI:  # fmt: skip
    """The app of one model.

    Args:
        generator: of it.
        name: as clients call it.
        engine: sizes of batch and queue.
        server: where to listen, and limits.
        model_digest: see `create_app`.

    Raises:
        ModuleNotFoundError: the page is wanted, and gradio is missing.
        ValueError: a model without prior, a file of keys that is none, or no keys and other machines may ask.
    """
    check_host(server)
    keys = read_keys(server.keys) if server.keys is not None else None
    assert generator.prior is not None  # complains of a model without one
    metrics = Metrics()
    made = Engine(generator, engine, observer=metrics.observer)
    app = create_app(
        made, server, name=name, metrics=metrics, keys=keys, model_digest=model_digest
    )  # fmt: skip
    app.state.let_go = lambda: None
    if server.page:
        from nextscale.serve.page.blocks import mount_page

        app.state.let_go = mount_page(app, app.state.service, keys)
    return app


def check_host(server: ServerSettings) -> None:
    """Raise ValueError when other machines may ask without a key."""
    if server.keys is None and not is_loopback(server.host):
        raise ValueError(
            f"host {server.host} lets other machines ask: give --keys FILE, or listen at 127.0.0.1"
        )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """Says where it listens once it does, and tells everybody when it ends."""

    def __init__(
        self, config: uvicorn.Config, *, say: Callable[[str], None], drain: Callable[[], None],
        let_go: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._say, self._drain, self._let_go = say, drain, let_go

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """uvicorn waits for connections first: drain beside that, so that they are told within the grace."""
        draining = asyncio.create_task(self._end())
        await super().shutdown(sockets)  # type: ignore[arg-type]
        await draining

    async def _end(self) -> None:
        await asyncio.to_thread(self._drain)
        self._let_go()

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in self.servers:
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                where = f"[{host}]" if ":" in host else host
                self._say(f"http://{where}:{port}")


def server_config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """How the app is listened for."""
    return uvicorn.Config(
        app, host=settings.host, port=settings.port, log_level="warning", server_header=False,
        timeout_keep_alive=20, h11_max_incomplete_event_size=64 * 1024,
        timeout_graceful_shutdown=int(settings.grace_s) + 5,
    )  # fmt: skip


def build_server(app: FastAPI, settings: ServerSettings, *, say: Callable[[str], None]) -> uvicorn.Server:
    """What serves an app of `build_app`."""
    engine = app.state.service.engine
    return _Server(
        server_config(app, settings), say=say, drain=lambda: engine.drain(settings.grace_s),
        let_go=app.state.let_go,
    )  # fmt: skip


def run_server(app: FastAPI, settings: ServerSettings, *, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted is then finished within the grace, or told.

    Args:
        app: what to serve.
        settings: where to listen, and the grace.
        say: takes the address, once it can be asked.
    """
    kept = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        build_server(app, settings, say=say).run()  # which raises the signal again after it obeyed it
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
