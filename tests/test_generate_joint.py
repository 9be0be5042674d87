"""Requests that share a batch get what each would get alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy
import pytest
import torch

from models_for_tests import model_settings, random_generator, random_images
from nextscale import Generator
from nextscale.generate.joint import Share, Stage, can_share, joined, stages
from nextscale.generate.request import Sampling


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator()


def plain(generator: Generator, labels: Sequence[int | None], seeds: Sequence[int], **settings: Any) -> Share:
    return Share(generator.request(labels, seeds, False, cast(Sampling, settings)))


def finished(generator: Generator, shares: Sequence[Share]) -> list[numpy.ndarray]:
    *_, last = stages(generator, shares)
    assert last.last
    return last.pictures(range(len(shares)))


def shares_of_all_kinds(generator: Generator) -> list[Share]:
    image = random_images(generator.tokenizer)[:1]
    keep = numpy.ones(generator.tokenizer.image_size, dtype=numpy.float32)
    keep[:4] = 0
    return [
        plain(generator, [1], [7], guidance=0.0, top_k=5),
        Share(*generator.edit_request(image, keep, [2, None], [3, 4], "inpaint", {"guidance": 3.0})),
        plain(generator, [0, 2], [1, 2], guidance=2.0, temperature=0.7, num_unguided_scales=1),
        Share(*generator.edit_request(image, None, [0], [9], "variation", {"from_scale": 1, "ssg": 0.5})),
        plain(generator, [None], [8], top_p=0.5),
    ]


def test_every_share_is_what_it_would_be_alone(generator: Generator) -> None:
    shares = shares_of_all_kinds(generator)
    together = finished(generator, shares)
    assert [len(images) for images in together] == [1, 2, 2, 1, 1]
    for share, images in zip(shares, together, strict=True):
        assert numpy.array_equal(images, finished(generator, [share])[0])


def test_shares_are_what_the_generator_gives(generator: Generator) -> None:
    image = random_images(generator.tokenizer)[:1]
    shares = shares_of_all_kinds(generator)
    together = finished(generator, shares)
    alone = generator([0, 2], seeds=[1, 2], guidance=2.0, temperature=0.7, num_unguided_scales=1)
    assert numpy.array_equal(together[2], alone.images)
    edited = generator.edit(image, labels=[0], seeds=[9], task="variation", from_scale=1, ssg=0.5)
    assert numpy.array_equal(together[3], edited.images)


def test_pictures_of_some_shares_on_the_way(generator: Generator) -> None:
    shares = shares_of_all_kinds(generator)
    way: list[Stage] = list(stages(generator, shares))
    assert [stage.number for stage in way] == list(range(generator.settings.schedule.num_scales))
    assert [stage.last for stage in way] == [False] * (len(way) - 1) + [True]
    some = way[1].pictures([2, 0])
    previews = list(
        generator.stream([0, 2], seeds=[1, 2], guidance=2.0, temperature=0.7, num_unguided_scales=1)
    )
    assert numpy.array_equal(some[0], previews[1].images) and len(some) == 2
    assert way[1].pictures([]) == []


def test_a_batch_of_plain_requests_forces_nothing(generator: Generator) -> None:
    shares = shares_of_all_kinds(generator)
    assert joined([shares[0].request, shares[2].request]).forced is None
    forced = joined([share.request for share in shares[:2]]).forced
    assert forced is not None and not forced.kept_BL[0].any() and forced.kept_BL[1:].any()
    assert torch.equal(forced.kept_BL[1:], shares[1].request.forced.kept_BL)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["next_token", "diffusion"])
def test_other_families_share_too(kind: str) -> None:
    own = {"sizes": ((4, 4),), "num_phis": 1} if kind == "next_token" else {}
    generator = random_generator(model_settings(prior={"kind": kind}, **own))
    steps = {"num_steps": 4} if kind == "diffusion" else {}
    shares = [
        plain(generator, [1], [5], guidance=1.0, **steps),
        plain(generator, [2], [6], guidance=0.0, **steps),
    ]
    together = finished(generator, shares)
    assert numpy.array_equal(together[0], generator([1], seeds=[5], guidance=1.0, **steps).images)
    assert numpy.array_equal(together[1], generator([2], seeds=[6], guidance=0.0, **steps).images)
    if kind == "diffusion":
        assert not can_share(shares[0].request, plain(generator, [1], [5], num_steps=5).request)
