"""Options of the commands that look for changes."""

from __future__ import annotations

import argparse


def add_verify_options(verify: argparse.ArgumentParser) -> None:
    """Add those of ``nextscale verify``."""
    verify.add_argument("folder", help="of a run")
    verify.add_argument("--anchor", help="file elsewhere that took the heads of its ledger (ledger.anchor)")
    verify.epilog = (
        "The exit code is 0 when everything is as it was recorded, 1 when something is not, 2 for a folder "
        "that is no run with a ledger. Changes nothing."
    )
