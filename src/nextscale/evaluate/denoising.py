"""How well a diffusion prior guesses the noise in images it has not seen.

Letters: B batch, Q quarters of the times, L latent cells, C channels.
Special here: an image's pixels decide its noise and its four times, one in each quarter of the 1000, so
that two evaluations differ by the weights alone, whatever the batches, the processes or the number of
images. The loss is comparable between diffusion priors of one tokenizer, not with the cross-entropy of the
other families.
"""

from __future__ import annotations

import hashlib

import numpy
import torch

from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.distributed import Distributed
from nextscale.evaluate.sharing import shared_batches
from nextscale.pixels import to_model
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.noise import NUM_TIMES, add_noise
from nextscale.rng import lesson_normals
from nextscale.tokenizer.model import Tokenizer

_QUARTERS = 4
_VALIDATION = 1 << 48  # keys of training lie below


def validation_key(pixels_HWC: numpy.ndarray) -> int:
    """What the random numbers of a validation image, uint8 (H, W, 3), are keyed by."""
    return _VALIDATION | int.from_bytes(hashlib.sha256(pixels_HWC.tobytes()).digest()[:6])


def validation_times(key: int) -> numpy.ndarray:
    """One time in each quarter: int64 (Q,)."""
    span = NUM_TIMES // _QUARTERS
    times: numpy.ndarray = numpy.arange(_QUARTERS) * span + key % span
    return times


@torch.no_grad()
def denoising_scores(
    tokenizer: Tokenizer,
    prior: DiffusionPrior,
    source: Source,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    skipped: SkippedImages | None = None,
    ranks: Distributed | None = None,
) -> dict[str, float]:
    """Mean squared error of the guessed noise over center crops of a source, in all and per quarter of times.

    Args:
        tokenizer: in evaluation mode, on the device of the prior.
        prior: in evaluation mode.
        source: images whose labels are those of the prior.
        limit: images at most, spread over the source.
        batch_size: images at a time.
        skipped: takes the names of bad images, which are left out; None: a bad image is an error.
        ranks: processes that share the images, all of which must call this; None: this one alone.
    """
    device = prior.position.device
    ranks = ranks or Distributed(0, 1, device)
    total, size = (torch.zeros(count, dtype=torch.float64) for count in (_QUARTERS, 1))
    for pixels, labels, counts in shared_batches(
        source, size=tokenizer.image_size, batch_size=batch_size, limit=limit, skipped=skipped, ranks=ranks
    ):
        with torch.autocast(device.type, enabled=False):
            clean_BLC = prior.standardise(tokenizer.features(to_model(pixels).to(device)))
        keys, shape = [validation_key(image) for image in pixels], (_QUARTERS, *clean_BLC.shape[1:])
        noise_BQLC = torch.from_numpy(lesson_normals(keys, shape)).to(device)
        times_BQ = torch.from_numpy(numpy.stack([validation_times(key) for key in keys])).to(device)
        labels_B = torch.from_numpy(labels).to(device)
        for quarter in range(_QUARTERS):
            noise_BLC, times_B = noise_BQLC[:, quarter], times_BQ[:, quarter]
            guess_BLC = prior(labels_B, add_noise(clean_BLC, noise_BLC, times_B), times_B)
            if counts:
                total[quarter] += float((guess_BLC - noise_BLC).square().mean()) * len(labels)
        size += len(labels) * counts
    ranks.sum_([total, size])
    losses_Q = total / size
    return {"loss": float(losses_Q.mean())} | {
        f"quarter_loss_{quarter}": float(loss) for quarter, loss in enumerate(losses_Q)
    }
