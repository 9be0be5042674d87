"""All figures of a GPU in one go, each beside what it should be; `make bench-gpu` runs it.

    python benchmarks/gpu.py

Runs `nextscale bench` again and again, shows what it says, and prints one table last. A command that fails or
takes too long costs its own lines alone; after eight minutes no further one begins. ``--quick`` runs the
same on `tiny`, on any device: to try the script, not to learn anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_WHOLE_SECONDS = 480
_FID_IMAGES = 50_000
Row = dict[str, Any]


class Figure(NamedTuple):
    """One line of the table."""

    name: str
    command: str  #: which one gives it
    wanted: dict[str, Any]  #: fields of its row
    value: Callable[[Row], float]
    target: float | None  #: None: it is only shown
    more: bool  #: at least the target; else at most


#: The commands, the most wanted first.
COMMANDS = {
    "batch 1": "generate --sizes d16,d30 --batch 1 --dtype bfloat16 --rounds 5",
    "batch 1, graphs": "generate --sizes d16,d30 --batch 1 --dtype bfloat16 --rounds 5 --cuda-graphs",
    "batch 25": "generate --sizes d16,d24 --batch 25 --dtype bfloat16 --rounds 3",
    "compare d16": "compare --sizes d16 --batch 1,8,64 --dtype bfloat16 --rounds 3",
    "train": "train --sizes d16 --batch 32 --dtype bfloat16 --rounds 3 --compile",
    "batch 64": "generate --sizes d16 --batch 64 --dtype bfloat16 --rounds 3",
    "compare d30": "compare --sizes d30 --batch 64 --dtype bfloat16 --rounds 2",
    "tokenize": "tokenize --batch 64 --dtype bfloat16 --workers 8 --rounds 3",
}


def _seconds(row: Row) -> float:
    return float(row["seconds"])


def _rivals(against: str) -> Callable[[Row], float]:
    return lambda row: float(row[f"times_next_scale_{against}"])


_TOKENS, _DIT = {"family": "next_token"}, {"batch": 64, "dit": True}
FIGURES = [
    Figure("d16, batch 25, seconds", "batch 25", {"size": "d16"}, _seconds, 0.10, False),
    Figure("d24, batch 25, seconds", "batch 25", {"size": "d24"}, _seconds, 0.25, False),
    Figure("d16, batch 1, seconds", "batch 1", {"size": "d16"}, _seconds, 0.012, False),
    Figure("d30, batch 1, seconds", "batch 1", {"size": "d30"}, _seconds, 0.030, False),
    Figure("d16, batch 1, CUDA graphs, seconds", "batch 1, graphs", {"size": "d16"}, _seconds, 0.012, False),
    Figure("d30, batch 1, CUDA graphs, seconds", "batch 1, graphs", {"size": "d30"}, _seconds, 0.030, False),
    Figure(
        "50,000 images of d16, seconds (from one batch of 64)", "batch 64", {"size": "d16"},
        lambda row: _FID_IMAGES / row["images_per_second"], 240.0, False,
    ),
    Figure(
        "training of d16, share of the bfloat16 rate", "train", {"size": "d16"},
        lambda row: float(row["fraction_of_matrix_rate"]), 0.45, True,
    ),
    *(
        Figure(
            f"next-token / next-scale, d16, batch {batch}, {way}", "compare d16",
            {**_TOKENS, "batch": batch, "way": way}, _rivals(way),
            20.0 if way == "plain" else 10.0 if batch == 1 else None, True,
        )
        for batch in (1, 8, 64) for way in ("plain", "best")
    ),
    Figure("DiT-XL/2 / d16, batch 64", "compare d16", _DIT, _rivals("best"), 60.0, True),
    Figure("DiT-XL/2 / d30, batch 64", "compare d30", _DIT, _rivals("best"), 25.0, True),
    Figure(
        "tokenizing, images/s from files", "tokenize", {"what": "files"},
        lambda row: float(row["images_per_second"]), None, True,
    ),
]  # fmt: skip


def find(rows: Sequence[Row], wanted: dict[str, Any]) -> Row | None:
    """The first row with these fields; ``dit`` stands for a diffusion family."""
    fields = {name: value for name, value in wanted.items() if name != "dit"}
    for row in rows:
        diffusion = str(row.get("family", "")).startswith("DiT")
        if diffusion == wanted.get("dit", False) and all(row.get(n) == v for n, v in fields.items()):
            return row
    return None


def table(found: dict[str, list[Row]]) -> list[str]:
    """A line per figure: measured, target, whether it is met."""
    lines = [f"{'figure':56} {'measured':>10} {'target':>10}"]
    for figure in FIGURES:
        row = find(found.get(figure.command, []), figure.wanted)
        sign = ">=" if figure.more else "<="
        target = "-" if figure.target is None else f"{sign} {figure.target:g}"
        if row is None:
            lines.append(f"{figure.name:56} {'-':>10} {target:>10}  not measured")
            continue
        value = figure.value(row)
        scaled = "  scaled up" if row.get("scaled_from") else ""
        lines.append(f"{figure.name:56} {value:10.4g} {target:>10}  {_verdict(figure, value)}{scaled}")
    return lines


def _verdict(figure: Figure, value: float) -> str:
    if figure.target is None:
        return ""
    return "yes" if (value >= figure.target if figure.more else value <= figure.target) else "NO"


def _run(words: Sequence[str], seconds: float) -> list[Row]:
    command = [sys.executable, "-m", "nextscale.cli", "bench", *words]
    print("$ nextscale bench", *words, flush=True)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"  not finished after {seconds:.0f} s", flush=True)
        return []
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        print(f"  exit code {result.returncode}: {result.stderr.strip()[-1000:]}", flush=True)
        return []
    print(*(f"  {line}" for line in lines), sep="\n", flush=True)
    rows: list[Row] = json.loads(lines[-1])["rows"]
    return rows


def main() -> None:
    """Measure everything, print one table last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the same on tiny, on any device")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), help="some of the commands")
    options = parser.parse_args()
    start, found = time.monotonic(), {}
    for name in options.only or COMMANDS:
        left = _WHOLE_SECONDS - (time.monotonic() - start)
        if left < 10:
            print(f"{name}: left out, the time is up", flush=True)
            continue
        words = COMMANDS[name].split() + ([] if options.quick else ["--device", "cuda"])
        if options.quick:
            words = _quick(words)
        begin = time.monotonic()
        found[name] = _run(words, left)
        print(f"  {time.monotonic() - begin:.0f} s", flush=True)
    print(*table(found), sep="\n")


def _quick(words: Sequence[str]) -> list[str]:
    """The same command on small things."""
    small = {"--sizes": "tiny", "--batch": "2", "--rounds": "1", "--workers": "0"}
    kept, after = [words[0], "--sizes", "tiny"], ""
    for word in words[1:]:
        if "--sizes" not in (word, after) and word not in ("--compile", "--cuda-graphs"):
            kept.append(small.get(after, word))
        after = word
    return kept


if __name__ == "__main__":
    main()
