"""``nextscale publish``."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nextscale.cli.output import check_new_folder
from nextscale.generate.card import CardSettings, read_scores
from nextscale.generate.generator import Generator
from nextscale.generate.hub import push_folder
from nextscale.integrity.statement import carry_over
from nextscale.models import find_model
from nextscale.models.hub import PROVENANCE


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write a model with a card that says more, to a folder or to the hub."""
    if not options.out and not options.to:
        raise ValueError("nothing to write to: give --out or --to, or both")
    if options.private and not options.to:
        raise ValueError("--private has no effect without --to: leave it out")
    if options.out:
        check_new_folder(Path(options.out))
    about = _about(options)
    source = find_model(options.model)
    generator = Generator.load(source)
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(options.out or f"{passing}/model")
        generator.save(folder, about=about)
        if not carry_over(source, folder) and (source / PROVENANCE).is_file():
            print(f"{PROVENANCE} is left behind: it is about other files than those written here")
        if options.out:
            print(f"model: {options.out}")
        if options.to:
            # without --private a repository gets what the account's settings say
            print(f"commit: {push_folder(folder, options.to, private=options.private or None)}")


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
