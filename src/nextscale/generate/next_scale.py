"""Sampling with a next-scale prior: one pass per scale, all tokens of a scale at once.

Letters: B batch, L tokens of all scales, T tokens of one scale, C width of a code, h w cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from nextscale.generate.guidance import guide, ramp, sharpen
from nextscale.generate.request import Request
from nextscale.generate.sampling import draw_tokens, mix_codes
from nextscale.rng import code_uniforms
from nextscale.tokenizer.model import Tokenizer


class Stepwise(Protocol):
    """What is asked of a prior: a `NextScalePrior`, or what computes the same in another way."""

    @property
    def unconditional(self) -> int:
        """The label that stands for no class."""
        ...

    def condition(self, labels_B: Tensor) -> Any:
        """What the labels decide."""
        ...

    def new_cache(self, batch: int) -> Any:
        """What a generation keeps of the scales that are done."""
        ...

    def step(self, scale: int, condition: Any, inputs_BTC: Tensor | None, cache: Any) -> Tensor:
        """Logits float32 (B, T, V) of one scale."""
        ...


def scale_by_scale(
    prior: Stepwise, tokenizer: Tokenizer, request: Request
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tokens (B, T) of each scale, and the map (B, C, h, w) accumulated up to it."""
    quantizer, schedule = tokenizer.quantizer, tokenizer.schedule
    batch, device = len(request.seeds), request.labels_B.device
    weights_SB, num_guided = request.weights_SB, request.num_guided
    labels = request.labels_B
    if num_guided:  # both branches in one batch
        labels = torch.cat([labels, torch.full_like(labels, prior.unconditional)])
    condition, cache = prior.condition(labels), prior.new_cache(len(labels))
    uniforms_BL = request.uniforms(schedule.num_tokens)
    tokens: list[Tensor] = []
    coarser: Tensor | None = None

    def choose(scale: int, accumulated: Tensor) -> Tensor:
        nonlocal condition, coarser
        inputs = quantizer.resize_to(scale, accumulated) if scale else None
        if scale == num_guided > 0:  # no finer scale reads the unconditional branch either
            condition = condition.first(batch)
            cache.keep_first(batch)
        if inputs is not None and scale < num_guided:
            inputs = torch.cat([inputs, inputs])
        logits = prior.step(scale, condition, inputs, cache)
        if scale < num_guided:
            logits = guide(logits[:batch], logits[batch:], weights_SB[scale])
        before, coarser = coarser, (logits if request.sharpened else None)
        if before is not None:
            sizes = schedule.sizes[scale - 1], schedule.sizes[scale]
            logits = sharpen(logits, before, request.ssg_B, sizes=sizes)
        if request.smooth:
            share = ramp(scale, schedule.num_scales)
            draws = [code_uniforms(seed, scale, *logits.shape[1:]) for seed in request.seeds]
            noise = torch.from_numpy(numpy.stack(draws)).to(device)
            tokens.append(logits.new_zeros(0))
            return mix_codes(logits, noise, quantizer.codebook.weight, request.draw, share=share)
        place = schedule.slice(scale)
        drawn_BT = draw_tokens(logits, uniforms_BL[:, place], request.draw)
        if request.forced is not None:  # what is kept; the others keep the random numbers of their own place
            kept_BT, given_BT = request.forced.kept_BL[:, place], request.forced.tokens_BL[:, place]
            drawn_BT = torch.where(kept_BT, given_BT, drawn_BT)
        tokens.append(drawn_BT)
        return quantizer.codebook(tokens[-1])

    for accumulated in quantizer.walk(choose, batch):
        yield tokens[-1], accumulated
