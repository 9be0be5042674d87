"""Training the tokenizer: reconstruction, codebook, commitment and adversarial losses, and what moves codes.

Letters: B batch, S scales, L tokens of all scales, R uniform numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.data.loader import WHOLE, Batch, evaluation_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.distributed import Distributed, place
from nextscale.evaluate.reconstruction import reconstruction_scores
from nextscale.generate.folder import save_model
from nextscale.generate.settings import ModelSettings
from nextscale.integrity.signatures import find_trusted_model
from nextscale.pixels import side_by_side, to_model, to_uint8
from nextscale.rng import step_generator
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.adversary import NUM_ADVERSARY_UNIFORMS, Adversary
from nextscale.train.adversary_start import with_discriminator
from nextscale.train.alarms import adversary_alarms, usage_alarms
from nextscale.train.codes import CodeKeeper
from nextscale.train.fine_tune import start_from
from nextscale.train.optimizer import ParameterGroup
from nextscale.train.settings import TokenizerRun
from nextscale.train.task import image_batches
from nextscale.train.tokenizer_losses import ReconstructionLoss, loss_digests

_PICTURE_IMAGES = 32
#: Of a sample's uniform numbers, the first ones decide where it stops, the next ones how it is disturbed.
_NUM_STOP_UNIFORMS = 2


class TokenizerTask:
    """See `nextscale.train.task.Task`."""

    score: tuple[str, bool] = ("psnr", True)
    no_decay: tuple[str, ...] = ("codebook",)

    def __init__(
        self, run: TokenizerRun, *, source: Source, validation: Source, device: torch.device,
        skipped: SkippedImages | None = None,
    ) -> None:  # fmt: skip
        self.run, self.source, self.validation, self.device = run, source, validation, device
        self.skipped = skipped
        self.tokenizer = Tokenizer(run.tokenizer, run.schedule)
        _start_small(self.tokenizer)
        self.start_lines = self._start_from_init()
        place(self.tokenizer, device)
        self.codes = CodeKeeper(
            self.tokenizer.quantizer.codebook, run.codes, reset_after=run.losses.reset_after
        )
        self.reconstruction = ReconstructionLoss(run, image_size=self.tokenizer.image_size, device=device)
        self.module: nn.Module = self.tokenizer
        self.parameter_groups: tuple[ParameterGroup, ...] = ()
        self.adversary: Adversary | None = None
        if run.losses.adversarial:
            self.adversary, self.module, self.parameter_groups = with_discriminator(
                self.tokenizer, run, device=device
            )

    def _start_from_init(self) -> list[str]:
        """Take the weights of `init`, where it is set. Returns what to say about it."""
        self.init_digest = ""
        if not self.run.init:
            return []
        home = find_trusted_model(self.run.init, self.run.ledger.verify_with)
        self.init_digest = checkpoint.digest(home / "tokenizer.safetensors")
        tensors = checkpoint.read_tensors(home / "tokenizer.safetensors")
        return start_from(self.tokenizer, tensors, source=self.run.init).lines(self.run.init)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files of other networks that decide what is learnt."""
        return loss_digests(self.run)

    @property
    def averaged(self) -> nn.Module:
        return self.tokenizer

    @property
    def totals(self) -> dict[str, Tensor]:
        return {**self.codes.totals, **(self.adversary.totals if self.adversary else {})}

    def batches(self, steps: range, *, part: slice = WHOLE) -> Iterator[Batch]:
        return image_batches(self, self.run, size=self.tokenizer.image_size, steps=steps, part=part)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weights = self.run.losses
        images = batch.items.to(self.device, memory_format=torch.channels_last)
        uniforms_BR = batch.uniforms_BR.to(self.device)
        decoded, quantized = self.tokenizer(
            images, rotate=self.run.codes.gradient == "rotation",
            last_scale_B=self._last_scales(uniforms_BR), recompute=self.run.recompute,
        )  # fmt: skip
        decoded = decoded.float()
        reconstruction, numbers = self.reconstruction(decoded, images)
        loss = (
            reconstruction
            + weights.codebook * quantized.codebook_loss
            + weights.commitment * quantized.commitment_loss
        )
        self.codes.add(quantized)
        numbers |= {
            "codebook_loss": quantized.codebook_loss, "commitment_loss": quantized.commitment_loss,
            "idle_codes": (self.codes.idle_steps_V > 0).sum(),
        }  # fmt: skip
        if self.adversary:
            own = slice(_NUM_STOP_UNIFORMS, _NUM_STOP_UNIFORMS + NUM_ADVERSARY_UNIFORMS)
            adversarial, more = self.adversary.loss(
                decoded, images, reconstruction=reconstruction, uniforms_BR=uniforms_BR[:, own]
            )
            loss, numbers = loss + adversarial, numbers | more
        return loss, numbers

    def _last_scales(self, uniforms_BR: Tensor) -> Tensor | None:
        """The scale after which each sample stops (quantiser dropout), int64 (B,); None: nobody stops early.

        The first number of a sample decides whether it stops, the second one where.
        """
        if not self.run.codes.scale_dropout:
            return None
        num_earlier = self.run.schedule.num_scales - 1
        earlier_B = (uniforms_BR[:, 1] * num_earlier).long()
        return torch.where(uniforms_BR[:, 0] < self.run.codes.scale_dropout, earlier_B, num_earlier)

    def after_step(self, step: int) -> None:
        """Codes that are idle or follow means move (`CodeKeeper`); the adversarial weight (`Adversary`)."""
        self.codes.after_step(step_generator(self.run.loop.seed, step))
        if self.adversary:
            self.adversary.after_step(step)

    def evaluate(
        self, module: nn.Module, limit: int | None, ranks: Distributed | None = None
    ) -> dict[str, float]:
        assert isinstance(module, Tokenizer)
        return reconstruction_scores(
            module.eval(), self.validation, limit=limit, skipped=self.skipped, ranks=ranks
        )

    def alarms(self, scores: dict[str, float]) -> list[str]:
        found = usage_alarms(scores, self.run)
        return found + (adversary_alarms(self.adversary) if self.adversary else [])

    @torch.no_grad()
    def picture(self, module: nn.Module) -> numpy.ndarray:
        assert isinstance(module, Tokenizer)
        batches = evaluation_batches(
            self.validation, size=module.image_size, batch_size=_PICTURE_IMAGES, skipped=self.skipped
        )
        pixels, _ = next(batches)
        given = to_model(pixels).to(self.device)
        return side_by_side(pixels, to_uint8(module.decode(module.encode(given))))

    def state(self) -> dict[str, Tensor]:
        return {**self.codes.state(), **(self.adversary.state() if self.adversary else {})}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.codes.load_state(tensors)
        if self.adversary:
            self.adversary.load_state(tensors)

    def export(self, module: nn.Module, folder: Path) -> None:
        assert isinstance(module, Tokenizer)
        settings = ModelSettings(
            schedule=self.run.schedule, tokenizer=self.run.tokenizer, class_names=self.source.class_names,
            enlarge=self.run.data.enlarge,
        )  # fmt: skip
        save_model(folder, settings, tokenizer=module)


@torch.no_grad()
def _start_small(tokenizer: Tokenizer) -> None:
    """Codes of about the size of the features, so that the first steps find a use for all of them."""
    nn.init.normal_(tokenizer.quantizer.codebook.weight, std=0.3)
    for name, parameter in tokenizer.quantizer.phis.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
