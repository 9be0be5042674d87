"""Training the tokenizer: reconstruction, codebook and commitment losses, and moving codes that nobody uses.

Letters: B batch, S scales, L tokens of all scales, T tokens of one scale, V codes, C width of a code, h w
    latent cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from nextscale.data.loader import Batch, evaluation_batches, training_batches
from nextscale.data.sources import Source
from nextscale.distributed import place
from nextscale.evaluate.reconstruction import reconstruction_scores
from nextscale.generate.folder import save_model
from nextscale.generate.settings import ModelSettings
from nextscale.pixels import side_by_side, to_model, to_uint8
from nextscale.rng import step_generator
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.settings import TokenizerRun

_PICTURE_IMAGES = 32


class TokenizerTask:
    """See `nextscale.train.task.Task`."""

    score: tuple[str, bool] = ("psnr", True)
    no_decay: tuple[str, ...] = ("codebook",)

    def __init__(
        self, run: TokenizerRun, *, source: Source, validation: Source, device: torch.device
    ) -> None:
        self.run, self.source, self.validation, self.device = run, source, validation, device
        self.module = place(Tokenizer(run.tokenizer, run.schedule), device)
        _start_small(self.module)
        self.idle_steps_V = torch.zeros(run.tokenizer.quantizer.vocab_size, dtype=torch.int64, device=device)

    def batches(self, steps: range) -> Iterator[Batch]:
        loop = self.run.loop
        return training_batches(
            self.source, self.run.data, size=self.module.image_size, batch_size=loop.batch_size,
            seed=loop.seed, steps=steps,
        )  # fmt: skip

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weights = self.run.losses
        images = batch.items.to(self.device, memory_format=torch.channels_last)
        decoded, quantized = self.module(images)
        error = decoded.float() - images
        l1, l2 = error.abs().mean(), error.square().mean()
        loss = (
            weights.l1 * l1
            + weights.l2 * l2
            + weights.codebook * quantized.codebook_loss
            + weights.commitment * quantized.commitment_loss
        )
        self._watch_codes(quantized.tokens_BL)
        numbers = {
            "l1": l1, "l2": l2, "codebook_loss": quantized.codebook_loss,
            "commitment_loss": quantized.commitment_loss, "idle_codes": (self.idle_steps_V > 0).sum(),
        }  # fmt: skip
        return loss, numbers

    @torch.no_grad()
    def _watch_codes(self, tokens_BL: Tensor) -> None:
        """Count for how many steps each code has been idle."""
        self.last_tokens = tokens_BL.flatten()
        used = torch.bincount(self.last_tokens, minlength=len(self.idle_steps_V)) > 0
        self.idle_steps_V = torch.where(used, 0, self.idle_steps_V + 1)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Put codes that were idle for too long beside codes that are used, the more often the likelier."""
        idle = (self.idle_steps_V > self.run.losses.reset_after).nonzero().flatten()
        if not self.run.losses.reset_after or not len(idle):
            return
        weight, random = self.module.quantizer.codebook.weight, step_generator(self.run.loop.seed, step)
        chosen = torch.from_numpy(random.integers(len(self.last_tokens), size=len(idle))).to(self.device)
        noise = torch.from_numpy(random.standard_normal((len(idle), weight.shape[1]))).to(weight)
        weight[idle] = weight[self.last_tokens[chosen]] + 0.1 * weight.std(dim=0) * noise
        self.idle_steps_V[idle] = 0

    def evaluate(self, module: nn.Module, limit: int | None) -> dict[str, float]:
        assert isinstance(module, Tokenizer)
        return reconstruction_scores(module.eval(), self.validation, limit=limit)

    @torch.no_grad()
    def picture(self, module: nn.Module) -> numpy.ndarray:
        assert isinstance(module, Tokenizer)
        batches = evaluation_batches(self.validation, size=module.image_size, batch_size=_PICTURE_IMAGES)
        pixels, _ = next(batches)
        given = to_model(pixels).to(self.device)
        return side_by_side(pixels, to_uint8(module.decode(module.encode(given))))

    def state(self) -> dict[str, Tensor]:
        return {"idle_steps_V": self.idle_steps_V}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.idle_steps_V = tensors["idle_steps_V"].to(self.device)

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
