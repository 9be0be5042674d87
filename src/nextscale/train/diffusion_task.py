"""Training a diffusion prior: the mean squared error of the guessed noise (DDPM, equation 14), the
tokenizer frozen.

Letters: B batch, L latent cells, C channels.
Special here: time and noise of a sample follow from its own random numbers, as everything else that is
random.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.data.loader import WHOLE, Batch, evaluation_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.token_cache import TokenCache
from nextscale.distributed import Distributed
from nextscale.pixels import to_model
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.noise import NUM_TIMES, add_noise
from nextscale.prior.transformer import drop_path_factors
from nextscale.rng import lesson_normals
from nextscale.train.prior_base import PriorBase
from nextscale.train.task import image_batches

_MEASURED_IMAGES, _MEASURED_AT_A_TIME = 2048, 64
_LEAST_DEVIATION = 1e-3  # a channel that says nothing must not be blown up


class DiffusionTask(PriorBase):
    """See `nextscale.train.task.Task`."""

    def prepare(self, *, progress: bool, ranks: Distributed | None = None) -> None:
        """Measure mean and deviation of the features' channels, unless they came with the weights to start
        from.

        The first of several processes does so; training begins with its numbers on all of them. A resumed run
        measures again, and then reads the same numbers from its checkpoint.
        """
        if self.run.init:
            return
        ranks = ranks or Distributed(0, 1, self.device)
        with ranks.together():
            if ranks.is_first:
                self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        assert isinstance(self.module, DiffusionPrior) and not isinstance(self.source, TokenCache)
        sums, count = torch.zeros(2, len(self.module.mean_C), dtype=torch.float64), 0
        skipped = None if self.skipped is None else SkippedImages()  # training will meet and list them itself
        for pixels, _ in evaluation_batches(
            self.source, size=self.tokenizer.image_size, batch_size=_MEASURED_AT_A_TIME,
            limit=_MEASURED_IMAGES, skipped=skipped,
        ):  # fmt: skip
            values_CN = self._features(to_model(pixels)).double().transpose(0, 1).flatten(1).cpu()
            sums += torch.stack([values_CN.sum(dim=1), values_CN.square().sum(dim=1)])
            count += values_CN.shape[1]
        mean_C, square_C = sums / count
        deviation_C = (square_C - mean_C.square()).clamp(min=0).sqrt().clamp(min=_LEAST_DEVIATION)
        self.module.measure(mean_C, deviation_C)

    def _features(self, images_BCHW: Tensor) -> Tensor:
        enabled = self.run.encode_precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            return self.tokenizer.features(images_BCHW.to(self.device))

    def batches(self, steps: range, *, part: slice = WHOLE) -> Iterator[Batch]:
        return image_batches(self, self.run, size=self.tokenizer.image_size, steps=steps, part=part)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prior = self.module
        assert isinstance(prior, DiffusionPrior)
        with torch.no_grad():
            clean_BLC = prior.standardise(self._features(batch.items))
            times_B, noise_BLC = (item.to(self.device) for item in lesson(batch, tuple(clean_BLC.shape[1:])))
            noisy_BLC = add_noise(clean_BLC, noise_BLC.to(clean_BLC), times_B)
        guess_BLC = prior(
            self.labels(batch), noisy_BLC, times_B, recompute=self.run.recompute,
            keep_D2B=drop_path_factors(prior.settings, batch.uniforms_BR[:, 1:].to(self.device)),
        )  # fmt: skip
        return F.mse_loss(guess_BLC, noise_BLC.to(guess_BLC)), {}


def lesson(batch: Batch, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Times int64 (B,) in [0, 1000) and noise float32 (B, L, C) of a batch, from each sample's last numbers.

    The first numbers are for class and blocks; a float32 number in [0, 1) holds 24 bits, two make the
    noise's key.
    """
    last_B3 = batch.uniforms_BR[:, -3:].double().cpu().numpy()
    times_B = (last_B3[:, 0] * NUM_TIMES).astype(numpy.int64)
    halves_B2 = (last_B3[:, 1:] * 2**24).astype(numpy.int64)
    keys = [int(high) << 24 | int(low) for high, low in halves_B2]
    return torch.from_numpy(times_B), torch.from_numpy(lesson_normals(keys, shape))
