"""Sampling as the released code does it, on the weights of our models.

Letters: B batch, L tokens of all scales, T tokens of one scale, V codes, C width of a code.
Special here: both branches of guidance in one batch to the end, the cache grown by concatenation, every
modulation worked out again in every block at every step, and the whole vocabulary sorted for every token. It
runs in float32, or under autocast as the released code does, decoder included. It draws by the same random
numbers as our sampler, so that tokens can be compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.generate.request import Request
from nextscale.generate.sampling import Draw
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.next_token import NextTokenPrior
from nextscale.prior.transformer import TokenTransformer
from nextscale.studies.reference.autoencoder import decode_plainly, enlarged_codes
from nextscale.studies.reference.blocks import GrowingCache, context, logits, through_blocks
from nextscale.tokenizer.model import Tokenizer


@torch.no_grad()
def generate_plainly(
    prior: NextScalePrior, tokenizer: Tokenizer, request: Request, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Tokens int64 (B, L) and images (B, 3, H, W) in [-1, 1].

    Args:
        prior: a next-scale one.
        tokenizer: of the same scales.
        request: what is asked for; classifier-free guidance that never ends, or none.
        dtype: of matrix products and convolutions; anything but float32 runs under autocast.
    """
    _check(request)
    with torch.autocast(request.labels_B.device.type, dtype=dtype, enabled=dtype != torch.float32):
        tokens_BL, map_BChw = _scales(prior, tokenizer, request)
        return tokens_BL, decode_plainly(tokenizer, map_BChw).float()


@torch.no_grad()
def next_tokens_plainly(
    prior: NextTokenPrior, tokenizer: Tokenizer, request: Request, *, dtype: torch.dtype = torch.float32,
    num_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Token by token; the same arguments and results as `generate_plainly`.

    Args:
        prior: a next-token one.
        tokenizer: of one scale.
        request: what is asked for.
        dtype: see `generate_plainly`.
        num_tokens: how many to draw; the rest of the map is code 0. None: all.
    """
    _check(request)
    with torch.autocast(request.labels_B.device.type, dtype=dtype, enabled=dtype != torch.float32):
        tokens_BL = _tokens(prior, request, num_tokens or prior.schedule.num_tokens)
        padded_BL = F.pad(tokens_BL, (0, prior.schedule.num_tokens - tokens_BL.shape[1]))
        return tokens_BL, decode_plainly(tokenizer, enlarged_codes(tokenizer.quantizer, 0, padded_BL)).float()


def _check(request: Request) -> None:
    """Raise ValueError for guidance that ends, spatial guidance, or a mixture of codes."""
    ended_B = (request.weights_SB[-1] == 0) & (request.guidance_B > 0)
    if request.smooth or request.sharpened or bool(ended_B.any()):
        raise ValueError(
            "the plain sampler knows guidance, top_k, top_p and temperature alone: leave smooth, ssg and "
            "num_unguided_scales out"
        )


def _branches(prior: TokenTransformer, request: Request) -> tuple[Tensor, bool]:
    """Labels of the conditional branch and, with guidance, of the unconditional one behind it."""
    labels_B = request.labels_B
    if not bool((request.guidance_B > 0).any()):
        return labels_B, False
    return torch.cat([labels_B, torch.full_like(labels_B, prior.unconditional)]), True


def _scales(prior: NextScalePrior, tokenizer: Tokenizer, request: Request) -> tuple[Tensor, Tensor]:
    schedule, quantizer = tokenizer.schedule, tokenizer.quantizer
    labels_B, guided = _branches(prior, request)
    batch, given = len(request.seeds), context(prior, prior.class_embedding(labels_B), cache=GrowingCache())
    levels_L = torch.tensor(schedule.level_ids, device=labels_B.device)
    places_LD = prior.position + prior.level_embedding(levels_L)
    uniforms_BL, parts = request.uniforms(schedule.num_tokens), []
    first = schedule.num_cells[0]
    x_BTD = given.condition_BD[:, None] + prior.start_position + places_LD[:first]
    total = labels_B.new_zeros(
        batch, quantizer.code_dim, *schedule.latent_size, dtype=quantizer.codebook.weight.dtype
    )
    for scale in range(schedule.num_scales):
        seen_BTV = logits(prior, through_blocks(prior, x_BTD, given), given.condition_BD)
        if guided:
            share = scale / (schedule.num_scales - 1) if schedule.num_scales > 1 else 1.0
            weight = (request.guidance_B * share)[:, None, None]
            seen_BTV = (1 + weight) * seen_BTV[:batch] - weight * seen_BTV[batch:]
        parts.append(draw_plainly(seen_BTV, uniforms_BL[:, schedule.slice(scale)], request.draw))
        total = total + enlarged_codes(quantizer, scale, parts[-1])
        if scale + 1 < schedule.num_scales:
            read = F.interpolate(total, size=schedule.sizes[scale + 1], mode="area")
            read_BTD = prior.input_projection(read.flatten(2).transpose(1, 2))
            read_BTD = read_BTD + places_LD[schedule.slice(scale + 1)]
            x_BTD = read_BTD.repeat(2, 1, 1) if guided else read_BTD
    return torch.cat(parts, dim=1), total


def _tokens(prior: NextTokenPrior, request: Request, num_tokens: int) -> Tensor:
    labels_B, guided = _branches(prior, request)
    batch, given = len(request.seeds), context(prior, prior.class_embedding(labels_B), cache=GrowingCache())
    uniforms_BL = request.uniforms(prior.schedule.num_tokens)
    read_BD, parts = given.condition_BD, []
    for place in range(num_tokens):
        x_BTD = (read_BD + prior.position[place])[:, None]
        seen_BTV = logits(prior, through_blocks(prior, x_BTD, given), given.condition_BD)
        if guided:
            weight = request.guidance_B[:, None, None]
            seen_BTV = (1 + weight) * seen_BTV[:batch] - weight * seen_BTV[batch:]
        parts.append(draw_plainly(seen_BTV, uniforms_BL[:, place : place + 1], request.draw))
        read_BD = prior.token_embedding(parts[-1][:, 0].repeat(2 if guided else 1))
    return torch.cat(parts, dim=1)


def draw_plainly(logits_BTV: Tensor, uniforms_BT: Tensor, draw: Draw) -> Tensor:
    """Tokens int64 (B, T): sort all codes, cut off by rank and by probability, draw by the cumulative sum.

    Args:
        logits_BTV: float32.
        uniforms_BT: float64 in [0, 1), one number per token.
        draw: settings of each image.
    """
    scaled = logits_BTV / draw.temperature_B[:, None, None]
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    top_k = torch.where(draw.top_k_B > 0, draw.top_k_B, scaled.shape[-1])
    last = ordered.gather(-1, (top_k - 1)[:, None, None].expand(-1, ordered.shape[1], 1))
    ordered = ordered.masked_fill(ordered < last, -torch.inf)
    probabilities = ordered.softmax(dim=-1, dtype=torch.float64)
    before = probabilities.cumsum(dim=-1) - probabilities
    left_out = (before >= draw.top_p_B[:, None, None]) & (draw.top_p_B < 1)[:, None, None]
    left_out = left_out | (ordered == -torch.inf)
    kept = scaled.masked_fill(torch.zeros_like(left_out).scatter(-1, order, left_out), -torch.inf)
    cumulative = kept.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    passed = cumulative <= uniforms_BT[..., None] * cumulative[..., -1:]
    drawn = passed.sum(dim=-1).clamp(max=scaled.shape[-1] - 1)
    return torch.where((draw.top_k_B == 1)[:, None], order[..., 0], drawn)
