"""Transformer blocks as the released code runs them, on the weights of our priors.

Letters: B batch, T tokens, L all tokens, D model width, N heads, E head width.
Special here: nothing is shared with the fast path but the parameters. A block works out its own modulation
whenever it is called, a cache grows by concatenation, and training hides what must not be seen with a mask
over the whole sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.prior.layers import Attention, Block
from nextscale.prior.transformer import Transformer
from nextscale.scales import ScaleSchedule


@dataclass
class GrowingCache:
    """Keys and values (B, N, tokens so far, E) of every block, of one generation."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def extended(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Those of one block with new ones behind, in new memory."""
        if block in self.keys:
            key = torch.cat([self.keys[block], key], dim=2)
            value = torch.cat([self.values[block], value], dim=2)
        self.keys[block], self.values[block] = key, value
        return key, value


@dataclass(frozen=True)
class Context:
    """What the blocks of one pass have in common."""

    condition_BD: Tensor
    shared_B6D: Tensor | None  #: of models with one modulation layer for all blocks
    cache: GrowingCache | None = None
    mask_LL: Tensor | None = None  #: float32, 0 where a row may look, -inf elsewhere
    keep_D2B: Tensor | None = None  #: factors of the residual branches in training


def context(prior: Transformer, condition_BD: Tensor, **more: Tensor | GrowingCache | None) -> Context:
    """The context of a pass, with the shared modulation where the model has one."""
    shared = None
    if prior.shared_modulation is not None:
        shared = prior.shared_modulation(F.silu(condition_BD)).view(-1, 6, prior.settings.width)
    return Context(condition_BD, shared, **more)  # type: ignore[arg-type]


def through_blocks(prior: Transformer, x_BTD: Tensor, given: Context) -> Tensor:
    """All blocks, one after the other."""
    for number, block in enumerate(prior.blocks):
        assert isinstance(block, Block)
        x_BTD = _block(block, number, x_BTD, given)
    return x_BTD


def logits(prior: Transformer, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
    """The modulated head: float32 (B, T, V)."""
    width = prior.settings.width
    modulation = prior.head_modulation(F.silu(condition_BD)).view(-1, 1, 2, width)
    scale, shift = modulation.unbind(2)
    normed = F.layer_norm(x_BTD.float(), (width,), eps=prior.settings.norm_eps)
    return prior.head(normed.mul(scale.add(1)).add(shift)).float()


def block_causal_mask(schedule: ScaleSchedule, device: torch.device) -> Tensor:
    """Who may look at whom, written out: float32 (1, 1, L, L), 0 within a scale and towards coarser ones,
    -inf towards finer ones.
    """
    level_L = torch.tensor(schedule.level_ids, device=device)
    hidden_LL = level_L[:, None] < level_L[None, :]
    return torch.zeros(hidden_LL.shape, device=device).masked_fill(hidden_LL, -torch.inf)[None, None]


def _block(block: Block, number: int, x_BTD: Tensor, given: Context) -> Tensor:
    if given.shared_B6D is None:
        modulation = block.modulation(F.silu(given.condition_BD)).view(-1, 1, 6, block.width)
    else:
        modulation = (given.shared_B6D + block.modulation_offset).unsqueeze(1)
    gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
    read = F.layer_norm(x_BTD, (block.width,), eps=block.eps).mul(scale1.add(1)).add(shift1)
    added = _attention(block.attention, number, read, given).mul(gate1)
    x_BTD = x_BTD + _kept(added, given, number, branch=0)
    read = F.layer_norm(x_BTD, (block.width,), eps=block.eps).mul(scale2.add(1)).add(shift2)
    hidden = F.gelu(F.linear(read, block.mlp.fc1.weight, block.mlp.fc1.bias), approximate="tanh")
    added = F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias).mul(gate2)
    return x_BTD + _kept(added, given, number, branch=1)


def _kept(added_BTD: Tensor, given: Context, number: int, *, branch: int) -> Tensor:
    """A residual branch with the samples that stochastic depth leaves out set to zero."""
    if given.keep_D2B is None:
        return added_BTD
    return added_BTD * given.keep_D2B[number, branch, :, None, None]


def _attention(attention: Attention, number: int, x_BTD: Tensor, given: Context) -> Tensor:
    batch, length, width = x_BTD.shape
    bias = torch.cat(
        [attention.query_bias, torch.zeros_like(attention.query_bias), attention.value_bias]
    )  # fmt: skip
    mixed = F.linear(x_BTD, attention.qkv.weight, bias).view(batch, length, 3, attention.heads, -1)
    query, key, value = mixed.permute(2, 0, 3, 1, 4).unbind(0)
    scale = 0.25 / math.sqrt(query.shape[-1])
    if attention.unit_qk:
        scale = 1.0
        query = F.normalize(query, dim=-1).mul(attention.log_scale_N11.clamp_max(math.log(100)).exp())
        key = F.normalize(key, dim=-1)
    if given.cache is not None:
        key, value = given.cache.extended(number, key, value)
    seen = F.scaled_dot_product_attention(
        query.to(value.dtype), key.to(value.dtype), value, scale=scale,
        attn_mask=None if given.mask_LL is None else given.mask_LL.to(value.dtype),
    )  # fmt: skip
    return attention.proj(seen.transpose(1, 2).reshape(batch, length, width))
