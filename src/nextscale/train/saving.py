"""Checkpoints of a run: whole folders with digests, newest last; a damaged one is passed over for the one
before.

Special here: the state is copied, then written by a thread while training goes on. Processes that hold
slices copy and write their own; their threads settle among themselves, in words of their own, when all files
are there and the folder may be renamed into place. An interrupted write leaves a folder whose name begins
with a dot, which is never read and is swept away by the next start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from nextscale import checkpoint
from nextscale.distributed import Distributed, SharedError
from nextscale.train.optimizer import optimizer_tensors
from nextscale.train.progress import Progress
from nextscale.train.recording import Seal
from nextscale.train.slices import Copies, SavedTensors, copied, copies_digests, write_copies
from nextscale.train.task import Task


class Saver:
    """Writes checkpoints one after the other; leaving the block waits for the last one.

    Args:
        folder: the checkpoints' own.
        keep: how many.
        ranks: who writes them together, with words that nobody else uses meanwhile (`words_apart`).

    Raises:
        OSError: from the next call, or on leaving, when a write failed (a full disk); older ones stay. Of
            several processes SharedError on all of them.
    """

    def __init__(self, folder: Path, *, keep: int, ranks: Distributed) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, progress: Progress, *, task: Task, average: nn.Module, optimizer: torch.optim.Optimizer,
        seal: Seal | None = None,
    ) -> None:  # fmt: skip
        """Copy the state and have it written, and sealed before it counts."""
        self.wait()
        parts = {
            "module": task.module.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer_tensors(optimizer, task.module),
            "task": task.state(),
        }
        copies = copied(parts, self.ranks)
        self._pending = self._thread.submit(
            _write, self.folder, progress, copies, keep=self.keep, ranks=self.ranks, seal=seal
        )

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
        except (OSError, SharedError):
            if error is None:  # what ended the block says more than a failed write
                raise
        finally:
            self._thread.shutdown()


@contextmanager
def _new_folder(path: Path, ranks: Distributed) -> Iterator[Path]:
    """`checkpoint.new_folder` of the first process, for all of them to fill."""
    with ExitStack() as stack:
        with ranks.together():
            place = str(stack.enter_context(checkpoint.new_folder(path))) if ranks.is_first else ""
        yield Path(ranks.of_first(place))


def _write(
    folder: Path, progress: Progress, copies: Copies, *, keep: int, ranks: Distributed, seal: Seal | None
) -> None:
    with _new_folder(folder / f"step-{progress.step:08d}", ranks) as place:
        digests = write_copies(place, copies, ranks)
        if ranks.is_first:
            checkpoint.write_json(place / "state.json", asdict(progress))
            checkpoint.write_digests(place, digests)
        if seal is not None:
            tensors = copies_digests(copies, ranks)
            with ranks.together():
                seal(place, tensors)
    if not ranks.is_first:
        return
    for old in _steps(folder)[:-keep]:
        dropped = old.with_name(f".{old.name}")  # a half-removed one must not count as a checkpoint
        old.rename(dropped)
        shutil.rmtree(dropped)


def restore(
    folder: Path, *, task: Task, average: nn.Module, optimizer: torch.optim.Optimizer, ranks: Distributed
) -> tuple[Progress, list[str]]:
    """Load the newest whole checkpoint: how far it is (0 steps when there is none), what was passed over.

    All ``ranks`` must call this; they share the work of looking for damage. Raises SharedError where they see
    different folders.
    """
    complaints, steps = [], _steps(folder)
    names = ", ".join(step.name for step in steps) or "none"
    ranks.check_same(names, name=f"checkpoints in {folder}, which all must see,")
    for place in reversed(steps):
        complaint = next(filter(None, ranks.gather(_complaint(place, ranks))), None)
        if complaint:
            complaints.append(complaint)
            continue
        with ranks.together():
            saved = SavedTensors(place)
            saved.load_into(task.module, "module")
            saved.load_into(average, "average")
            saved.load_optimizer(optimizer, task.module)
            task.load_state(saved.load_all("task"))
            return Progress(**json.loads((place / "state.json").read_text())), complaints
    return Progress(), complaints


def _complaint(place: Path, ranks: Distributed) -> str:
    """What is wrong with this process's share of a checkpoint's files."""
    try:
        checkpoint.check_digests(place, every=ranks.world_size, first=ranks.rank)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []
