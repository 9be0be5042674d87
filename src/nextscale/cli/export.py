"""``nextscale export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nextscale.cli.output import check_new_folder
from nextscale.export import export_model
from nextscale.export.diffusers_folder import export_diffusers


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a model as programs."""
    out = Path(options.out)
    check_new_folder(out)
    if options.to == "diffusers":
        for name in ("batch", "dtype"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name} {getattr(options, name)} has no effect on --to diffusers: leave it out"
                )
        export_diffusers(options.model, out)
        print(f"pipeline: {out}")
        return
    given = {"batch": options.batch, "dtype": options.dtype}
    exported = export_model(
        options.model, out, target=options.to, say=print,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    print(f"{len(exported.programs)} programs: {out}")
