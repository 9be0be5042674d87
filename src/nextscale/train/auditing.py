"""One step in so many, taken again by a fresh process while the training goes on.

Special here: what is wrong in this process (a patched optimizer, a core that miscounts) need not be wrong in
another one. It starts from a checkpoint of the moment before the step, and does what `nextscale replay`
does. No other checkpoint is written while its answer is outstanding, so none stands on a step that is found
to be spoiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from nextscale.distributed import Distributed
from nextscale.train.progress import Progress
from nextscale.train.recording import Recorder
from nextscale.train.saving import Saver
from nextscale.train.task import Task

#: In the run's folder, while a step is audited. What begins with a dot is swept away at the next start.
FOLDER = ".audit"
#: Sums on a GPU need not come out in one order.
_TOLERANCE_ELSEWHERE = 1e-3
#: After so many seconds without an answer a step counts as not audited.
_PATIENCE = 3600
#: What tells a process which of several it is.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Auditor:
    """Has steps audited, one at a time; leaving the block ends what still runs.

    Args:
        folder: of the run.
        ranks: the processes that train together. As many fresh ones, on this machine, take the step again.
        recorder: of the run; its settings say how often (`audit_every`).
        say: takes one line for people.
    """

    def __init__(
        self, folder: Path, *, ranks: Distributed, recorder: Recorder, say: Callable[[str], None]
    ) -> None:
        self.folder, self.ranks, self.recorder, self.say = folder, ranks, recorder, say
        self.every = recorder.settings.audit_every
        self._place = folder / FOLDER
        self._process: subprocess.Popen[bytes] | None = None
        self._step = 0  #: that is audited

    def audits(self, step: int) -> bool:
        """Whether a step, by its number from 1, is to be audited."""
        return self.every > 0 and step % self.every == 0

    def before(
        self, progress: Progress, *, task: Task, average: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep the moment before a step that is to be audited; all processes call it before every step."""
        if not self.audits(progress.step + 1):
            if self._process is not None and self.ranks.world_size == 1 and self._process.poll() is not None:
                self._settle()
            return
        self.wait()
        with self.ranks.together():
            if self.ranks.is_first:
                shutil.rmtree(self._place, ignore_errors=True)
                alone = Distributed(0, 1, self.ranks.device)
                with Saver(self._place, keep=1, ranks=alone) as saver:
                    saver.save(progress, task=task, average=average, optimizer=optimizer)

    def after(self, step: int) -> None:
        """Start the fresh process, once its step is in the ledger; all processes call it after every step."""
        if not self.audits(step):
            return
        with self.ranks.together():
            if self.ranks.is_first:
                self.recorder.wait()
                self._step = step
                with (self._place / "said.txt").open("wb") as said:
                    self._process = subprocess.Popen(
                        _command(self.folder, step, self.ranks), env=_environment(),
                        stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C is meant for the training alone
                    )  # fmt: skip
                _give_way(self._process.pid)

    def wait(self) -> None:
        """Until the answer is there; all processes call it. Raises ValueError where a step was spoiled."""
        if self.every:
            with self.ranks.together():
                if self._process is not None:
                    self._settle()

    def _settle(self) -> None:
        """Take the answer in."""
        process, self._process = self._process, None
        assert process is not None
        try:
            code = process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        said = (self._place / "said.txt").read_text(errors="replace").strip()
        step = self._step
        found = [line.removeprefix("FOUND: ") for line in said.splitlines() if line.startswith("FOUND: ")]
        if code == 0:
            self.recorder.event("audit", step=step, outcome="as recorded")
        elif code == 1 and found:
            text = "; ".join(found)
            self.recorder.event("audit", step=step, outcome="otherwise", text=text)
            raise ValueError(
                f"a fresh process that took step {step} again says: {text}. Nothing since the last "
                "checkpoint is kept: find out what this process or this machine does wrong, and start again"
            )
        else:
            signal = f"killed by signal {-code}, as for want of memory"
            how = f"exit code {code}" if code >= 0 else signal
            last = said.splitlines()[-1][:500] if said else "nothing"
            text = f"{how}; it said last: {last}"
            self.recorder.event("audit", step=step, outcome="not taken", text=text)
            self.say(f"step {step} could not be audited: {text}")

    def __enter__(self) -> Auditor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self.every and self.ranks.is_first:
            shutil.rmtree(self._place, ignore_errors=True)


def _command(folder: Path, step: int, ranks: Distributed) -> list[str]:
    device = ranks.device.type
    start = [sys.executable, "-m"]
    if ranks.world_size > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks.world_size}", "-m"]
    words = ["--from", str(step - 1), "--to", str(step), "--device", device, "--quiet"]
    if device != "cpu":
        words += ["--tolerance", str(_TOLERANCE_ELSEWHERE)]
    return [*start, "nextscale.cli", "replay", str(folder), *words]


def _environment() -> dict[str, str]:
    """That of this process, with as many threads, since sums depend on them."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _RANK_VARIABLES and not name.startswith("TORCHELASTIC")
    }
    return kept | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def _give_way(pid: int) -> None:
    """Let the training go first, where the system can."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, pid, 10)
