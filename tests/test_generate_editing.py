"""Edits: which tokens and pixels stay, what is drawn instead, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from models_for_tests import SCHEDULE, model_settings, picture, random_generator, random_images, tokens_of
from nextscale import Generator
from nextscale.generate.compositing import place_on_canvas
from nextscale.generate.editing import box_mask, kept_tokens, known_scales
from nextscale.pixels import to_uint8

TASKS_WITH_MASK = ["inpaint", "replace"]
CORNER = numpy.ones((4, 4), dtype=numpy.float32)
CORNER[:2, :2] = 0


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator()


@pytest.fixture
def images(generator: Generator) -> Tensor:
    return random_images(generator.tokenizer)


def edit(generator: Generator, image: Any, **changes: Any) -> Any:
    """Three images, sampled with what is not given otherwise."""
    call = {"labels": [1, None, "dog"], "seeds": [4, 5, 6], "guidance": 1.5, "top_k": 20, **changes}
    return generator.edit(image, **call)


@pytest.mark.parametrize("task", TASKS_WITH_MASK)
def test_keeping_everything_gives_the_reconstruction(generator: Generator, images: Tensor, task: str) -> None:
    result = edit(generator, images, mask=torch.ones(4, 4), task=task, paste=False)
    tokens_BL = generator.tokenizer.encode(images)
    assert torch.equal(tokens_of(result), tokens_BL)
    assert torch.allclose(result.images_BCHW, generator.tokenizer.decode(tokens_BL), atol=1e-5)
    pasted = edit(generator, images, mask=numpy.ones((8, 8), dtype=bool), task=task)
    assert torch.equal(pasted.images_BCHW, images)


@pytest.mark.parametrize("task", TASKS_WITH_MASK)
def test_keeping_nothing_is_plain_sampling(generator: Generator, images: Tensor, task: str) -> None:
    plain = generator([1, None, "dog"], seeds=[4, 5, 6], guidance=1.5, top_k=20)
    result = edit(generator, images, mask=torch.zeros(8, 8), task=task)
    assert torch.equal(tokens_of(result), tokens_of(plain))
    assert torch.equal(result.images_BCHW, plain.images_BCHW)


def test_kept_tokens_stay_and_others_are_drawn(generator: Generator, images: Tensor) -> None:
    result = tokens_of(edit(generator, images, mask=CORNER, task="replace"))
    given, kept_L = generator.tokenizer.encode(images), kept_tokens(
        torch.from_numpy(CORNER)[None], SCHEDULE, from_scale=None
    )[0]  # fmt: skip
    assert 0 < kept_L.sum() < len(kept_L)
    assert torch.equal(result[:, kept_L], given[:, kept_L])
    assert not torch.equal(result[:, ~kept_L], given[:, ~kept_L])
    other = tokens_of(edit(generator, images, mask=CORNER, task="replace", seeds=[7, 8, 9]))
    assert torch.equal(other[:, kept_L], given[:, kept_L])
    assert not torch.equal(other[:, ~kept_L], result[:, ~kept_L])
    label = tokens_of(edit(generator, images, mask=CORNER, task="replace", labels=[2, 3, 4]))
    assert not torch.equal(label, result)


def test_every_place_keeps_its_own_random_number(generator: Generator, images: Tensor) -> None:
    """What is drawn follows from seed and place, and from the tokens of coarser scales alone."""
    two = CORNER.copy()
    two[2, 3] = 0
    one, more = (tokens_of(edit(generator, images, mask=mask, task="replace")) for mask in (CORNER, two))
    kept = [kept_tokens(torch.from_numpy(mask)[None], SCHEDULE, from_scale=None)[0] for mask in (CORNER, two)]
    first = int((kept[0] != kept[1]).nonzero()[0])
    scale = SCHEDULE.level_ids[first]
    alike = SCHEDULE.slice(scale)
    assert scale > 1 and torch.equal(one[:, : alike.start], more[:, : alike.start])
    drawn_in_both = ~kept[0][alike] & ~kept[1][alike]
    assert drawn_in_both.any()
    assert torch.equal(one[:, alike][:, drawn_in_both], more[:, alike][:, drawn_in_both])


def test_masks_at_every_scale() -> None:
    kept = SCHEDULE.split(kept_tokens(torch.from_numpy(CORNER)[None], SCHEDULE, from_scale=None))
    assert [part[0].int().tolist() for part in kept] == [
        [1], [0, 1, 1, 1], [0, 0, 1, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1, *[1] * 8],
    ]  # fmt: skip
    for from_scale in range(5):
        kept = SCHEDULE.split(kept_tokens(torch.zeros(1, 4, 4), SCHEDULE, from_scale=from_scale))
        assert [bool(part.all()) for part in kept] == [scale < from_scale for scale in range(4)]
    nothing = kept_tokens(torch.full((1, 4, 4), 0.5), SCHEDULE, from_scale=None)
    assert not nothing.any()
    half, most = torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.51)
    both = kept_tokens(torch.cat([half, most]), SCHEDULE, from_scale=None)
    assert both.all(dim=1).tolist() == [False, True] and not both[0].any()


def test_a_cell_is_kept_as_much_as_its_least_kept_pixel(generator: Generator, images: Tensor) -> None:
    pixels = numpy.ones((8, 8), dtype=numpy.float32)
    cells = numpy.ones((4, 4), dtype=numpy.float32)
    pixels[1, 3], cells[0, 1] = 0.5, 0.5
    by_pixels, by_cells = (
        tokens_of(edit(generator, images, mask=mask, task="replace")) for mask in (pixels, cells)
    )
    assert torch.equal(by_pixels, by_cells)
    pixels[1, 3] = 0.6
    assert torch.equal(
        tokens_of(edit(generator, images, mask=pixels, task="replace")), generator.tokenizer.encode(images)
    )


def test_boxes() -> None:
    keep = box_mask((0.25, 0.5, 0.75, 1), (8, 4))
    assert keep.shape == (8, 4) and (keep == 0).sum() == 8 and (keep[2:6, 2:] == 0).all()
    assert not box_mask((0, 0, 1, 1), (5, 3)).any()
    for box, message in (
        ((0.5, 0, 0.5, 1), "is none"), ((0, 0, 1.1, 1), "is none"), ((0, 0, 0.01, 1), "holds no pixel"),
        ((float("nan"), 0, 1, 1), "is none"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            box_mask(box, (8, 8))


def test_an_image_depends_on_its_own_row_alone(generator: Generator, images: Tensor) -> None:
    masks = torch.stack([torch.from_numpy(CORNER), torch.zeros(4, 4), torch.from_numpy(CORNER).T.flip(0)])
    call: dict[str, Any] = {"task": "inpaint", "guidance": 1.5}
    together = generator.edit(images, mask=masks, labels=[1, 2, None], seeds=[4, 5, 6], **call)
    for row, label in enumerate([1, 2, None]):
        alone = generator.edit(images[row], mask=masks[row], labels=[label], seeds=[4 + row], **call)
        assert torch.equal(tokens_of(alone)[0], tokens_of(together)[row])
        assert torch.allclose(alone.images_BCHW[0], together.images_BCHW[row], atol=1e-5)
    repeated = edit(generator, images[0].expand(3, -1, -1, -1), mask=CORNER)
    assert torch.equal(tokens_of(edit(generator, images[0], mask=CORNER)), tokens_of(repeated))


def test_kept_pixels_stay_to_the_bit(generator: Generator) -> None:
    image = numpy.asarray(picture(3, (8, 8)))
    keep = box_mask((0.25, 0.25, 0.75, 0.75), (8, 8))
    for feather in (None, 0, 5):
        edited = edit(generator, image, mask=keep, feather=feather).images
        assert (edited[:, keep == 1] == image[keep == 1]).all()
        assert (edited[:, keep == 0] != image[keep == 0]).any()
    bare = edit(generator, image, mask=keep, paste=False).images
    assert (bare[:, keep == 1] != image[keep == 1]).any()
    soft = torch.from_numpy(keep) * 0.5 + 0.5
    mixed = edit(generator, image, mask=soft, feather=0).images_BCHW
    alone = edit(generator, image, mask=soft, paste=False).images_BCHW
    given = torch.from_numpy(image.copy()).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(mixed[..., 3, 3], (given[:, 3, 3] + alone[..., 3, 3]) / 2, atol=1e-6)


def test_in_painting_does_not_look_into_the_hole(generator: Generator, images: Tensor) -> None:
    keep = torch.from_numpy(box_mask((0.25, 0.25, 0.75, 0.75), (8, 8)))
    other = torch.where(keep == 1, images, random_images(generator.tokenizer))
    one, two = (edit(generator, given, mask=keep) for given in (images, other))
    assert torch.equal(one.images_BCHW, two.images_BCHW)
    assert torch.equal(tokens_of(one), tokens_of(two))
    seen = [edit(generator, given, mask=keep, hide=False) for given in (images, other)]
    assert not torch.equal(tokens_of(seen[0]), tokens_of(seen[1]))
    assert torch.equal(tokens_of(seen[0]), tokens_of(edit(generator, images, mask=keep, task="replace")))


def test_out_painting(generator: Generator, images: Tensor) -> None:
    result = edit(generator, images, task="outpaint", share=0.5, place=(1, 0))
    small = torch.nn.functional.interpolate(images, size=(4, 4), mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.equal(result.images_BCHW[:, :, 4:, :4], small)
    canvas, keep = place_on_canvas(images, (8, 8), cell=2, share=0.5, place=(1, 0))
    same = edit(generator, canvas, mask=keep[0], task="replace", from_scale=2)
    assert torch.equal(tokens_of(result), tokens_of(same))
    assert not torch.equal(tokens_of(edit(generator, images, task="outpaint")), tokens_of(result))


def test_variations_keep_coarse_scales(generator: Generator, images: Tensor) -> None:
    given = generator.tokenizer.encode(images)
    for from_scale in range(5):
        result = tokens_of(edit(generator, images, task="variation", from_scale=from_scale))
        kept = SCHEDULE.offsets[from_scale]
        assert torch.equal(result[:, :kept], given[:, :kept])
        assert from_scale == 4 or not torch.equal(result[:, kept:], given[:, kept:])
    half = tokens_of(edit(generator, images, task="variation", from_scale=2))
    assert torch.equal(tokens_of(edit(generator, images, task="variation")), half)


def test_enlarging_keeps_what_a_small_image_determines(generator: Generator) -> None:
    for side, scales in ((1, 1), (2, 1), (4, 2), (6, 3), (7, 3)):
        small = torch.rand(1, 3, side, side)
        assert known_scales(small, generator.tokenizer) == scales
    small = torch.rand(1, 3, 4, 4)
    large = torch.nn.functional.interpolate(small, size=(8, 8), mode="bicubic").clamp(-1, 1)
    result = tokens_of(edit(generator, small, task="upscale"))
    assert torch.equal(
        result, tokens_of(edit(generator, large.expand(3, -1, -1, -1), task="variation", from_scale=2))
    )


def test_what_was_enlarged_shrinks_again(generator: Generator) -> None:
    small = torch.nn.functional.avg_pool2d(random_images(generator.tokenizer, 1), 2)

    def error(**settings: Any) -> float:
        result = edit(generator, small, task="upscale", **settings).images_BCHW
        again = torch.nn.functional.interpolate(result, size=(4, 4), mode="bicubic", antialias=True)
        return float((again - small).square().mean())

    assert error() < 0.05 * error(paste=False)


def test_pictures_of_every_type_are_one(generator: Generator) -> None:
    image = picture(5, (8, 8))
    array = numpy.asarray(image)
    floats = torch.from_numpy(array.copy()).permute(2, 0, 1) / 127.5 - 1
    tokens = [
        tokens_of(edit(generator, given, mask=CORNER))
        for given in (image, array, array[None], floats, image.convert("RGBA"))
    ]
    assert all(torch.equal(tokens[0], other) for other in tokens[1:])


def test_a_stream_ends_with_the_edit(generator: Generator, images: Tensor) -> None:
    call: dict[str, Any] = {"mask": CORNER, "labels": [1, 2, 3], "seeds": [4, 5, 6]}
    previews = list(generator.stream_edit(images, **call))
    result = generator.edit(images, **call)
    assert [preview.scale for preview in previews] == [0, 1, 2, 3]
    assert (previews[-1].images == result.images).all()
    assert previews[-1].tokens_BL is not None and torch.equal(previews[-1].tokens_BL, tokens_of(result))
    given, keep = to_uint8(images), numpy.kron(CORNER, numpy.ones((2, 2))) == 1
    assert all((preview.images[:, keep] == given[:, keep]).all() for preview in previews)


def test_in_bfloat16() -> None:
    exact, fast = random_generator(), random_generator()
    fast = Generator(fast.settings, fast.tokenizer, fast.prior, dtype="bfloat16")
    images = random_images(exact.tokenizer)
    keep = torch.from_numpy(box_mask((0, 0, 1, 0.5), (8, 8)))
    for task in TASKS_WITH_MASK:
        result = edit(fast, images, mask=keep, task=task)
        assert torch.equal(result.images_BCHW[..., 4:], images[..., 4:])
    kept = tokens_of(edit(fast, images, mask=torch.ones(8, 8)))
    assert (kept == exact.tokenizer.encode(images)).float().mean() > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "in-paint"}, "task 'in-paint' is unknown: .*did you mean inpaint"),
        ({"mask": None}, "task inpaint needs a mask, 1 where the image is kept"),
        ({"task": "variation"}, "task variation takes no mask"),
        ({"mask": numpy.ones((5, 4))}, "expected a mask of 8 x 8 pixels or 4 x 4 cells"),
        ({"mask": numpy.full((4, 4), 255)}, "mask values must lie in"),
        ({"mask": numpy.full((4, 4), numpy.nan)}, "mask values must lie in"),
        ({"mask": numpy.ones((2, 4, 4))}, "2 masks for 3 images"),
        ({"image": torch.zeros(2, 3, 8, 8)}, "2 images for 3 labels"),
        ({"image": torch.zeros(3, 9, 9)}, "expected an image of 8 x 8 pixels, given 9 x 9"),
        ({"image": torch.full((3, 8, 8), 200.0)}, "image values must lie in"),
        ({"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}, "expected an image as float"),
        ({"image": numpy.zeros((8, 8, 3))}, "expected an image as uint8"),
        ({"from_scale": 5}, "from_scale 5 is out of range: expected 0 to 4"),
        ({"feather": -1}, "feather -1: Input should be greater"),
        ({"paste": False, "feather": 2}, "feather 2 would have no effect with paste False"),
        ({"share": 0.5}, "share would have no effect on task inpaint.*belongs to outpaint"),
        ({"task": "outpaint", "mask": None, "share": 1.5}, "share 1.5: Input should be less than 1"),
        ({"task": "outpaint", "mask": None, "place": (2, 0)}, "place"),
        ({"task": "upscale", "mask": None}, "needs images smaller than 8 x 8"),
        ({"task": "upscale", "mask": None, "image": torch.zeros(3, 2, 6)}, "of their proportions"),
        ({"feathr": 1}, "unknown sampling setting 'feathr'"),
        ({"labels": ["cow", 1, 2]}, "unknown class 'cow'"),
    ],
)
def test_what_is_refused(generator: Generator, changes: dict[str, Any], message: str) -> None:
    call = {"image": torch.zeros(3, 8, 8), "mask": CORNER, **changes}
    with pytest.raises(ValueError, match=message):
        edit(generator, call.pop("image"), **call)


@pytest.mark.parametrize("kind", ["next_token", "diffusion"])
def test_other_families_are_refused(kind: str) -> None:
    sizes = [(4, 4)] if kind == "next_token" else [(1, 1), (4, 4)]
    other = random_generator(model_settings(sizes=sizes, prior={"kind": kind}, num_phis=1))
    with pytest.raises(ValueError, match=f"the prior is of kind {kind}: use a next_scale model"):
        other.edit(Image.new("RGB", (8, 8)), mask=CORNER, labels=[1], seeds=[0])
