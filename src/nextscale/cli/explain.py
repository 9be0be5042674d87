"""``nextscale explain``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Print the chain from a picture or a model to what it was made from."""
    from nextscale.models import find_model
    from nextscale.studies.explain import Chain, explain_model, explain_picture

    given, chain = Path(options.thing).expanduser(), Chain()
    is_picture = given.is_file()
    if options.model and not is_picture:
        raise ValueError("--model belongs to a picture (a PNG file): leave it out")
    model = options.model if is_picture else options.thing
    folder = find_model(model) if model else None
    place = Path(options.run_folder).expanduser() if options.run_folder else None
    if folder is None and (place or options.verify_with):
        raise ValueError("--run and --verify-with are about a model: give --model too")
    if place is not None and not (place / "ledger.jsonl").is_file():
        raise ValueError(f"{place} holds no ledger.jsonl: give the folder that train wrote (--out)")
    if is_picture:
        explain_picture(given, folder, chain)
    if folder is not None:
        explain_model(folder, chain, run=place, trusted=options.verify_with)
    for line in chain.lines:
        print(line)
    for line in chain.broken:
        print(f"BROKEN: {' '.join(line.split())}")
    return 1 if chain.broken else 0
