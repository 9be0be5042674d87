"""Tuning a decoder on what the prior draws (post-training, Qiu et al. 2025, arXiv 2509.12474).

A scale's tokens are drawn without seeing one another, so those of the last scale together say what no image's
tokens say, and a decoder that has seen images' tokens alone paints it. Here the prior draws the last scale of
some training images, given their own coarser ones, and the decoder learns to make the image of it all the
same. Encoder, codes and prior stay, so tokens keep their meaning and the prior its loss.

Letters: B batch, L tokens of all scales, R uniform numbers, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.data.loader import WHOLE, Batch, evaluation_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.distributed import Distributed
from nextscale.evaluate.reconstruction import reconstruction_scores
from nextscale.evaluate.sharing import shared_batches, shared_mean
from nextscale.evaluate.similarity import psnr
from nextscale.generate.folder import load_prior, load_tokenizer, save_model
from nextscale.generate.generator import Generator
from nextscale.generate.precision import Dtype
from nextscale.generate.request import Forced
from nextscale.integrity.signatures import find_trusted_model
from nextscale.pixels import side_by_side, to_model, to_uint8
from nextscale.prior.next_scale import NextScalePrior
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.adversary import NUM_ADVERSARY_UNIFORMS, Adversary
from nextscale.train.adversary_start import with_discriminator
from nextscale.train.alarms import adversary_alarms
from nextscale.train.optimizer import ParameterGroup
from nextscale.train.settings import DecoderRun
from nextscale.train.task import image_batches
from nextscale.train.tokenizer_losses import ReconstructionLoss, loss_digests

_PICTURE_IMAGES, _EVALUATION_BATCH = 32, 64
#: Of a sample's uniform numbers one says whether the prior draws, and two of so many bits make its seed.
_NUM_DRAW_UNIFORMS, _BITS = 3, 24


class DecoderTask:
    """See `nextscale.train.task.Task`."""

    score: tuple[str, bool] = ("drawn_psnr", True)
    no_decay: tuple[str, ...] = ()

    def __init__(
        self, run: DecoderRun, *, source: Source, validation: Source, device: torch.device,
        skipped: SkippedImages | None = None,
    ) -> None:  # fmt: skip
        if not run.init:
            raise ValueError("no model given: set --init to the folder of a model with a prior")
        self.run, self.source, self.validation, self.device = run, source, validation, device
        self.skipped = skipped
        self.home = find_trusted_model(run.init, run.ledger.verify_with)
        dtype: Dtype = "auto" if run.loop.precision == "bfloat16" else "float32"
        self.drawing = Generator.load(self.home, device=device, dtype=dtype)  #: makes tokens, is not trained
        self.settings = self.drawing.settings
        self._check_model()
        self.init_digest = checkpoint.digest(self.home / "tokenizer.safetensors")
        self.prior_digest = checkpoint.digest(self.home / "prior.safetensors")
        self.tokenizer = load_tokenizer(self.home, self.settings).to(device)
        self.module: nn.Module = self.tokenizer.requires_grad_(False)
        for part in (self.tokenizer.post_quant, self.tokenizer.decoder):
            part.requires_grad_(True)
        count = sum(item.numel() for item in self.tokenizer.parameters() if item.requires_grad)
        self.start_lines = [f"from {run.init}: {count:,} parameters of the decoder are tuned, no others"]
        self.reconstruction = ReconstructionLoss(run, image_size=self.tokenizer.image_size, device=device)
        self.parameter_groups: tuple[ParameterGroup, ...] = ()
        self.adversary: Adversary | None = None
        if run.losses.adversarial:
            self.adversary, self.module, self.parameter_groups = with_discriminator(
                self.tokenizer, run, device=device
            )

    def _check_model(self) -> None:
        """Raise ValueError for a model that draws no scales, or other classes."""
        run, names = self.run, self.settings.class_names
        if not isinstance(self.drawing.prior, NextScalePrior):
            raise ValueError(
                f"init {run.init} does not draw scale by scale: give a model with a next_scale prior"
            )
        if self.source.class_names != names:
            raise ValueError(
                f"{run.data.source} has other classes ({', '.join(self.source.class_names[:3])}...) than the "
                f"model ({', '.join(names[:3])}...): give the images that its prior was trained on"
            )
        num_scales = self.settings.schedule.num_scales
        if run.drawn_scales > num_scales:
            raise ValueError(f"drawn_scales {run.drawn_scales} exceeds the {num_scales} scales of the model")

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files of other networks that decide what is learnt."""
        return {"prior_sha256": self.prior_digest, **loss_digests(self.run)}

    @property
    def averaged(self) -> nn.Module:
        return self.tokenizer

    @property
    def totals(self) -> dict[str, Tensor]:
        return self.adversary.totals if self.adversary else {}

    def batches(self, steps: range, *, part: slice = WHOLE) -> Iterator[Batch]:
        return image_batches(self, self.run, size=self.tokenizer.image_size, steps=steps, part=part)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.items.to(self.device, memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            tokens_BL = self.tokenizer.encode(images)
            drawn = (batch.uniforms_BR[:, 0] < self.run.drawn_share).nonzero()[:, 0]
            if len(drawn):
                seeds = _seeds(batch.uniforms_BR[drawn, 1:_NUM_DRAW_UNIFORMS])
                tokens_BL[drawn] = self._draw(tokens_BL[drawn], batch.labels_B[drawn].tolist(), seeds)
            *_, features_BChw = self.tokenizer.quantizer.maps(tokens_BL)
        decoded = self.tokenizer.decoder(self.tokenizer.post_quant(features_BChw)).float()
        loss, numbers = self.reconstruction(decoded, images)
        if self.adversary:
            own = slice(_NUM_DRAW_UNIFORMS, _NUM_DRAW_UNIFORMS + NUM_ADVERSARY_UNIFORMS)
            uniforms_BR = batch.uniforms_BR[:, own].to(self.device)
            adversarial, more = self.adversary.loss(
                decoded, images, reconstruction=loss, uniforms_BR=uniforms_BR
            )
            loss, numbers = loss + adversarial, numbers | more
        return loss, numbers

    @torch.no_grad()
    def _draw(self, tokens_BL: Tensor, labels: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """The tokens int64 (B, L) with their last scales drawn anew, by the model's own sampling settings."""
        schedule = self.settings.schedule
        first = schedule.slice(schedule.num_scales - self.run.drawn_scales).start
        kept_BL = torch.arange(schedule.num_tokens, device=self.device).expand_as(tokens_BL) < first
        request = self.drawing.request(labels, seeds, False, {})
        steps = self.drawing.steps(request._replace(forced=Forced(tokens_BL, kept_BL)))
        return torch.cat([tokens for tokens, _ in steps if tokens is not None], dim=1)

    def after_step(self, step: int) -> None:
        """The adversarial weight (`Adversary`)."""
        if self.adversary:
            self.adversary.after_step(step)

    def evaluate(
        self, module: nn.Module, limit: int | None, ranks: Distributed | None = None
    ) -> dict[str, float]:
        """Those of a tokenizer, and the PSNR in dB of images whose last scales were drawn."""
        assert isinstance(module, Tokenizer)
        ranks = ranks or Distributed(0, 1, self.device)
        scores = reconstruction_scores(
            module.eval(), self.validation, limit=limit, skipped=self.skipped, ranks=ranks
        )
        values: list[numpy.ndarray] = []
        batches = shared_batches(
            self.validation, size=module.image_size, batch_size=_EVALUATION_BATCH, limit=limit,
            skipped=self.skipped, ranks=ranks,
        )  # fmt: skip
        for number, (pixels, labels, counts) in enumerate(batches):
            first = (number * ranks.world_size + ranks.rank) * _EVALUATION_BATCH
            decoded = self._decode_drawn(module, pixels, labels, first_seed=first)
            values += [psnr(pixels, decoded)] if counts else []
        return {"drawn_psnr": shared_mean(values, ranks), **scores}

    @torch.no_grad()
    def _decode_drawn(
        self, module: Tokenizer, pixels_BHWC: numpy.ndarray, labels: numpy.ndarray, *, first_seed: int
    ) -> numpy.ndarray:
        """Images uint8 (B, H, W, 3) of those given, with the last scales of their tokens drawn."""
        tokens_BL = module.encode(to_model(pixels_BHWC).to(self.device))
        seeds = range(first_seed, first_seed + len(labels))
        return to_uint8(module.decode(self._draw(tokens_BL, labels.tolist(), seeds)))

    def alarms(self, scores: dict[str, float]) -> list[str]:
        return adversary_alarms(self.adversary) if self.adversary else []

    @torch.no_grad()
    def picture(self, module: nn.Module) -> numpy.ndarray:
        """Validation images, what their tokens show, and the same with the last scales drawn."""
        assert isinstance(module, Tokenizer)
        batches = evaluation_batches(
            self.validation, size=module.image_size, batch_size=_PICTURE_IMAGES, skipped=self.skipped
        )
        pixels, labels = next(batches)
        decoded = to_uint8(module.decode(module.encode(to_model(pixels).to(self.device))))
        drawn = self._decode_drawn(module, pixels, labels, first_seed=0)
        return side_by_side(numpy.concatenate([pixels, decoded], axis=2), drawn)

    def state(self) -> dict[str, Tensor]:
        return self.adversary.state() if self.adversary else {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        if self.adversary:
            self.adversary.load_state(tensors)

    def export(self, module: nn.Module, folder: Path) -> None:
        """The whole model: this decoder, and the prior as it was."""
        assert isinstance(module, Tokenizer)
        save_model(folder, self.settings, tokenizer=module, prior=load_prior(self.home, self.settings))


def _seeds(uniforms_B2: Tensor) -> list[int]:
    """A seed of each sample."""
    high_B, low_B = (uniforms_B2.double() * 2**_BITS).long().unbind(dim=1)
    return [(int(high) << _BITS) | int(low) for high, low in zip(high_B, low_B, strict=True)]
