"""``nextscale publish``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nextscale.cli.output import check_new_folder
from nextscale.generate.card import CardSettings, read_scores
from nextscale.generate.generator import Generator


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a model with a card that says more, to a folder or to the hub."""
    if not options.out and not options.to:
        raise ValueError("nothing to write to: give --out or --to, or both")
    if options.private and not options.to:
        raise ValueError("--private has no effect without --to: leave it out")
    if options.out:
        check_new_folder(Path(options.out))
    about = _about(options)
    generator = Generator.load(options.model)
    if options.out:
        generator.save_pretrained(options.out, about=about)
        print(f"model: {options.out}")
    if options.to:
        # without --private a repository gets what the account's settings say
        print(f"commit: {generator.push_to_hub(options.to, about=about, private=options.private or None)}")


def _about(options: argparse.Namespace) -> CardSettings:
    """What the card shall say. Raises ValueError."""
    given: dict[str, Any] = {"name": options.name, "license": options.license}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        about = CardSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ValueError(f"{name} {given[name]!r}: {first['msg']}") from error
    return read_scores(Path(options.scores), about=about) if options.scores else about
