"""One training step of a next-scale prior as the released trainer takes it.

Letters: B batch, L tokens of all scales, V codes.
Special here: attention goes over the whole sequence with a written-out block-causal mask, every block works
out its own modulation, and nothing is compiled. float32, or under autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.prior.next_scale import NextScalePrior
from nextscale.studies.reference.autoencoder import inputs_plainly
from nextscale.studies.reference.blocks import block_causal_mask, context, logits, through_blocks
from nextscale.tokenizer.model import Tokenizer


def masked_logits(
    prior: NextScalePrior, labels_B: Tensor, inputs_BLC: Tensor, *, keep_D2B: Tensor | None = None
) -> Tensor:
    """All scales at once: logits float32 (B, L, V), each scale given the true coarser ones.

    Args:
        prior: whose weights are used.
        labels_B: int64 (B,) in [0, num_classes].
        inputs_BLC: float32 (B, L - T of the first scale, C).
        keep_D2B: float (depth, 2, B) factors of the residual branches, or None.
    """
    mask_LL = block_causal_mask(prior.schedule, labels_B.device)
    given = context(prior, prior.class_embedding(labels_B), mask_LL=mask_LL, keep_D2B=keep_D2B)
    start_BTD = given.condition_BD[:, None] + prior.start_position
    read_BLD = torch.cat([start_BTD, prior.input_projection(inputs_BLC)], dim=1)
    levels_L = torch.tensor(prior.schedule.level_ids, device=labels_B.device)
    x_BLD = read_BLD + prior.position + prior.level_embedding(levels_L)
    return logits(prior, through_blocks(prior, x_BLD, given), given.condition_BD)


def plain_loss(
    prior: NextScalePrior, tokenizer: Tokenizer, labels_B: Tensor, tokens_BL: Tensor, *,
    keep_D2B: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of the tokens, with gradients to the prior.

    Args:
        prior: whose weights are trained.
        tokenizer: frozen; makes the inputs of the tokens in float32.
        labels_B: int64 (B,) in [0, num_classes].
        tokens_BL: int64 (B, L).
        keep_D2B: see `masked_logits`.
    """
    with torch.no_grad(), torch.autocast(tokens_BL.device.type, enabled=False):
        inputs_BLC = inputs_plainly(tokenizer.quantizer, tokens_BL)
    logits_BLV = masked_logits(prior, labels_B, inputs_BLC, keep_D2B=keep_D2B)
    return F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())


def plain_step(
    prior: NextScalePrior, tokenizer: Tokenizer, optimizer: torch.optim.Optimizer, *, labels_B: Tensor,
    tokens_BL: Tensor, dtype: torch.dtype, clip_norm: float, keep_D2B: Tensor | None = None,
) -> float:  # fmt: skip
    """Forward, backward, clipping, the optimizer's step; returns the loss, which waits for the device.

    Args:
        prior: whose weights are trained.
        tokenizer: frozen.
        optimizer: of the prior's parameters.
        labels_B: int64 (B,).
        tokens_BL: int64 (B, L).
        dtype: of the products; anything but float32 runs under autocast.
        clip_norm: the longest gradient.
        keep_D2B: see `masked_logits`.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(tokens_BL.device.type, dtype=dtype, enabled=dtype != torch.float32):
        loss = plain_loss(prior, tokenizer, labels_B, tokens_BL, keep_D2B=keep_D2B)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(prior.parameters(), clip_norm)
    optimizer.step()
    return float(loss.detach())
