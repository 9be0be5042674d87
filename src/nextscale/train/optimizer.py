"""Which parameters decay, and one optimizer step.

Special here: the groups cover every parameter exactly once. Matrices and kernels decay; biases, norms,
gates, learned scales and embeddings do not (field practice of the released models).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.distributed import Distributed
from nextscale.train.settings import OptimizerSettings
from nextscale.train.sharding import cut_alike, is_cut, own


def decays(name: str, parameter: Tensor, no_decay: Iterable[str]) -> bool:
    """Whether weight decay applies to a parameter, ``no_decay`` being parts of names that it spares."""
    return parameter.ndim >= 2 and not any(part in name for part in no_decay)


@dataclass(frozen=True)
class ParameterGroup:
    """A part of a module that is trained at its own pace and clipped by itself."""

    name: str  #: of the submodule that holds its parameters
    lr_factor: float  #: its learning rate / that of the rest
    betas: tuple[float, float]
    clip_norm: float


def _parts(
    module: nn.Module, groups: Sequence[ParameterGroup]
) -> dict[ParameterGroup | None, list[tuple[str, nn.Parameter]]]:
    """Every named parameter once: those of each group, and under None the rest."""
    parts: dict[ParameterGroup | None, list[tuple[str, nn.Parameter]]] = {None: [], **{g: [] for g in groups}}
    for name, parameter in module.named_parameters():
        owner = next((group for group in groups if name.startswith(f"{group.name}.")), None)
        parts[owner].append((name, parameter))
    return parts


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, *, no_decay: Iterable[str],
    groups: Sequence[ParameterGroup] = (),
) -> torch.optim.AdamW:  # fmt: skip
    """AdamW over all parameters of a module: decayed and spared ones of the rest, then of each group."""
    spared, described = tuple(no_decay), []
    for group, named in _parts(module, groups).items():
        # the fused step takes either slices or whole tensors
        for decayed, cut in product((True, False), (False, True)):
            parameters = [
                item for name, item in named if decays(name, item, spared) is decayed and is_cut(item) is cut
            ]
            if parameters or not cut:
                described.append(
                    {
                        "params": parameters,
                        "decayed": decayed,
                        "lr_factor": group.lr_factor if group else 1.0,
                        "betas": group.betas if group else settings.betas,
                    }
                )
    return torch.optim.AdamW(
        described, lr=settings.base_lr, betas=settings.betas, eps=settings.eps, weight_decay=0.0, fused=True
    )


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Put this step's values into the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


def clip_gradients(
    module: nn.Module, clip_norm: float, groups: Sequence[ParameterGroup] = (), *,
    ranks: Distributed | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Shorten the gradient of the rest to ``clip_norm`` and that of each group to its own.

    Where gradients are slices, the ``ranks`` that hold them must all call this.

    Returns:
        The norms before, to log.
    """
    norms = {}
    for group, named in _parts(module, groups).items():
        parameters = [parameter for _, parameter in named]
        limit, name = (group.clip_norm, f"{group.name}_") if group else (clip_norm, "")
        if any(is_cut(parameter) for parameter in parameters):
            assert ranks is not None
            norm = _clip_slices_(parameters, limit, ranks)
        else:
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        norms[f"{name}gradient_norm"] = norm
    return norms


@torch.no_grad()
def _clip_slices_(parameters: Iterable[nn.Parameter], limit: float, ranks: Distributed) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` of gradients of which this process has slices or the whole."""
    gradients = [item.grad for item in parameters if item.grad is not None]
    mine = [own(gradient) for gradient in gradients]
    squares = torch.stack(torch._foreach_norm(mine)).square()
    cut = torch.tensor([is_cut(gradient) for gradient in gradients], device=squares.device)
    of_slices = squares[cut].sum()
    ranks.sum_([of_slices])
    norm = (of_slices + squares[~cut].sum()).sqrt()
    torch._foreach_mul_(mine, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, ``parameter name|entry``; what belongs to slices is slices."""
    return {
        f"{name}|{entry}": torch.as_tensor(value)
        for name, parameter in module.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`, of slices by their own rows."""
    numbers = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        if is_cut(parameter) and value.shape == own(parameter).shape:
            value = cut_alike(value, parameter)
        elif value.shape == parameter.shape:
            # the fused step walks over memory, so both must be laid out alike
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(numbers[id(parameter)], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
