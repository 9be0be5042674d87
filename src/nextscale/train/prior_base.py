"""What the trainings of all families of priors have in common: the tokenizer, the classes, the weights to
start from, pictures, the finished model.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.data.loader import Batch
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.data.token_cache import TokenCache
from nextscale.distributed import Distributed, place
from nextscale.evaluate.prediction import prediction_scores
from nextscale.generate.folder import Prior, build_prior, load_tokenizer, read_settings
from nextscale.generate.generator import Generator
from nextscale.integrity.signatures import find_trusted_model
from nextscale.pixels import enlarge, grid
from nextscale.train.fine_tune import start_from, with_classes
from nextscale.train.optimizer import ParameterGroup
from nextscale.train.settings import PriorRun

_PICTURE_CLASSES, _PICTURE_PER_CLASS = 10, 8


class PriorBase:
    """The shared part of `nextscale.train.task.Task`."""

    score: tuple[str, bool] = ("loss", False)
    no_decay: tuple[str, ...] = (
        "position",
        "class_embedding",
        "level_embedding",
        "token_embedding",
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
        home = find_trusted_model(run.tokenizer_from or run.init, run.ledger.verify_with)
        base = read_settings(home)
        self.tokenizer = place(load_tokenizer(home, base), device)
        self.tokenizer_digest = checkpoint.digest(home / "tokenizer.safetensors")
        vocab_size = base.tokenizer.quantizer.vocab_size
        if run.sampling.top_k > vocab_size:
            raise ValueError(
                f"sampling.top_k {run.sampling.top_k} exceeds the {vocab_size} codes of the tokenizer"
            )
        if run.sampling.num_unguided_scales > base.schedule.num_scales:
            raise ValueError(
                f"sampling.num_unguided_scales {run.sampling.num_unguided_scales} exceeds the "
                f"{base.schedule.num_scales} scales of the tokenizer"
            )
        self.settings = base.model_copy(
            update={
                "prior": run.prior, "class_names": source.class_names, "enlarge": run.data.enlarge,
                "sampling": run.sampling,
            }
        )  # fmt: skip
        self.module: Prior = build_prior(self.settings)
        self.start_lines = self._start_from_init()
        self.module.to(device)
        if run.compile:  # all blocks alike, so that most of the work is done once; copies are not compiled
            for block in self.module.blocks:
                block.compile(dynamic=False)

    def _start_from_init(self) -> list[str]:
        """Take the weights of `init`, where it is set. Returns what to say about it."""
        self.init_digest = ""
        if not self.run.init:
            return []
        home = find_trusted_model(self.run.init, self.run.ledger.verify_with)
        given, kind = read_settings(home), self.run.prior.kind
        if given.prior is not None and given.prior.kind != kind:
            raise ValueError(
                f"init {self.run.init} holds a prior of kind {given.prior.kind}, this run trains {kind}: "
                "give a model of the same kind"
            )
        known, wanted = given.class_names, self.settings.class_names
        self.init_digest = checkpoint.digest(home / "prior.safetensors")
        tensors = checkpoint.read_tensors(home / "prior.safetensors")
        same = sum(name in known for name in wanted)
        taken = start_from(self.module, with_classes(tensors, known, wanted), source=self.run.init)
        return [*taken.lines(self.run.init), f"classes: {same} of {len(wanted)} known by name"]

    def prepare(self, *, progress: bool, ranks: Distributed | None = None) -> None:
        """What has to be done before the first step; all processes call it."""

    @property
    def averaged(self) -> nn.Module:
        return self.module

    @property
    def totals(self) -> dict[str, Tensor]:
        return {}

    def labels(self, batch: Batch) -> Tensor:
        """Int64 (B,): those of the batch, some replaced by the unconditional class."""
        # a sample's first number decides about the class, the others about the blocks
        dropped_B = batch.uniforms_BR[:, 0] < self.run.prior.class_dropout
        return torch.where(dropped_B, self.module.unconditional, batch.labels_B).to(self.device)

    def after_step(self, step: int) -> None:
        """Nothing besides the optimizer's step."""

    def evaluate(
        self, module: nn.Module, limit: int | None, ranks: Distributed | None = None
    ) -> dict[str, float]:
        assert isinstance(module, Prior)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.loop.precision == "bfloat16"):
            return prediction_scores(
                self.tokenizer, module.eval(), self.validation, limit=limit, skipped=self.skipped, ranks=ranks
            )

    def alarms(self, scores: dict[str, float]) -> list[str]:
        return []

    def picture(self, module: nn.Module) -> numpy.ndarray:
        assert isinstance(module, Prior)
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
        assert isinstance(module, Prior)
        Generator(self.settings, self.tokenizer, module).save(folder)
