"""Training the small classifier: cross-entropy with smoothed labels, random shifts, mirror images and a cut-
out square.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.data.loader import WHOLE, Batch, evaluation_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.distributed import Distributed, place
from nextscale.features.classifier import Classifier, save_classifier
from nextscale.pixels import to_model
from nextscale.train.augment import cut_out, shift
from nextscale.train.optimizer import ParameterGroup
from nextscale.train.settings import ClassifierRun
from nextscale.train.task import image_batches

_WHITENING_IMAGES = 2000


class ClassifierTask:
    """See `nextscale.train.task.Task`."""

    score: tuple[str, bool] = ("accuracy", True)
    no_decay: tuple[str, ...] = ()
    parameter_groups: tuple[ParameterGroup, ...] = ()

    def __init__(
        self, run: ClassifierRun, *, source: Source, validation: Source, device: torch.device,
        skipped: SkippedImages | None = None,
    ) -> None:  # fmt: skip
        self.skipped = skipped
        self.run, self.source, self.validation, self.device = run, source, validation, device
        self.start_lines: list[str] = []
        settings = run.classifier.model_copy(update={"class_names": source.class_names})
        self.size = (settings.image_size, settings.image_size)
        classifier = Classifier(settings)
        pixels, _ = next(
            evaluation_batches(
                source, size=self.size, batch_size=_WHITENING_IMAGES, limit=_WHITENING_IMAGES, skipped=skipped
            )
        )
        classifier.whiten_stem(to_model(pixels))
        self.module = place(classifier, device)

    @property
    def averaged(self) -> nn.Module:
        return self.module

    @property
    def totals(self) -> dict[str, Tensor]:
        return {}

    def batches(self, steps: range, *, part: slice = WHOLE) -> Iterator[Batch]:
        return image_batches(self, self.run, size=self.size, steps=steps, part=part)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.items.to(self.device, memory_format=torch.channels_last)
        uniforms = batch.uniforms_BR.to(self.device)
        images = cut_out(
            shift(images, uniforms[:, :2], self.run.max_shift), uniforms[:, 2:4], self.run.cut_out
        )
        labels = batch.labels_B.to(self.device)
        logits = self.module(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.run.label_smoothing)
        return loss, {"accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def after_step(self, step: int) -> None:
        """Nothing besides the optimizer's step."""

    def evaluate(
        self, module: nn.Module, limit: int | None, ranks: Distributed | None = None
    ) -> dict[str, float]:
        assert isinstance(module, Classifier)
        module.eval()
        right = [
            (module.assign(to_model(pixels).to(self.device)).cpu().numpy() == labels)
            for pixels, labels in evaluation_batches(
                self.validation, size=self.size, batch_size=100, limit=limit, skipped=self.skipped
            )
        ]
        return {"accuracy": float(numpy.concatenate(right).mean())}

    def alarms(self, scores: dict[str, float]) -> list[str]:
        return []

    def picture(self, module: nn.Module) -> None:
        """There is nothing to look at."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """There is none."""

    def export(self, module: nn.Module, folder: Path) -> None:
        assert isinstance(module, Classifier)
        save_classifier(folder, module)
