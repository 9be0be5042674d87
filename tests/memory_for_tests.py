"""How many bytes a forward pass keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], object], *, besides: Iterable[Tensor]) -> int:
    """Of all different memory that autograd keeps during ``forward``, leaving out that of some tensors."""
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:  # holding the tensor keeps its address from being used again
            kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(size for _, size in kept.values())
