"""Runs a benchmark and says what it found."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nextscale.distributed import choose_device
from nextscale.studies.bench.compare import bench_comparison
from nextscale.studies.bench.generate import bench_generation
from nextscale.studies.bench.rows import Row, as_json, card, machine
from nextscale.studies.bench.settings import BenchSettings
from nextscale.studies.bench.tokenize import bench_tokenizing
from nextscale.studies.bench.train import bench_training

_BENCHES: dict[str, Callable[[BenchSettings, torch.device], list[Row]]] = {
    "generate": bench_generation,
    "train": bench_training,
    "tokenize": bench_tokenizing,
    "compare": bench_comparison,
}


def run_bench(settings: BenchSettings, *, device: str | None) -> list[str]:
    """The lines of the card; the last one is JSON.

    Raises:
        ValueError: no such device, or something does not fit into its memory.
    """
    place = choose_device(device)
    rows, on = _BENCHES[settings.action](settings, place), machine(place)
    return [*card(settings.action, on, rows), as_json(settings.action, on, rows)]
