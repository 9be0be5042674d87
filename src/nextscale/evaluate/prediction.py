"""How well a prior predicts the tokens of images it has not seen: cross-entropy and accuracy, per scale.

Letters: B batch, L tokens of all scales, V codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.distributed import Distributed
from nextscale.evaluate.denoising import denoising_scores
from nextscale.evaluate.sharing import shared_batches
from nextscale.generate.folder import Prior
from nextscale.pixels import to_model
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.next_token import NextTokenPrior
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer


def token_losses(logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
    """Cross-entropy in nats of each token: float32 (B, L)."""
    losses = F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten(), reduction="none")
    return losses.view(tokens_BL.shape)


def token_scores(logits_BLV: Tensor, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and share of correct guesses at each place of the sequence: float32 (L,) each."""
    correct = logits_BLV.argmax(dim=-1) == tokens_BL
    return token_losses(logits_BLV, tokens_BL).mean(dim=0), correct.float().mean(dim=0)


def mean_per_scale(values_L: Tensor, schedule: ScaleSchedule) -> Tensor:
    """One value per token -> one per scale: (L,) -> (S,)."""
    return torch.stack([part.mean() for part in values_L.split(schedule.num_cells)])


def teacher_inputs(tokenizer: Tokenizer, prior: NextScalePrior | NextTokenPrior, tokens_BL: Tensor) -> Tensor:
    """What a prior reads to predict these tokens: maps of the coarser scales, or the tokens themselves."""
    return tokenizer.teacher_inputs(tokens_BL) if isinstance(prior, NextScalePrior) else tokens_BL


@torch.no_grad()
def prediction_scores(
    tokenizer: Tokenizer,
    prior: Prior,
    source: Source,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    skipped: SkippedImages | None = None,
    ranks: Distributed | None = None,
) -> dict[str, float]:
    """Loss in nats per token and accuracy over center crops of a source, in all and per scale; of a diffusion
    prior what `denoising_scores` gives.

    Args:
        tokenizer: in evaluation mode, on the device of the prior.
        prior: in evaluation mode.
        source: images whose labels are those of the prior.
        limit: images at most, spread over the source.
        batch_size: images at a time.
        skipped: takes the names of bad images, which are left out; None: a bad image is an error.
        ranks: processes that share the images, all of which must call this; None: this one alone.
    """
    if isinstance(prior, DiffusionPrior):
        return denoising_scores(
            tokenizer, prior, source, limit=limit, batch_size=batch_size, skipped=skipped, ranks=ranks
        )
    schedule, device = tokenizer.schedule, prior.position.device
    ranks = ranks or Distributed(0, 1, device)
    total, size = (torch.zeros(*shape, dtype=torch.float64) for shape in ((2, schedule.num_tokens), (1,)))
    for pixels, labels, counts in shared_batches(
        source, size=tokenizer.image_size, batch_size=batch_size, limit=limit, skipped=skipped, ranks=ranks
    ):
        with torch.autocast(device.type, enabled=False):
            tokens_BL = tokenizer.encode(to_model(pixels).to(device))
            inputs = teacher_inputs(tokenizer, prior, tokens_BL)
        logits_BLV = prior(torch.from_numpy(labels).to(device), inputs)
        if counts:
            total += torch.stack(token_scores(logits_BLV, tokens_BL)).double().cpu() * len(labels)
            size += len(labels)
    ranks.sum_([total, size])
    losses_L, correct_L = total / size
    scores = {"loss": float(losses_L.mean()), "accuracy": float(correct_L.mean())}
    per_scale = zip(mean_per_scale(losses_L, schedule), mean_per_scale(correct_L, schedule), strict=True)
    for scale, (loss, accuracy) in enumerate(per_scale):
        scores |= {f"scale_loss_{scale}": float(loss), f"scale_accuracy_{scale}": float(accuracy)}
    return scores
