"""One step of training: gradients of a batch, clipped, applied - or left out when they are no numbers.

Letters: B batch.
Special here: a batch may be worked off in parts whose gradients are added up; the sum is the gradient of the
whole batch, whatever the number of parts. Several processes work off a part each; what they add up, in one
exchange, is equal to the bit on all of them, and so is all that follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.data.loader import Batch
from nextscale.distributed import Distributed
from nextscale.train.optimizer import clip_gradients
from nextscale.train.settings import LoopSettings
from nextscale.train.sharding import is_cut, own
from nextscale.train.stopping import StopRequest
from nextscale.train.task import Task


@dataclass(frozen=True)
class StepResult:
    """What a step did."""

    numbers: dict[str, Tensor]  #: to be logged: the loss, the norm of the gradient, what the task tells
    finite: bool  #: False: loss or gradient was infinite or not a number, and nothing was changed
    own_loss: Tensor  #: of this process's part of the batch


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into ``count`` equal parts."""
    size = len(batch.labels_B) // count
    assert size * count == len(batch.labels_B), "the settings check that batches can be divided"
    return [
        Batch(
            batch.items[start : start + size], batch.labels_B[start : start + size],
            batch.uniforms_BR[start : start + size], batch.samples_B[start : start + size],
        )
        for start in range(0, size * count, size)
    ]  # fmt: skip


def add_gradients(task: Task, batch: Batch, loop: LoopSettings) -> dict[str, Tensor]:
    """Put the gradient of a batch's mean loss into the parameters; returns the means of what was told."""
    task.module.zero_grad(set_to_none=True)
    device = next(task.module.parameters()).device.type
    totals: dict[str, Tensor] = {}
    for part in split_batch(batch, loop.accumulate):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=loop.precision == "bfloat16"):
            loss, numbers = task.loss(part)
        (loss / loop.accumulate).backward()
        for name, value in {"loss": loss, **numbers}.items():
            value = value.detach() / loop.accumulate
            totals[name] = totals[name] + value if name in totals else value
    return totals


def take_step(
    task: Task, batch: Batch, optimizer: torch.optim.Optimizer, *, loop: LoopSettings, clip_norm: float,
    ranks: Distributed, stop: StopRequest | None = None,
) -> StepResult:  # fmt: skip
    """Gradients, clipping, and the optimizer's step if all of it is finite.

    Args:
        task: what is trained.
        batch: this process's part of it.
        optimizer: of the task's module.
        loop: how many micro-batches, in which precision.
        clip_norm: see `clip_gradients`.
        ranks: the processes that train together.
        stop: learns on the way whether any of them was asked to stop.
    """
    numbers = add_gradients(task, batch, loop)
    own_loss = numbers["loss"]
    if ranks.world_size > 1:
        own_loss = own_loss.clone()
        _unite(task, numbers, stop or StopRequest(), ranks)
    norms = clip_gradients(task.module, clip_norm, task.parameter_groups, ranks=ranks)
    finite = bool(torch.isfinite(torch.stack([numbers["loss"], *norms.values()])).all())
    if finite:
        optimizer.step()
    else:  # what the parts added up is as spoiled as the gradient
        for total in task.totals.values():
            total.zero_()
    return StepResult({**numbers, **norms}, finite, own_loss)


@torch.no_grad()
def _unite(task: Task, numbers: dict[str, Tensor], stop: StopRequest, ranks: Distributed) -> None:
    """Average gradients and numbers over the processes, and add up their totals and votes.

    A parameter without gradient has none on any rank: the step decides that, not the samples. Gradients that
    are slices were averaged in the backward pass.
    """
    given = [item.grad for item in task.module.parameters() if item.grad is not None]
    gradients = [gradient for gradient in given if not is_cut(gradient)]
    means, votes = [*gradients, *numbers.values()], stop.votes()
    ranks.sum_([*means, *task.totals.values(), votes])
    torch._foreach_div_(means, float(ranks.world_size))
    stop.settle(votes)


def describe_failure(task: Task, batch: Batch, result: StepResult) -> str:
    """Where numbers went wrong: the loss, the first parameters without a finite gradient, the samples."""
    bad = [
        name
        for name, parameter in task.module.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(own(parameter.grad)).all())
    ]
    total = sum(1 for _ in task.module.parameters())
    where = f"{len(bad)} of {total} parameters, first {bad[0]}" if bad else "no parameter's gradient"
    samples = ", ".join(str(int(sample)) for sample in batch.samples_B[:4])
    return (
        f"loss {float(result.numbers['loss']):.4g}, not finite: {where}; "
        f"samples {samples}{', ...' if len(batch.samples_B) > 4 else ''}"
    )
