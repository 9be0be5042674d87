"""`SamplingBlock`: what a `Block` computes, with fewer passes over memory, for sampling.

Letters: B batch, T tokens, D model width, N heads, E head width.
Special here: `Block` is the reference; both agree up to rounding, which the tests hold. On CPUs the matrices
are laid out once in the blocks that oneDNN multiplies, which it would otherwise do at every call: 8 to 32
rows are 1.5 times as fast so (docs/log.md). No file knows that layout: such a prior samples and is not saved.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.prior.layers import MAX_LOG_SCALE, Attend, Block


class Product(nn.Module):
    """A linear layer whose weights will not change any more, with GELU (tanh) behind it if asked for."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        super().__init__()
        self.gelu, weight = gelu, weight.detach()
        self.packed = (
            weight.device.type == "cpu"
            and weight.dtype in (torch.bfloat16, torch.float32)
            and torch.backends.mkldnn.is_available()
        )
        self.register_buffer("bias", None if bias is None else bias.detach())
        # not a buffer: what moves or writes buffers does not know this layout
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            name, algorithm = ("gelu", "tanh") if self.gelu else ("none", "")
            mixed: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._weight, self.bias, name, [], algorithm
            )
            return mixed
        x = F.linear(x, self._weight, self.bias)
        return F.gelu(x, approximate="tanh") if self.gelu else x


class SamplingBlock(nn.Module):
    """A block made of the weights of a `Block`, without gradients and without stochastic depth."""

    scale_N1: Tensor
    offset_6D: Tensor | None

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.width, self.eps, self.heads = block.width, block.eps, attention.heads
        self.logit_scale = attention.logit_scale
        no_bias = torch.zeros_like(attention.query_bias)
        bias = torch.cat([attention.query_bias, no_bias, attention.value_bias])
        self.qkv = Product(attention.qkv.weight, bias)
        self.proj = Product(attention.proj.weight, attention.proj.bias)
        self.fc1 = Product(mlp.fc1.weight, mlp.fc1.bias, gelu=True)
        self.fc2 = Product(mlp.fc2.weight, mlp.fc2.bias)
        self.unit_qk = attention.unit_qk
        if self.unit_qk:
            scale_N1 = attention.log_scale_N11.detach().float().clamp(max=MAX_LOG_SCALE).exp()[:, 0]
            self.register_buffer("scale_N1", scale_N1.to(bias.dtype))
        shared = hasattr(block, "modulation_offset")
        self.register_buffer("offset_6D", block.modulation_offset.detach() if shared else None)
        self.modulation = None if shared else Product(block.modulation.weight, block.modulation.bias)

    def modulate(self, condition_BD: Tensor, shared_B6D: Tensor | None) -> Tensor:
        """As `Block.modulate`, but the scales already have their 1."""
        if self.modulation is None:
            assert shared_B6D is not None and self.offset_6D is not None
            modulation_B6D = shared_B6D + self.offset_6D
        else:
            modulation_B6D = self.modulation(F.silu(condition_BD)).view(-1, 6, self.width)
        modulation_B6D[:, 2:4] += 1
        return modulation_B6D

    def forward(
        self, x_BTD: Tensor, modulation_B6D: Tensor, attend: Attend, keep_2B: Tensor | None = None
    ) -> Tensor:
        assert keep_2B is None, "stochastic depth belongs to training"
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation_B6D.unsqueeze(2).unbind(1)
        x_BTD = torch.addcmul(x_BTD, gate1, self._attention(self._norm(x_BTD, scale1, shift1), attend))
        return torch.addcmul(x_BTD, gate2, self.fc2(self.fc1(self._norm(x_BTD, scale2, shift2))))

    def _norm(self, x_BTD: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x_BTD, (self.width,), eps=self.eps), scale)

    def _attention(self, x_BTD: Tensor, attend: Attend) -> Tensor:
        batch, length, width = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.unit_qk:
            lengths = torch.linalg.vector_norm(qkv[:, :, :2], dim=-1, keepdim=True).clamp_min_(1e-12)
            of_query, of_key = lengths.permute(2, 0, 3, 1, 4)
            query, key = query * (self.scale_N1[:, None] / of_query), key / of_key
        mixed = attend(query, key, value, self.logit_scale)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
