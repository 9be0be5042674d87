"""Full sharding: every process holds a slice of each large weight, of its gradient and its averages (FSDP2).

Special here: cut are the matrices and kernels inside the units that models repeat (blocks of the prior,
blocks and changes of resolution of the tokenizer), which is nearly everything. The rest - biases, norms,
embeddings, heads, the codebook, a discriminator - stays whole on every process and is exchanged as without
sharding. So nothing but a unit's own forward pass ever meets a slice, and what computes in float32 under
autocast goes on doing so. A unit gathers its weights before it runs and lets go of them afterwards: all
processes must run it equally often. What torch needs for it takes seconds to import and is imported only
when asked.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn

from nextscale.distributed import Distributed
from nextscale.prior.layers import Block
from nextscale.tokenizer.layers import AttentionBlock, Downsample, ResidualBlock, Upsample
from nextscale.train.settings import LoopSettings

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Module = TypeVar("Module", bound=nn.Module)

#: What runs as a whole and gathers its weights by itself.
_UNITS = (Block, ResidualBlock, AttentionBlock, Downsample, Upsample)

_LONGEST_WRITE = timedelta(hours=6)


def check_torch() -> None:
    """Raise ValueError where this torch cannot shard a part of a module's parameters."""
    from torch.distributed.fsdp import fully_shard

    # before 2.8, what ran first kept its weights whole, and evaluations do not run the whole module
    if inspect.signature(fully_shard).parameters["reshard_after_forward"].default is not None:
        raise ValueError(
            f"loop.sharding full needs torch 2.8 or newer, this is {torch.__version__}: update torch, or set "
            "loop.sharding replicated"
        )


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The units of a module, inner ones first."""
    for part in module.modules():
        if isinstance(part, Block) and hasattr(part, "modulation"):
            yield part.modulation  # all blocks' modulations are computed before the first block runs
        if isinstance(part, _UNITS):
            yield part


def weights_to_cut(module: nn.Module) -> set[nn.Parameter]:
    """The parameters of a module that sharding cuts: matrices and kernels inside units."""
    return {
        cast(nn.Parameter, layer.weight)
        for unit in _units(module)
        for layer in unit.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def shard_(module: nn.Module, ranks: Distributed, *, dtype: torch.dtype | None = None) -> None:
    """Leave each process its slices of a module's large weights.

    Args:
        module: whole and equal on all processes. Called as a module or through methods that call its units.
        ranks: at least two processes; all of them must call this.
        dtype: of the weights while a unit works with them, under autocast to the same; slices and sums of
            gradients stay as they are. None: no other.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # of the logits in float32, which nobody changes in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    cut = weights_to_cut(module)
    for weight in cut:
        weight.data = weight.data.contiguous()  # slices are rows; channels last would scatter them
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    rest = {parameter for parameter in module.parameters() if parameter not in cut}
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=dtype and torch.float32, cast_forward_inputs=False
    )
    for unit in (*_units(module), module):  # the module itself holds none, but lets its units overlap
        fully_shard(
            unit, mesh=mesh, mp_policy=policy, ignored_params=rest, reshard_after_forward=True
        )  # fmt: skip


def is_cut(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether other processes hold other slices of a tensor."""
    return hasattr(tensor, "device_mesh")


def own(tensor: Tensor) -> Tensor:
    """This process's slice of a tensor, sharing its memory; of a whole one all of it. Without gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if is_cut(tensor) else tensor


def row_ends(num_rows: int, num_ranks: int) -> list[int]:
    """Where the slice of each process ends: as equal as can be, the last ones smaller or empty."""
    size = -(-num_rows // num_ranks)
    return [min((rank + 1) * size, num_rows) for rank in range(num_ranks)]


def own_rows(tensor: Tensor) -> slice:
    """Which rows of a tensor `own` gives. The tensor has at least one dimension."""
    if not is_cut(tensor):
        return slice(0, len(tensor))
    mesh = tensor.device_mesh
    ends = [0, *row_ends(len(tensor), mesh.size())]
    rank = mesh.get_local_rank()
    rows = slice(ends[rank], ends[rank + 1])
    assert rows.stop - rows.start == len(own(tensor)), "torch cuts otherwise"
    return rows


def cut_alike(rows: Tensor, parameter: Tensor) -> Tensor:
    """This process's rows of a tensor as one that is cut as a parameter is."""
    from torch.distributed.tensor import DTensor

    assert is_cut(parameter)
    return DTensor.from_local(
        rows.to(parameter.device), parameter.device_mesh, parameter.placements, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def outline(module: Module) -> Module:
    """A copy of a whole module without values, to be filled by `assembled`."""
    empty: dict[int, Tensor] = {
        id(item): nn.Parameter(item.detach().to("meta"), requires_grad=False) for item in module.parameters()
    }
    empty |= {id(item): item.to("meta") for item in module.buffers()}
    return copy.deepcopy(module, empty)  # what it finds there is not copied, so no device holds it twice


def shard_run_(
    averaged: nn.Module, average: nn.Module, loop: LoopSettings, ranks: Distributed
) -> nn.Module | None:
    """Leave each process its slices of what is trained and averaged, where that is set and there are several.

    Returns:
        The averaged module without values; None where everything stays whole.
    """
    if loop.sharding == "replicated" or ranks.world_size == 1:
        return None
    empty = outline(average)
    shard_(average, ranks)
    shard_(averaged, ranks, dtype=torch.bfloat16 if loop.precision == "bfloat16" else None)
    return empty


def assembled(empty: Module, module: nn.Module, ranks: Distributed) -> Module:
    """A sharded module as a whole one on the first process's CPU; elsewhere it stays without values.

    All processes must call this. One tensor at a time is whole on their devices.
    """
    whole: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        tensor = value.full_tensor() if is_cut(value) else value
        if ranks.is_first:
            whole[name] = tensor.detach().cpu()
    filled = copy.deepcopy(empty)
    if ranks.is_first:
        filled.load_state_dict(whole, assign=True)
    return filled


def words_apart(ranks: Distributed) -> Distributed:
    """The same processes with words of their own, for a thread that writes while others train."""
    if ranks.world_size == 1:
        return ranks
    return replace(ranks, words=torch.distributed.new_group(backend="gloo", timeout=_LONGEST_WRITE))
