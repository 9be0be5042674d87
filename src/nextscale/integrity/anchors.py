"""Heads of ledgers, kept where a ledger's writer does not look: in each checkpoint, and in a file elsewhere.

Special here: a chain that was cut, rolled back or written anew contradicts a head that was published before.
What is lost after the last published head cannot be missed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nextscale import checkpoint
from nextscale.integrity.ledger import Head, append_whole

#: In a checkpoint's folder, beside the files that have digests: two runs that end alike differ in it.
FILE = "anchor.json"


@dataclass(frozen=True)
class Anchor:
    """A head of a ledger, and of which."""

    ledger: str  #: the hash of its first record
    head: Head
    place: str  #: where the anchor was found, for messages


def write_anchor(folder: Path, *, ledger: str, head: Head) -> None:
    """Put a head into a checkpoint's folder."""
    checkpoint.write_json(folder / FILE, {"ledger": ledger, "number": head.number, "hash": head.hash})


def publish(path: Path, *, ledger: str, head: Head, run: Path) -> None:
    """Append a head to a file elsewhere, which several runs may share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"run": str(run.resolve()), "ledger": ledger, "number": head.number, "hash": head.hash}
    with path.open("ab", buffering=0) as file:
        append_whole(file, f"{json.dumps(line)}\n".encode())
        os.fsync(file.fileno())


def anchors_in(checkpoints: Iterable[Path]) -> list[Anchor]:
    """The heads that lie in checkpoints, where there are any. Raises ValueError when one cannot be read."""
    return [
        _read((place / FILE).read_text(), str(place / FILE))
        for place in checkpoints
        if (place / FILE).exists()
    ]


def published(path: Path, *, run: Path) -> list[Anchor]:
    """The heads of a run's ledgers in a file elsewhere. Raises ValueError when a line cannot be read."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        anchor = _read(line, f"{path} line {number}")
        if json.loads(line).get("run") == str(run.resolve()):
            found.append(anchor)
    return found


def _read(text: str, place: str) -> Anchor:
    try:
        given = json.loads(text)
        return Anchor(str(given["ledger"]), Head(int(given["number"]), str(given["hash"])), place)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} is no head of a ledger ({error!r}): restore it from a copy") from error
