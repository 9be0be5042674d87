"""What every process of several does in the tests of training on several processes; started by `launch`.

Special here: run as a script it joins the group that its environment describes, does one of the jobs below,
and leaves its findings in files, rank by rank; with one process the tests call the same jobs directly.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from images import MemorySource
from models_for_tests import make_loud
from nextscale.checkpoint import write_tensors
from nextscale.distributed import Distributed, joined
from nextscale.evaluate.moments import Moments
from nextscale.train import loop as train_loop
from nextscale.train.optimizer import build_optimizer, set_rates
from nextscale.train.prior_task import PriorTask
from nextscale.train.run import train_run
from nextscale.train.settings import PriorRun, TokenizerRun
from nextscale.train.step import take_step
from nextscale.train.stopping import Stopped
from nextscale.train.task import Task
from nextscale.train.tokenizer_task import TokenizerTask
from runs_for_tests import Run, tiny_run

CPU = torch.device("cpu")
ALONE = Distributed(0, 1, CPU)
NUM_CODE_STEPS = 8


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives to a process."""
    return os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def start(command: Sequence[str], world_size: int = 2) -> list[subprocess.Popen[str]]:
    """Start a command in every rank."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command], env=rank_environment(rank, world_size, port), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]  # fmt: skip


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each. Ends those that hang."""
    try:
        results = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, results, strict=True)]


def launch(job: str, home: Path, out: Path) -> None:
    """Do a job in two processes."""
    out.mkdir()
    for code, _, errors in finish(start([__file__, job, str(home), str(out)])):
        assert code == 0, errors


# jobs


def measure(home: Path, out: Path, ranks: Distributed) -> None:
    """Gradients of one step, weights after three in float64, and what a tokenizer's codes went through."""
    for kind in ("prior", "adversarial"):
        task = _task(kind, home)
        if isinstance(task, TokenizerTask):  # the discriminator takes part
            assert task.adversary is not None
            task.adversary.next_step.fill_(5)
            task.adversary.adaptive_weight.fill_(1)
        _one_step(task, ranks, torch.optim.SGD(task.module.parameters(), lr=0.0), 5)
        gradients = {name: v.grad for name, v in task.module.named_parameters() if v.grad is not None}
        _leave(out, f"{kind}-gradients", ranks, gradients)
    task = _task("prior", home)
    task.module.double()
    _steps(task, ranks, 3)
    _leave(out, "double", ranks, task.module.state_dict())
    task = _task("adversarial", home)
    _steps(task, ranks, NUM_CODE_STEPS)
    _leave(out, "codes", ranks, {**task.module.state_dict(), **task.state()})


def _task(kind: str, home: Path) -> Task:
    torch.manual_seed(0)
    sources = {"source": MemorySource(16), "validation": MemorySource(3)}
    run = tiny_run(kind, home, batch_size=8)
    if isinstance(run, TokenizerRun):
        return TokenizerTask(run, device=CPU, **sources)
    assert isinstance(run, PriorRun)
    task = PriorTask(run, device=CPU, folder=home, **sources)
    make_loud(task.module)
    return task


def _steps(task: Task, ranks: Distributed, count: int) -> None:
    settings = tiny_run("prior", Path()).optimizer
    optimizer = build_optimizer(task.module, settings, no_decay=task.no_decay, groups=task.parameter_groups)
    for step in range(count):
        set_rates(optimizer, lr=1e-3, weight_decay=0.05)
        _one_step(task, ranks, optimizer, step)
        task.after_step(step)


def _one_step(task: Task, ranks: Distributed, optimizer: torch.optim.Optimizer, step: int) -> None:
    loop = tiny_run("prior", Path(), batch_size=8, accumulate=2).loop
    part = ranks.part(8, accumulate=2)
    batch = next(iter(task.batches(range(step, step + 1), part=part)))
    assert take_step(task, batch, optimizer, loop=loop, clip_norm=1e9, ranks=ranks).finite


def _leave(out: Path, name: str, ranks: Distributed, tensors: dict[str, Tensor]) -> None:
    write_tensors(out / f"{name}-{ranks.rank}.safetensors", {n: v.clone() for n, v in tensors.items()})


