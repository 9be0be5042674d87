"""Building blocks of the transformers: modulated attention and MLP.

Letters: B batch, T tokens, D model width, N heads, E head width.
Special here: a block does not know where its keys come from. It is given `attend`, which in training slices
prefixes out of the whole sequence and in sampling asks the cache; so the two cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.prior.settings import MOST_MASKED, TransformerSettings

#: (query, key, value), each (B, N, T, E), and the scale of the logits -> mixed values (B, N, T, E).
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]

#: The learned scale of the logits stays below 100.
MAX_LOG_SCALE = math.log(100)


class Attention(nn.Module):
    """Multi-head attention; keys have no bias. Unit queries and keys carry one learned scale per head."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.heads, self.unit_qk = settings.heads, settings.unit_qk
        width = settings.width
        if width % self.heads:
            raise ValueError(
                f"model_dim {width} is not divisible by num_heads {self.heads}: change one of them"
            )
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        if self.unit_qk:
            self.log_scale_N11 = nn.Parameter(torch.full((self.heads, 1, 1), math.log(4)))
        # without unit queries and keys the released code scales the logits by 0.25 / sqrt(E), not 1 / sqrt(E)
        self.logit_scale = 1.0 if self.unit_qk else 0.25 / math.sqrt(width // self.heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, attend: Attend) -> Tensor:
        batch, length, width = x_BTD.shape
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = F.linear(x_BTD, self.qkv.weight, bias)
        query, key, value = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.unit_qk:
            scale = self.log_scale_N11.clamp(max=MAX_LOG_SCALE).exp()
            query = F.normalize(query, dim=-1) * scale.to(query.dtype)
            key = F.normalize(key, dim=-1)
        mixed = attend(query, key, value, self.logit_scale)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Linear, GELU (tanh), linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BTD), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm without weights that is scaled, shifted and gated by the
    condition.
    """

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.width, self.eps = settings.width, settings.norm_eps
        self.attention = Attention(settings)
        self.mlp = MLP(settings.width, round(settings.width * settings.mlp_ratio))
        if settings.shared_adaln:
            self.modulation_offset = nn.Parameter(torch.zeros(6, settings.width))
        else:
            self.modulation = nn.Linear(settings.width, 6 * settings.width)

    @torch.no_grad()
    def shrink_residuals(self, settings: TransformerSettings) -> None:
        """Initial weights of what a block adds: shrunk with depth, and nearly closed gates."""
        width = self.width
        self.attention.proj.weight.div_((2 * settings.depth) ** 0.5)
        self.mlp.fc2.weight.div_((2 * settings.depth) ** 0.5)
        if settings.shared_adaln:
            nn.init.trunc_normal_(self.modulation_offset, std=width**-0.5)
            self.modulation_offset[2:].mul_(0.5)
            self.modulation_offset[:2].mul_(settings.gate_init)
        else:
            self.modulation.weight[2 * width :].mul_(0.5)
            self.modulation.weight[: 2 * width].mul_(settings.gate_init)

    def modulate(self, condition_BD: Tensor, shared_B6D: Tensor | None) -> Tensor:
        """Gates, scales and shifts of this block (B, 6, D): gate, gate, scale, scale, shift, shift."""
        if shared_B6D is not None:
            return shared_B6D + self.modulation_offset
        return self.modulation(F.silu(condition_BD)).view(-1, 6, self.width)

    def forward(
        self, x_BTD: Tensor, modulation_B6D: Tensor, attend: Attend, keep_2B: Tensor | None = None
    ) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation_B6D.unsqueeze(2).unbind(1)
        if keep_2B is not None:  # stochastic depth: a factor per residual branch and sample
            gate1, gate2 = gate1 * keep_2B[0, :, None, None], gate2 * keep_2B[1, :, None, None]
        x_BTD = x_BTD + gate1 * self.attention(self._norm(x_BTD) * (scale1 + 1) + shift1, attend)
        return x_BTD + gate2 * self.mlp(self._norm(x_BTD) * (scale2 + 1) + shift2)

    def _norm(self, x_BTD: Tensor) -> Tensor:
        return F.layer_norm(x_BTD, (self.width,), eps=self.eps)


def at_least_float32(x: Tensor) -> Tensor:
    """Where bfloat16 is too coarse; float64 stays what it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attend_to(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention of all queries to all keys that are given; ``causal``: of each to those up to its own place;
    ``mask``: where it is True.

    CPUs compute it in float32 where a backward pass may follow and keys are few: that of the bfloat16 kernel
    takes twice as long then, while its forward pass is nearly three times as fast (docs/log.md).
    """
    dtype = query.dtype
    few = key.shape[2] <= MOST_MASKED
    exact = few and torch.is_grad_enabled() and query.device.type == "cpu"
    compute = torch.promote_types(dtype, torch.float32) if exact else dtype
    with torch.autocast(query.device.type, enabled=False):
        mixed = F.scaled_dot_product_attention(
            query.to(compute), key.to(compute), value.to(compute), scale=scale, is_causal=causal,
            attn_mask=mask,
        )  # fmt: skip
    return mixed.to(dtype)
