"""``nextscale verify``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Say what a run's folder holds and what of it was changed, or whether a model is what was signed."""
    folder = Path(options.folder).expanduser()
    if options.verify_with or not (folder / "run.json").exists():
        return _verify_model(options, folder)
    from nextscale.train.audit import audit

    anchor = Path(options.anchor).expanduser() if options.anchor else None
    verdict = audit(folder, anchor=anchor)
    for line in verdict.seen:
        print(line)
    for line in verdict.told:
        print(f"note: {line}")
    for line in verdict.found:
        print(f"FOUND: {line}")
    return 1 if verdict.found else 0


def _verify_model(options: argparse.Namespace, folder: Path) -> int:
    from nextscale.integrity.signatures import check_signature

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is neither a run of nextscale nor a model folder")
    if not options.verify_with:
        raise ValueError(f"{folder} is a model: --verify-with says whose signature it must have")
    if options.anchor:
        raise ValueError("--anchor belongs to a run, not to a model: leave it out")
    try:
        check_signature(folder, options.verify_with)
    except ValueError as error:
        print(f"FOUND: {' '.join(str(error).split())}")
        return 1
    print(f"{folder}: every file is as {options.verify_with} signed it")
    return 0
