"""How well a diffusion prior guesses the noise in images it has not seen.

Letters: B batch, Q quarters of the times, L latent cells, C channels.
Special here: an image's place in the pass decides its noise and its four times, one in each quarter of the
1000, so that two evaluations differ by the weights alone. The loss is comparable between diffusion priors
of one tokenizer, not with the cross-entropy of the other families.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from nextscale.data.loader import evaluation_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.pixels import to_model
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.noise import NUM_TIMES, add_noise
from nextscale.rng import lesson_normals
from nextscale.tokenizer.model import Tokenizer

_QUARTERS = 4
_VALIDATION = 1 << 48  # keys of training lie below
_GOLDEN = 0.6180339887498949  # multiples of it fill [0, 1) evenly, however many there are


def validation_times(place: int) -> numpy.ndarray:
    """One time in each quarter for the image at this place of the pass: int64 (Q,)."""
    span = NUM_TIMES // _QUARTERS
    times: numpy.ndarray = numpy.arange(_QUARTERS) * span + int(place * _GOLDEN % 1 * span)
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
) -> dict[str, float]:
    """Mean squared error of the guessed noise over center crops of a source, in all and per quarter of times.

    Args:
        tokenizer: in evaluation mode, on the device of the prior.
        prior: in evaluation mode.
        source: images whose labels are those of the prior.
        limit: images at most, spread over the source.
        batch_size: images at a time.
        skipped: takes the names of bad images, which are left out; None: a bad image is an error.
    """
    device, total, size = prior.position.device, torch.zeros(_QUARTERS, dtype=torch.float64), 0
    for pixels, labels in evaluation_batches(
        source, size=tokenizer.image_size, batch_size=batch_size, limit=limit, skipped=skipped
    ):
        with torch.autocast(device.type, enabled=False):
            clean_BLC = prior.standardise(tokenizer.features(to_model(pixels).to(device)))
        places, shape = range(size, size + len(labels)), (_QUARTERS, *clean_BLC.shape[1:])
        noise_BQLC = _stack([lesson_normals(_VALIDATION + place, shape) for place in places]).to(device)
        times_BQ = _stack([validation_times(place) for place in places]).to(device)
        labels_B = torch.from_numpy(labels).to(device)
        for quarter in range(_QUARTERS):
            noise_BLC, times_B = noise_BQLC[:, quarter], times_BQ[:, quarter]
            guess_BLC = prior(labels_B, add_noise(clean_BLC, noise_BLC, times_B), times_B)
            total[quarter] += float((guess_BLC - noise_BLC).square().mean()) * len(labels)
        size += len(labels)
    losses_Q = total / size
    return {"loss": float(losses_Q.mean())} | {
        f"quarter_loss_{quarter}": float(loss) for quarter, loss in enumerate(losses_Q)
    }


def _stack(arrays: list[numpy.ndarray]) -> Tensor:
    return torch.from_numpy(numpy.stack(arrays))
