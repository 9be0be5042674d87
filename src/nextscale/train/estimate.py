"""What a run will take, before it is started: weights, memory, operations, time. Nothing is written.

Special here: what is computed (memory, operations) and what is measured (a few real steps, and on a GPU their
memory) is said apart.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from nextscale.distributed import Distributed
from nextscale.train import cost
from nextscale.train.memory import (
    Memory,
    encoding_bytes,
    prior_activations,
    tokenizer_activations,
    training_memory,
)
from nextscale.train.optimizer import build_optimizer
from nextscale.train.prior_base import PriorBase
from nextscale.train.prior_task import PriorTask
from nextscale.train.settings import LoopSettings, OptimizerSettings
from nextscale.train.sharding import weights_to_cut
from nextscale.train.step import take_step
from nextscale.train.task import Task
from nextscale.train.tokenizer_task import TokenizerTask

_STEPS = 4
_GIGA, _TERA = 1e9, 1e12


@dataclass(frozen=True)
class Estimate:
    """What a run will take on one process."""

    num_parameters: int
    memory: Memory  #: computed
    recompute: bool | None  #: whether the memory is that with recomputed activations; None: it has none in it
    other_memory: Memory  #: computed, with the other choice
    cut_bytes: int  #: of the memory, what several processes share out with ``loop.sharding full``
    step_operations: int  #: floating-point operations of a step, computed; 0: not known
    peak_bytes: int  #: measured on a GPU, elsewhere 0
    step_seconds: float  #: measured, the first step left out
    batch_size: int
    num_steps: int


def estimate(task: Task, *, loop: LoopSettings, optimizer_settings: OptimizerSettings) -> Estimate:
    """Take a few steps in memory: of training alone (no evaluation, no saving)."""
    parameters = list(task.module.parameters())
    device = parameters[0].device
    optimizer = build_optimizer(task.module, optimizer_settings, no_decay=task.no_decay)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    durations, last = [], time.perf_counter()
    task.module.train()
    for batch in task.batches(range(min(_STEPS, loop.num_steps))):
        take_step(
            task, batch, optimizer, loop=loop, clip_norm=optimizer_settings.clip_norm,
            ranks=Distributed(0, 1, device),
        )  # fmt: skip
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - last)
        last = time.perf_counter()
    recompute = task.run.recompute if isinstance(task, PriorTask | TokenizerTask) else None
    cut = sum(weight.numel() * weight.element_size() for weight in weights_to_cut(task.module))
    return Estimate(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        memory=expected_memory(task, loop, recompute=bool(recompute)),
        recompute=recompute,
        other_memory=expected_memory(task, loop, recompute=not recompute),
        cut_bytes=5 * cut if loop.sharding == "full" else 0,  # weights, gradients, two averages of AdamW, EMA
        step_operations=2 * loop.batch_size * _multiply_adds(task),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        step_seconds=statistics.median(durations[1:] or durations),
        batch_size=loop.batch_size,
        num_steps=loop.num_steps,
    )


def expected_memory(task: Task, loop: LoopSettings, *, recompute: bool) -> Memory:
    """The memory that one process takes for a task, computed; of diffusion and classifiers no activations."""
    device = next(task.module.parameters()).device
    images, activations, frozen = loop.batch_size // loop.accumulate, 0, 0
    if isinstance(task, PriorTask):
        tokenizer, on_cpu = task.tokenizer, device.type == "cpu"
        frozen = sum(parameter.numel() for parameter in tokenizer.parameters())
        one = prior_activations(
            task.run.prior, tokenizer.schedule, tokenizer.settings.quantizer, precision=loop.precision,
            recompute=recompute, on_cpu=on_cpu,
        )  # fmt: skip
        encoding = encoding_bytes(tokenizer.settings, tokenizer.schedule) if task.cache is None else 0
        activations = images * max(one, encoding)  # the tokens are made before the prior begins
    elif isinstance(task, TokenizerTask):
        activations = images * tokenizer_activations(
            task.run.tokenizer, task.run.schedule, precision=loop.precision, recompute=recompute,
            on_cpu=device.type == "cpu",
        )  # fmt: skip
    return training_memory(
        num_parameters=sum(parameter.numel() for parameter in task.module.parameters()),
        activations=activations, precision=loop.precision, recompute=recompute, frozen=frozen,
    )  # fmt: skip


def _multiply_adds(task: Task) -> int:
    """Of one image in one step; 0 where it is not known."""
    if isinstance(task, PriorBase):
        tokenizer = task.tokenizer
        return cost.prior_training(
            task.run.prior, tokenizer.schedule, tokenizer.settings, recompute=task.run.recompute,
            kept_tokens=isinstance(task, PriorTask) and task.cache is not None,
        )  # fmt: skip
    if isinstance(task, TokenizerTask):
        run = task.run
        return cost.tokenizer_training(run.tokenizer, run.schedule, recompute=run.recompute)
    return 0


def describe(found: Estimate) -> list[str]:
    """An estimate for people."""
    memory, seconds = found.memory, found.step_seconds
    parts = {
        "weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.moments,
        "average": memory.average, "tokenizer": memory.frozen, "copies in bfloat16": memory.copies,
        "activations": memory.activations,
    }  # fmt: skip
    named = ", ".join(f"{name} {value / _GIGA:.2f}" for name, value in parts.items() if value)
    known = "computed" if found.recompute is not None else "computed; activations come on top"
    lines = [
        f"parameters: {found.num_parameters:,}",
        f"memory: {memory.total / _GIGA:.2f} GB ({named}) ({known})",
    ]
    if found.cut_bytes:
        lines.append(
            f"of these, {found.cut_bytes / _GIGA:.2f} GB are divided by the number of processes "
            "(loop.sharding full; at the start each holds all weights twice)"
        )
    if found.recompute is not None:
        other = "false" if found.recompute else "true"
        lines.append(f"memory with --recompute {other}: {found.other_memory.total / _GIGA:.2f} GB (computed)")
    if found.peak_bytes:
        lines.append(f"memory at the peak, without the average: {found.peak_bytes / _GIGA:.2f} GB (measured)")
    if found.step_operations:
        lines.append(
            f"operations: {found.step_operations / _TERA:.4g} TFLOP a step (computed), "
            f"{found.step_operations / seconds / _TERA:.3g} TFLOP/s (measured)"
        )
    lines.append(
        f"time: {seconds:.3f} s a step, {found.batch_size / seconds:.1f} images/s, "
        f"{found.num_steps * seconds / 3600:.2f} hours of training (measured over {_STEPS - 1} steps)"
    )
    return lines
