"""Generation: the cache against whole passes, images that depend on themselves alone, streams, previews."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from models_for_tests import CLASSES, SIZES, model_settings, random_generator, slow_sample, tokens_of
from nextscale import Generator
from nextscale.generate.result import Result

SETTINGS: list[dict[str, Any]] = [
    {},
    {"guidance": 2.0},
    {"guidance": 1.0, "top_k": 7, "temperature": 1.3},
    {"guidance": 0.5, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.6, "temperature": 0.7},
    {"guidance": 3.0, "top_k": 1},
    {"guidance": 2.0, "num_unguided_scales": 2},
]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(model_settings(num_phis=0))


def _same(first: Result, second: Result) -> bool:
    return torch.equal(first.images_BCHW, second.images_BCHW) and torch.equal(
        tokens_of(first), tokens_of(second)
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_cache_against_whole_passes(generator: Generator, settings: dict[str, Any]) -> None:
    labels, seeds = [3, 0, None, 9], [0, 5, 6, 2**63 - 1]
    result = generator(labels, seeds=seeds, **settings)
    slow = [
        slow_sample(generator, 10 if label is None else label, seed, **settings)
        for label, seed in zip(labels, seeds, strict=True)
    ]
    assert torch.equal(tokens_of(result), torch.cat(slow))
    assert torch.equal(result.images_BCHW, generator.tokenizer.decode(tokens_of(result)))
    assert result.images_BCHW.shape == (4, 3, 8, 8) and result.images.shape == (4, 8, 8, 3)


@pytest.mark.parametrize(
    ("sizes", "prior"),
    [
        (((1, 1),), {}),
        (((4, 4),), {}),
        (((2, 2), (2, 2), (4, 4)), {}),
        (((1, 1), (1, 2), (2, 3), (3, 5)), {}),
        (((1, 2), (5, 3)), {"unit_qk": False}),
        (SIZES, {"shared_adaln": True}),
    ],
    ids=["one cell", "one scale", "a size twice", "wide", "tall, plain attention", "shared modulation"],
)
def test_other_schedules_and_priors_against_whole_passes(
    sizes: tuple[tuple[int, int], ...], prior: dict[str, Any]
) -> None:
    model = random_generator(model_settings(sizes=sizes, prior=prior))
    result = model([1, 4], seeds=[3, 5], guidance=1.5)
    slow = [slow_sample(model, label, seed, guidance=1.5) for label, seed in ((1, 3), (4, 5))]
    assert torch.equal(tokens_of(result), torch.cat(slow))
    assert result.images_BCHW.shape == (2, 3, 2 * sizes[-1][0], 2 * sizes[-1][1])


def test_samples_are_not_degenerate(generator: Generator) -> None:
    """Whatever the other tests compare is worth comparing: tokens vary over images and places."""
    tokens = tokens_of(generator(list(range(10)), seeds=range(10)))
    assert len(tokens.unique(dim=0)) == 10 and len(tokens.unique()) > 20
    assert generator.tokenizer.decode(tokens).std() > 0.1


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_teacher_inputs_are_what_generation_met_to_the_bit(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    met: list[Tensor] = []
    step = generator.prior.step

    def spy(scale: int, condition: Any, inputs_BTC: Tensor | None, cache: Any) -> Tensor:
        assert (inputs_BTC is None) == (scale == 0)
        if inputs_BTC is not None:
            met.append(inputs_BTC)
        return step(scale, condition, inputs_BTC, cache)

    monkeypatch.setattr(generator.prior, "step", spy)
    result = generator([1, 2, 3], seeds=[0, 1, 2], guidance=guidance)
    inputs_BLC = torch.cat(met, dim=1)
    expected = generator.tokenizer.teacher_inputs(tokens_of(result))
    assert expected.shape == (3, 29, 6) and expected.abs().mean() > 0.1
    assert len(inputs_BLC) == (6 if guidance else 3)
    for branch in inputs_BLC.split(3):
        assert torch.equal(branch, expected)


# one generation and its neighbours


def test_one_at_a_time_or_in_a_batch_with_settings_of_their_own(generator: Generator) -> None:
    labels = [index % 10 for index in range(16)]
    settings: dict[str, list[Any]] = {
        "guidance": [0.0, 1.5, 3.0, 0.5] * 4,
        "top_k": [0, 5, 1, 30] * 4,
        "top_p": [1.0, 0.9, 0.5, 0.99, 0.3, 0.8, 1.0, 0.6] * 2,
        "temperature": [1.0, 0.7, 1.6, 1.0] * 4,
        "num_unguided_scales": [0, 1, 0, 4] * 4,
        "ssg": [0.0, 0.5, 0.0, 0.2, 1.0, 0.0, 0.3, 0.0] * 2,
    }
    together = tokens_of(generator(labels, seeds=range(100, 116), **settings))
    alone = torch.cat(
        [
            tokens_of(
                generator(
                    [labels[i]], seeds=[100 + i], **{name: values[i] for name, values in settings.items()}
                )
            )
            for i in range(16)
        ]
    )
    assert (together == alone).float().mean() >= 0.999


def test_an_image_does_not_depend_on_its_neighbours(generator: Generator) -> None:
    alone = generator([3], seeds=[7], guidance=0.0)
    neighbours: list[dict[str, Any]] = [
        {},
        {"guidance": [0.0, 4.0, 0.0]},
        {"top_k": [0, 1, 3], "guidance": 0.0},
        {"top_p": [1.0, 0.1, 0.5], "temperature": [1.0, 5.0, 0.2], "guidance": 0.0},
    ]
    for settings in neighbours:
        result = generator([3, "ship", None], seeds=[7, 7, 8], **settings)
        assert torch.equal(tokens_of(result)[:1], tokens_of(alone))
        assert torch.allclose(result.images_BCHW[:1], alone.images_BCHW, atol=1e-5)


def test_greedy_images_with_ties_do_not_depend_on_their_neighbours() -> None:
    """A head without weights makes all codes equal: the hardest case of the one above."""
    model = random_generator()
    nn.init.zeros_(model.prior.head.weight)
    nn.init.zeros_(model.prior.head.bias)
    tokens = tokens_of(model([1, 2], seeds=[3, 4], top_k=[1, 0]))
    assert torch.equal(tokens[:1], tokens_of(model([1], seeds=[3], top_k=1)))


def test_two_streams_side_by_side(generator: Generator) -> None:
    calls: list[dict[str, Any]] = [
        {"labels": [1, 2], "seeds": [3, 4], "guidance": 1.5},
        {"labels": ["cat"], "seeds": [9], "top_k": 12},
    ]
    alone = [list(generator.stream(**call)) for call in calls]
    streams = [generator.stream(**call) for call in calls]
    both = [(next(streams[0]), next(streams[1])) for _ in range(4)]
    for one, other in zip(alone, zip(*both, strict=True), strict=True):
        for left, right in zip(one, other, strict=True):
            assert numpy.array_equal(left.images, right.images)
            assert left.tokens_BL is not None and right.tokens_BL is not None
            assert torch.equal(left.tokens_BL, right.tokens_BL)


def test_a_failure_leaves_nothing_behind(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generator([1, 2], seeds=[3, 4], guidance=1.5)
    before = [dict(vars(part)) for part in (generator, generator.prior, generator.tokenizer.quantizer)]

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(generator.tokenizer.quantizer.phis[3], "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            generator([5], seeds=[6])
        stream = generator.stream([5], seeds=[6])
        assert [next(stream).scale for _ in range(3)] == [0, 1, 2]
        with pytest.raises(RuntimeError, match="out of memory"):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
    assert _same(generator([1, 2], seeds=[3, 4], guidance=1.5), expected)
    after = [dict(vars(part)) for part in (generator, generator.prior, generator.tokenizer.quantizer)]
    assert [sorted(names) for names in before] == [sorted(names) for names in after]


def test_a_stream_may_be_left_early(generator: Generator) -> None:
    expected = generator([1], seeds=[3])
    assert next(generator.stream([8], seeds=[1], guidance=3.0)).scale == 0
    assert _same(generator([1], seeds=[3]), expected)


# what decides the image


def test_seeds(generator: Generator) -> None:
    first = generator([3, 3], seeds=[0, 1])
    assert _same(first, generator([3, 3], seeds=[0, 1]))
    torch.manual_seed(99)
    numpy.random.seed(99)
    assert _same(first, generator([3, 3], seeds=[numpy.int64(0), 1]))
    assert not torch.equal(first.images_BCHW[0], first.images_BCHW[1])
    assert not torch.equal(tokens_of(first)[0], tokens_of(first)[1])


def test_greedy_needs_no_seed(generator: Generator) -> None:
    tokens = tokens_of(generator([3] * 4, seeds=[0, 1, 2, 2**62], top_k=1))
    assert len(tokens.unique(dim=0)) == 1


@pytest.mark.parametrize(
    "change",
    [{"top_k": 2}, {"top_p": 0.3}, {"temperature": 0.3}, {"guidance": 2.0}, {"ssg": 1.0}, {"smooth": True}],
    ids=str,
)
def test_every_setting_changes_the_image(generator: Generator, change: dict[str, Any]) -> None:
    labels, seeds = list(range(8)), range(8)
    plain, changed = generator(labels, seeds=seeds), generator(labels, seeds=seeds, **change)
    assert (plain.images != changed.images).any(axis=(1, 2, 3)).sum() >= 6


def test_sampling_settings_of_the_model_are_the_default() -> None:
    own: dict[str, Any] = {"guidance": 2.0, "top_k": 9, "top_p": 0.8, "temperature": 1.2}
    own |= {"num_unguided_scales": 1, "ssg": 0.5}
    model, plain = random_generator(model_settings(sampling=own)), random_generator()
    assert _same(model([1, 2], seeds=[3, 4]), plain([1, 2], seeds=[3, 4], **own))
    other = {**own, "guidance": 0.0}
    assert _same(model([1, 2], seeds=[3, 4], guidance=0.0), plain([1, 2], seeds=[3, 4], **other))


def test_guidance_grows_from_none_at_the_first_scale(generator: Generator) -> None:
    labels, seeds = list(range(10)), range(10)
    plain, guided = (tokens_of(generator(labels, seeds=seeds, guidance=g)) for g in (0.0, 5.0))
    changed = (plain != guided).float().mean(dim=0)
    assert changed[0] == 0 and changed[1:5].mean() > 0.1


def test_one_scale_gets_all_of_the_guidance() -> None:
    model = random_generator(model_settings(sizes=((4, 4),)))
    plain, guided = (tokens_of(model(list(range(4)), seeds=range(4), guidance=g)) for g in (0.0, 5.0))
    assert (plain != guided).float().mean() > 0.1


def test_no_label_is_the_unconditional_class(generator: Generator) -> None:
    unconditional = generator([None] * 3, seeds=[0, 1, 2])
    slow = [slow_sample(generator, len(CLASSES), seed) for seed in range(3)]
    assert torch.equal(tokens_of(unconditional), torch.cat(slow))
    guided = generator([None] * 3, seeds=[0, 1, 2], guidance=4.0)
    assert (
        tokens_of(guided) == tokens_of(unconditional)
    ).float().mean() > 0.95  # nothing to be pushed away from
    assert not torch.equal(tokens_of(generator([0] * 3, seeds=[0, 1, 2])), tokens_of(unconditional))


def test_labels_by_number_digits_and_name(generator: Generator) -> None:
    tokens = tokens_of(generator([6, "6", "frog", numpy.int64(6)], seeds=[5] * 4))
    assert len(tokens.unique(dim=0)) == 1
    assert not torch.equal(tokens[:1], tokens_of(generator(["ship"], seeds=[5])))


def test_training_mode_and_autocast_do_no_harm() -> None:
    """Modules in training mode sample as loaded ones do; autocast gives usable images."""
    settings = model_settings()
    loud = random_generator(settings)
    expected = loud([1], seeds=[0])
    again = Generator(settings, loud.tokenizer.train(), loud.prior.train())
    assert _same(again([1], seeds=[0]), expected)
    with torch.autocast("cpu", torch.bfloat16):
        result = again([1, 2], seeds=[0, 1], guidance=1.0)
    assert result.images_BCHW.isfinite().all() and result.images.std() > 1
