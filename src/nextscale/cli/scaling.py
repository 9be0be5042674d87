"""``nextscale scaling``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nextscale.config import build, merge, parse_overrides
from nextscale.recipes import STUDIES, read_recipe


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train a ladder and fit its laws."""
    settings = STUDIES["scaling"]
    tree = merge(read_recipe(options.study, "scaling"), parse_overrides(rest, settings))
    study = build(
        settings, tree, source=f"{options.study} with the given settings" if rest else options.study
    )
    from nextscale.studies.scaling import describe, describe_plan, plan, run_scaling
    from nextscale.train.stopping import Stopped

    if options.dry_run:
        for line in describe_plan(study, plan(study)):
            print(line)
        return
    folder = Path(options.out or f"runs/{Path(options.study).stem}")
    show = not options.quiet and sys.stderr.isatty()
    try:
        result = run_scaling(study, folder, device=options.device, say=_say, progress=show)
    except Stopped as stopped:
        sys.stderr.write(f"nextscale: {stopped}\n")
        raise SystemExit(Stopped.EXIT_CODE) from None
    for line in describe(result):
        print(line)
    print(f"laws: {folder / 'scaling.json'}   plot: {folder / 'scaling.png'}")


def _say(line: str) -> None:
    print(line, flush=True)
