"""How well a tokenizer gives images back, and how much of its codebook each scale uses.

Letters: B batch, S scales, L tokens of all scales, V codes.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from nextscale.data.loader import evaluation_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.evaluate.frechet import frechet_distance
from nextscale.evaluate.moments import Moments
from nextscale.evaluate.similarity import SSIM_WINDOW, psnr, ssim
from nextscale.features.extractor import Extractor
from nextscale.features.perceptual import PerceptualDistance
from nextscale.pixels import to_model, to_uint8
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer


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
    skipped: SkippedImages | None = None, extractor: Extractor | None = None,
    lpips: PerceptualDistance | None = None,
) -> dict[str, float]:  # fmt: skip
    """Over center crops of a source: means of the images' PSNR in dB, SSIM (left out where images are smaller
    than its window) and LPIPS (with its network), with an extractor the Fréchet distance of the
    reconstructions from the originals (rFID, rFD-CIFAR and so on), and per scale the codes used and their
    share.

    Args:
        tokenizer: in evaluation mode.
        source: images.
        limit: images at most, spread over the source.
        batch_size: images at a time.
        skipped: takes the names of bad images, which are left out; None: a bad image is an error.
        extractor: what the Fréchet distance looks through.
        lpips: VGG16 with the heads of LPIPS, on the tokenizer's device.

    Raises:
        ValueError: the extractor takes images of another size, or there are fewer than two; the perceptual
            distance has no heads, or is made for larger images.
    """
    if lpips is not None and not lpips.heads:
        raise ValueError("LPIPS is defined by its heads: load the perceptual distance with weights and heads")
    device = next(tokenizer.parameters()).device
    usage = CodeUsage(tokenizer.schedule, tokenizer.settings.quantizer.vocab_size)
    values: dict[str, list[numpy.ndarray]] = {"psnr": [], "ssim": [], "lpips": []}
    moments = (Moments(extractor.dim), Moments(extractor.dim)) if extractor else None
    for pixels, _ in evaluation_batches(
        source, size=tokenizer.image_size, batch_size=batch_size, limit=limit, skipped=skipped
    ):
        tokens_BL = tokenizer.encode(to_model(pixels).to(device))
        usage.add(tokens_BL)
        decoded = to_uint8(tokenizer.decode(tokens_BL))
        values["psnr"].append(psnr(pixels, decoded))
        if min(tokenizer.image_size) >= SSIM_WINDOW:
            values["ssim"].append(ssim(pixels, decoded))
        if lpips is not None:
            pair = (to_model(given).to(device) for given in (decoded, pixels))
            values["lpips"].append(lpips(*pair).double().cpu().numpy())
        if extractor and moments:
            for side, images in zip(moments, (pixels, decoded), strict=True):
                side.add(extractor(images)["pool"])
    scores = {name: float(numpy.concatenate(parts).mean()) for name, parts in values.items() if parts}
    if extractor and moments:
        scores[f"r{extractor.metric_name}"] = frechet_distance(*moments)
    scores |= {f"codes_used_{scale}": float(number) for scale, number in enumerate(usage.used())}
    return scores | {f"usage_{scale}": share for scale, share in enumerate(usage.shares())}
