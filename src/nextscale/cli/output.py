"""What commands share: care for the output folder, and one voice for several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nextscale.distributed import Distributed, SharedError


def check_new_folder(folder: Path, *, mark: str | None = None) -> None:
    """Refuse to write into somebody's files.

    Args:
        folder: where a command wants to write.
        mark: a file that shows that an earlier call of the same command wrote the folder, which may then be
            replaced.

    Raises:
        ValueError: the folder exists with other contents.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give another --out")
    if folder.exists() and any(folder.iterdir()) and not (mark and (folder / mark).is_file()):
        raise ValueError(f"{folder} exists and is not empty: give another --out, or remove it")


@contextmanager
def one_voice(ranks: Distributed) -> Iterator[None]:
    """Let the first process alone complain of what all met; the others then end with exit code 2."""
    try:
        yield
    except SharedError:
        if ranks.is_first:
            raise
        raise SystemExit(2) from None
