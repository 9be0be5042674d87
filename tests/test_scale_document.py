"""docs/scale.md: its tables are those that the code prints, its commands those that the code takes."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from nextscale.cli.parser import build_parser
from nextscale.config import build, merge, parse_overrides
from nextscale.recipes import STAGES, read_recipe
from nextscale.train.settings import PriorRun

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "scale.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]  # fmt: skip


def _script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "scale_table.py")))


def test_the_tables_are_those_that_the_code_prints() -> None:
    """Else: python benchmarks/scale_table.py docs/scale.md."""
    assert _script().with_tables(TEXT) == TEXT


def test_every_cell_says_where_it_comes_from() -> None:
    rows = re.findall(r"^\| (?!---)(?!.*\n\| ---).*$", TEXT, re.MULTILINE)  # without the heads of the tables
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:]]
    numbers = [cell for cell in cells if cell[:1].isdigit()]
    assert len(numbers) > 100
    assert [cell for cell in numbers if not re.search(r"( [cmr]( \(.*\))?|%)$", cell)] == []


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_taken(line: str) -> None:
    words, world_size = shlex.split(line), 1
    if words[0] == "torchrun":
        nodes = int(words[words.index("--nnodes") + 1]) if "--nnodes" in words else 1
        world_size = nodes * int(words[words.index("--nproc-per-node") + 1])
        assert words[words.index("-m") + 1] == "nextscale.cli"
        words = ["nextscale", *words[words.index("-m") + 2 :]]
    assert words[0] == "nextscale"
    options, rest = build_parser().parse_known_args(words[1:])
    if options.command != "train":
        assert rest == []
        return
    stage = STAGES[options.stage]
    run = build(
        stage,
        merge(read_recipe(options.recipe, options.stage), parse_overrides(rest, stage)),
        source=line,
    )
    assert run.loop.batch_size % (world_size * run.loop.accumulate) == 0
    if isinstance(run, PriorRun) and not options.dry_run:
        size = _script().Size(options.recipe)
        images = run.loop.batch_size // (world_size * run.loop.accumulate)
        needed = size.fixed_bytes(1, recompute=run.recompute) + images * size.image_bytes(
            recompute=run.recompute
        )
        assert needed <= 80e9, f"{needed / 1e9:.0f} GB"


def test_there_is_a_command_for_every_size() -> None:
    for recipe in _script().RECIPES:
        assert any(recipe in line for line in COMMANDS), recipe
