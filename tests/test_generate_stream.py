"""What a generation shows and leaves: `smooth` pictures, previews of a stream, saved results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from models_for_tests import VOCAB, model_settings, random_generator, tokens_of
from nextscale import Generator
from nextscale.generate import next_scale as next_scale_module
from nextscale.generate.result import Preview, Result
from nextscale.rng import code_uniforms


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(model_settings(num_phis=0))


def test_smooth_makes_pictures_without_tokens(generator: Generator) -> None:
    result = generator([1, 2, 3], seeds=[4, 5, 6], smooth=True, guidance=1.5, top_k=20)
    assert result.tokens_BL is None
    assert result.images_BCHW.isfinite().all() and result.images_BCHW.std() > 0.1
    alone = [
        generator([label], seeds=[label + 3], smooth=True, guidance=1.5, top_k=20) for label in (1, 2, 3)
    ]
    assert torch.allclose(
        result.images_BCHW, torch.cat([one.images_BCHW for one in alone]), atol=2e-3
    )  # sums of the small differences between batch sizes, sharpened by the mixture's low temperature
    other = generator([1], seeds=[5], smooth=True, guidance=1.5, top_k=20)
    assert not torch.allclose(other.images_BCHW, alone[0].images_BCHW, atol=2e-2)


def test_smooth_draws_anew_for_every_image_and_scale(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, ...]] = []

    def spy(*key: int) -> numpy.ndarray:
        drawn.append(key)
        return code_uniforms(*key)

    monkeypatch.setattr(next_scale_module, "code_uniforms", spy)
    generator([1, 2], seeds=[8, 9], smooth=True)
    assert drawn == [(seed, scale, (scale + 1) ** 2, VOCAB) for scale in range(4) for seed in (8, 9)]


@pytest.mark.parametrize("smooth", [False, True])
def test_a_stream_shows_every_scale_and_ends_with_the_image(generator: Generator, smooth: bool) -> None:
    call: dict[str, Any] = {"labels": [1, "dog"], "seeds": [3, 4], "guidance": 1.5, "smooth": smooth}
    result, previews = generator(**call), list(generator.stream(**call))
    assert [preview.scale for preview in previews] == [0, 1, 2, 3]
    assert numpy.array_equal(previews[-1].images, result.images)
    if smooth:
        assert all(preview.tokens_BL is None for preview in previews)
        return
    for preview, end in zip(previews, (1, 5, 14, 30), strict=True):
        assert preview.tokens_BL is not None
        assert torch.equal(preview.tokens_BL, tokens_of(result)[:, :end])
    scales = list(generator.tokenizer.decode_each_scale(tokens_of(result)))
    assert all(
        numpy.array_equal(preview.images, Result(images, None).images)
        for preview, images in zip(previews, scales, strict=True)
    )


def test_a_stream_checks_at_once_and_does_not_switch_gradients_off_for_its_caller(
    generator: Generator,
) -> None:
    with pytest.raises(ValueError, match="top_k 49"):
        generator.stream([1], seeds=[0], top_k=49)
    stream: Iterator[Preview] = generator.stream([1], seeds=[0])
    for _ in stream:
        assert torch.is_grad_enabled()


def test_results_carry_no_gradient(generator: Generator) -> None:
    generator.prior.requires_grad_(True)
    try:
        assert not generator([1], seeds=[0]).images_BCHW.requires_grad
    finally:
        generator.prior.requires_grad_(False)


def test_saving_a_result(generator: Generator, tmp_path: Path) -> None:
    result = generator([1, 2, 3, 4, 5], seeds=range(5))
    result.save(tmp_path / "square.png")
    result.save(tmp_path / "row.png", columns=5)
    with Image.open(tmp_path / "square.png") as square, Image.open(tmp_path / "row.png") as row:
        assert square.size == (3 * 10 + 2, 2 * 10 + 2)
        assert row.size == (5 * 10 + 2, 10 + 2)
        assert numpy.array_equal(numpy.asarray(row)[2:10, 12:20], result.images[1])
