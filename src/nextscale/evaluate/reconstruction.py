"""How well a tokenizer gives images back, and how much of its codebook each scale uses.

Letters: B batch, S scales, L tokens of all scales, V codes.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.distributed import Distributed
from nextscale.evaluate.sharing import shared_batches, shared_mean
from nextscale.pixels import to_model, to_uint8
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer


def psnr(images_BHWC: numpy.ndarray, others_BHWC: numpy.ndarray) -> numpy.ndarray:
    """Peak signal-to-noise ratio of each pair of uint8 images (B, H, W, 3), in dB: float64 (B,); equal images
    give inf.
    """
    difference = images_BHWC.astype(numpy.float64) - others_BHWC.astype(numpy.float64)
    error = numpy.square(difference).reshape(len(difference), -1).mean(axis=1)
    with numpy.errstate(divide="ignore"):
        ratio: numpy.ndarray = 10 * numpy.log10(255.0**2 / error)
    return ratio


class CodeUsage:
    """Counts which codes each scale has used over a whole pass.

    The share is taken against what the scale could have used: min(V, its own tokens over the pass). Against V
    alone, the 1x1 scale of a short pass would look collapsed however well it does.
    """

    def __init__(self, schedule: ScaleSchedule, vocab_size: int) -> None:
        self.schedule = schedule
        self.counts_SV = torch.zeros(schedule.num_scales, vocab_size, dtype=torch.int64)

    def add(self, tokens_BL: Tensor) -> None:
        """Count the tokens int64 (B, L) of a batch."""
        for scale, tokens in enumerate(self.schedule.split(tokens_BL.cpu())):
            self.counts_SV[scale] += torch.bincount(tokens.flatten(), minlength=self.counts_SV.shape[1])

    def used(self) -> list[int]:
        """How many different codes each scale used."""
        return [int(number) for number in (self.counts_SV > 0).sum(dim=1)]

    def shares(self) -> list[float]:
        """Used codes / codes that the scale could have used."""
        possible = self.counts_SV.sum(dim=1).clamp(1, self.counts_SV.shape[1])
        return [float(share) for share in (self.counts_SV > 0).sum(dim=1) / possible]


@torch.no_grad()
def reconstruction_scores(
    tokenizer: Tokenizer, source: Source, *, limit: int | None = None, batch_size: int = 64,
    skipped: SkippedImages | None = None, ranks: Distributed | None = None,
) -> dict[str, float]:  # fmt: skip
    """Mean of the images' PSNR in dB, and per scale the codes used and their share, over center crops of a
    source.

    Args:
        tokenizer: in evaluation mode.
        source: images.
        limit: images at most, spread over the source.
        batch_size: images at a time.
        skipped: takes the names of bad images, which are left out; None: a bad image is an error.
        ranks: processes that share the images, all of which must call this; None: this one alone.
    """
    device = next(tokenizer.parameters()).device
    ranks = ranks or Distributed(0, 1, device)
    usage = CodeUsage(tokenizer.schedule, tokenizer.settings.quantizer.vocab_size)
    ratios: list[numpy.ndarray] = []
    for pixels, _, counts in shared_batches(
        source, size=tokenizer.image_size, batch_size=batch_size, limit=limit, skipped=skipped, ranks=ranks
    ):
        tokens_BL = tokenizer.encode(to_model(pixels).to(device))
        decoded = to_uint8(tokenizer.decode(tokens_BL))
        if counts:
            usage.add(tokens_BL)
            ratios.append(psnr(pixels, decoded))
    ranks.sum_([usage.counts_SV])
    scores = {"psnr": shared_mean(ratios, ranks)}
    scores |= {f"codes_used_{scale}": float(number) for scale, number in enumerate(usage.used())}
    return scores | {f"usage_{scale}": share for scale, share in enumerate(usage.shares())}
