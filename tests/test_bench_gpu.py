"""The script of `make bench-gpu`: its commands are taken, its table finds what they print."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from nextscale.cli.bench import _numbers, _words
from nextscale.cli.bench_sizes import sized_models
from nextscale.cli.parser import build_parser

ROOT = Path(__file__).parent.parent
SCRIPT = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "gpu.py")))


@pytest.mark.parametrize("line", SCRIPT.COMMANDS.values())
def test_every_command_is_taken(line: str) -> None:
    options = build_parser().parse_args(["bench", *line.split(), "--device", "cuda"])
    assert sized_models(_words("--sizes", options.sizes), None) and _numbers("--batch", options.batch)
    quick = build_parser().parse_args(["bench", *SCRIPT._quick(line.split())])
    assert (quick.sizes, quick.rounds) == ("tiny", 1)


def test_make_runs_it() -> None:
    assert "\t$(BIN)/python benchmarks/gpu.py\n" in (ROOT / "Makefile").read_text()


def test_the_table() -> None:
    found = {
        "batch 1": [{"size": "d16", "seconds": 0.011}, {"size": "d30", "seconds": 0.031}],
        "batch 64": [{"size": "d16", "images_per_second": 500.0}],
        "compare d16": [
            {"family": "next_scale", "batch": 64, "way": "best", "times_next_scale_best": 1.0},
            {"family": "DiT-XL/2 (own)", "batch": 64, "way": "best", "times_next_scale_best": 70.0,
             "scaled_from": {"steps": 2, "of": 250}},
        ],
    }  # fmt: skip
    lines = {line[:56].strip(): line[56:].split() for line in SCRIPT.table(found)[1:]}
    assert len(lines) == len(SCRIPT.FIGURES)
    assert lines["d16, batch 1, seconds"] == ["0.011", "<=", "0.012", "yes"]
    assert lines["d30, batch 1, seconds"] == ["0.031", "<=", "0.03", "NO"]
    assert lines["50,000 images of d16, seconds (from one batch of 64)"][0] == "100"
    assert lines["DiT-XL/2 / d16, batch 64"] == ["70", ">=", "60", "yes", "scaled", "up"]
    assert lines["d24, batch 25, seconds"] == ["-", "<=", "0.25", "not", "measured"]


def test_every_figure_has_a_command() -> None:
    assert {figure.command for figure in SCRIPT.FIGURES} == set(SCRIPT.COMMANDS)
