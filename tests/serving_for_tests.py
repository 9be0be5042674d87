"""Servers on this machine that tests ask, and what holds an engine up while they look."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import openai
import uvicorn
from PIL import Image

from models_for_tests import random_generator
from nextscale import Generator
from nextscale.serve.engine import Engine, Observer
from nextscale.serve.order import Order, Update
from nextscale.serve.running import build_app, build_server
from nextscale.serve.settings import EngineSettings, ServerSettings
from nextscale.serve.waiting import Waiting

WAIT = 30.0  #: seconds, for what takes a fraction of one


class Gate:
    """Holds an engine before every scale while it is shut, and notes its batches and ends."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()
        self.batches: list[int] = []  #: images of each
        self.ends: list[str] = []

    def __call__(self, generator: Generator) -> None:
        steps = generator.steps

        def held(request: Any) -> Iterator[Any]:
            self.batches.append(len(request.seeds))
            for step in steps(request):
                self.reached.set()
                assert self.open.wait(WAIT)
                yield step

        generator.steps = held  # type: ignore[method-assign]

    def shut(self) -> None:
        self.open.clear()
        self.reached.clear()

    def note_end(self, outcome: str, _seconds: float) -> None:
        self.ends.append(outcome)


@contextmanager
def engines(gate: Gate) -> Iterator[Callable[..., Engine]]:
    """Starts engines behind a gate, by their settings, and ends them."""
    made: list[Engine] = []

    def start(observer: Observer | None = None, **settings: Any) -> Engine:
        generator = random_generator()
        gate(generator)
        observer = observer or Observer(end=gate.note_end)
        engine = Engine(generator, EngineSettings(**settings), observer=observer)
        engine.start()
        made.append(engine)
        return engine

    yield start
    gate.open.set()
    for engine in made:
        engine.drain(WAIT)


def order(seed: int, *, label: int | str | None = 1, **changes: Any) -> Order:
    return Order((label,), (seed,), **changes)


def busy(engine: Engine, gate: Gate) -> Waiting:
    """An order that is being made, and stays so until the gate opens."""
    gate.shut()
    first = engine.submit(order(0))
    assert gate.reached.wait(WAIT)
    return first


async def all_updates(waiting: Waiting) -> list[Update]:
    return [update async for update in waiting.updates()]


class Running:
    """A server in a thread."""

    def __init__(self, url: str, engine: Engine, server: uvicorn.Server) -> None:
        self.url, self.engine, self.server = url, engine, server

    def client(self, key: str = "any") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=WAIT)


@contextmanager
def running(
    *, generator: Generator | None = None, gate: Gate | None = None, engine: dict[str, Any] | None = None,
    keys: Path | None = None, model_digest: str = "", **server: Any,
) -> Iterator[Running]:  # fmt: skip
    """A server of a small model, named ``small``; it drains at the end."""
    generator = generator or random_generator()
    if gate is not None:
        gate(generator)
    settings = ServerSettings(port=0, keys=keys, **server)
    app = build_app(
        generator, "small", engine=EngineSettings(**(engine or {})), server=settings,
        model_digest=model_digest,
    )  # fmt: skip
    serving = build_server(app, settings, say=lambda _: None)
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        while not serving.started:
            assert thread.is_alive()
            thread.join(0.01)
        port = serving.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", app.state.service.engine, serving)
    finally:
        if gate is not None:
            gate.open.set()
        serving.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


def pixels(text: str | None) -> numpy.ndarray:
    """A picture in base64: uint8 (H, W, 3)."""
    assert text is not None
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return numpy.asarray(image.convert("RGB"))


def png(image: Image.Image | numpy.ndarray, name: str = "picture.png") -> tuple[str, bytes, str]:
    """As the client uploads it: name, bytes, kind."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return name, buffer.getvalue(), "image/png"


def mask_with_hole(size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Opaque but for the four columns on the left, and eight rows of them at the top."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 4, 8))
    return mask


def form(fields: dict[str, str], files: dict[str, tuple[str, bytes, str]]) -> tuple[bytes, str]:
    """A multipart body, and its kind."""
    parts = [f'form-data; name="{name}"\r\n\r\n{text}'.encode() for name, text in fields.items()]
    parts += [
        f'form-data; name="{name}"; filename="{file}"\r\nContent-Type: {kind}\r\n\r\n'.encode() + content
        for name, (file, content, kind) in files.items()
    ]
    body = (
        b"".join(b"--border\r\nContent-Disposition: " + part + b"\r\n" for part in parts) + b"--border--\r\n"
    )
    return body, "multipart/form-data; boundary=border"


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``nextscale serve`` at any free port: the process, and its address."""
    command = [sys.executable, "-m", "nextscale.cli", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[1]
        finally:
            process.kill()


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[str]:
    """The address of a server that ends well when it is told to stop."""
    with started(arguments) as (process, address):
        yield address
        process.terminate()
        assert process.wait(WAIT) == 0
