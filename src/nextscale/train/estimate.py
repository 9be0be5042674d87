"""What a run will take, before it is started: weights, memory, time. Nothing is written.

Special here: what is computed (weights and what goes with them) and what is measured (a few real steps, and
on a GPU their memory) is said apart.
"""

from __future__ import annotations

import statistics
import time

import torch

from nextscale.distributed import Distributed
from nextscale.train.optimizer import build_optimizer
from nextscale.train.settings import LoopSettings, OptimizerSettings
from nextscale.train.sharding import weights_to_cut
from nextscale.train.step import take_step
from nextscale.train.task import Task

_STEPS = 4


def estimate(task: Task, *, loop: LoopSettings, optimizer_settings: OptimizerSettings) -> dict[str, float]:
    """Take a few steps in memory.

    Returns:
        parameters; computed_bytes: of weights, gradients, the two averages of AdamW and the averaged weights;
        cut_bytes: what of these several processes share out; peak_bytes: measured on a GPU, elsewhere 0;
        seconds_per_step, images_per_second and hours: measured, the first step left out, of training alone
        (no evaluation, no saving).
    """
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
    seconds = statistics.median(durations[1:] or durations)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    cut = sum(weight.numel() * weight.element_size() for weight in weights_to_cut(task.module))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "parameters": float(sum(parameter.numel() for parameter in parameters)),
        "computed_bytes": 5.0 * weights,
        "cut_bytes": 5.0 * cut if loop.sharding == "full" else 0.0,
        "peak_bytes": float(peak),
        "seconds_per_step": seconds,
        "images_per_second": loop.batch_size / seconds,
        "hours": loop.num_steps * seconds / 3600,
    }


def describe(numbers: dict[str, float]) -> list[str]:
    """An estimate for people."""
    gigabyte = 1e9
    lines = [
        f"parameters: {int(numbers['parameters']):,}",
        f"memory of weights, gradients, optimizer and average: {numbers['computed_bytes'] / gigabyte:.2f} GB "
        "(computed; activations come on top)",
    ]
    if numbers["cut_bytes"]:
        lines.append(
            f"of these, {numbers['cut_bytes'] / gigabyte:.2f} GB are divided by the number of processes "
            "(loop.sharding full; at the start each holds all weights twice)"
        )
    if numbers["peak_bytes"]:
        lines.append(
            f"memory at the peak, without the average: {numbers['peak_bytes'] / gigabyte:.2f} GB (measured)"
        )
    lines.append(
        f"time: {numbers['seconds_per_step']:.3f} s a step, {numbers['images_per_second']:.1f} images/s, "
        f"{numbers['hours']:.2f} hours of training (measured over {_STEPS - 1} steps)"
    )
    return lines
