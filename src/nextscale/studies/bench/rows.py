"""What a benchmark found, for people and for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from nextscale.evaluate.statistics import versions
from nextscale.studies.bench.settings import Sized
from nextscale.studies.bench.work import Limits

Row = dict[str, Any]


class Setting(NamedTuple):
    """Of one row."""

    sized: Sized
    batch: int
    dtype: str

    def row(self, seconds: float, **more: Any) -> Row:
        """The fields that every row has, and more."""
        return {
            "size": self.sized.name, "px": self.sized.px, "batch": self.batch, "dtype": self.dtype,
            "seconds": seconds, "images_per_second": self.batch / seconds, **more,
        }  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads of {os.cpu_count()}"
    return {"device": name, "versions": versions()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0].partition(":")[2].strip() if lines else platform.machine()


def card(action: str, on: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """A table for people."""
    lines = [f"bench {action} on {on['device']}, torch {on['versions']['torch']}"]
    if not rows:
        return lines
    names = ["size", "px", "batch", "dtype", *(["what"] if any("what" in row for row in rows) else [])]
    head = [*names, "seconds", "images/s", "peak", "of limit", "speedup"]
    table = [head, *([*(str(row.get(name, "")) for name in names), *_numbers(row)] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    for line in table:
        lines.append("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))
    for row in rows:
        lines += [f"{_named(row)}: {line}" for line in row.get("told", [])]
    return lines


def _named(row: Row) -> str:
    what = f", {row['what']}" if "what" in row else ""
    return f"{row['size']}, {row['px']} px, batch {row['batch']}, {row['dtype']}{what}"


def _numbers(row: Row) -> list[str]:
    peak, fraction, speedup = row["peak_bytes"], row["fraction_of_limit"], row["speedup"]
    return [
        f"{row['seconds']:.4g}{'*' if row.get('scaled_from') else ''}", f"{row['images_per_second']:.4g}",
        "-" if peak is None else f"{peak / 1e9:.3g} GB",
        "-" if fraction is None else f"{100 * fraction:.0f} %",
        "-" if speedup is None else f"{speedup:.2f}",
    ]  # fmt: skip


def limits_line(limits: Limits) -> str:
    """The machine's own rates."""
    rates = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in limits.flops.items())
    return f"matrix products {rates} TFLOP/s, copies {limits.copy / 1e9:.3g} GB/s"


def as_json(action: str, on: dict[str, Any], rows: Sequence[Row]) -> str:
    """One line for programs."""
    kept = [{name: value for name, value in row.items() if name != "told"} for row in rows]
    return json.dumps({"bench": action, **on, "rows": kept})


def limits_of(limits: Limits) -> dict[str, Any]:
    """The same for programs."""
    return {"flops_per_second": dict(limits.flops), "copy_bytes_per_second": limits.copy}
