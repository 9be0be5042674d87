"""In which numbers a model generates: float32, exact and comparable between machines, or bfloat16, fast.

Special here: with bfloat16 the weights themselves are bfloat16, cast once; nothing is cast while generating.
Logits, random draws and the quantiser stay float32, since one changed token changes all finer ones. Weights
can be laid out for generating in float32, too: the same numbers up to rounding, a tenth faster on CPUs.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch

from nextscale.prior.layers import Block
from nextscale.prior.sampling_block import SamplingBlock
from nextscale.prior.transformer import Transformer
from nextscale.tokenizer.model import Tokenizer

#: "auto": bfloat16 where the hardware multiplies it faster than float32.
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]

#: Logarithms of scales, and what diffusion standardises features by.
_EXACT = {"log_scale_N11", "mean_C", "deviation_C"}


def choose_dtype(dtype: Dtype, device: str | torch.device) -> torch.dtype:
    """The type of the weights on this device.

    Raises:
        ValueError: no such type.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype {dtype!r} is unknown: expected {', '.join(get_args(Dtype))}")
    fast = dtype == "bfloat16" or (dtype == "auto" and multiplies_bfloat16(torch.device(device)))
    return torch.bfloat16 if fast else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for it: CPUs with AVX512-BF16 or AMX, NVIDIA GPUs since Ampere."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which a tensor of a model generates; for some, all small, bfloat16 is too coarse."""
    exact = name.startswith("quantizer.") or name.rpartition(".")[2] in _EXACT
    return torch.float32 if exact else dtype


def lay_out(tokenizer: Tokenizer, prior: Transformer | None, dtype: torch.dtype) -> None:
    """Make a model one that generates faster in this dtype and does nothing else."""
    speed_up_tokenizer(tokenizer, dtype)
    if prior is not None:
        speed_up_prior(prior, dtype)


def speed_up_prior(prior: Transformer, dtype: torch.dtype) -> None:
    """Cast the weights of a prior, and make its blocks ones for sampling, one after another.

    It can sample and tell likelihoods from then on, but neither train nor be saved.
    """
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(stored_dtype(name, dtype))
        for index, block in enumerate(prior.blocks):
            assert isinstance(block, Block)
            prior.blocks[index] = SamplingBlock(block)


def speed_up_tokenizer(tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Cast encoder and decoder, channels last; the quantiser stays float32."""
    for part in (tokenizer.encoder, tokenizer.pre_quant, tokenizer.post_quant, tokenizer.decoder):
        part.requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
