"""Which parameters decay, and one optimizer step.

Special here: the groups cover every parameter exactly once. Matrices and kernels decay; biases, norms,
gates, learned scales and embeddings do not (field practice of the released models).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.train.settings import OptimizerSettings


def decays(name: str, parameter: Tensor, no_decay: Iterable[str]) -> bool:
    """Whether weight decay applies to a parameter, ``no_decay`` being parts of names that it spares."""
    return parameter.ndim >= 2 and not any(part in name for part in no_decay)


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, *, no_decay: Iterable[str]
) -> torch.optim.AdamW:
    """AdamW over all parameters of a module, in two groups: decayed, spared."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    spared = tuple(no_decay)
    for name, parameter in module.named_parameters():
        groups[decays(name, parameter, spared)].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "decayed": True}, {"params": groups[False], "decayed": False}],
        lr=settings.base_lr, betas=settings.betas, eps=settings.eps, weight_decay=0.0, fused=True,
    )  # fmt: skip


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Put this step's values into the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, ``parameter name|entry``."""
    return {
        f"{name}|{entry}": torch.as_tensor(value)
        for name, parameter in module.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    numbers = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        if value.shape == parameter.shape:  # the fused step walks over memory, so both must be laid out alike
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(numbers[id(parameter)], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
