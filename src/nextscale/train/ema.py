"""The exponential moving average of weights that is evaluated and shipped; of slices each by itself."""

from __future__ import annotations

import copy

import torch
from torch import nn

from nextscale.train.sharding import own


def averaged_copy(module: nn.Module) -> nn.Module:
    """A copy of a module that is never trained."""
    return copy.deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, *, decay: float, step: int) -> None:
    """Move the average towards the module; early steps move further, since the first weights mean nothing."""
    decay = min(decay, (1 + step) / (10 + step))
    averages, targets = ([own(item) for item in given.parameters()] for given in (average, module))
    torch._foreach_lerp_(averages, targets, 1 - decay)
    for mine, given in zip(average.buffers(), module.buffers(), strict=True):
        if mine.is_floating_point():  # running statistics belong to the averaged weights
            mine.lerp_(given, 1 - decay)
        else:
            mine.copy_(given)
