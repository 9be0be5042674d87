"""``nextscale export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nextscale.cli.output import check_new_folder
from nextscale.export import export_model


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a model as programs."""
    out = Path(options.out)
    check_new_folder(out)
    exported = export_model(
        options.model, out, target=options.to, batch=options.batch, dtype=options.dtype, say=print
    )
    print(f"{len(exported.programs)} programs: {out}")
