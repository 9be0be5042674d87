"""Training steps of a prior from a memory map, from memory, and tokenizing on the fly, interleaved.

    python benchmarks/token_cache.py pictures --model cifar10-tiny --recipe cifar10-tiny

The three take turns step by step, in changing order, on one prior. A step is fetching a batch, forward,
backward and the optimizer; fetching is timed on its own as well: the first two differ in nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch

from nextscale.config import build, merge
from nextscale.data.loader import Batch, token_batches
from nextscale.data.sources import open_source
from nextscale.distributed import choose_device
from nextscale.recipes import read_recipe
from nextscale.rng import sample_uniforms, sample_uniforms_of
from nextscale.train.optimizer import build_optimizer
from nextscale.train.prior_task import PriorTask
from nextscale.train.settings import PriorRun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a few thousand images: folder or .parquet")
    parser.add_argument("--validation", help="any images of the same classes (default: source)")
    parser.add_argument("--model", default="cifar10-tiny", help="model with the tokenizer")
    parser.add_argument("--recipe", default="cifar10-tiny", help="recipe of the prior")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=30, help="steps of each kind")
    parser.add_argument("--device", help="cpu, cuda, ...")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(options, Path(folder))


def _run(options: argparse.Namespace, *, cache_views: int) -> PriorRun:
    changes = {
        "tokenizer_from": options.model, "cache_views": cache_views, "loop": {"batch_size": options.batch},
        "data": {
            "source": options.source, "validation": options.validation or options.source,
            "flip": True, "enlarge": 1.125,
        },
    }  # fmt: skip
    return build(PriorRun, merge(read_recipe(options.recipe, "prior"), changes), source=options.recipe)


def _measure(options: argparse.Namespace, folder: Path) -> None:
    device, source = choose_device(options.device), open_source(options.source)
    kept, fresh = (
        PriorTask(
            _run(options, cache_views=views), source=source, validation=source, device=device, folder=folder
        )
        for views in (1, 0)
    )
    start = time.perf_counter()
    kept.prepare(progress=True)
    made = time.perf_counter() - start
    assert kept.cache is not None
    start = time.perf_counter()
    kept.cache.check()
    checked = time.perf_counter() - start
    rows, size = kept.cache.tokens_VNL[..., 0].size, kept.cache.tokens_VNL.nbytes
    print(f"made: {rows} rows in {made:.1f} s, {rows / made:.0f}/s; checked: {size / checked / 1e6:.0f} MB/s")
    steps, loop = range(options.steps + 2), kept.run.loop
    feeds = {
        "memory map": kept.batches(steps),
        "memory": token_batches(
            numpy.array(kept.cache.tokens_VNL), kept.cache.labels, batch_size=loop.batch_size,
            seed=loop.seed, steps=steps,
        ),
        "on the fly": fresh.batches(steps),
    }  # fmt: skip
    _report(_take_turns(kept, feeds, steps))
    _uniforms(options.batch)


def _take_turns(
    task: PriorTask, feeds: dict[str, Iterator[Batch]], steps: range
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of fetching and of the whole step, by feed; two steps warm up."""
    optimizer = build_optimizer(task.module, task.run.optimizer, no_decay=task.no_decay)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in feeds}
    names, losses = list(feeds), dict.fromkeys(feeds, 0.0)
    for step in steps:
        for name in numpy.roll(names, step):
            start = time.perf_counter()
            batch = next(feeds[name])
            fetched = time.perf_counter()
            with torch.autocast(
                task.device.type, torch.bfloat16, enabled=task.run.loop.precision != "float32"
            ):
                loss, _ = task.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses[name] = loss.item()  # waits for the device
            if step >= 2:
                times[name].append((fetched - start, time.perf_counter() - start))
    return times


def _report(times: dict[str, list[tuple[float, float]]]) -> None:
    reference = numpy.median([whole for _, whole in times["memory"]])
    for name, pairs in times.items():
        fetch, whole = numpy.array(pairs).T
        low, middle, high = numpy.percentile(whole, [25, 50, 75])
        print(
            f"{name:>10}: step {1e3 * middle:.1f} ms (quartiles {1e3 * low:.1f} to {1e3 * high:.1f}), "
            f"{middle / reference:.3f} of memory; fetching {1e3 * numpy.median(fetch):.2f} ms"
        )


def _uniforms(batch_size: int) -> None:
    """What the random numbers of a batch cost, one by one and together."""
    places = [(1, sample) for sample in range(batch_size)]
    seconds = {"one by one": [], "together": []}
    for _ in range(20):
        start = time.perf_counter()
        for epoch, sample in places:
            sample_uniforms(0, epoch, sample, 260)
        middle = time.perf_counter()
        sample_uniforms_of(0, places, 260)
        seconds["one by one"].append(middle - start)
        seconds["together"].append(time.perf_counter() - middle)
    for name, values in seconds.items():
        print(f"random numbers of a batch, {name}: {1e3 * numpy.median(values):.2f} ms")


if __name__ == "__main__":
    main()
