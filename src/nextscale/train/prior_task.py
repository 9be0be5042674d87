"""Training the prior: cross-entropy of every token given the coarser scales, the tokenizer frozen.

Letters: B batch, N all training images, S scales, L tokens of all scales, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nextscale import checkpoint
from nextscale.data.loader import Batch, evaluation_batches, token_batches, training_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.evaluate.prediction import mean_per_scale, prediction_scores, token_scores
from nextscale.generate.folder import build_prior, load_tokenizer, read_settings
from nextscale.generate.generator import Generator
from nextscale.models import find_model
from nextscale.pixels import enlarge, grid, to_model
from nextscale.prior.next_scale import NextScalePrior, drop_path_factors
from nextscale.scales import ScaleSchedule
from nextscale.train.optimizer import ParameterGroup
from nextscale.train.settings import PriorRun

_PICTURE_CLASSES, _PICTURE_PER_CLASS = 10, 8


class PriorTask:
    """See `nextscale.train.task.Task`."""

    score: tuple[str, bool] = ("loss", False)
    no_decay: tuple[str, ...] = (
        "position",
        "class_embedding",
        "level_embedding",
        "log_scale",
        "modulation_offset",
    )
    parameter_groups: tuple[ParameterGroup, ...] = ()

    def __init__(
        self, run: PriorRun, *, source: Source, validation: Source, device: torch.device, folder: Path,
        skipped: SkippedImages | None = None,
    ) -> None:  # fmt: skip
        self.skipped = skipped
        self.run, self.source, self.validation, self.device, self.folder = (
            run,
            source,
            validation,
            device,
            folder,
        )
        if not run.tokenizer_from:
            raise ValueError(
                "no tokenizer given: set --tokenizer_from to the model folder of a trained tokenizer"
            )
        home = find_model(run.tokenizer_from)
        base = read_settings(home)
        self.tokenizer = load_tokenizer(home, base).to(device)
        self.tokenizer_digest = checkpoint.digest(home / "tokenizer.safetensors")
        self.settings = base.model_copy(
            update={
                "prior": run.prior, "class_names": source.class_names, "enlarge": run.data.enlarge,
                "sampling": run.sampling,
            }
        )  # fmt: skip
        vocab_size = base.tokenizer.quantizer.vocab_size
        if run.sampling.top_k > vocab_size:
            raise ValueError(
                f"sampling.top_k {run.sampling.top_k} exceeds the {vocab_size} codes of the tokenizer"
            )
        self.module = build_prior(self.settings).to(device)
        self.weights_L = _token_weights(run.scale_weights, base.schedule).to(device)

    @property
    def averaged(self) -> nn.Module:
        return self.module

    @property
    def totals(self) -> dict[str, Tensor]:
        return {}

    def batches(self, steps: range) -> Iterator[Batch]:
        loop = self.run.loop
        if self.run.cache_tokens:
            labels_N = torch.from_numpy(self.source.labels)
            return token_batches(
                self._all_tokens(), labels_N, batch_size=loop.batch_size, seed=loop.seed, steps=steps
            )
        return training_batches(
            self.source, self.run.data, size=self.tokenizer.image_size, batch_size=loop.batch_size,
            seed=loop.seed, steps=steps, skipped=self.skipped,
        )  # fmt: skip

    def _all_tokens(self) -> Tensor:
        """Tokens int32 (N, L) of the center crop of every training image, kept beside the run for the next
        start.
        """
        path, wanted = self.folder / "tokens.safetensors", f"tokens of {self.tokenizer_digest}"
        if path.exists():
            kept = checkpoint.read_tensors(path)
            if list(kept) == [wanted] and len(kept[wanted]) == len(self.source.labels):
                return kept[wanted]
        parts = []
        bar = tqdm(total=len(self.source.labels), unit="image", desc="encoding", disable=None)
        for pixels, _ in evaluation_batches(self.source, size=self.tokenizer.image_size, batch_size=100):
            parts.append(self._encode(to_model(pixels)).int().cpu())
            bar.update(len(pixels))
        bar.close()
        checkpoint.write_tensors(path, {wanted: torch.cat(parts)})
        return torch.cat(parts)

    def _encode(self, images_BCHW: Tensor) -> Tensor:
        return self.tokenizer.encode(images_BCHW.to(self.device))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prior = self.module
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            items = batch.items.to(self.device)
            tokens_BL = self._encode(items) if items.is_floating_point() else items
            inputs_BLC = self.tokenizer.teacher_inputs(tokens_BL)
        uniforms_BR = batch.uniforms_BR.to(self.device)
        # the first number decides about the class, the others about the blocks
        dropped_B = uniforms_BR[:, 0] < prior.settings.class_dropout
        labels_B = torch.where(dropped_B, prior.unconditional, batch.labels_B.to(self.device))
        logits_BLV = prior(
            labels_B, inputs_BLC, keep_D2B=drop_path_factors(prior.settings, uniforms_BR[:, 1:]),
            recompute=self.run.recompute,
        )  # fmt: skip
        losses_L, correct_L = token_scores(logits_BLV, tokens_BL)
        per_scale = mean_per_scale(losses_L.detach(), self.settings.schedule)
        numbers = {"accuracy": correct_L.mean(), "scale_loss": per_scale}
        weights_L = self.weights_L.to(losses_L)
        return (losses_L * weights_L).sum() / weights_L.sum(), numbers

    def after_step(self, step: int) -> None:
        """Nothing besides the optimizer's step."""

    def evaluate(self, module: nn.Module, limit: int | None) -> dict[str, float]:
        assert isinstance(module, NextScalePrior)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.loop.precision == "bfloat16"):
            return prediction_scores(
                self.tokenizer, module.eval(), self.validation, limit=limit, skipped=self.skipped
            )

    def alarms(self, scores: dict[str, float]) -> list[str]:
        return []

    def picture(self, module: nn.Module) -> numpy.ndarray:
        assert isinstance(module, NextScalePrior)
        generator = Generator(self.settings, self.tokenizer, module)
        classes = range(min(_PICTURE_CLASSES, len(self.settings.class_names)))
        labels = [label for label in classes for _ in range(_PICTURE_PER_CLASS)]
        images = generator(labels, seeds=range(len(labels))).images
        return grid(enlarge(images, max(1, 64 // images.shape[1])), columns=_PICTURE_PER_CLASS)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """There is none."""

    def export(self, module: nn.Module, folder: Path) -> None:
        assert isinstance(module, NextScalePrior)
        Generator(self.settings, self.tokenizer, module).save(folder)


def _token_weights(weights: tuple[float, ...], schedule: ScaleSchedule) -> Tensor:
    """One weight per scale -> one per token: float32 (L,). Raises ValueError unless they fit the schedule."""
    if not weights:
        return torch.ones(schedule.num_tokens)
    if len(weights) != schedule.num_scales or min(weights) < 0 or sum(weights) == 0:
        raise ValueError(
            f"scale_weights {list(weights)}: expected {schedule.num_scales} numbers, one per scale, "
            "none below 0 and not all of them 0"
        )
    return torch.tensor(weights).repeat_interleave(torch.tensor(schedule.num_cells))
