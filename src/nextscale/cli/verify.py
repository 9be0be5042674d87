"""``nextscale verify``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Say what a run's folder holds and what of it was changed."""
    from nextscale.train.audit import audit

    anchor = Path(options.anchor).expanduser() if options.anchor else None
    verdict = audit(Path(options.folder).expanduser(), anchor=anchor)
    for line in verdict.seen:
        print(line)
    for line in verdict.told:
        print(f"note: {line}")
    for line in verdict.found:
        print(f"FOUND: {line}")
    return 1 if verdict.found else 0