def runs(home: Path, out: Path, ranks: Distributed) -> None:
    """Whole runs, and what becomes of them; with one process only those that are compared."""
    found: dict[str, Any] = {}

    def train(name: str, run: Run) -> None:
        said: list[str] = []
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(train_loop, "draw_curves", lambda *_: None)
                scores = train_run(run, out / name, say=said.append, progress=False, ranks=ranks)
            found[name] = {"scores": scores, "said": said}
        except (ValueError, Stopped) as error:
            found[name] = {"error": f"{type(error).__name__}: {error}", "said": said}

    for kind in ("prior", "next_token", "diffusion", "tokenizer", "adversarial"):
        train(kind, tiny_run(kind, home))
    train("kept", tiny_run("prior", home).model_copy(update={"cache_views": 2}))
    train("skipping", _bad("skip", home))
    if ranks.world_size > 1:
        train("bad", _bad("stop", home))
        with _during_loss(ranks, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            train("stopped", tiny_run("prior", home))
        with ranks.together():
            if ranks.is_first:
                shutil.copytree(out / "stopped", out / "resumed")
        train("resumed", tiny_run("prior", home))
        with _during_loss(ranks, 4, None):
            train("spoiled", tiny_run("prior", home))
        with _during_loss(ranks, 4, None):
            train("fails", tiny_run("prior", home, max_skipped=1))
        train("other", tiny_run("classifier", home))
        train("odd", tiny_run("prior", home, batch_size=6, accumulate=2))
        train("differing", tiny_run("prior", home, seed=ranks.rank))
        (out / "notes").mkdir(exist_ok=True)
        (out / "notes" / "mine.txt").touch()
        train("notes", tiny_run("prior", home))
    (out / f"runs-{ranks.rank}.json").write_text(json.dumps(found))


def _bad(what: str, home: Path) -> Run:
    run = tiny_run("tokenizer", home)
    return run.model_copy(
        update={
            "data": run.data.model_copy(
                update={
                    "source": str(home / "damaged"), "on_bad_image": what,
                    "validation": str(home / "pictures"),
                }
            )
        }
    )  # fmt: skip


@contextlib.contextmanager
def _during_loss(ranks: Distributed, number: int, action: Callable[[], Any] | None) -> Any:
    """Do something in one loss of the last rank alone; None: its loss is no number."""
    original, count = PriorTask.loss, iter(range(1000))

    def disturbed(self: PriorTask, batch: Any) -> Any:
        here = next(count) == number and ranks.rank == ranks.world_size - 1
        if here and action:
            action()
        value, numbers = original(self, batch)
        return (value * float("nan") if here and not action else value), numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PriorTask, "loss", disturbed)
        yield


def moment_rows(rank: int) -> Tensor:
    """Features of two images on the first rank, of five on the second."""
    return torch.arange(4 + 6.0 * rank).sqrt().view(-1, 2) + 1000


def exchange(_home: Path, out: Path, ranks: Distributed) -> None:
    """Every way of exchanging something, on its own."""
    found: dict[str, Any] = {"rank": ranks.rank, "world_size": ranks.world_size}
    tensors = [
        torch.full((2, 3), 1.5 + ranks.rank), torch.tensor(7 * (ranks.rank + 1)),
        torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last), torch.ones(0),
        torch.tensor([0.1 * (ranks.rank + 1)], dtype=torch.float64),
    ]  # fmt: skip
    ranks.sum_(tensors)
    found["sums"] = [tensor.tolist() for tensor in tensors]
    given = torch.tensor([[float(ranks.rank), 3.0]])
    ranks.take_first_([given])
    found["first"] = given.tolist()
    found["agree"] = [ranks.agree(ranks.rank == 1), ranks.agree(False), ranks.agree(True)]
    found["gather"] = ranks.gather("é" * ranks.rank)
    found["of_first"] = ranks.of_first({"score": 0.1 + 0.2 * ranks.rank, "none": float("nan")})["score"]
    seen = Moments(2)
    seen.add(moment_rows(ranks.rank))
    found["moments"] = {name: value.tolist() for name, value in seen.reduced(ranks).tensors().items()}
    found["errors"] = []
    for error in (ValueError("no images here"), OSError(28, "disk full"), KeyError("bug")):
        try:
            with ranks.together(), ranks.together():
                if ranks.rank == 1:
                    raise error
        except Exception as caught:
            found["errors"].append(f"{type(caught).__name__}: {caught}")
    found["each"] = []
    try:
        for item in ranks.each(_numbers(fail=ranks.rank == 1)):
            found["each"].append(item)
    except ValueError as caught:
        found["each"].append(str(caught))
    try:
        ranks.check_same(f"step {ranks.rank}", name="steps")
    except ValueError as caught:
        found["same"] = str(caught)
    (out / f"exchange-{ranks.rank}.json").write_text(json.dumps(found))


def _numbers(*, fail: bool) -> Any:
    yield from (1, 2)
    if fail:
        raise ValueError("third is bad")
    yield 3


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu") as group:
        {"measure": measure, "runs": runs, "exchange": exchange}[sys.argv[1]](
            Path(sys.argv[2]), Path(sys.argv[3]), group
        )
