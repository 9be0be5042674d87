"""Training the prior: cross-entropy of every token given the coarser scales, the tokenizer frozen.

Letters: B batch, S scales, L tokens of all scales, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.data.loader import WHOLE, Batch, token_batches, training_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.data.token_cache import TokenCache, describe, labels_digest, open_cache
from nextscale.data.tokenizing import make_cache
from nextscale.distributed import Distributed
from nextscale.evaluate.prediction import mean_per_scale, prediction_scores, token_scores
from nextscale.generate.folder import build_prior, load_tokenizer, read_settings
from nextscale.generate.generator import Generator
from nextscale.models import find_model
from nextscale.pixels import enlarge, grid
from nextscale.prior.next_scale import NextScalePrior, drop_path_factors
from nextscale.scales import ScaleSchedule
from nextscale.train.fine_tune import start_from, with_classes
from nextscale.train.optimizer import ParameterGroup
from nextscale.train.settings import PriorRun

_PICTURE_CLASSES, _PICTURE_PER_CLASS = 10, 8
_TOKENIZE_BATCH = 100


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
        self, run: PriorRun, *, source: Source | TokenCache, validation: Source, device: torch.device,
        folder: Path, skipped: SkippedImages | None = None,
    ) -> None:  # fmt: skip
        self.skipped = skipped
        self.run, self.source, self.validation, self.device, self.folder = (
            run,
            source,
            validation,
            device,
            folder,
        )
        if not run.tokenizer_from and not run.init:
            raise ValueError(
                "no tokenizer given: set --tokenizer_from to the model folder of a trained tokenizer"
            )
        home = find_model(run.tokenizer_from or run.init)
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
        self.module = build_prior(self.settings)
        self.start_lines = self._start_from_init()
        self.module.to(device)
        self.weights_L = _token_weights(run.scale_weights, base.schedule).to(device)
        self.cache = self._given_tokens()

    def _start_from_init(self) -> list[str]:
        """Take the weights of `init`, where it is set. Returns what to say about it."""
        if not self.run.init:
            return []
        home = find_model(self.run.init)
        known, wanted = read_settings(home).class_names, self.settings.class_names
        tensors = checkpoint.read_tensors(home / "prior.safetensors")
        same = sum(name in known for name in wanted)
        taken = start_from(self.module, with_classes(tensors, known, wanted), source=self.run.init)
        return [*taken.lines(self.run.init), f"classes: {same} of {len(wanted)} known by name"]

    def _given_tokens(self) -> TokenCache | None:
        """The tokens of `tokens_from`. Raises ValueError when they are not those that this run would see."""
        run = self.run
        if not run.tokens_from:
            return None
        cache = open_cache(Path(run.tokens_from).expanduser())
        quantizer, seed = self.tokenizer.settings.quantizer, cache.made_from.seed
        expected: dict[str, Any] = {
            "tokenizer_sha256": self.tokenizer_digest, "schedule": self.settings.schedule,
            "vocab_size": quantizer.vocab_size, "enlarge": run.data.enlarge, "flip": run.data.flip,
            "seed": None if seed is None else run.loop.seed,
            "class_names": self.source.class_names, "num_samples": len(self.source.labels),
            "labels_sha256": labels_digest(self.source.labels),
        }  # fmt: skip
        if not run.data.validation:
            expected["held_out"] = run.data.validation_share
        difference = cache.made_from.difference(cache.made_from.model_copy(update=expected))
        if difference:
            raise ValueError(
                f"tokens_from {run.tokens_from} was made with {difference} as in this run: "
                "tokenize again, or change the settings of the run"
            )
        return cache

    def prepare(self, *, progress: bool, ranks: Distributed | None = None) -> None:
        """Make the tokens that are kept, or check every byte of those that are there.

        Of several processes the first one makes them; the others wait, then open them.

        A wrong token would not be noticed in training, and hashing all of them costs little beside making
        them. Raises ValueError when they are damaged.
        """
        run = self.run
        if self.cache is not None:
            self.cache.check()
        elif run.cache_views:
            assert not isinstance(self.source, TokenCache)
            made_from = describe(
                self.source, run.data, held_out=None if run.data.validation else run.data.validation_share,
                tokenizer=self.tokenizer, tokenizer_sha256=self.tokenizer_digest, views=run.cache_views,
                seed=run.loop.seed,
            )  # fmt: skip
            ranks, folder = ranks or Distributed(0, 1, self.device), self.folder / "tokens"
            with ranks.together():
                if ranks.is_first:
                    self.cache = make_cache(
                        folder, source=self.source, tokenizer=self.tokenizer, made_from=made_from,
                        batch_size=_TOKENIZE_BATCH, num_workers=run.data.num_workers, progress=progress,
                    )  # fmt: skip
            with ranks.together():
                self.cache = self.cache or open_cache(folder)

    @property
    def averaged(self) -> nn.Module:
        return self.module

    @property
    def totals(self) -> dict[str, Tensor]:
        return {}

    def batches(self, steps: range, *, part: slice = WHOLE) -> Iterator[Batch]:
        loop = self.run.loop
        if self.cache is not None:
            return token_batches(
                self.cache.tokens_VNL, self.cache.labels, batch_size=loop.batch_size, seed=loop.seed,
                steps=steps, part=part,
            )  # fmt: skip
        assert not self.run.cache_views and not isinstance(self.source, TokenCache), "not prepared"
        return training_batches(
            self.source, self.run.data, size=self.tokenizer.image_size, batch_size=loop.batch_size,
            seed=loop.seed, steps=steps, skipped=self.skipped, part=part,
        )  # fmt: skip

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

    def evaluate(
        self, module: nn.Module, limit: int | None, ranks: Distributed | None = None
    ) -> dict[str, float]:
        assert isinstance(module, NextScalePrior)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.loop.precision == "bfloat16"):
            return prediction_scores(
                self.tokenizer, module.eval(), self.validation, limit=limit, skipped=self.skipped, ranks=ranks
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
