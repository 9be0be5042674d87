"""Learning rate and weight decay as pure functions of the step."""

from __future__ import annotations

import math

from nextscale.train.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, *, num_steps: int, batch_size: int) -> float:
    """The learning rate of a step, counted from 0."""
    peak = settings.base_lr * batch_size / 256
    warmup = settings.warmup_share * num_steps
    if step < warmup:
        return peak * (settings.warmup_start + (1 - settings.warmup_start) * step / warmup)
    passed = (step - warmup) / max(num_steps - 1 - warmup, 1)
    fallen = min(max(passed - settings.hold_share, 0) / (1 - settings.hold_share), 1)
    if settings.decay == "cosine":
        fallen = 0.5 - 0.5 * math.cos(math.pi * fallen)
    return peak * (1 - fallen * (1 - settings.final_lr_ratio))


def weight_decay(settings: OptimizerSettings, step: int, *, num_steps: int) -> float:
    """The weight decay of a step: constant, or along a cosine to its final value."""
    if settings.final_weight_decay is None:
        return settings.weight_decay
    share = 0.5 - 0.5 * math.cos(math.pi * step / max(num_steps - 1, 1))
    return settings.weight_decay + (settings.final_weight_decay - settings.weight_decay) * share
