"""The tensors of a checkpoint in files: whole ones in one file per part, slices in one file per process.

Special here: ``slices.json`` says which rows of a tensor lie in which process's file, so any number of
processes, one included, reads what any other number has written: each of them the rows it needs. Without
slices there are neither that file nor those of the processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.distributed import Distributed
from nextscale.integrity.digests import tensors_digest
from nextscale.train.optimizer import load_optimizer
from nextscale.train.sharding import is_cut, own, own_rows, row_ends

_INDEX = "slices.json"


def _file_of(rank: int) -> str:
    return f"slices-{rank:05d}.safetensors"


@dataclass(frozen=True)
class Copies:
    """This process's share of the tensors to write, on the CPU."""

    whole: dict[str, dict[str, Tensor]]  #: by part and name; the first process writes them
    slices: dict[str, Tensor]  #: by ``part/name``
    ends: dict[str, list[int]]  #: of the slices: where the rows of each process end


def copied(parts: Mapping[str, Mapping[str, Tensor]], ranks: Distributed) -> Copies:
    """Copy what this process is to write of these parts."""
    whole: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    slices, ends = {}, {}
    for part, tensors in parts.items():
        for name, value in tensors.items():
            if is_cut(value):
                slices[f"{part}/{name}"] = own(value).to("cpu", copy=True)
                ends[f"{part}/{name}"] = row_ends(len(value), ranks.world_size)
            elif ranks.is_first:
                whole[part][name] = value.detach().to("cpu", copy=True)
    return Copies(whole, slices, ends)


def write_copies(folder: Path, copies: Copies, ranks: Distributed) -> dict[str, str]:
    """Write this process's files into a folder that all processes see.

    Returns:
        The digests of all processes' slices.

    Raises:
        ValueError: the first process does not see what another one wrote.
        OSError: a full disk; of several processes SharedError on all of them.
    """
    digests = {}
    with ranks.together():
        if ranks.is_first:
            for part, tensors in copies.whole.items():
                checkpoint.write_tensors(folder / f"{part}.safetensors", tensors)
        if copies.slices:
            path = folder / _file_of(ranks.rank)
            checkpoint.write_tensors(path, copies.slices)
            digests[path.name] = checkpoint.digest(path)
    for text in ranks.gather(json.dumps(digests)):
        digests |= json.loads(text)
    with ranks.together():
        if ranks.is_first and copies.slices:
            unseen = next((name for name in digests if not (folder / name).is_file()), None)
            if unseen:
                raise ValueError(
                    f"{folder / unseen}, which another process wrote, cannot be seen by the first one: put "
                    "the run's folder where all machines see it"
                )
            checkpoint.write_json(folder / _INDEX, copies.ends)
    return digests


def copies_digests(copies: Copies, ranks: Distributed) -> dict[str, str]:
    """Half of the SHA-256 of each tensor, by ``part/name``; of slices with the rank that holds them."""
    mine = {
        f"{part}/{name}": tensors_digest({"": value})[:32]
        for part, tensors in copies.whole.items()
        for name, value in tensors.items()
    }
    mine |= {
        f"{name}[{ranks.rank}]": tensors_digest({"": value})[:32] for name, value in copies.slices.items()
    }
    return {
        name: value for text in ranks.gather(json.dumps(mine)) for name, value in json.loads(text).items()
    }


class SavedTensors:
    """What lies in a checkpoint's folder, read tensor by tensor and row by row."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / _INDEX
        self.ends: dict[str, list[int]] = json.loads(index.read_text()) if index.is_file() else {}
        self._files: dict[str, Any] = {}

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = safe_open(self.folder / name, framework="pt")
        return self._files[name]

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The whole shape of every tensor of a part."""
        file = self._file(f"{part}.safetensors")
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for key, ends in self.ends.items():
            if key.startswith(f"{part}/"):
                shape = self._file(_file_of(0)).get_slice(key).get_shape()
                found[key.removeprefix(f"{part}/")] = (ends[-1], *shape[1:])
        return found

    def read(self, part: str, name: str, rows: slice | None = None) -> Tensor:
        """These rows of a tensor, or all of it."""
        ends = self.ends.get(f"{part}/{name}")
        if ends is None:
            file = self._file(f"{part}.safetensors")
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
        rows, starts, found = rows or slice(0, ends[-1]), [0, *ends], []
        for rank, (start, end) in enumerate(zip(starts, ends, strict=False)):
            first, last = max(start, rows.start), min(end, rows.stop)
            if first < last or rank == 0:  # rank 0: no rows have a type and a width, too
                given = self._file(_file_of(rank)).get_slice(f"{part}/{name}")
                found.append(given[max(first - start, 0) : max(last - start, 0)])
        return torch.cat(found)

    @torch.no_grad()
    def load_into(self, module: nn.Module, part: str) -> None:
        """Fill a module, whole or in slices, from a part. Raises ValueError when it does not fit."""
        state, shapes = module.state_dict(), self.shapes(part)
        given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        checkpoint.check_fit(state, given, source=str(self.folder))
        for name, value in state.items():
            own(value).copy_(self.read(part, name, own_rows(value) if value.ndim else None))

    def load_optimizer(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        """Restore what `nextscale.train.optimizer.optimizer_tensors` gave."""
        parameters = dict(module.named_parameters())
        tensors = {}
        for key, shape in self.shapes("optimizer").items():
            parameter = parameters[key.rsplit("|", 1)[0]]
            alike = shape == tuple(parameter.shape)
            tensors[key] = self.read("optimizer", key, own_rows(parameter) if alike and shape else None)
        load_optimizer(optimizer, module, tensors)

    def load_all(self, part: str) -> dict[str, Tensor]:
        """Every tensor of a part, whole."""
        return {name: self.read(part, name) for name in self.shapes(part)}
