"""``nextscale compare``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from nextscale.cli.study_running import asked_for, say, show_bars, stoppable
from nextscale.studies.settings import ComparisonStudy


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train, score and time families, and report."""
    study = asked_for(options, rest, "compare", ComparisonStudy)
    from nextscale.studies.comparison import describe, run_comparison
    from nextscale.studies.families import describe_families, plan_families

    folder = Path(options.out or f"runs/{Path(options.study).stem}")
    if options.dry_run:
        for line in describe_families(plan_families(study, folder)):
            print(line)
        return
    if options.only:
        from nextscale.studies.parts import run_parts

        with stoppable():
            run_parts(
                study, folder, options.only, device=options.device, say=say, progress=show_bars(options)
            )
        return
    command = shlex.join(["nextscale", "compare", options.study, "--out", str(folder), *rest])
    with stoppable():
        report = run_comparison(
            study, folder, device=options.device, say=say, progress=show_bars(options), command=command
        )
    for line in describe(report):
        print(line)
    print(f"report: {folder / 'report.html'}   numbers: {folder / 'report.json'}")
