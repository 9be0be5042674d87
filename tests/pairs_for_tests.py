"""Two processes that train one run together, one of which may lie."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ranks_for_tests import free_port, rank_environment

#: Trains twelve steps as one of several: home, folder, "lie" or "honestly", audit_every.
TRAIN_AS_RANK = """
import sys
from dataclasses import replace
from pathlib import Path
from nextscale.distributed import joined
from nextscale.train import loop as train_loop
from runs_for_tests import *
take = train_loop.take_step
def lying(task, batch, *rest, **more):  # trains step 6 on other labels than it says that it has read
    if lying.calls == 5:
        batch = replace(batch, labels_B=(batch.labels_B + 1) % 3)
    lying.calls += 1
    return take(task, batch, *rest, **more)
lying.calls = 0
home, folder, how, audit_every = sys.argv[1:]
with joined("cpu") as ranks:
    if ranks.rank == 1 and how == "lie":
        train_loop.take_step = lying
    run = tiny_run("prior", Path(home), keep=9)
    ledger = run.ledger.model_copy(update={"audit_every": int(audit_every)})
    run = run.model_copy(update={"ledger": ledger})
    try:
        train_run(run, Path(folder), say=lambda _: None, progress=False, ranks=ranks)
    except ValueError as error:
        raise SystemExit(str(error))
"""


def by_two(command: Sequence[object]) -> list[tuple[int, str, str]]:
    """Run a command as two processes: exit code and what was said, on both streams, of each."""
    port = free_port()
    processes = [
        subprocess.Popen(
            list(map(str, command)), env=rank_environment(rank, 2, port), cwd=Path(__file__).parent,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def train_by_two(home: Path, folder: Path, how: str, *, audit_every: int = 0) -> list[tuple[int, str, str]]:
    """`TRAIN_AS_RANK`, twice."""
    return by_two([sys.executable, "-c", TRAIN_AS_RANK, home, folder, how, audit_every])
