"""Multiply-adds from settings against torch's counter, which watches real passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models_for_tests import SCHEDULE, lone_prior, prior_inputs, tokenizer_settings
from nextscale.config import build
from nextscale.prior import next_scale
from nextscale.prior.next_scale import NextScalePrior
from nextscale.recipes import read_recipe
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import AutoencoderSettings, TokenizerSettings
from nextscale.train import cost
from nextscale.train.settings import PriorRun, TokenizerRun


def _counted(call: Any) -> int:
    """The counter has no formula for the attention of CPUs; written out as products it has."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@pytest.fixture(autouse=True)
def _no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a mask hides is multiplied for nothing and does not count."""
    monkeypatch.setattr(next_scale, "num_masked", lambda *_: 0)


def _recipe(depth: str) -> tuple[PriorRun, TokenizerRun]:
    prior = build(PriorRun, read_recipe(depth, "prior"), source=depth)
    return prior, build(TokenizerRun, read_recipe(depth, "tokenizer"), source=depth)


@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True}, {"mlp_ratio": 2.5, "depth": 3}], ids=str)
def test_a_small_prior(changes: dict[str, Any]) -> None:
    prior = lone_prior(SCHEDULE, **changes)
    quantizer = tokenizer_settings().quantizer
    expected = cost.prior_pass(prior.settings, SCHEDULE, quantizer)
    assert _counted(lambda: prior(*prior_inputs(SCHEDULE))) == 3 * expected


@pytest.mark.parametrize(("attention", "multipliers", "blocks"), [(True, (1, 2), 1), (False, (1, 1, 3), 2)])
def test_a_small_tokenizer(attention: bool, multipliers: tuple[int, ...], blocks: int) -> None:
    schedule = ScaleSchedule(sizes=((1, 1), (2, 3), (4, 6)))
    settings = TokenizerSettings(
        autoencoder=AutoencoderSettings(
            base_dim=8, multipliers=multipliers, num_res_blocks=blocks, norm_groups=4, attention=attention
        ),
        quantizer={"vocab_size": 32, "code_dim": 6, "num_phis": 2},
    )
    with torch.device("meta"):
        tokenizer = Tokenizer(settings, schedule)
        images, features = torch.zeros(1, 3, *tokenizer.image_size), torch.zeros(1, 6, 4, 6)
        found = _counted(lambda: tokenizer.features(images))
        assert found == sum(part.multiply_adds for part in cost.encoder_parts(settings, schedule))
        found = _counted(lambda: tokenizer.decode_features(features))
        assert found == sum(part.multiply_adds for part in cost.decoder_parts(settings, schedule))
    real = Tokenizer(settings, schedule)
    tokens = torch.zeros(1, schedule.num_tokens, dtype=torch.int64)
    assert _counted(lambda: list(real.quantizer.maps(tokens))) == cost.phis(settings.quantizer, schedule)
    found = _counted(lambda: real.quantizer.encode(torch.randn(1, 6, 4, 6)))
    search = schedule.num_tokens * 32 * 6
    assert found == search + cost.phis(settings.quantizer, schedule)
    assert cost.encode(settings, schedule) == found + sum(
        part.multiply_adds for part in cost.encoder_parts(settings, schedule)
    )


def test_d16_counted_and_all_sizes_as_others_report_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply-adds in billions per image and branch that were reported for the published sizes."""
    monkeypatch.setattr(
        next_scale, "attend_to", lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, scale=scale)
    )
    for depth, reported in ((16, 150), (20, 288), (24, 491), (30, 947)):
        prior, tokenizer = _recipe(f"imagenet256-d{depth}")
        found = cost.prior_pass(prior.prior, tokenizer.schedule, tokenizer.tokenizer.quantizer)
        assert found / 1e9 == pytest.approx(reported, rel=0.01)
    assert cost.decode(tokenizer.tokenizer, tokenizer.schedule) / 1e9 == pytest.approx(197, rel=0.01)
    prior, tokenizer = _recipe("imagenet256-d16")
    with torch.device("meta"):
        module = NextScalePrior(
            prior.prior, tokenizer.schedule, vocab_size=4096, code_dim=32, num_classes=1000
        )
        found = _counted(lambda: module(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 679, 32)))
    assert found == cost.prior_pass(prior.prior, tokenizer.schedule, tokenizer.tokenizer.quantizer)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_of_a_tokenizers_blocks(recompute: bool) -> None:
    """Forward and backward of what is trained; the first convolution needs no gradient of the image."""
    settings = tokenizer_settings()
    tokenizer = Tokenizer(settings, SCHEDULE)
    images = torch.rand(1, 3, *tokenizer.image_size)

    def step() -> None:
        decoded, quantized = tokenizer(images, recompute=recompute)
        (decoded.square().mean() + quantized.codebook_loss + quantized.commitment_loss).backward()

    expected = cost.tokenizer_training(settings, SCHEDULE, recompute=recompute)
    assert _counted(step) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_of_a_prior(recompute: bool) -> None:
    prior, tokenizer = lone_prior(SCHEDULE), tokenizer_settings()
    labels, inputs = prior_inputs(SCHEDULE)
    found = _counted(lambda: prior(labels, inputs, recompute=recompute).square().mean().backward())
    expected = cost.prior_training(prior.settings, SCHEDULE, tokenizer, recompute=recompute, kept_tokens=True)
    expected -= cost.phis(tokenizer.quantizer, SCHEDULE)  # teacher inputs are given here
    assert found == pytest.approx(3 * expected, rel=0.02)


def test_what_changes_the_cost_of_training_and_of_making_images() -> None:
    prior, tokenizer = _recipe("imagenet256-d16")
    sizes = (prior.prior, tokenizer.schedule, tokenizer.tokenizer)
    forward = cost.prior_pass(prior.prior, tokenizer.schedule, tokenizer.tokenizer.quantizer)
    kept, fresh, again = (
        cost.prior_training(*sizes, recompute=recompute, kept_tokens=tokens)
        for recompute, tokens in ((False, True), (False, False), (True, True))
    )
    assert fresh - kept == cost.encode(tokenizer.tokenizer, tokenizer.schedule)
    assert 0.97 * forward < again - kept < forward and kept == pytest.approx(3 * forward, rel=1e-3)
    plain, guided = (cost.generation(*sizes, guided=guided) for guided in (False, True))
    assert guided - plain == forward
