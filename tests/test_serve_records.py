"""PNG files from a server lead back to its model: `nextscale reproduce` makes them again."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import openai
import pytest
from PIL import Image

from models_for_tests import random_generator
from nextscale.cli import main
from nextscale.generate.folder import model_digest
from nextscale.generate.provenance import read_png
from nextscale.serve.carried import as_texts
from nextscale.serve.metrics import Metrics
from nextscale.serve.order import Update
from nextscale.serve.service import Service
from nextscale.serve.settings import ServerSettings
from serving_for_tests import Gate, Running, order, running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    random_generator().save(folder)
    return folder


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def server(model: Path, gate: Gate) -> Iterator[Running]:
    with running(gate=gate, model_digest=model_digest(model)) as server:
        yield server


def _keep(text: str | None, path: Path) -> Path:
    assert text is not None
    path.write_bytes(base64.b64decode(text))
    return path


def _again(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["reproduce", *map(str, words), "--device", "cpu"]) == 0
    return capsys.readouterr().out


def test_pictures_that_shared_a_batch_are_made_again(
    model: Path, server: Running, gate: Gate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three orders of different settings wait while a batch runs, and are made together in the next."""
    gate.shut()
    client = server.client()

    def ask(prompt: str, seed: int, count: int, guidance: float) -> list[str | None]:
        made = client.images.generate(
            prompt=prompt, n=count, extra_body={"seed": seed, "guidance": guidance}, timeout=30
        )
        return [picture.b64_json for picture in made.data or []]

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, "none", 1, 1, 0.0)
        assert gate.reached.wait(30)
        others = [pool.submit(ask, str(label), 10 * label, 2, 1.5 * label) for label in range(3)]
        while server.engine.state().queued < 6:
            pass
        gate.open.set()
        texts = [*first.result(), *(text for other in others for text in other.result())]
    assert gate.batches == [1, 6]
    files = [_keep(text, tmp_path / f"{place}.png") for place, text in enumerate(texts)]
    places = [(own.row, own.batch) for own in (read_png(file)[1] for file in files)]
    assert places[0] == (0, 1) and sorted(places[1:]) == [(row, 6) for row in range(6)]
    for file in files:
        assert _again(capsys, file, "--model", model).startswith("same: ")


def test_edits_are_made_again_from_the_picture_and_the_mask(
    model: Path, server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    height, width = server.engine.generator.tokenizer.image_size
    picture = numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    Image.fromarray(picture).save(tmp_path / "given.png")
    new = numpy.zeros((height, width), dtype=numpy.uint8)
    new[: height // 2] = 255
    Image.fromarray(new).save(
        tmp_path / "mask.png"
    )  # white is made anew; for the client, what is transparent
    transparent, given = io.BytesIO(), (tmp_path / "given.png").read_bytes()
    Image.fromarray(numpy.dstack([picture, 255 - new])).save(transparent, "PNG")
    made = server.client().images.edit(
        image=("given.png", given), mask=("mask.png", transparent.getvalue()), prompt="1",
        extra_body={"seed": 5, "feather": 1},
    )  # fmt: skip
    assert made.data is not None
    file = _keep(made.data[0].b64_json, tmp_path / "edited.png")
    inputs = ["--image", tmp_path / "given.png", "--mask", tmp_path / "mask.png"]
    assert _again(capsys, file, "--model", model, *inputs).startswith("same: ")


def test_other_formats_and_pictures_on_the_way_carry_none(server: Running) -> None:
    client: openai.OpenAI = server.client()
    jpeg = client.images.generate(prompt="1", output_format="jpeg")
    assert jpeg.data is not None and jpeg.data[0].b64_json is not None
    assert b"nextscale" not in base64.b64decode(jpeg.data[0].b64_json)
    service = Service(server.engine, ServerSettings(), "small", 0, Metrics(), model_digest="0" * 64)
    images = numpy.zeros((1, 8, 8, 3), dtype=numpy.uint8)
    for finished in (False, True):
        update = Update(0, images, finished, first=0, together=1)
        (text,) = as_texts(update, order(1), service)
        assert ("nextscale" in Image.open(io.BytesIO(base64.b64decode(text))).info) == finished
