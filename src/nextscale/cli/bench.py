"""``nextscale bench``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nextscale.cli.bench_sizes import sized_models
from nextscale.config import build
from nextscale.studies.bench.settings import BenchSettings


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Measure, print a card, and one line of JSON last."""
    px = None if options.px is None else _numbers("--px", options.px)
    tree = {
        "action": options.action, "sized": sized_models(_words("--sizes", options.sizes), px),
        "batches": _numbers("--batch", options.batch), "dtypes": _words("--dtype", options.dtype),
        "rounds": options.rounds,
    }  # fmt: skip
    if options.action == "train":
        tree["compile"] = options.compile
    if options.action == "generate":
        tree["cuda_graphs"] = options.cuda_graphs
    if options.action == "tokenize":
        tree["num_workers"] = options.workers
    settings = build(BenchSettings, tree, source="bench")
    from nextscale.studies.bench.run import run_bench

    for line in run_bench(settings, device=options.device):
        print(line)


def _words(option: str, text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise ValueError(f"{option} {text!r}: expected one or several, parted by commas")
    return words


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = _words(option, text)
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{option} {text!r}: expected whole numbers from 1, parted by commas")
    return tuple(int(word) for word in words)
