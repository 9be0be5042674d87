"""Sampling with a next-token prior: one pass per token, row by row.

Letters: B batch, L tokens, V codes, C width of a code, h w cells.
Special here: the guidance is the same at every token, which is what LlamaGen does (its scale is 1 + ours);
VQGAN samples without any.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.generate.guidance import guide
from nextscale.generate.request import Request
from nextscale.generate.sampling import draw_tokens
from nextscale.prior.next_token import NextTokenPrior
from nextscale.tokenizer.model import Tokenizer


def token_by_token(
    prior: NextTokenPrior, tokenizer: Tokenizer, request: Request
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tokens (B, w) of each row, and the map (B, C, h, w) of the rows so far, codes of 0 in the
    others.
    """
    schedule = tokenizer.schedule
    batch = len(request.seeds)
    guided = request.guided
    labels = request.labels_B
    if guided:  # both branches in one batch
        labels = torch.cat([labels, torch.full_like(labels, prior.unconditional)])
    condition, cache = prior.condition(labels), prior.new_cache(len(labels))
    uniforms_BL = request.uniforms(schedule.num_tokens)
    tokens_BL = labels.new_zeros(batch, 0)
    rows, columns = schedule.latent_size
    for row in range(rows):
        for place in range(row * columns, (row + 1) * columns):
            before = tokens_BL[:, -1] if place else None
            if before is not None and guided:
                before = torch.cat([before, before])
            logits = prior.step(place, condition, before, cache)
            if guided:
                logits = guide(logits[:batch], logits[batch:], request.guidance_B)
            drawn = draw_tokens(logits, uniforms_BL[:, place : place + 1], request.draw)
            tokens_BL = torch.cat([tokens_BL, drawn], dim=1)
        yield tokens_BL[:, row * columns :], _map_of(tokens_BL, tokenizer)


def _map_of(tokens_BT: Tensor, tokenizer: Tokenizer) -> Tensor:
    codes_BTC = tokenizer.quantizer.codebook(tokens_BT)
    codes_BLC = F.pad(codes_BTC, (0, 0, 0, tokenizer.schedule.num_tokens - tokens_BT.shape[1]))
    return next(tokenizer.quantizer.walk(lambda _scale, _map: codes_BLC, len(tokens_BT)))
