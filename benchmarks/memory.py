"""The peak of a real training in memory against what is computed for it, on a CPU.

    python benchmarks/memory.py cifar10-tiny --stage prior --batch 32

Two steps are taken with random weights on pictures of noise. Measured is the peak of the resident memory of
this process over what it held before the model was built; so it contains what allocators keep and the images.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import numpy
import torch
from PIL import Image

from nextscale import Generator
from nextscale.config import build, merge
from nextscale.data.sources import open_source
from nextscale.distributed import Distributed
from nextscale.generate.settings import ModelSettings
from nextscale.recipes import STAGES, read_recipe
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.ema import averaged_copy
from nextscale.train.estimate import expected_memory
from nextscale.train.optimizer import build_optimizer
from nextscale.train.prior_task import PriorTask
from nextscale.train.settings import PriorRun, TokenizerRun
from nextscale.train.step import take_step
from nextscale.train.tokenizer_task import TokenizerTask


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="name of a recipe")
    parser.add_argument("--stage", choices=["tokenizer", "prior"], default="prior", help="what to train")
    parser.add_argument("--batch", type=int, default=1, help="images per step")
    parser.add_argument("--precision", default="bfloat16", help="float32 or bfloat16")
    parser.add_argument("--recompute", action="store_true", help="compute insides of blocks again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(options, Path(folder))


def _measure(options: argparse.Namespace, home: Path) -> None:
    tokenizer_run = build(TokenizerRun, read_recipe(options.recipe, "tokenizer"), source=options.recipe)
    _write_pictures(home / "pictures", max(8, 2 * options.batch))
    changes = {
        "data": {"source": str(home / "pictures"), "num_workers": 0}, "recompute": options.recompute,
        "loop": {"batch_size": options.batch, "num_steps": 2, "precision": options.precision},
    }  # fmt: skip
    if options.stage == "prior":
        changes |= {"tokenizer_from": str(home / "model"), "cache_views": 0}
        settings = ModelSettings(
            schedule=tokenizer_run.schedule, tokenizer=tokenizer_run.tokenizer, class_names=("a",)
        )
        tokenizer = Tokenizer(settings.tokenizer, settings.schedule)
        Generator(settings, tokenizer).save(home / "model")
        del tokenizer
    tree = merge(read_recipe(options.recipe, options.stage), changes)
    run = build(STAGES[options.stage], tree, source=options.recipe)
    source, device, before = open_source(str(home / "pictures")), torch.device("cpu"), _resident()
    if isinstance(run, PriorRun):
        task = PriorTask(run, source=source, validation=source, device=device, folder=home)
    else:
        assert isinstance(run, TokenizerRun)
        task = TokenizerTask(run, source=source, validation=source, device=device)
    average = averaged_copy(task.averaged)
    optimizer = build_optimizer(task.module, run.optimizer, no_decay=task.no_decay)
    task.module.train()
    for batch in task.batches(range(2)):
        take_step(
            task, batch, optimizer, loop=run.loop, clip_norm=run.optimizer.clip_norm,
            ranks=Distributed(0, 1, device),
        )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    computed = expected_memory(task, run.loop, recompute=options.recompute)
    assert average is not None
    print(
        f"{options.recipe} {options.stage}, batch {options.batch}, {options.precision}"
        f"{', recompute' if options.recompute else ''}: measured {peak / 1e9:.2f} GB, "
        f"computed {computed.total / 1e9:.2f} GB ({computed.total / peak - 1:+.0%})"
    )


def _resident() -> int:
    """Bytes that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    noise = numpy.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=numpy.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.png")


if __name__ == "__main__":
    main()
