"""The small API of our own, and the document of all."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy
import pytest

from models_for_tests import model_settings, random_generator
from nextscale import Generator
from nextscale.generate.settings import EditSettings, SamplingSettings
from nextscale.serve.schema import Edited, Sampled
from serving_for_tests import WAIT, Running, form, mask_with_hole, pixels, png, running


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


def send(server: Running, path: str, body: bytes | None, kind: str = "application/json") -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=WAIT)
    try:
        connection.request("POST" if body is not None else "GET", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def post(server: Running, path: str, **fields: Any) -> tuple[int, str]:
    return send(server, path, json.dumps(fields).encode())


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_every_scale_is_an_event(server: Running, generator: Generator) -> None:
    status, text = post(server, "/api/generate", labels=["frog", None], seeds=[3, 9], top_k=5)
    assert status == 200
    *previews, (name, last) = events(text)
    streamed = list(generator.stream(["frog", None], seeds=[3, 9], top_k=5))
    assert name == "finished" and last["seeds"] == [3, 9] and last["num_scales"] == 4 == last["scale"] + 1
    for place, image in enumerate(streamed[-1].images):
        assert numpy.array_equal(pixels(last["images"][place]), image)
    for kind, preview in previews:
        assert kind == "preview" and not preview["finished"]
        assert numpy.array_equal(pixels(preview["images"][0]), streamed[preview["scale"]].images[0])


def test_without_a_stream_there_is_the_end_alone(server: Running, generator: Generator) -> None:
    status, text = post(server, "/api/generate", labels=[1, 2], seed=5, stream=False)
    answer = json.loads(text)
    assert status == 200 and answer["finished"] and answer["seeds"] == [5, 6]
    assert numpy.array_equal(pixels(answer["images"][1]), generator([1, 2], seeds=[5, 6]).images[1])


def test_edits(server: Running, generator: Generator) -> None:
    image = generator(["ship"], seeds=[8]).images[0]
    files = {"image": png(image), "mask": png(mask_with_hole())}
    status, text = send(server, "/api/edit", *form({"label": "frog", "seed": "4", "stream": "false"}, files))
    keep = numpy.ones((8, 8), dtype=numpy.float32)
    keep[:, :4] = 0
    expected = generator.edit(image, mask=keep, labels=["frog"], seeds=[4])
    assert status == 200 and numpy.array_equal(pixels(json.loads(text)["images"][0]), expected.images[0])
    status, text = send(server, "/api/edit", *form({"label": "frog"}, files))
    assert status == 200 and events(text)[-1][0] == "finished"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": []}, "labels"), ({"labels": [1], "seeds": [1, 2]}, "2 seeds for 1 labels"),
        ({"labels": [1], "seeds": [1], "seed": 2}, "seed would have no effect beside seeds"),
        ({"labels": [11]}, "label 11 is out of range"), ({"labels": [1] * 9}, "n 9 is out of range"),
        ({"labels": ["frogg"]}, "did you mean 'frog'"), ({"lables": [1]}, "lables"),
    ],
)  # fmt: skip
def test_what_does_not_fit(server: Running, fields: dict[str, Any], message: str) -> None:
    status, text = post(server, "/api/generate", **fields)
    assert status == 400 and message in json.loads(text)["error"]["message"]


def test_what_is_served(server: Running, generator: Generator) -> None:
    card = json.loads(send(server, "/api/model", None)[1])
    assert card["class_names"] == list(generator.class_names) and (card["height"], card["width"]) == (8, 8)
    assert card["scales"] == [[1, 1], [2, 2], [3, 3], [4, 4]] and card["sampling"] == generator.sampling({})
    assert card["kind"] == "next_scale" and "inpaint" in card["tasks"] and card["dtype"] == "float32"


def test_other_families_are_served_too() -> None:
    generator = random_generator(model_settings(prior={"kind": "diffusion"}))
    with running(generator=generator) as server:
        status, text = post(server, "/api/generate", labels=["frog"], seeds=[3], num_steps=3)
        *_, (_, last) = events(text)
        expected = random_generator(model_settings(prior={"kind": "diffusion"}))(
            ["frog"], seeds=[3], num_steps=3
        )
        assert status == 200 and numpy.array_equal(pixels(last["images"][0]), expected.images[0])
        assert json.loads(send(server, "/api/model", None)[1])["tasks"] == []
        files = {"image": png(expected.images[0])}
        status, text = send(server, "/api/edit", *form({"label": "frog"}, files))
        assert (status == 400 or events(text)[-1][0] == "error") and "use a next_scale model" in text


def test_every_setting_can_be_asked_for() -> None:
    assert set(SamplingSettings.model_fields) <= set(Sampled.model_fields)
    assert set(EditSettings.model_fields) <= set(Edited.model_fields)


def test_the_document_names_all_that_can_be_asked(server: Running) -> None:
    document = json.loads(send(server, "/openapi.json", None)[1])
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/models", "/api/generate", "/readyz"} <= set(
        document["paths"]
    )
    answers = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert "422" not in answers and {"400", "401", "413", "429", "503"} <= set(answers)
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    edit = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert set(edit) == {"multipart/form-data"}
