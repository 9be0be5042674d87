"""Timing in pairs, the machine's own limits in the same rounds, and peaks of memory.

Special here: on a shared machine the speed drifts, so every round times each way once, the next round in the
other order; medians count, and a speedup is the median of the quotients of pairs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from nextscale.studies.bench.work import Limits

_WARM_UP = 2
_COPIED = {"cpu": 1 << 26, "cuda": 1 << 28}  # numbers of 4 bytes: far more than any cache holds
_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices that are multiplied
_PROBE = "limit of "


class Timing(NamedTuple):
    """Of one way, over all rounds."""

    all_seconds: tuple[float, ...]
    peak_bytes: int | None  #: above what was there before, on a GPU

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.all_seconds)

    def speedup_over(self, other: Timing) -> float:
        """How many times longer the other way takes: the median over the pairs."""
        pairs = zip(other.all_seconds, self.all_seconds, strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_in_turn(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device, dtypes: Sequence[str]
) -> tuple[dict[str, Timing], Limits]:
    """Time all ways, and what the machine can do at most.

    Args:
        ways: each does its work once.
        rounds: how often.
        device: that is waited for.
        dtypes: of the matrix products whose rate is measured.
    """
    probes = {f"{_PROBE}{name}": probe for name, probe in _probes(dtypes, device).items()}
    every: dict[str, Callable[[], object]] = {**ways, **probes}
    for name, way in every.items():
        for _ in range(1 if name in ways and device.type == "cpu" else _WARM_UP):
            way()
    seconds: dict[str, list[float]] = {name: [] for name in every}
    peaks: dict[str, int] = {}
    for number in range(rounds):
        for name in list(every) if number % 2 == 0 else reversed(every):
            taken, peak = _time(every[name], device)
            seconds[name].append(taken)
            peaks[name] = max(peak, peaks.get(name, 0))
    on_gpu = device.type == "cuda"
    timings = {name: Timing(tuple(seconds[name]), peaks[name] if on_gpu else None) for name in ways}
    flops = {
        dtype: probes[_PROBE + dtype].amount / statistics.median(seconds[_PROBE + dtype]) for dtype in dtypes
    }
    copy = probes[f"{_PROBE}copy"]
    return timings, Limits(flops, copy.amount / statistics.median(seconds[f"{_PROBE}copy"]))


def _time(way: Callable[[], object], device: torch.device) -> tuple[float, int]:
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    wait(device)
    start = time.perf_counter()
    way()
    wait(device)
    taken = time.perf_counter() - start
    return taken, torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0


class _Probe:
    """Something whose operations or bytes are known."""

    def __init__(self, amount: int, work: Callable[[], object], *, times: int) -> None:
        self.amount, self._work, self._times = amount * times, work, times

    def __call__(self) -> None:
        for _ in range(self._times):
            self._work()


def _probes(dtypes: Sequence[str], device: torch.device) -> dict[str, _Probe]:
    """A product of square matrices per dtype, and a copy."""
    on_gpu = device.type == "cuda"
    side, times = _SIDE["cuda" if on_gpu else "cpu"], 10 if on_gpu else 2
    probes = {}
    for dtype in dtypes:
        if dtype == "int8":
            one = torch.randint(-100, 100, (side, side), dtype=torch.int8, device=device)
            # the public quantised layers end in it too; there is no public product of int8 matrices
            work: Callable[[], object] = partial(torch._int_mm, one, one.t())
        else:
            given = torch.randn(side, side, device=device).to(getattr(torch, dtype))
            made = torch.empty_like(given)
            work = partial(torch.mm, given, given, out=made)
        probes[dtype] = _Probe(2 * side**3, work, times=times)
    source = torch.ones(_COPIED["cuda" if on_gpu else "cpu"], device=device)
    target = torch.ones_like(source)
    probes["copy"] = _Probe(2 * source.nbytes, partial(target.copy_, source), times=1)
    return probes


def resident_bytes(*, most: bool = False) -> int:
    """What this process holds in memory now, or the most that it ever held (Linux).

    Not by `resource.getrusage`, whose maximum also counts the process that started this one.
    """
    return _kilobytes(Path("/proc/self/status"), "VmHWM:" if most else "VmRSS:") * 1024


def _kilobytes(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"{file} has no {name[:-1]}: memory is measured on Linux and on GPUs only")


def free_bytes(device: torch.device) -> int:
    """What can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable:") * 1024
