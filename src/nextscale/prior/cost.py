"""What a prior costs, from its settings alone: parameters, and the arithmetic of one image. No torch here.

Letters: B batch, L tokens or cells, T tokens of one scale, V codes, C width of a code, D model width.
Special here: only products of matrices count, two operations for a multiplication and an addition; all else
is a few percent. Attention counts the pairs that look at each other, so half of all in next-token. That
lets a study give every family the same training.
"""

from __future__ import annotations

from typing import NamedTuple

from nextscale.prior.settings import (
    TIME_DIM,
    DiffusionSettings,
    NextTokenSettings,
    PriorSettings,
    TransformerSettings,
)
from nextscale.scales import ScaleSchedule


class Cost(NamedTuple):
    """Of one prior."""

    parameters: int
    forward_flops: int  #: of one pass over the whole sequence of one image, without guidance

    @property
    def training_flops(self) -> int:
        """Of one image in one step: the backward pass takes twice the forward one."""
        return 3 * self.forward_flops


class _Part(NamedTuple):
    """What the layers of a family add to the blocks."""

    num_tokens: int
    num_pairs: int  #: of places that attend
    out_dim: int
    parameters: int
    multiplications: int


def cost(
    settings: PriorSettings | NextTokenSettings | DiffusionSettings, schedule: ScaleSchedule, *,
    vocab_size: int, code_dim: int, num_classes: int,
) -> Cost:  # fmt: skip
    """Parameters and operations of a prior.

    Args:
        settings: of any family.
        schedule: the scales of its tokenizer.
        vocab_size: V.
        code_dim: C.
        num_classes: without the unconditional one.
    """
    width = settings.width
    if isinstance(settings, NextTokenSettings):
        part = _next_token(width, schedule, vocab_size)
    elif isinstance(settings, DiffusionSettings):
        part = _diffusion(width, schedule, code_dim)
    else:
        part = _next_scale(width, schedule, vocab_size, code_dim)
    modulation = 6 * width * width
    num_modulations = 1 if settings.shared_adaln else settings.depth
    head = width * part.out_dim
    parameters = (
        part.parameters
        + (num_classes + 1) * width
        + settings.depth * _block_parameters(settings)
        + num_modulations * (modulation + 6 * width)
        + (settings.depth * 6 * width if settings.shared_adaln else 0)
        + 2 * width * width + 2 * width
        + head + part.out_dim
    )  # fmt: skip
    of_a_token = 4 * width * width + 2 * width * _hidden(settings)
    multiplications = (
        part.multiplications
        + settings.depth * (part.num_tokens * of_a_token + part.num_pairs * 2 * width)
        + num_modulations * modulation
        + 2 * width * width
        + part.num_tokens * head
    )
    return Cost(parameters, 2 * multiplications)


def _hidden(settings: TransformerSettings) -> int:
    return round(settings.width * settings.mlp_ratio)


def _block_parameters(settings: TransformerSettings) -> int:
    """Attention and MLP, without their modulation."""
    width, hidden = settings.width, _hidden(settings)
    attention = 4 * width * width + 3 * width + (settings.heads if settings.unit_qk else 0)
    return attention + 2 * width * hidden + hidden + width


def _next_scale(width: int, schedule: ScaleSchedule, vocab_size: int, code_dim: int) -> _Part:
    total, first = schedule.num_tokens, schedule.num_cells[0]
    pairs = sum(
        cells * end for cells, end in zip(schedule.num_cells, schedule.offsets[1:], strict=True)
    )  # fmt: skip
    places = first + total + schedule.num_scales
    return _Part(
        total, pairs, vocab_size, (places + code_dim + 1) * width, (total - first) * code_dim * width
    )


def _next_token(width: int, schedule: ScaleSchedule, vocab_size: int) -> _Part:
    total = schedule.num_tokens
    return _Part(total, total * (total + 1) // 2, vocab_size, (total + vocab_size) * width, 0)


def _diffusion(width: int, schedule: ScaleSchedule, code_dim: int) -> _Part:
    total, of_time = schedule.num_cells[-1], (TIME_DIM + width) * width
    parameters = (total + code_dim + 1) * width + of_time + 2 * width
    return _Part(total, total * total, code_dim, parameters, total * code_dim * width + of_time)
