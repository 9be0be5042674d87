"""``nextscale train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nextscale.config import build, merge, parse_overrides, setting_values
from nextscale.recipes import STAGES, read_recipe


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Train one stage of a recipe."""
    settings = settings_of(
        options, rest, policy=options.policy, approval=options.approval, audit_every=options.audit_every
    )
    if options.settings:
        _print_settings(settings)
        return
    if options.dry_run:
        from nextscale.distributed import num_processes
        from nextscale.train.estimate import describe
        from nextscale.train.run import estimate_run

        if num_processes() > 1:
            raise ValueError("--dry-run measures one process: run it without torchrun")
        _print_settings(settings)
        for line in describe(estimate_run(settings, device=options.device)):
            print(line)
        return
    from nextscale.cli.output import one_voice
    from nextscale.distributed import joined
    from nextscale.train.run import train_run
    from nextscale.train.stopping import Stopped

    folder = folder_of(options)
    show = not options.quiet and sys.stderr.isatty()
    with joined(options.device) as ranks, one_voice(ranks):
        try:
            scores = train_run(settings, folder, say=say, progress=show, ranks=ranks)
        except Stopped as stopped:
            if ranks.is_first:
                sys.stderr.write(f"nextscale: {stopped}\n")
            raise SystemExit(Stopped.EXIT_CODE) from None
        if ranks.is_first:
            print("  ".join(f"{name} {value:.4g}" for name, value in scores.items()))
            print(f"model: {folder / 'model'}   curves: {folder / 'curves.png'}")


def settings_of(options: argparse.Namespace, rest: Sequence[str], **ledger: str | int | None) -> Any:
    """The settings of a run that was typed: those of the recipe, and those given one by one.

    Args:
        options: with recipe and stage.
        rest: settings as ``--a.b.c VALUE``.
        ledger: settings of the ledger that have options of their own.
    """
    stage = STAGES[options.stage]
    tree = merge(read_recipe(options.recipe, options.stage), parse_overrides(rest, stage))
    given = {name: value for name, value in ledger.items() if value is not None}
    tree = merge(tree, {"ledger": given}) if given else tree
    source = f"{options.recipe} with the given settings" if rest or given else options.recipe
    return build(stage, tree, source=source)


def folder_of(options: argparse.Namespace) -> Path:
    """Where a run goes."""
    return Path(options.out or f"runs/{Path(options.recipe).stem}-{options.stage}")


def _print_settings(settings: BaseModel) -> None:
    for path, value, description in setting_values(settings):
        print(f"--{path} {value}   # {description}")


def say(line: str) -> None:
    """Print a line at once: it stands there while the work goes on."""
    print(line, flush=True)
