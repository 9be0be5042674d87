"""``nextscale convert``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nextscale.cli.output import check_new_folder
from nextscale.convert import convert_files


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Turn published checkpoints into a model folder."""
    out = Path(options.out)
    check_new_folder(out)
    convert_files(
        Path(options.tokenizer), prior=Path(options.prior) if options.prior else None, out=out,
        patch_nums=options.patch_nums, num_heads=options.num_heads, unit_codes=options.unit_codes,
    )  # fmt: skip
    print(f"model: {out}")
