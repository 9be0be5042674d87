"""Classifier-free guidance of a next-scale prior: how strongly each scale is pushed away from the
unconditional guess.

Letters: B batch, S scales, T tokens of one scale, V codes.
"""

from __future__ import annotations

from torch import Tensor


def ramp(scale: int, num_scales: int) -> float:
    """The share of the guidance that scale ``scale`` gets: k / (S - 1), none at the coarsest; all of it when
    S is 1.
    """
    return scale / (num_scales - 1) if num_scales > 1 else 1.0


def guide(conditional_BTV: Tensor, unconditional_BTV: Tensor, weight_B: Tensor) -> Tensor:
    """(1 + t) conditional - t unconditional, one t per image: float32 (B, T, V)."""
    weight = weight_B[:, None, None].to(conditional_BTV.dtype)
    return (1 + weight) * conditional_BTV - weight * unconditional_BTV
