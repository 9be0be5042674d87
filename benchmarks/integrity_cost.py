"""What fingerprint, ledger and audits cost: seconds at the start, and parts of a step.

    python benchmarks/integrity_cost.py cifar10-tiny --source cifar10/train.parquet --steps 60 --batch 32
    python benchmarks/integrity_cost.py imagenet256-d16 --source imagenet256/dev.tar --steps 8 --batch 2

A prior of the recipe's size is trained for some steps on a tokenizer of random weights. What the ledger takes
is timed in that very run, so other work on the machine stretches both alike. The functions that time it are
put around others in memory, which a fingerprint would rightly take for an attack: it is timed by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nextscale import Generator
from nextscale.config import build, merge
from nextscale.generate.settings import ModelSettings
from nextscale.integrity.fingerprint import take_fingerprint
from nextscale.recipes import STAGES, read_recipe
from nextscale.studies.bench.models import random_tokenizer
from nextscale.train import auditing, inputs, loop, recording
from nextscale.train.optimizer import build_optimizer
from nextscale.train.run import _task_of, train_run
from nextscale.train.stopping import Stopped
from nextscale.train.watching import Watching

_TIMES: dict[str, list[float]] = defaultdict(list)


def _timed(holder: Any, name: str, label: str) -> None:
    """Put a clock around a function."""
    function = getattr(holder, name)

    @functools.wraps(function)
    def timed(*words: Any, **more: Any) -> Any:
        since = time.perf_counter()
        try:
            return function(*words, **more)
        finally:
            _TIMES[label].append(time.perf_counter() - since)

    setattr(holder, name, timed)


def _run_of(options: argparse.Namespace, home: Path) -> Any:
    tokenizer = build(STAGES["tokenizer"], read_recipe(options.recipe, "tokenizer"), source=options.recipe)
    settings = ModelSettings(
        schedule=tokenizer.schedule, tokenizer=tokenizer.tokenizer, class_names=("none",)
    )  # fmt: skip
    Generator(settings, random_tokenizer(settings, torch.device("cpu"))).save(home / "tokenizer")
    changes = {
        "data": {"source": options.source, "validation_share": 0.01, "validation": "", "num_workers": 0},
        "tokenizer_from": str(home / "tokenizer"), "cache_views": 0, "tokens_from": "", "compile": False,
        "loop": {
            "num_steps": options.steps, "batch_size": options.batch, "accumulate": 1, "save_every": 10**6,
            "evaluate_every": 10**6, "evaluate_images": options.batch, "stop_after": options.steps - 1,
        },
        "ledger": {"fingerprint": False, "audit_every": max(1, options.steps // 2)},
    }  # fmt: skip
    tree = merge(read_recipe(options.recipe, "prior"), changes)
    return build(STAGES["prior"], tree, source=options.recipe)


def _look(run: Any, home: Path) -> float:
    """Seconds of a look at the memory."""
    task, _ = _task_of(run, home / "none", device=torch.device("cpu"), skipped=None, progress=False)
    watching = Watching(
        task.module, build_optimizer(task.module, run.optimizer, no_decay=task.no_decay), every=1
    )
    watching.check(0)
    since = time.perf_counter()
    watching.check(1)
    return time.perf_counter() - since


def _line(what: str, seconds: float, step: float | None = None) -> None:
    share = "" if step is None else f"   {100 * seconds / step:7.3f} % of a step"
    print(f"{what:58} {1e3 * seconds:10.1f} ms{share}", flush=True)


def main() -> None:
    """Train, and print what took how long."""
    parser = argparse.ArgumentParser(description="What fingerprint, ledger and audits cost.")
    parser.add_argument("recipe")
    parser.add_argument("--source", required=True)
    parser.add_argument("--steps", type=int, default=40, help="that of the middle is audited")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--work", help="where to write (default: the system's place for temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as place:
        home = Path(place)
        run = _run_of(options, home)
        since = time.perf_counter()
        take_fingerprint({})
        _line("start: fingerprint", time.perf_counter() - since)
        look = _look(run, home)
        _timed(inputs, "_leaves", "start: images")
        _timed(loop._Run, "step", "step")
        _timed(recording.Recorder, "batch", "batch")
        _timed(recording.Recorder, "step", "record")
        _timed(recording, "batch_digest", "digest")
        _timed(recording.Recorder, "weights", "weights")
        _timed(auditing.Auditor, "before", "before")
        _timed(auditing.Auditor, "_settle", "settle")
        _timed(auditing.Auditor, "after", "after")
        started = time.perf_counter()
        with contextlib.suppress(Stopped):
            train_run(run, home / "run", device="cpu", say=print, progress=False)
        print(f"{run.loop.num_steps - 1} steps in {time.perf_counter() - started:.0f} s")
    audited = run.ledger.audit_every - 1
    quiet, during = _TIMES["step"][1:audited], _TIMES["step"][audited + 1 :]
    step = median(quiet)
    _line("start: digests of all images", sum(_TIMES["start: images"]))
    _line("a step", step)
    _line("its record: what the step waits for", median(_TIMES["batch"]) + median(_TIMES["record"]), step)
    _line("its record: the thread beside it", median(_TIMES["digest"]), step)
    _line(f"a look at the memory, every {run.ledger.recheck_every or 100} steps", look, 100 * step)
    kept = max(_TIMES["before"]), max(_TIMES["weights"]), max(_TIMES["after"])
    _line("an audit: the moment before is kept, and what follows", sum(kept))
    _line("an audit: a step beside it", median(during), step)
    _line("an audit: the training waits for the answer, at the end", sum(_TIMES["settle"]))


if __name__ == "__main__":
    main()
