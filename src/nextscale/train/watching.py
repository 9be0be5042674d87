"""Looks, every so often while a run goes on, whether its code was replaced in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.optim import optimizer as optimizer_hooks

from nextscale.integrity.watch import Watch, put_into


class Watching:
    """What is watched: modules of code, the model's layers and parameters, the optimizer.

    Args:
        module: what is trained.
        optimizer: of it.
        every: steps between two looks.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, every: int) -> None:
        self.module, self.optimizer, self.every = module, optimizer, every
        self.watch = Watch()

    def check(self, step: int) -> None:
        """Raises ValueError where something was replaced."""
        changed = [
            *self.watch.changed(),
            *self.watch.added(),
            *put_into(_objects(self.module, self.optimizer)),
        ]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(
                f"code was replaced in memory before step {step}: {', '.join(changed[:3])}{more}; nothing "
                "since the last checkpoint is kept: find out who did that, and start again"
            )


def _objects(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Mapping[str, object]]]:
    for name, layer in module.named_modules():
        yield f"layer {name}", vars(layer)
    for name, parameter in module.named_parameters():
        hooks = {
            "_backward_hooks": getattr(parameter, "_backward_hooks", None),
            "_post_accumulate_grad_hooks": getattr(parameter, "_post_accumulate_grad_hooks", None),
        }
        yield f"parameter {name}", hooks
    yield "optimizer", vars(optimizer)
    for place in (global_hooks, optimizer_hooks):
        hooks = {name: value for name, value in vars(place).items() if name.startswith("_global")}
        yield place.__name__, hooks
