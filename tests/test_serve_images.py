"""The Images API, asked by the client that people have."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy
import openai
import pytest
from PIL import Image

from models_for_tests import random_generator
from nextscale import Generator
from nextscale.serve.order import shown_stages
from serving_for_tests import Running, mask_with_hole, pixels, png, running


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(max_pixels=10_000, max_body=100_000) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("small", "model", "nextscale")
    assert client.models.retrieve("small") == model
    with pytest.raises(openai.NotFoundError, match=r"model 'other' is not served here: 'small' is"):
        client.models.retrieve("other")


def test_pictures_equal_those_of_the_generator(client: openai.OpenAI, generator: Generator) -> None:
    answer = client.images.generate(
        prompt="Frog", model="small", n=2, size="8x8", extra_body={"seed": 5, "guidance": 2.0, "top_k": 9}
    )
    expected = generator(["frog", "frog"], seeds=[5, 6], guidance=2.0, top_k=9)
    assert answer.data is not None and answer.size == "8x8" and answer.output_format == "png"
    for picture, image in zip(answer.data, expected.images, strict=True):
        assert numpy.array_equal(pixels(picture.b64_json), image) and picture.revised_prompt == "frog"
    seeds = [picture.model_extra["seed"] for picture in answer.data if picture.model_extra]
    assert seeds == [5, 6]
    assert answer.model_extra is not None
    assert answer.model_extra["settings"] == generator.sampling({"guidance": 2.0, "top_k": 9})
    assert answer.usage is not None and answer.usage.output_tokens == 2 * 30


@pytest.mark.parametrize(("prompt", "label"), [("3", 3), ("none", None), ("", None), (" SHIP ", "ship")])
def test_prompts_are_classes(client: openai.OpenAI, generator: Generator, prompt: str, label: Any) -> None:
    (picture,) = client.images.generate(prompt=prompt, extra_body={"seed": 1}).data or []
    assert numpy.array_equal(pixels(picture.b64_json), generator([label], seeds=[1]).images[0])


def test_without_a_seed_every_picture_is_another_and_can_be_made_again(
    client: openai.OpenAI, generator: Generator
) -> None:
    one, two = (client.images.generate(prompt="frog").data or [] for _ in range(2))
    assert one[0].b64_json != two[0].b64_json and one[0].model_extra is not None
    again = generator(["frog"], seeds=[one[0].model_extra["seed"]])
    assert numpy.array_equal(pixels(one[0].b64_json), again.images[0])


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(client: openai.OpenAI, generator: Generator, kind: Any) -> None:
    answer = client.images.generate(prompt="frog", output_format=kind, extra_body={"seed": 3})
    assert answer.output_format == kind and answer.data is not None
    difference = pixels(answer.data[0].b64_json).astype(int) - generator(["frog"], seeds=[3]).images[0]
    assert (abs(difference).mean() == 0) == (kind == "png") and abs(difference).mean() < 60
    if kind != "png":
        poor = client.images.generate(
            prompt="frog", output_format=kind, output_compression=1, extra_body={"seed": 3}
        )
        assert len((poor.data or [])[0].b64_json or "") < len(answer.data[0].b64_json or "")


@pytest.mark.parametrize("partial", [0, 1, 2, 3])
def test_streams_show_scales_on_the_way(client: openai.OpenAI, generator: Generator, partial: int) -> None:
    events: list[Any] = list(
        client.images.generate(prompt="frog", stream=True, partial_images=partial, extra_body={"seed": 4})
    )
    *previews, last = events
    streamed = list(generator.stream(["frog"], seeds=[4]))
    assert last.type == "image_generation.completed" and last.usage.total_tokens == 30
    assert numpy.array_equal(pixels(last.b64_json), streamed[-1].images[0])
    shown = shown_stages(partial, len(streamed))
    assert {event.scale for event in previews} <= shown  # a reader that is slow misses some
    for number, event in enumerate(previews):
        assert (event.type, event.partial_image_index) == ("image_generation.partial_image", number)
        assert numpy.array_equal(pixels(event.b64_json), streamed[event.scale].images[0])


def test_edits(client: openai.OpenAI, generator: Generator) -> None:
    image = generator(["ship"], seeds=[8]).images[0]
    keep = numpy.ones((8, 8), dtype=numpy.float32)
    keep[:, :4] = 0
    answer = client.images.edit(
        image=png(image), mask=png(mask_with_hole()), prompt="frog", extra_body={"seed": 2, "feather": 1}
    )
    expected = generator.edit(image, mask=keep, labels=["frog"], seeds=[2], feather=1)
    edited = pixels((answer.data or [])[0].b64_json)
    assert numpy.array_equal(edited, expected.images[0])
    assert numpy.array_equal(edited[:, 4:], image[:, 4:]) and not numpy.array_equal(edited, image)


def test_a_picture_and_its_mask_are_turned_alike(client: openai.OpenAI, generator: Generator) -> None:
    image = Image.fromarray(generator(["ship"], seeds=[8]).images[0])
    turned = Image.Exif()
    turned[0x0112] = 6  # shown a quarter turn clockwise
    files = []
    for picture in (image, mask_with_hole()):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", exif=turned)
        files.append(("a.png", buffer.getvalue(), "image/png"))
    answer = client.images.edit(image=files[0], mask=files[1], prompt="frog", extra_body={"seed": 2})
    edited, upright = pixels((answer.data or [])[0].b64_json), numpy.rot90(numpy.asarray(image), -1)
    changed = (edited != upright).any(axis=2)
    assert changed[:4].any() and not changed[4:].any(), "the left columns came to lie at the top"


def test_edits_stream_and_take_a_list(client: openai.OpenAI, generator: Generator) -> None:
    image = generator(["ship"], seeds=[8]).images[0]
    events: list[Any] = list(
        client.images.edit(
            image=[png(image)], mask=png(mask_with_hole()), prompt="frog", stream=True, partial_images=1, n=2
        )
    )
    assert {event.type for event in events[:-2]} <= {"image_edit.partial_image"}
    assert [event.type for event in events[-2:]] == ["image_edit.completed"] * 2
    assert [event.image_index for event in events[-2:]] == [0, 1]


@pytest.mark.parametrize(
    ("task", "size", "more"),
    [
        ("outpaint", (5, 9), {"share": 0.5, "place": "1,0"}), ("variation", (8, 8), {"from_scale": 2}),
        ("replace", (8, 8), {}), ("upscale", (4, 4), {"paste": False}), (None, (4, 4), {}),
        (None, (20, 16), {}),
    ],
)  # fmt: skip
def test_every_task(
    client: openai.OpenAI, generator: Generator, task: str | None, size: tuple[int, int], more: dict[str, Any]
) -> None:
    image = numpy.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    given: dict[str, Any] = {"mask": png(mask_with_hole(size))} if task == "replace" else {}
    extra = {"seed": 2, **more, **({"task": task} if task else {})}
    answer = client.images.edit(image=png(image), prompt="frog", extra_body=extra, **given)
    edited = pixels((answer.data or [])[0].b64_json)
    assert edited.shape == (8, 8, 3)
    if task == "outpaint":
        expected = generator.edit(image, labels=["frog"], seeds=[2], task="outpaint", share=0.5, place=(1, 0))
        assert numpy.array_equal(edited, expected.images[0])
    if task is None and size == (4, 4):
        expected = generator.edit(image, labels=["frog"], seeds=[2], task="upscale")
        assert numpy.array_equal(edited, expected.images[0])


BAD_REQUESTS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "frogg"}, "invalid_value", r"unknown class 'frogg'.*did you mean 'frog'"),
    ({"size": "1024x1024"}, "invalid_value", r"size '1024x1024': this model makes 8x8; give that, or auto"),
    ({"n": 9}, "too_many", r"n 9 is out of range: expected 1 to 8"),
    ({"n": 0}, "invalid_value", r"n 0: "),
    ({"response_format": "url"}, "invalid_value", r"response_format 'url'"),
    ({"background": "transparent"}, "invalid_value", r"background 'transparent'"),
    ({"output_compression": 5}, "invalid_value", r"output_compression would have no effect on png"),
    ({"partial_images": 1}, "invalid_value", r"partial_images would have no effect without stream"),
    ({"extra_body": {"guidnce": 1}}, "unknown_field", r"unknown field 'guidnce'; did you mean 'guidance'"),
    ({"extra_body": {"top_p": 2}}, "invalid_value", r"top_p 2: "),
    ({"extra_body": {"top_k": 10**6}}, "invalid_value", r"top_k 1000000 is out of range"),
    ({"extra_body": {"num_steps": 3}}, "invalid_value", r"num_steps would have no effect"),
    ({"extra_body": {"seed": 2**63}}, "invalid_value", r"seed 9223372036854775808: "),
    ({"extra_body": {"seed": 2**63 - 1}, "n": 2}, "invalid_value", r"seed"),
    ({"extra_body": {"deadline_s": 61}}, "invalid_value", r"deadline 61 s is out of range"),
    ({"prompt": "x" * 2000}, "invalid_value", r"prompt 'xxx.*at most 1000"),
]


@pytest.mark.parametrize(("given", "code", "message"), BAD_REQUESTS, ids=lambda value: str(value)[:40])
def test_what_does_not_fit(client: openai.OpenAI, given: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.images.generate(**{"prompt": "frog", **given})
    assert refused.value.code == code and refused.value.type == "invalid_request_error"


def test_a_model_that_is_not_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"model 'dall-e-3' is not served here") as refused:
        client.images.generate(prompt="frog", model="dall-e-3")
    assert refused.value.code == "model_not_found" and refused.value.param == "model"


def test_pictures_that_do_not_fit(client: openai.OpenAI) -> None:
    whole = png(Image.new("RGB", (8, 8)))
    opaque = png(Image.new("RGBA", (8, 8), "red"))
    for image, mask, message in [
        (("a.png", b"no picture", "image/png"), None, r"image is no picture of a known format"),
        (("a.png", whole[1][:45], "image/png"), None, r"cannot be read|is no picture"),
        (png(Image.new("RGB", (101, 100))), None, r"101 x 100 pixels: at most 10,000"),
        (whole, png(mask_with_hole((9, 8))), r"mask has 9 x 8 pixels, the image 8 x 8"),
        (whole, opaque, r"mask is opaque all over"),
        (whole, ("m.png", b"", "image/png"), r"mask is no picture"),
    ]:
        given: dict[str, Any] = {"mask": mask} if mask else {}
        with pytest.raises(openai.BadRequestError, match=message):
            client.images.edit(image=image, prompt="frog", **given)
    with pytest.raises(openai.BadRequestError, match=r"2 images: expected one"):
        client.images.edit(image=[whole, whole], prompt="frog")
    with pytest.raises(openai.BadRequestError, match=r"feather would have no effect on task variation"):
        client.images.edit(image=whole, prompt="frog", extra_body={"feather": 1, "task": "variation"})


def test_bodies_that_are_too_large(client: openai.OpenAI) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=numpy.uint8)
    with pytest.raises(openai.APIStatusError, match=r"larger than 100,000 bytes") as refused:
        client.images.edit(image=png(noise), prompt="frog")
    assert refused.value.status_code == 413 and refused.value.body["code"] == "too_large"  # type: ignore[index]
