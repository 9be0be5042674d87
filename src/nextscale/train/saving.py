"""Checkpoints of a run: whole folders with digests, newest last; a damaged one is passed over for the one
before.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn

from nextscale import checkpoint
from nextscale.train.optimizer import load_optimizer, optimizer_tensors
from nextscale.train.task import Task


def save(
    folder: Path, *, step: int, task: Task, average: nn.Module, optimizer: torch.optim.Optimizer, keep: int
) -> None:
    """Write the state after ``step`` steps and drop all but the newest ``keep``."""
    with checkpoint.new_folder(folder / f"step-{step:08d}") as place:
        checkpoint.write_tensors(place / "module.safetensors", task.module.state_dict())
        checkpoint.write_tensors(place / "average.safetensors", average.state_dict())
        checkpoint.write_tensors(place / "optimizer.safetensors", optimizer_tensors(optimizer, task.module))
        checkpoint.write_tensors(place / "task.safetensors", task.state())
        checkpoint.write_json(place / "state.json", {"step": step})
        checkpoint.write_digests(place)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)


def restore(
    folder: Path, *, task: Task, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[str]]:
    """Load the newest whole checkpoint: the number of finished steps (0 when there is none), and what was
    passed over.
    """
    complaints: list[str] = []
    for place in reversed(_steps(folder)):
        try:
            checkpoint.check_digests(place)
        except ValueError as error:
            complaints.append(str(error))
            continue
        checkpoint.load_into(
            task.module, checkpoint.read_tensors(place / "module.safetensors"), source=str(place)
        )
        checkpoint.load_into(
            average, checkpoint.read_tensors(place / "average.safetensors"), source=str(place)
        )
        load_optimizer(optimizer, task.module, checkpoint.read_tensors(place / "optimizer.safetensors"))
        task.load_state(checkpoint.read_tensors(place / "task.safetensors"))
        return int(json.loads((place / "state.json").read_text())["step"]), complaints
    return 0, complaints


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []
