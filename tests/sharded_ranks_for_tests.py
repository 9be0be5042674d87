"""What every process of several does in the tests of sharded training; started by `ranks_for_tests.launch`.

With one process the tests call the same jobs directly: nothing is sharded then.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from images import MemorySource
from models_for_tests import make_loud
from nextscale import checkpoint
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Subset
from nextscale.distributed import Distributed, joined
from nextscale.evaluate.prediction import prediction_scores
from nextscale.evaluate.reconstruction import reconstruction_scores
from nextscale.generate.folder import load_tokenizer, read_settings
from nextscale.prior.next_scale import NextScalePrior
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.ema import averaged_copy, update_average
from nextscale.train.optimizer import build_optimizer, set_rates
from nextscale.train.prior_task import PriorTask
from nextscale.train.settings import PriorRun, TokenizerRun
from nextscale.train.sharding import assembled, is_cut, outline, own, shard_
from nextscale.train.step import describe_failure, take_step
from nextscale.train.task import Task
from nextscale.train.tokenizer_task import TokenizerTask
from ranks_for_tests import CPU, during_loss, train_to
from runs_for_tests import Run, tiny_run

KINDS = ("prior", "shared", "adversarial")


def task_of(kind: str, home: Path, **changes: Any) -> Task:
    """A task with loud weights and a discriminator that takes part."""
    torch.manual_seed(0)
    sources = {"source": MemorySource(16), "validation": MemorySource(7)}
    run = tiny_run("adversarial" if kind == "adversarial" else "prior", home, batch_size=8)
    if isinstance(run, TokenizerRun):
        run = run.model_copy(update=changes)
        adversarial = TokenizerTask(run, device=CPU, **sources)
        assert adversarial.adversary is not None
        adversarial.adversary.next_step.fill_(5)
        adversarial.adversary.adaptive_weight.fill_(1)
        return adversarial
    assert isinstance(run, PriorRun)
    prior = run.prior.model_copy(update={"shared_adaln": kind == "shared"})
    run = run.model_copy(update={"prior": prior, **changes})
    task = PriorTask(run, device=CPU, folder=home, **sources)
    make_loud(task.module)
    return task


def one_step(
    task: Task, ranks: Distributed, optimizer: torch.optim.Optimizer, *, step: int = 5,
    precision: str = "float32", clip_norm: float = 1e9,
) -> dict[str, Tensor]:  # fmt: skip
    """A step of two micro-batches. Returns what it would log."""
    loop = tiny_run("prior", Path(), batch_size=8, accumulate=2, precision=precision).loop
    batch = next(iter(task.batches(range(step, step + 1), part=ranks.part(8, accumulate=2))))
    result = take_step(task, batch, optimizer, loop=loop, clip_norm=clip_norm, ranks=ranks)
    assert result.finite
    return result.numbers


def measure(home: Path, out: Path, ranks: Distributed, *, sharded: bool) -> None:
    """Gradients and norms of a step, then weights, averages and moments after three steps in float64."""
    bfloat16 = {"precision": "bfloat16"}
    for name, kind, changes, given in (
        *((kind, kind, {}, {}) for kind in KINDS),
        ("recompute", "prior", {"recompute": True}, {}),
        ("recompute-tokenizer", "adversarial", {"recompute": True}, {}), ("bfloat16", "prior", {}, bfloat16),
        ("clipped", "prior", {}, {"clip_norm": 0.1}),
    ):  # fmt: skip
        task = task_of(kind, home, **changes)
        if sharded:
            shard_(task.averaged, ranks, dtype=torch.bfloat16 if given is bfloat16 else None)
        numbers = one_step(task, ranks, torch.optim.SGD(task.module.parameters(), lr=0.0), **given)
        gradients = {name: v.grad for name, v in task.module.named_parameters() if v.grad is not None}
        norms = {name: value for name, value in numbers.items() if name.endswith("norm")}
        assert sharded == any(is_cut(gradient) for gradient in gradients.values())
        _leave(out, name, ranks, {**gradients, **{name: value[None] for name, value in norms.items()}})
    for kind in ("prior", "shared"):
        _double(kind, home, out, ranks, sharded=sharded)


def _double(kind: str, home: Path, out: Path, ranks: Distributed, *, sharded: bool) -> None:
    task = task_of(kind, home)
    task.module.double()
    average = averaged_copy(task.averaged)
    empty = outline(average)
    if sharded:
        shard_(average, ranks)
        shard_(task.averaged, ranks)
    optimizer = build_optimizer(task.module, tiny_run("prior", Path()).optimizer, no_decay=task.no_decay)
    for step in range(3):
        set_rates(optimizer, lr=1e-3, weight_decay=0.05)
        one_step(task, ranks, optimizer, step=step)
        update_average(average, task.averaged, decay=0.5, step=step)
    found = {f"weight {n}": value for n, value in task.module.state_dict().items()}
    found |= {f"average {n}": value for n, value in assembled(empty, average, ranks).state_dict().items()}
    for parameter_name, parameter in task.module.named_parameters():
        found |= {f"{entry} {parameter_name}": v for entry, v in optimizer.state[parameter].items() if v.ndim}
    assert sharded == any(is_cut(value) for value in found.values())
    _leave(out, f"double-{kind}", ranks, found)


def _leave(out: Path, name: str, ranks: Distributed, tensors: dict[str, Tensor]) -> None:
    whole = {n: v.full_tensor() if is_cut(v) else v for n, v in tensors.items()}
    if ranks.is_first:
        checkpoint.write_tensors(out / f"{name}.safetensors", {n: v.clone() for n, v in whole.items()})


def compare(home: Path, out: Path, ranks: Distributed) -> None:
    """`measure` twice: with whole models, and with slices."""
    for sharded in (False, True):
        here = out / ("full" if sharded else "replicated")
        here.mkdir(exist_ok=True)
        measure(home, here, ranks, sharded=sharded)
    (out / f"scores-{ranks.rank}.json").write_text(json.dumps(scores(home, ranks, sharded=True)))
    (out / f"spoiled-{ranks.rank}.json").write_text(json.dumps(_spoiled(home, ranks)))
    task = task_of("adversarial", home)
    shard_(task.averaged, ranks)
    parameters = list(task.averaged.parameters())
    held = sum(own(parameter).numel() for parameter in parameters)
    sizes = {"all": sum(parameter.numel() for parameter in parameters), "held": held}
    (out / f"sizes-{ranks.rank}.json").write_text(json.dumps(sizes))


def _spoiled(home: Path, ranks: Distributed) -> dict[str, Any]:
    """A step in which the loss of the last process is no number."""
    task = task_of("prior", home)
    shard_(task.averaged, ranks)
    before = {name: own(value).clone() for name, value in task.module.state_dict().items()}
    optimizer = build_optimizer(task.module, tiny_run("prior", Path()).optimizer, no_decay=task.no_decay)
    loop = tiny_run("prior", Path(), batch_size=8).loop
    batch = next(iter(task.batches(range(1), part=ranks.part(8))))
    with during_loss(ranks, 0, None):
        result = take_step(task, batch, optimizer, loop=loop, clip_norm=1.0, ranks=ranks)
    unchanged = [torch.equal(own(value), before[name]) for name, value in task.module.state_dict().items()]
    return {
        "finite": result.finite, "own": bool(result.own_loss.isfinite()), "unchanged": all(unchanged),
        "failure": describe_failure(task, batch, result),
    }  # fmt: skip


class _Damaged(MemorySource):
    """Every image with an odd number is bad: all those of the second of two processes."""

    def read(self, index: int) -> bytes:
        return super().read(index)[:60] if index % 2 else super().read(index)


def scores(home: Path, ranks: Distributed, *, sharded: bool) -> dict[str, Any]:
    """What evaluations say of few images: unequal shares, batches that only one process has, bad images."""
    prior, tokenizer = task_of("prior", home).module, task_of("adversarial", home).averaged
    assert isinstance(prior, NextScalePrior) and isinstance(tokenizer, Tokenizer)
    given = load_tokenizer(home / "given", read_settings(home / "given"))
    if sharded:
        shard_(prior, ranks)
        shard_(tokenizer, ranks)
    found: dict[str, Any] = {}
    for limit in (None, 5, 1):
        options: dict[str, Any] = {"limit": limit, "batch_size": 2, "ranks": ranks}
        found[f"prediction of {limit}"] = prediction_scores(given, prior, MemorySource(7), **options)
        found[f"reconstruction of {limit}"] = reconstruction_scores(tokenizer, MemorySource(7), **options)
    for module in (prior, tokenizer):  # averages go on with slices after an evaluation
        assert sharded == any(is_cut(parameter) for parameter in module.parameters())
    skipped = SkippedImages()
    options = {"batch_size": 2, "skipped": skipped, "ranks": ranks}
    found["skipping"] = reconstruction_scores(tokenizer, _Damaged(7), **options)
    skipped.share(ranks)
    found["skipped"] = skipped.names
    for name, source, note in (("bad", _Damaged(7), None), ("none readable", _all_bad(4), skipped)):
        try:
            reconstruction_scores(tokenizer, source, skipped=note, ranks=ranks)
        except ValueError as error:
            found[name] = str(error)
    return found


def _all_bad(count: int) -> Subset:
    return Subset(_Damaged(2 * count), numpy.arange(1, 2 * count, 2))


def sharded_run(kind: str, home: Path, **loop: Any) -> Run:
    """A whole run of which several processes hold slices."""
    return tiny_run(kind, home, sharding="full", **loop)


def runs(home: Path, out: Path, ranks: Distributed) -> None:
    """Whole runs, sharded; stopped and gone on with in every way."""
    found: dict[str, Any] = {}

    def train(name: str, run: Run) -> None:
        train_to(found, name, run, out / name, ranks)

    def copy(folder: Path, name: str) -> None:
        with ranks.together():
            if ranks.is_first:
                shutil.copytree(folder, out / name)

    for kind in ("prior", "adversarial"):
        train(kind, sharded_run(kind, home))
    with during_loss(ranks, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        train("stopped", sharded_run("prior", home))
    for name in ("resumed", "damaged"):
        copy(out / "stopped", name)
    copy(home / "from-one", "from-one")
    train("resumed", sharded_run("prior", home))
    with ranks.together():
        if ranks.is_first:
            file = out / "damaged" / "checkpoints" / "step-00000005" / "slices-00001.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"x")
    train("damaged", tiny_run("prior", home))  # replicated now
    train("from-one", sharded_run("prior", home))
    with _full_disk(ranks):
        train("full", sharded_run("prior", home, save_every=1))
    (out / f"runs-{ranks.rank}.json").write_text(json.dumps(found))


@contextlib.contextmanager
def _full_disk(ranks: Distributed) -> Iterator[None]:
    """The last process cannot write from the third step on."""
    original = checkpoint.write_tensors

    def write(path: Path, tensors: dict[str, Tensor]) -> None:
        if ranks.rank == ranks.world_size - 1 and "step-00000003" in str(path):
            raise OSError(28, "No space left on device")
        original(path, tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", write)
        yield


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu") as group:
        {"compare": compare, "runs": runs}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), group)
