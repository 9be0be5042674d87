"""From logits to tokens: filter, then the inverse of the cumulative distribution at one uniform number per
token.

Letters: B batch, T tokens of one scale, V codes, C width of a code.
Special here: every setting is a tensor with one value per image, so a batch may mix settings; and an
image's draw reads only its own row, so neighbours cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

#: Logits that a CPU works on at a time when it draws: 64 tokens of 4,096 codes.
_AT_ONCE = 2**18


class Draw(NamedTuple):
    """Sampling settings of a batch, on the host, where they decide what is computed, and on the device."""

    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    top_k_B: Tensor  #: int64, 0 is off
    top_p_B: Tensor  #: float64 in (0, 1], 1 is off
    temperature_B: Tensor  #: float32, positive

    @classmethod
    def of(
        cls, top_k: Sequence[int], top_p: Sequence[float], temperature: Sequence[float], *,
        device: torch.device | str = "cpu",
    ) -> Draw:  # fmt: skip
        """One value per image of each."""
        return cls(
            tuple(top_k),
            tuple(top_p),
            torch.tensor(top_k, device=device),
            torch.tensor(top_p, dtype=torch.float64, device=device),
            torch.tensor(temperature, dtype=torch.float32, device=device),
        )

    def part(self, rows: slice) -> Draw:
        """Of some images."""
        return Draw(
            self.top_k[rows],
            self.top_p[rows],
            self.top_k_B[rows],
            self.top_p_B[rows],
            self.temperature_B[rows],
        )

    @property
    def by_k(self) -> bool:
        """Whether any image leaves out codes by rank."""
        return any(value > 0 for value in self.top_k)

    @property
    def by_p(self) -> bool:
        """Whether any image leaves out codes by probability."""
        return any(value < 1 for value in self.top_p)


def filter_logits(logits_BTV: Tensor, draw: Draw) -> Tensor:
    """Temperature, then top-k, then top-p; what is left out becomes -inf. Ties at the k-th place all stay.

    Top-p keeps the smallest set of likeliest codes whose probability reaches p, counted among those that
    top-k left.
    """
    logits_BTV = logits_BTV / draw.temperature_B[:, None, None]
    if not (draw.by_k or draw.by_p):
        return logits_BTV
    ordered, order = logits_BTV.sort(dim=-1, descending=True, stable=True)
    if draw.by_k:
        vocab_size = logits_BTV.shape[-1]
        last = torch.where(draw.top_k_B > 0, draw.top_k_B, vocab_size) - 1
        threshold = ordered.gather(-1, last[:, None, None].expand(-1, ordered.shape[1], 1))
        logits_BTV = logits_BTV.masked_fill(logits_BTV < threshold, -torch.inf)
        ordered = ordered.masked_fill(ordered < threshold, -torch.inf)
    if draw.by_p:
        weights = _weights(ordered, ordered[..., :1])
        sums = weights.cumsum(dim=-1)
        before = sums - weights  # 0 for the likeliest, which so always stays
        outside = before >= draw.top_p_B[:, None, None] * sums[..., -1:]
        outside &= (draw.top_p_B < 1)[:, None, None]
        logits_BTV = logits_BTV.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    return logits_BTV


def draw_tokens(logits_BTV: Tensor, uniforms_BT: Tensor, draw: Draw) -> Tensor:
    """Tokens int64 (B, T): the first code whose cumulative probability exceeds the uniform number.

    Args:
        logits_BTV: float32.
        uniforms_BT: float64 in [0, 1), one number per token.
        draw: settings of each image.
    """
    if all(value == 1 for value in draw.top_k):  # nothing is left to chance
        return logits_BTV.argmax(dim=-1)
    if logits_BTV.device.type == "cpu":
        drawn = _draw_in_parts(logits_BTV, uniforms_BT, draw)
    else:
        drawn = _invert(kept_weights_by_sorting(logits_BTV, draw), uniforms_BT)
    if 1 not in draw.top_k:
        return drawn
    # codes that tie at the top all pass the filter
    return torch.where((draw.top_k_B == 1)[:, None], logits_BTV.argmax(dim=-1), drawn)


def _draw_in_parts(logits_BTV: Tensor, uniforms_BT: Tensor, draw: Draw) -> Tensor:
    """Image by image, some tokens at a time, so that what is computed stays in the CPU's cache."""
    drawn_BT = torch.empty_like(uniforms_BT, dtype=torch.int64)
    count = max(1, _AT_ONCE // logits_BTV.shape[-1])
    for image in range(len(logits_BTV)):
        row = slice(image, image + 1)
        own = draw.part(row)
        for first in range(0, logits_BTV.shape[1], count):
            part = row, slice(first, first + count)
            drawn_BT[part] = _invert(kept_weights(logits_BTV[part], own), uniforms_BT[part])
    return drawn_BT


def _invert(weights_BTV: Tensor, uniforms_BT: Tensor) -> Tensor:
    sums = weights_BTV.cumsum(dim=-1)
    target = uniforms_BT[..., None] * sums[..., -1:]
    # the target lies below the total, so the sum passes it at a code that has probability
    return torch.searchsorted(sums, target, right=True)[..., 0].clamp_(max=sums.shape[-1] - 1)


def kept_weights_by_sorting(logits_BTV: Tensor, draw: Draw) -> Tensor:
    """Probabilities of the codes that the filters keep, as multiples of the likeliest: float64 (B, T, V).

    Without a look at any value from the host, so it suits GPUs; for CPUs it is the reference.
    """
    filtered = filter_logits(logits_BTV, draw)
    return _weights(filtered, filtered.amax(dim=-1, keepdim=True))


def kept_weights(logits_BTV: Tensor, draw: Draw) -> Tensor:
    """The same on CPUs, to the last bit, several times as fast: numbers are sorted without their places,
    which numpy does with vector instructions; places matter only where equal codes straddle the end of top-p.
    """
    scaled = logits_BTV / draw.temperature_B[:, None, None]
    weights = _weights(scaled, scaled.amax(dim=-1, keepdim=True))
    if not (draw.by_k or draw.by_p):
        return weights
    vocab_size = scaled.shape[-1]
    ordered = torch.from_numpy(numpy.sort(scaled.neg().numpy(), axis=-1)).neg_()
    count = torch.full((*scaled.shape[:2], 1), vocab_size)
    if draw.by_k:
        last = torch.where(draw.top_k_B > 0, draw.top_k_B, vocab_size)[:, None, None] - 1
        threshold = ordered.gather(-1, last.expand_as(count))
        count = (ordered >= threshold).sum(dim=-1, keepdim=True)
    if draw.by_p:
        count = torch.minimum(count, _count_by_p(ordered[..., : int(count.max())], count, draw))
    least = ordered.gather(-1, count - 1)
    weights *= scaled >= least
    if draw.by_p:  # of codes as likely as the last one kept, the first ones stay
        after = ordered.gather(-1, count.clamp(max=vocab_size - 1))
        for image, token, _ in ((count < vocab_size) & (after == least)).nonzero().tolist():
            row, edge, kept = scaled[image, token], least[image, token], int(count[image, token])
            equals = (row == edge).nonzero()[:, 0]
            weights[image, token, equals[kept - int((row > edge).sum()) :]] = 0
    return weights


def _count_by_p(ordered_BTK: Tensor, count_BT1: Tensor, draw: Draw) -> Tensor:
    """How many of the first ``count`` codes, likeliest first, top-p keeps: int64 (B, T, 1)."""
    weights = _weights(ordered_BTK, ordered_BTK[..., :1])
    weights *= torch.arange(ordered_BTK.shape[-1]) < count_BT1
    sums = weights.cumsum(dim=-1)
    inside = (sums - weights) < draw.top_p_B[:, None, None] * sums[..., -1:]
    return torch.where((draw.top_p_B < 1)[:, None, None], inside.sum(dim=-1, keepdim=True), count_BT1)


def _weights(logits: Tensor, highest: Tensor) -> Tensor:
    return (logits - highest).double().exp_()


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
