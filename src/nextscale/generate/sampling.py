"""From logits to tokens: filter, then the inverse of the cumulative distribution at one uniform number per
token.

Letters: B batch, T tokens of one scale, V codes, C width of a code.
Special here: every setting is a tensor with one value per image, so a batch may mix settings; and an
image's draw reads only its own row, so neighbours cannot change it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """Sampling settings of a batch."""

    top_k_B: Tensor  #: int64, 0 is off
    top_p_B: Tensor  #: float64 in (0, 1], 1 is off
    temperature_B: Tensor  #: float32, positive


def filter_logits(logits_BTV: Tensor, draw: Draw) -> Tensor:
    """Temperature, then top-k, then top-p; what is left out becomes -inf. Ties at the k-th place all stay.

    Top-p keeps the smallest set of likeliest codes whose probability reaches p, counted among those that
    top-k left.
    """
    logits_BTV = logits_BTV / draw.temperature_B[:, None, None]
    by_k, by_p = bool((draw.top_k_B > 0).any()), bool((draw.top_p_B < 1).any())
    if not (by_k or by_p):
        return logits_BTV
    ordered, order = logits_BTV.sort(dim=-1, descending=True, stable=True)
    if by_k:
        vocab_size = logits_BTV.shape[-1]
        last = torch.where(draw.top_k_B > 0, draw.top_k_B, vocab_size) - 1
        threshold = ordered.gather(-1, last[:, None, None].expand(-1, ordered.shape[1], 1))
        logits_BTV = logits_BTV.masked_fill(logits_BTV < threshold, -torch.inf)
        ordered = ordered.masked_fill(ordered < threshold, -torch.inf)
    if by_p:
        probabilities = ordered.softmax(dim=-1, dtype=torch.float64)
        before = probabilities.cumsum(dim=-1) - probabilities  # 0 for the likeliest, which so always stays
        outside = (before >= draw.top_p_B[:, None, None]) & (draw.top_p_B < 1)[:, None, None]
        logits_BTV = logits_BTV.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    return logits_BTV


def draw_tokens(logits_BTV: Tensor, uniforms_BT: Tensor, draw: Draw) -> Tensor:
    """Tokens int64 (B, T): the first code whose cumulative probability exceeds the uniform number.

    Args:
        logits_BTV: float32.
        uniforms_BT: float64 in [0, 1), one number per token.
        draw: settings of each image.
    """
    greedy_B, likeliest = draw.top_k_B == 1, logits_BTV.argmax(dim=-1)
    if bool(greedy_B.all()):  # nothing is left to chance
        return likeliest
    cumulative = filter_logits(logits_BTV, draw).softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniforms_BT[..., None] * cumulative[..., -1:]
    # the target lies below the total, so the sum passes it at a code that has probability
    drawn = (cumulative <= target).sum(dim=-1).clamp(max=logits_BTV.shape[-1] - 1)
    return torch.where(greedy_B[:, None], likeliest, drawn)  # codes that tie at the top all pass the filter


def mix_codes(
    logits_BTV: Tensor, uniforms_BTV: Tensor, codebook_VC: Tensor, draw: Draw, *, share: float
) -> Tensor:
    """`smooth`: a Gumbel-softmax mixture of code vectors instead of one code, for pictures only: float32 (B,
    T, C).

    Args:
        logits_BTV: float32.
        uniforms_BTV: float32 in [0, 1), a number per token and code.
        codebook_VC: the code vectors.
        draw: settings of each image.
        share: how far the generation has come, 0 at the coarsest scale, 1 at the finest; the mixture gets
            sharper.
    """
    temperature = max(0.27 * (1 - 0.95 * share), 0.005)  # of the released sampler
    tiny = torch.finfo(torch.float32).tiny
    gumbel = -(-uniforms_BTV.clamp(min=tiny).log()).clamp(min=tiny).log()
    filtered = filter_logits(logits_BTV * (1 + share), draw)
    return ((filtered + gumbel) / temperature).softmax(dim=-1) @ codebook_VC
