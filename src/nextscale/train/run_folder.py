"""A run's folder: it belongs to one run with one set of settings, and to one process at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nextscale import checkpoint
from nextscale.distributed import Distributed

_RECORD = "run.json"


@contextmanager
def claimed_folder(folder: Path, description: dict[str, Any]) -> Iterator[None]:
    """Make a run's folder, or check that it belongs to this very run, and hold it while the block runs.

    What interrupted writes left in it is swept away. The hold ends with the process, however it ends.

    Raises:
        ValueError: the folder holds something else, a run with other settings, or is in use.
    """
    _check(folder, description)
    with checkpoint.held_folder(
        folder, f"another process works in {folder}: wait for it, stop it, or give another --out"
    ):
        _check(folder, description)  # somebody else may have been faster
        if not (folder / _RECORD).exists():
            checkpoint.write_json(folder / _RECORD, description)
        _sweep(folder)
        yield


def note_folder(folder: Path, description: dict[str, Any]) -> None:
    """As `claimed_folder`, without holding it: for one of several processes that each hold a part of it."""
    _check(folder, description)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _RECORD).exists():
        checkpoint.write_json(folder / _RECORD, description)


@contextmanager
def claimed_by_first(folder: Path, description: dict[str, Any], ranks: Distributed) -> Iterator[None]:
    """`claimed_folder` for processes that train together: the first one claims, a refusal reaches all."""
    with ExitStack() as hold:
        with ranks.together():
            if ranks.is_first:
                hold.enter_context(claimed_folder(folder, description))
        yield


def _check(folder: Path, description: dict[str, Any]) -> None:
    record = folder / _RECORD
    if not folder.exists() or all(item.name.startswith(".") for item in folder.iterdir()):
        return  # dots: the lock, and a record whose writing was interrupted
    if not record.exists():
        raise ValueError(f"{folder} exists and is no run of nextscale: give another --out")
    difference = first_difference(json.loads(record.read_text()), description)
    if difference:
        raise ValueError(
            f"{folder} holds a run with {difference}: give the same settings to go on, or another --out to "
            "start anew"
        )


def first_difference(given: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first entry of a description that another one has otherwise, in words."""
    wanted = flat(other)
    for name, value in flat(given).items():
        if wanted.get(name) != value:
            return f"{name} = {value}, not {wanted.get(name)}"
    return None


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, lists compared as text."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = json.dumps(value)
    return found


def _sweep(folder: Path) -> None:
    """Remove half-written files and folders; their names begin with a dot."""
    for place in (folder, folder / "checkpoints"):
        for item in place.glob(".*"):
            if item.name == checkpoint.LOCK:
                continue
            if item.is_dir():
                shutil.rmtree(item, ignore_errors=True)
            else:
                item.unlink(missing_ok=True)
