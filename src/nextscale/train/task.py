"""What the loop asks of a task. Tokenizer, prior and classifier are the three."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy
from torch import Tensor, nn

from nextscale.data.loader import WHOLE, Batch, training_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source
from nextscale.data.token_cache import TokenCache
from nextscale.distributed import Distributed
from nextscale.train.optimizer import ParameterGroup
from nextscale.train.settings import AnyRun


class Task(Protocol):
    """A module, its data and its loss."""

    no_decay: tuple[str, ...]  #: parts of the names of parameters that are spared from weight decay
    start_lines: list[str]  #: what to say about the weights it starts from, when it starts
    score: tuple[str, bool]  #: which of the scores says how good the weights are; whether larger is better
    skipped: SkippedImages | None  #: the bad images met so far, where these are skipped

    @property
    def source(self) -> Source | TokenCache:
        """What is trained on."""
        ...

    @property
    def validation(self) -> Source:
        """The validation images."""
        ...

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def averaged(self) -> nn.Module:
        """The part of the module that is averaged, evaluated and exported."""
        ...

    @property
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Parts of the module with a learning rate, averages and clipping of their own."""
        ...

    @property
    def totals(self) -> dict[str, Tensor]:
        """Sums of fixed shapes over a step's micro-batches, which `loss` adds to and `after_step` uses and
        clears. Several processes add them up in between; whoever skips a step clears them.
        """
        ...

    def batches(self, steps: range, *, part: slice = WHOLE) -> Iterator[Batch]:
        """The batches of these steps, or of each one the part that one of several processes works on."""
        ...

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and what to log (scalars or short vectors)."""
        ...

    def after_step(self, step: int) -> None:
        """Whatever has to happen to the weights besides the optimizer's step."""
        ...

    def evaluate(
        self, module: nn.Module, limit: int | None, ranks: Distributed | None = None
    ) -> dict[str, float]:
        """Scores of the averaged weights on validation images, which several processes share."""
        ...

    def alarms(self, scores: dict[str, float]) -> list[str]:
        """Lines for people about what goes wrong and what to try, after an evaluation."""
        ...

    def picture(self, module: nn.Module) -> numpy.ndarray | None:
        """Something to look at: uint8 (H, W, 3)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What else a checkpoint must hold."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the finished model."""
        ...


def image_batches(
    task: Task, run: AnyRun, *, size: tuple[int, int], steps: range, part: slice
) -> Iterator[Batch]:
    """`Task.batches` of a task that trains on images of a size, in pixels."""
    assert not isinstance(task.source, TokenCache), "settings refuse tokens_from"
    return training_batches(
        task.source, run.data, size=size, batch_size=run.loop.batch_size, seed=run.loop.seed, steps=steps,
        skipped=task.skipped, part=part,
    )  # fmt: skip
