"""Training a prior that predicts tokens: cross-entropy of every token given the coarser scales (next-scale)
or the tokens before it (next-token), the tokenizer frozen.

Letters: B batch, S scales, L tokens of all scales, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.data.loader import WHOLE, Batch, token_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.data.token_cache import TokenCache, describe, labels_digest, open_cache
from nextscale.data.tokenizing import make_cache
from nextscale.distributed import Distributed
from nextscale.evaluate.prediction import mean_per_scale, teacher_inputs, token_scores
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.transformer import drop_path_factors
from nextscale.scales import ScaleSchedule
from nextscale.train.prior_base import PriorBase
from nextscale.train.settings import PriorRun
from nextscale.train.task import image_batches

_TOKENIZE_BATCH = 100


class PriorTask(PriorBase):
    """See `nextscale.train.task.Task`."""

    def __init__(
        self, run: PriorRun, *, source: Source | TokenCache, validation: Source, device: torch.device,
        folder: Path, skipped: SkippedImages | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            run, source=source, validation=validation, device=device, folder=folder, skipped=skipped
        )
        self.weights_L = _token_weights(run.scale_weights, self.settings.schedule).to(device)
        self.cache = self._given_tokens()

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
            "labels_sha256": labels_digest(self.source.labels), "precision": run.encode_precision,
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
                seed=run.loop.seed, precision=run.encode_precision,
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

    def batches(self, steps: range, *, part: slice = WHOLE) -> Iterator[Batch]:
        loop = self.run.loop
        if self.cache is not None:
            return token_batches(
                self.cache.tokens_VNL, self.cache.labels, batch_size=loop.batch_size, seed=loop.seed,
                steps=steps, part=part,
            )  # fmt: skip
        assert not self.run.cache_views and not isinstance(self.source, TokenCache), "not prepared"
        return image_batches(self, self.run, size=self.tokenizer.image_size, steps=steps, part=part)

    def _encode(self, images_BCHW: Tensor) -> Tensor:
        return self.tokenizer.encode(images_BCHW.to(self.device), precision=self.run.encode_precision)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prior = self.module
        assert not isinstance(prior, DiffusionPrior)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            items = batch.items.to(self.device)
            tokens_BL = self._encode(items) if items.is_floating_point() else items
            inputs = teacher_inputs(self.tokenizer, prior, tokens_BL)
        keep_D2B = drop_path_factors(prior.settings, batch.uniforms_BR[:, 1:].to(self.device))
        logits_BLV = prior(self.labels(batch), inputs, keep_D2B=keep_D2B, recompute=self.run.recompute)
        losses_L, correct_L = token_scores(logits_BLV, tokens_BL)
        per_scale = mean_per_scale(losses_L.detach(), self.settings.schedule)
        numbers = {"accuracy": correct_L.mean(), "scale_loss": per_scale}
        weights_L = self.weights_L.to(losses_L)
        return (losses_L * weights_L).sum() / weights_L.sum(), numbers


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
