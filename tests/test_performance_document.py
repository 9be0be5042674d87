"""docs/performance.md: its commands are those that the code takes, its tables hold numbers alone."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nextscale.cli.bench import _numbers, _words
from nextscale.cli.bench_sizes import sized_models
from nextscale.cli.parser import build_parser

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "performance.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_taken(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        return
    assert words[:2] == ["nextscale", "bench"]
    options = build_parser().parse_args(words[1:])
    px = None if options.px is None else _numbers("--px", options.px)
    assert sized_models(_words("--sizes", options.sizes), px)
    assert _numbers("--batch", options.batch) and _words("--dtype", options.dtype)


def test_nothing_is_left_open() -> None:
    assert len(COMMANDS) >= 3
    assert not re.search(r"TODO|TBD|to be measured|\| *\?|\| *\|", TEXT)
