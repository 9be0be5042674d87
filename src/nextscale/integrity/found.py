"""A run's folder held against its ledger, before anything in it is trusted. Changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nextscale import checkpoint
from nextscale.integrity import anchors
from nextscale.integrity.history import History, read_history
from nextscale.integrity.ledger import FILE


@dataclass(frozen=True)
class Found:
    """A run's folder, read before it is trusted."""

    history: History
    checkpoints: Sequence[Path]
    replaced: tuple[str, ...]  #: ledgers that heads speak of, besides this one
    differences: tuple[str, ...]

    @property
    def code(self) -> str:
        """Stands for exactly these differences."""
        return hashlib.sha256("\n".join(self.differences).encode()).hexdigest()[:12]


def look(folder: Path, *, anchor: Path | None) -> Found:
    """What a run's folder holds, and what of it does not fit its ledger. Changes nothing.

    Raises:
        ValueError: a published head cannot be read.
    """
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    heads = anchors.anchors_in(checkpoints)
    if anchor is not None:
        heads += anchors.published(anchor, run=folder)
    history = read_history(folder / FILE, anchors=heads)
    differences = list(history.faults)
    if history.ledger and not differences:
        differences += filter(None, (_difference(history, place) for place in checkpoints))
    others = {head.ledger for head in heads} | history.others | {history.ledger}
    return Found(history, checkpoints, tuple(sorted(others - {""})), tuple(differences))


def recorded_digests(place: Path) -> dict[str, str] | None:
    """The digests of a checkpoint's files; None where they are damaged, which restoring finds."""
    try:
        found = json.loads((place / checkpoint.DIGESTS).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _difference(history: History, place: Path) -> str:
    """What is wrong with a checkpoint that is whole in itself."""
    files = recorded_digests(place)
    if files is None:
        return ""
    recorded = history.checkpoints.get(int(place.name.removeprefix("step-")))
    if recorded is None:
        return f"{place} is not in the ledger"
    name = first_other(recorded["files"], files)
    return f"{place / name} is not the file that the ledger recorded" if name else ""


def first_other(recorded: dict[str, str], given: dict[str, str]) -> str:
    """The first name whose digests differ; empty: they are the same."""
    names = sorted(set(recorded) | set(given))
    return next((name for name in names if recorded.get(name) != given.get(name)), "")
