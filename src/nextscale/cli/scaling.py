"""``nextscale scaling``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nextscale.cli.study_running import asked_for, say, show_bars, stoppable
from nextscale.studies.settings import ScalingStudy


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train a ladder and fit its laws."""
    study = asked_for(options, rest, "scaling", ScalingStudy)
    from nextscale.studies.scaling import describe, describe_plan, plan, run_scaling

    if options.dry_run:
        for line in describe_plan(study, plan(study)):
            print(line)
        return
    folder = Path(options.out or f"runs/{Path(options.study).stem}")
    if options.only:
        from nextscale.studies.scaling import run_rungs

        with stoppable():
            run_rungs(
                study, folder, options.only, device=options.device, say=say, progress=show_bars(options)
            )
        return
    with stoppable():
        result = run_scaling(study, folder, device=options.device, say=say, progress=show_bars(options))
    for line in describe(result):
        print(line)
    print(f"laws: {folder / 'scaling.json'}   plot: {folder / 'scaling.png'}")
