"""``nextscale replay``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Train a stretch of a run again and compare."""
    from nextscale.cli.output import one_voice
    from nextscale.cli.train import say
    from nextscale.distributed import joined
    from nextscale.studies.replay import replay

    if options.tolerance < 0:
        raise ValueError(f"--tolerance {options.tolerance}: expected 0 or more")
    with joined(options.device) as ranks, one_voice(ranks):
        result = replay(
            Path(options.folder).expanduser(), first=options.first, last=options.last, ranks=ranks,
            say=say, tolerance=options.tolerance,
            progress=not options.quiet and sys.stderr.isatty(),
        )  # fmt: skip
        if not ranks.is_first:
            return 0
    for line in result.told:
        print(f"note: {line}")
    for line in result.found:
        print(f"FOUND: {line}")
    if not result.found:
        how = f"to {options.tolerance:g}" if options.tolerance else "to the bit"
        print(
            f"steps {result.first + 1} to {result.last}: {result.num_steps} steps and {result.num_tensors:,} "
            f"digests of weights are as recorded, {how}"
        )
    return 1 if result.found else 0
