"""Images of a diffusion prior: each from its own seed, label and settings, by ddim or ddpm."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from models_for_tests import CLASSES, CODE_DIM, SIZES, model_settings, random_generator
from nextscale import Generator
from nextscale.prior.noise import clean_guess, ddim_step, ddpm_step, steps_back
from nextscale.rng import image_normals


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Features with a mean and a deviation; weights that guess noise of the right size."""
    generator = random_generator(model_settings(prior={"kind": "diffusion"}))
    with torch.no_grad():
        generator.prior.head.weight.mul_(0.3)
        generator.prior.measure(torch.linspace(-1, 1, CODE_DIM), torch.linspace(0.5, 1.5, CODE_DIM))
    return generator


@torch.no_grad()
def _slowly(
    generator: Generator, label: int, seed: int, *, guidance: float, sampler: str, num_steps: int
) -> Tensor:
    """One image, the two branches one after the other."""
    noisy = torch.from_numpy(image_normals(seed, 0, (16, CODE_DIM)))[None]
    for number, step in enumerate(steps_back(num_steps), start=1):
        times = torch.tensor([step.time])
        conditional = generator.prior(torch.tensor([label]), noisy, times)
        unconditional = generator.prior(torch.tensor([len(CLASSES)]), noisy, times)
        noise = unconditional + (1 + guidance) * (conditional - unconditional)
        clean = clean_guess(noisy, noise, step)
        fresh = torch.from_numpy(image_normals(seed, number, (16, CODE_DIM)))[None]
        noisy = ddim_step(clean, noise, step) if sampler == "ddim" else ddpm_step(noisy, clean, fresh, step)
    prior = generator.prior
    features = (noisy * prior.deviation_C + prior.mean_C).transpose(1, 2).reshape(1, CODE_DIM, 4, 4)
    return generator.tokenizer.decode_features(features)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_images_are_those_of_the_slow_reference_alone_and_in_a_batch(
    generator: Generator, guidance: float, sampler: str
) -> None:
    options: dict[str, Any] = {"guidance": guidance, "sampler": sampler, "num_steps": 8}
    labels, seeds = [1, 5, 9], [7, 8, 2**63 - 1]
    result = generator(labels, seeds=seeds, **options)
    assert result.tokens_BL is None and 0.1 < result.images_BCHW.std() < 1
    for row, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
        expected = _slowly(generator, label, seed, **options)
        assert torch.allclose(result.images_BCHW[row : row + 1], expected, atol=1e-4)
        alone = generator([label], seeds=[seed], **options).images_BCHW
        assert torch.allclose(alone, expected, atol=1e-4)


def test_everything_counts(generator: Generator) -> None:
    plain = generator([1], seeds=[3], num_steps=6).images_BCHW
    assert torch.equal(generator([1], seeds=[3], num_steps=6).images_BCHW, plain)
    others: list[tuple[list[int | None], list[int], dict[str, Any]]] = [
        ([2], [3], {}), ([None], [3], {}), ([1], [4], {}), ([1], [3], {"guidance": 2.0}),
        ([1], [3], {"sampler": "ddpm"}), ([1], [3], {"num_steps": 7}),
    ]  # fmt: skip
    for labels, seeds, options in others:
        other = generator(labels, seeds=seeds, **{"num_steps": 6, **options}).images_BCHW
        assert (other - plain).abs().max() > 0.02, (labels, seeds, options)
    both = generator([1, 1], seeds=[3, 3], num_steps=6, guidance=[0.0, 2.0]).images_BCHW
    assert torch.allclose(both[0], plain[0], atol=1e-4) and not torch.allclose(both[1], plain[0], atol=1e-2)


@pytest.mark.parametrize(("sampler", "expected"), [("ddim", 50), ("ddpm", 250)])
def test_a_stream_shows_every_step_of_which_there_are_as_many_as_is_usual(
    generator: Generator, sampler: str, expected: int
) -> None:
    previews = list(generator.stream([1], seeds=[3], sampler=sampler))
    assert [preview.scale for preview in previews] == list(range(expected))
    result = generator([1], seeds=[3], sampler=sampler)
    assert numpy.array_equal(previews[-1].images, result.images)
    assert all(preview.tokens_BL is None for preview in previews)


def test_the_models_own_settings_are_taken() -> None:
    own = model_settings(prior={"kind": "diffusion"}, sampling={"sampler": "ddpm", "num_steps": 5})
    generator = random_generator(own)
    assert len(list(generator.stream([1], seeds=[3]))) == 5
    given = generator([1], seeds=[3], sampler="ddpm", num_steps=5, guidance=0.0)
    assert torch.equal(generator([1], seeds=[3]).images_BCHW, given.images_BCHW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": True}, "smooth mixes the codes of a whole scale, the prior is of kind diffusion"),
        ({"top_k": 5}, "top_k would have no effect: the prior is of kind diffusion; leave it out"),
        ({"top_p": 1.0}, "top_p would have no effect"),
        ({"temperature": 1.0}, "temperature would have no effect"),
        ({"sampler": "euler"}, "sampler 'euler' is unknown: expected ddim or ddpm"),
        ({"num_steps": 0}, "num_steps 0 is out of range: expected a whole number from 1 to 1000"),
        ({"num_steps": 1001}, "num_steps 1001 is out of range"),
        ({"num_steps": 2.5}, "num_steps 2.5 is out of range"),
        ({"num_stepz": 5}, "unknown sampling setting 'num_stepz': .*did you mean num_steps?"),
    ],
    ids=str,
)
def test_what_it_does_not_know(generator: Generator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator([1], seeds=[0], **options)


def test_the_coarse_scales_of_its_tokenizer_do_not_matter() -> None:
    pair = [
        random_generator(model_settings(sizes=sizes, prior={"kind": "diffusion"}, num_phis=1))
        for sizes in (SIZES, SIZES[-1:])
    ]
    pair[1].prior.load_state_dict(pair[0].prior.state_dict())
    pair[1].tokenizer.load_state_dict(pair[0].tokenizer.state_dict())
    one, other = (generator([1], seeds=[3], num_steps=4).images_BCHW for generator in pair)
    assert torch.equal(one, other)
