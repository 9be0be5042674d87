"""Where guidance ends, what it then costs, and scaled spatial guidance against SciPy and whole passes."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from models_for_tests import model_settings, random_generator, slow_draw, slow_filter, tokens_of
from nextscale import Generator
from nextscale.generate.guidance import (
    dct_matrix,
    enlarging_matrix,
    guidance_weights,
    num_guided_scales,
    sharpen,
)
from nextscale.generate.settings import SamplingSettings
from nextscale.rng import token_uniforms
from nextscale.scales import Size

SIZES: list[tuple[Size, Size]] = [
    ((1, 1), (2, 2)), ((3, 3), (4, 4)), ((13, 13), (16, 16)), ((1, 2), (3, 5)), ((2, 2), (2, 2)),
    ((2, 5), (4, 5)), ((4, 4), (3, 6)),
]  # fmt: skip


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(model_settings(num_phis=0))


def _slow_enlarge(map_hw: numpy.ndarray, size: Size) -> numpy.ndarray:
    """Interpolate, transform, overwrite the lowest coefficients, transform back."""
    given = torch.from_numpy(map_hw)[None, None]
    interpolated = F.interpolate(given, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()
    spectrum = scipy.fft.dctn(interpolated, norm="ortho")
    h, w = (min(a, b) for a, b in zip(map_hw.shape, size, strict=True))
    larger = (interpolated.size / map_hw.size) ** 0.5
    spectrum[:h, :w] = scipy.fft.dctn(map_hw, norm="ortho")[:h, :w] * larger
    enlarged: numpy.ndarray = scipy.fft.idctn(spectrum, norm="ortho")
    return enlarged


# the end of classifier-free guidance


@pytest.mark.parametrize(
    ("settings", "branches"),
    [
        ({"guidance": 2.0}, [6, 6, 6, 6]),
        ({"guidance": 2.0, "num_unguided_scales": 2}, [6, 6, 3, 3]),
        ({"guidance": 2.0, "num_unguided_scales": 3}, [3, 3, 3, 3]),  # the ramp gives the first one nothing
        ({"guidance": 2.0, "num_unguided_scales": 4}, [3, 3, 3, 3]),
        ({"guidance": [0.0, 2.0, 2.0], "num_unguided_scales": [0, 3, 1]}, [6, 6, 6, 3]),
        ({"guidance": 0.0, "num_unguided_scales": 2}, [3, 3, 3, 3]),
    ],
    ids=str,
)
def test_unguided_scales_cost_no_unconditional_branch(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], branches: list[int]
) -> None:
    seen: list[tuple[int, int, int]] = []
    step = generator.prior.step

    def spy(scale: int, condition: Any, inputs_BTC: Tensor | None, cache: Any) -> Tensor:
        logits = step(scale, condition, inputs_BTC, cache)
        seen.append((len(condition.start_BD), cache.tensor.shape[2], len(logits)))
        return logits

    monkeypatch.setattr(generator.prior, "step", spy)
    generator([1, 2, 3], seeds=[0, 1, 2], **settings)
    assert seen == [(count, count, count) for count in branches]


def test_guidance_that_ends_changes_the_scales_after_its_end(generator: Generator) -> None:
    labels, seeds = list(range(10)), range(10)
    whole, early = (
        tokens_of(generator(labels, seeds=seeds, guidance=5.0, num_unguided_scales=number))
        for number in (0, 2)
    )
    assert torch.equal(whole[:, :5], early[:, :5]) and (whole != early)[:, 5:14].float().mean() > 0.1
    off = tokens_of(generator(labels, seeds=seeds, guidance=0.0))
    assert torch.equal(off, tokens_of(generator(labels, seeds=seeds, guidance=5.0, num_unguided_scales=4)))


def test_weights_follow_the_ramp_until_they_end() -> None:
    weights = guidance_weights(torch.tensor([3.0, 3.0, 0.0, 3.0]), torch.tensor([0, 2, 0, 4]), 4)
    assert weights.T.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert [num_guided_scales(weights[:, rows]) for rows in ([0], [1], [1, 2], [2, 3])] == [4, 2, 2, 0]
    assert guidance_weights(torch.tensor([3.0]), torch.tensor([0]), 1).tolist() == [[3.0]]


# scaled spatial guidance


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_the_transform_against_scipy(count: int) -> None:
    given = numpy.random.default_rng(0).normal(size=(count, 3))
    assert numpy.allclose(dct_matrix(count) @ given, scipy.fft.dct(given, axis=0, norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_enlarging_against_scipy(sizes: tuple[Size, Size]) -> None:
    size, larger = sizes
    given = numpy.random.default_rng(0).normal(size=size)
    enlarged = (enlarging_matrix(size, larger) @ given.flatten()).reshape(larger)
    assert numpy.allclose(enlarged, _slow_enlarge(given, larger), atol=1e-12)
    assert numpy.allclose(enlarging_matrix(size, larger).sum(axis=1), 1)  # a constant stays what it is
    if size == larger:
        assert numpy.allclose(enlarged, given)


def _slow_tokens(generator: Generator, label: int, seed: int, *, guidance: float, ssg: float) -> Tensor:
    """One image's tokens (1, L) from whole passes, each code's map enlarged on its own."""
    schedule = generator.settings.schedule
    tokens = torch.zeros(1, schedule.num_tokens, dtype=torch.int64)
    uniforms, before = token_uniforms(seed, schedule.num_tokens), numpy.zeros(0)
    for scale, size in enumerate(schedule.sizes):
        inputs = generator.tokenizer.teacher_inputs(tokens)
        conditional, unconditional = (generator.prior(torch.tensor([c]), inputs)[0] for c in (label, 10))
        weight = guidance * scale / (schedule.num_scales - 1)
        logits = ((1 + weight) * conditional - weight * unconditional)[schedule.slice(scale)].double().numpy()
        pushed = logits.copy()
        if scale:
            for code in range(logits.shape[1]):
                coarser = before[:, code].reshape(schedule.sizes[scale - 1])
                pushed[:, code] += ssg * (logits[:, code] - _slow_enlarge(coarser, size).flatten())
        for place, row in enumerate(pushed.tolist(), start=schedule.offsets[scale]):
            chances = slow_filter(row, top_k=0, top_p=1.0, temperature=1.0)
            tokens[0, place] = slow_draw(chances, uniforms[place])
        before = logits
    return tokens


def test_images_against_whole_passes(generator: Generator) -> None:
    ssg = [0.4, 0.0, 1.5]
    result = generator([3, 0, 9], seeds=[0, 5, 6], guidance=1.5, ssg=ssg)
    with torch.no_grad():
        slow = [
            _slow_tokens(generator, label, seed, guidance=1.5, ssg=weight)
            for label, seed, weight in zip((3, 0, 9), (0, 5, 6), ssg, strict=True)
        ]
    assert torch.equal(tokens_of(result), torch.cat(slow))


def test_no_weight_changes_nothing_to_the_bit(generator: Generator) -> None:
    logits, coarser = torch.randn(2, 9, 7), torch.randn(2, 4, 7)
    pushed = sharpen(logits, coarser, torch.tensor([0.0, 0.5]), sizes=((2, 2), (3, 3)))
    assert torch.equal(pushed[0], logits[0]) and not torch.allclose(pushed[1], logits[1], atol=0.1)
    plain = generator([1, 2], seeds=[3, 4], guidance=1.5)
    for ssg in (0.0, [0.0, 0.0], None):
        again = generator([1, 2], seeds=[3, 4], guidance=1.5, ssg=ssg)
        assert torch.equal(again.images_BCHW, plain.images_BCHW)


def test_the_coarsest_scale_has_nothing_to_be_pushed_away_from(generator: Generator) -> None:
    plain, pushed = (tokens_of(generator(list(range(10)), seeds=range(10), ssg=ssg)) for ssg in (0.0, 2.0))
    changed = (plain != pushed).float().mean(dim=0)
    assert changed[0] == 0 and changed[1:5].mean() > 0.1


@pytest.mark.parametrize("settings", [{"ssg": 0.7}, {"num_unguided_scales": 2, "guidance": 2.0}], ids=str)
def test_streams_agree_with_calls(generator: Generator, settings: dict[str, Any]) -> None:
    call: dict[str, Any] = {"labels": [1, 2], "seeds": [3, 4], **settings}
    assert numpy.array_equal(list(generator.stream(**call))[-1].images, generator(**call).images)


def test_both_are_off_by_default() -> None:
    assert (SamplingSettings().num_unguided_scales, SamplingSettings().ssg) == (0, 0.0)
