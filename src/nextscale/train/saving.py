"""Checkpoints of a run: whole folders with digests, newest last; a damaged one is passed over for the one
before.

Special here: the state is copied, then written by a thread while training goes on. An interrupted write
leaves a folder whose name begins with a dot, which is never read and is swept away by the next start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.train.optimizer import load_optimizer, optimizer_tensors
from nextscale.train.progress import Progress
from nextscale.train.task import Task


class Saver:
    """Writes checkpoints one after the other; leaving the block waits for the last one.

    Raises:
        OSError: from the next call, or on leaving, when a write failed (a full disk); older ones stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, progress: Progress, *, task: Task, average: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Copy the state and have it written."""
        self.wait()
        parts = {
            "module": task.module.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer_tensors(optimizer, task.module),
            "task": task.state(),
        }
        copies = {name: _copy(tensors) for name, tensors in parts.items()}
        self._pending = self._thread.submit(_write, self.folder, progress, copies, self.keep)

    def wait(self) -> None:
        """Until everything is on disk. Raises what the writing raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except OSError:
            if error is None:  # what ended the block says more than a failed write
                raise
        finally:
            self._thread.shutdown()


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def _write(folder: Path, progress: Progress, parts: dict[str, dict[str, Tensor]], keep: int) -> None:
    with checkpoint.new_folder(folder / f"step-{progress.step:08d}") as place:
        for name, tensors in parts.items():
            checkpoint.write_tensors(place / f"{name}.safetensors", tensors)
        checkpoint.write_json(place / "state.json", asdict(progress))
        checkpoint.write_digests(place)
    for old in _steps(folder)[:-keep]:
        dropped = old.with_name(f".{old.name}")  # a half-removed one must not count as a checkpoint
        old.rename(dropped)
        shutil.rmtree(dropped)


def restore(
    folder: Path, *, task: Task, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, list[str]]:
    """Load the newest whole checkpoint: how far it is (0 steps when there is none), what was passed over."""
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
        return Progress(**json.loads((place / "state.json").read_text())), complaints
    return Progress(), complaints


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []
