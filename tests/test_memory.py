"""Computed memory against what autograd keeps on real passes."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import nn

from memory_for_tests import saved_bytes
from nextscale.evaluate.prediction import token_scores
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.settings import PriorSettings
from nextscale.prior.transformer import drop_path_factors
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import QuantizerSettings, TokenizerSettings
from nextscale.train import memory

SCHEDULE = ScaleSchedule.square([1, 2, 3, 4, 6, 8])
#: With scales on either side of `MOST_MASKED`, and with more than that before the last one.
LONG = [ScaleSchedule.square([1, 2, 4, 8, 14]), ScaleSchedule.square([1, 4, 10, 13, 16])]
QUANTIZER = QuantizerSettings(vocab_size=512, code_dim=8)
BATCH = 2
PRECISIONS: list[Literal["float32", "bfloat16"]] = ["float32", "bfloat16"]


def _copies(module: nn.Module, *, besides: tuple[str, ...] = ()) -> int:
    """Bytes of the weights that autocast copies: those of linear layers and convolutions."""
    return 2 * sum(
        item.weight.numel() for name, item in module.named_modules()
        if type(item) in (nn.Linear, nn.Conv2d) and not any(part in name for part in besides)
    )  # fmt: skip


def _kept_by_prior(
    settings: PriorSettings, precision: str, *, recompute: bool, schedule: ScaleSchedule = SCHEDULE
) -> int:
    prior = NextScalePrior(settings, schedule, vocab_size=512, code_dim=8, num_classes=10)
    inputs = torch.randn(BATCH, schedule.num_tokens - 1, 8)
    tokens = torch.randint(512, (BATCH, schedule.num_tokens))
    keep = drop_path_factors(settings, torch.rand(BATCH, 2 * settings.depth))
    losses = []

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = prior(torch.tensor([1, 2]), inputs, keep_D2B=keep, recompute=recompute)
            losses.append(token_scores(logits, tokens)[0].mean())

    kept = saved_bytes(forward, besides=prior.parameters())
    inside = (".attention.", ".mlp.") if recompute else ()
    copies = _copies(prior, besides=inside) if precision == "bfloat16" else 0
    return kept - copies


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "changes", [{}, {"shared_adaln": True}, {"unit_qk": False}, {"mlp_ratio": 2.0}], ids=str
)
def test_what_a_prior_keeps(changes: dict[str, Any], precision: Literal["float32", "bfloat16"]) -> None:
    settings = PriorSettings(depth=4, model_dim=256, num_heads=4, drop_path=0.1, **changes)
    computed = BATCH * memory.prior_activations(
        settings, SCHEDULE, QUANTIZER, precision=precision, recompute=False, on_cpu=True
    )
    later = (
        2 * 4 if precision == "float32" else 2 * 4 + 2
    )  # of the logits autograd keeps the logarithms alone
    computed -= BATCH * later * 512 * SCHEDULE.num_tokens
    assert _kept_by_prior(settings, precision, recompute=False) == pytest.approx(computed, rel=0.03)


@pytest.mark.parametrize("unit_qk", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("schedule", LONG, ids=str)
def test_what_long_sequences_keep(
    schedule: ScaleSchedule, precision: Literal["float32", "bfloat16"], unit_qk: bool
) -> None:
    settings = PriorSettings(depth=4, model_dim=256, num_heads=4, drop_path=0.1, unit_qk=unit_qk)
    computed = BATCH * memory.prior_activations(
        settings, schedule, QUANTIZER, precision=precision, recompute=False, on_cpu=True
    )
    computed -= BATCH * (8 if precision == "float32" else 10) * 512 * schedule.num_tokens
    kept = _kept_by_prior(settings, precision, recompute=False, schedule=schedule)
    assert kept == pytest.approx(computed, rel=0.03)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_prior_keeps_that_computes_again(precision: Literal["float32", "bfloat16"]) -> None:
    """Autograd keeps what enters the blocks; the computed peak has one block's inside on top."""
    settings = PriorSettings(depth=4, model_dim=256, num_heads=4)
    computed = memory.prior_activations(
        settings, SCHEDULE, QUANTIZER, precision=precision, recompute=True, on_cpu=True
    )
    computed -= round(memory.prior_block_bytes(settings, SCHEDULE, precision=precision, on_cpu=True))
    computed -= (8 if precision == "float32" else 10) * 512 * SCHEDULE.num_tokens
    kept = _kept_by_prior(settings, precision, recompute=True)
    assert kept == pytest.approx(BATCH * computed, rel=0.1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_what_a_tokenizer_keeps(precision: Literal["float32", "bfloat16"], recompute: bool) -> None:
    settings = TokenizerSettings(
        autoencoder={"base_dim": 32, "multipliers": (1, 2, 4), "num_res_blocks": 2, "norm_groups": 8},
        quantizer=QUANTIZER,
    )
    tokenizer = Tokenizer(settings, SCHEDULE)
    images = torch.rand(BATCH, 3, *tokenizer.image_size)

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            tokenizer(images, recompute=recompute)

    kept = saved_bytes(forward, besides=tokenizer.parameters())
    if precision == "bfloat16":
        kept -= _copies(tokenizer, besides=(".blocks.", ".attentions.", "middle.") if recompute else ())
    parts, options = [], {"precision": precision, "on_cpu": True}
    for part in (*memory.encoder_parts(settings, SCHEDULE), *memory.decoder_parts(settings, SCHEDULE)):
        parts.append(memory.part_bytes(part, **options) if part.is_block else 0)
    largest = max(parts) if recompute else 0
    computed = memory.tokenizer_activations(settings, SCHEDULE, recompute=recompute, **options) - largest
    assert kept == pytest.approx(BATCH * computed, rel=0.1)


def test_sharding_divides_what_is_cut() -> None:
    prior = PriorSettings(depth=16)
    options = {"num_parameters": 310_000_000, "activations": 10, "precision": "bfloat16", "recompute": False}
    whole = memory.training_memory(**options)
    assert (whole.weights, whole.gradients, whole.moments, whole.average) == tuple(
        count * 310_000_000 for count in (4, 4, 8, 4)
    )
    assert whole.copies == 2 * 310_000_000 and whole.total == 22 * 310_000_000 + 10
    eighth = memory.training_memory(**options, shards=memory.prior_shards(prior, 8))
    cut = 16 * 18 * 1024**2
    assert eighth.weights == 4 * (310_000_000 - cut + cut // 8)
    assert eighth.copies == (2 * 2 + 4) * 12 * 1024**2
    frozen = memory.training_memory(**options, frozen=100)
    assert frozen.total - whole.total == 400
    again = memory.training_memory(**{**options, "recompute": True})
    assert again.copies == 0


def test_attention_takes_more_on_cpus() -> None:
    settings = PriorSettings(depth=2)
    for precision in PRECISIONS:
        cpu, gpu = (
            memory.prior_block_bytes(settings, SCHEDULE, precision=precision, on_cpu=on_cpu)
            for on_cpu in (True, False)
        )
        assert cpu > gpu if precision == "bfloat16" else cpu == gpu


def test_keys_and_values_of_sampling() -> None:
    settings = PriorSettings(depth=3, model_dim=64, num_heads=2)
    prior = NextScalePrior(settings, SCHEDULE, vocab_size=32, code_dim=4, num_classes=3)
    for precision in PRECISIONS:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            cache = prior.new_cache(5).tensor
        assert cache.numel() * cache.element_size() == 5 * memory.cache_bytes(
            settings, SCHEDULE, precision=precision
        )
