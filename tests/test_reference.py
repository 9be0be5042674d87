"""The plain path is the fast one: the same tokens, images, losses and gradients from the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models_for_tests import (
    CLASSES,
    PRIOR_KINDS,
    lone_prior,
    loud_tokenizer,
    model_settings,
    prior_inputs,
    random_generator,
    random_images,
    random_tokens,
    tokens_of,
)
from nextscale.evaluate.prediction import token_losses
from nextscale.generate.generator import Generator
from nextscale.generate.request import Sampling, build_request
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.next_token import NextTokenPrior
from nextscale.prior.transformer import drop_path_factors
from nextscale.scales import ScaleSchedule
from nextscale.studies.reference.autoencoder import (
    decode_plainly,
    encode_plainly,
    features_plainly,
    inputs_plainly,
)
from nextscale.studies.reference.blocks import block_causal_mask
from nextscale.studies.reference.generation import generate_plainly, next_tokens_plainly
from nextscale.studies.reference.training import masked_logits, plain_loss, plain_step

LABELS, SEEDS = [1, "frog", None, 7], [0, 1, 2, 3]
SAMPLINGS: list[Sampling] = [
    {"guidance": 0.0},
    {"guidance": 2.0, "top_k": 20, "top_p": 0.9},
    {"guidance": [0.0, 1.0, 2.0, 3.0], "top_k": [0, 1, 5, 48], "top_p": [1.0, 0.5, 0.8, 0.3]},
    {"guidance": 1.5, "temperature": 0.7, "top_p": 0.6},
]
ODD = ((1, 1), (2, 3), (3, 4))


def _both(generator: Generator, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor, Any]:
    request = build_request(
        LABELS, SEEDS, generator.settings, overrides=sampling, smooth=False, device=torch.device("cpu")
    )
    prior = generator.prior
    if isinstance(prior, NextTokenPrior):
        found = next_tokens_plainly(prior, generator.tokenizer, request)
    else:
        assert isinstance(prior, NextScalePrior)
        found = generate_plainly(prior, generator.tokenizer, request)
    return *found, generator(LABELS, seeds=SEEDS, **sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("options", PRIOR_KINDS, ids=str)
def test_the_generator_makes_the_plain_tokens(options: dict[str, Any], sampling: Sampling) -> None:
    tokens, images, result = _both(random_generator(model_settings(prior=options)), sampling)
    assert torch.equal(tokens, tokens_of(result)) and len(tokens.unique()) > 10
    torch.testing.assert_close(images, result.images_BCHW, rtol=0, atol=1e-4)


def test_maps_that_are_not_square() -> None:
    tokens, images, result = _both(random_generator(model_settings(sizes=ODD)), SAMPLINGS[1])
    assert torch.equal(tokens, tokens_of(result))
    torch.testing.assert_close(images, result.images_BCHW, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_token_by_token(sampling: Sampling) -> None:
    settings = model_settings(sizes=((3, 4),), prior={"kind": "next_token"})
    tokens, images, result = _both(random_generator(settings), sampling)
    assert torch.equal(tokens, tokens_of(result)) and len(tokens.unique()) > 10
    torch.testing.assert_close(images, result.images_BCHW, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampling", [{"ssg": 0.5}, {"num_unguided_scales": 1, "guidance": 1.5}], ids=str)
def test_what_the_plain_path_does_not_know(sampling: Sampling) -> None:
    with pytest.raises(ValueError, match="knows guidance, top_k, top_p and temperature alone"):
        _both(random_generator(), sampling)


def test_under_autocast_most_tokens_stay() -> None:
    generator = random_generator()
    request = build_request(
        LABELS, SEEDS, generator.settings, overrides={"top_k": 5}, smooth=False, device=torch.device("cpu")
    )
    assert isinstance(generator.prior, NextScalePrior)
    arguments = (generator.prior, generator.tokenizer, request)
    exact, half = generate_plainly(*arguments)[0], generate_plainly(*arguments, dtype=torch.bfloat16)[0]
    assert 0.3 < float((exact == half).float().mean()) < 1


@pytest.mark.parametrize("unit_codes", [False, True])
@pytest.mark.parametrize("levels", [1, 3])
def test_the_tokenizer(unit_codes: bool, levels: int) -> None:
    schedule = ScaleSchedule(sizes=ODD)
    tokenizer = loud_tokenizer(schedule, levels=levels, unit_codes=unit_codes)
    images, tokens = random_images(tokenizer), random_tokens(schedule)
    with torch.no_grad():
        torch.testing.assert_close(
            features_plainly(tokenizer, images), tokenizer.features(images), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            inputs_plainly(tokenizer.quantizer, tokens),
            tokenizer.teacher_inputs(tokens),
            rtol=1e-5,
            atol=1e-6,
        )
        features = tokenizer.features(images)
        torch.testing.assert_close(
            decode_plainly(tokenizer, features), tokenizer.decode_features(features), rtol=1e-5, atol=1e-5
        )
    assert torch.equal(encode_plainly(tokenizer, images), tokenizer.encode(images))


def test_the_mask_hides_finer_scales() -> None:
    mask = block_causal_mask(ScaleSchedule(sizes=((1, 1), (1, 2))), torch.device("cpu"))
    assert mask.shape == (1, 1, 3, 3)
    assert (mask[0, 0] == 0).tolist() == [[True, False, False], [True, True, True], [True, True, True]]
    assert set(mask.unique().tolist()) == {0.0, -torch.inf}


@pytest.mark.parametrize("options", PRIOR_KINDS, ids=str)
def test_training_has_the_loss_and_the_gradients_of_the_plain_path(options: dict[str, Any]) -> None:
    schedule = ScaleSchedule(sizes=ODD)
    prior, tokenizer = lone_prior(schedule, drop_path=0.3, **options), loud_tokenizer(schedule)
    labels, _ = prior_inputs(schedule)
    tokens = random_tokens(schedule)
    keep = drop_path_factors(prior.settings, torch.rand(len(labels), 8))
    inputs = tokenizer.teacher_inputs(tokens)
    torch.testing.assert_close(
        masked_logits(prior, labels, inputs, keep_D2B=keep), prior(labels, inputs, keep_D2B=keep),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    found = []
    for loss in (
        plain_loss(prior, tokenizer, labels, tokens, keep_D2B=keep),
        token_losses(prior(labels, inputs, keep_D2B=keep), tokens).mean(),
    ):
        prior.zero_grad(set_to_none=True)
        loss.backward()
        found.append((loss.detach(), {name: item.grad for name, item in prior.named_parameters()}))
    (plain, plain_gradients), (fast, fast_gradients) = found
    assert float(plain) == pytest.approx(float(fast), rel=1e-5)
    for name, gradient in plain_gradients.items():
        other = fast_gradients[name]
        assert gradient is not None and other is not None, name
        largest = float(gradient.abs().max())
        assert float((gradient - other).abs().max()) <= 1e-5 * max(largest, 1e-3), name


def test_steps_learn() -> None:
    schedule = ScaleSchedule(sizes=ODD)
    prior, tokenizer = lone_prior(schedule, loud=False), loud_tokenizer(schedule)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    tokens, labels = random_tokens(schedule), torch.arange(3) % len(CLASSES)
    losses = [
        plain_step(
            prior,
            tokenizer,
            optimizer,
            labels_B=labels,
            tokens_BL=tokens,
            dtype=torch.bfloat16,
            clip_norm=1.0,
        )
        for _ in range(8)
    ]
    assert losses[-1] < losses[0]
