"""Starting from the weights of another model: what fits is taken, the classes get a new table, all is said.

Letters: D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CLASSES = "class_embedding.weight"


@dataclass(frozen=True)
class Taken:
    """What became of the weights of the other model."""

    taken: tuple[str, ...]
    left: tuple[str, ...]  #: of the other model, without a place of this shape here
    new: tuple[str, ...]  #: of this model, with fresh weights

    def lines(self, source: str) -> list[str]:
        """For people."""
        return [
            f"from {source}: {len(self.taken)} tensors taken, {len(self.left)} left, {len(self.new)} new",
            *(
                f"left: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
                for names in [self.left]
                if names
            ),
            *(
                f"new: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
                for names in [self.new]
                if names
            ),
        ]


@torch.no_grad()
def start_from(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> Taken:
    """Copy every tensor that has a place of its name and shape into a module.

    Raises:
        ValueError: less than half of the module's weights would come from there.
    """
    places = dict(module.state_dict())
    taken = tuple(
        name for name, value in tensors.items() if name in places and places[name].shape == value.shape
    )
    count = sum(places[name].numel() for name in taken)
    total = sum(value.numel() for value in places.values())
    if 2 * count < total:
        raise ValueError(
            f"{source} fits {count:,} of {total:,} weights: give a model of the same sizes (depth, width, "
            "codes), or the settings of that model"
        )
    for name in taken:
        places[name].copy_(tensors[name])
    left = tuple(name for name in tensors if name not in taken)
    return Taken(taken, left, tuple(name for name in places if name not in taken))


def with_classes(
    tensors: Mapping[str, Tensor], known: Sequence[str], wanted: Sequence[str]
) -> dict[str, Tensor]:
    """Give a prior's weights a table of other classes.

    A class of a known name keeps its row. A new one starts as no class in particular: with the row of the
    unconditional class, which knows what all images have in common.

    Args:
        tensors: of a prior; ``class_embedding.weight`` (len(known) + 1, D), the last row unconditional.
        known: the names of its classes.
        wanted: the names of the classes to train.
    """
    table = tensors[_CLASSES]
    rows = [known.index(name) if name in known else len(known) for name in wanted]
    return {**tensors, _CLASSES: table[[*rows, len(known)]].clone()}
