"""A Merkle tree over records: a hash for all of them, and a leaf for each, so that a changed one has a name.

Special here: the root is in the ledger, the leaves are a plain file beside it, 32 bytes a record. Whoever
edits that file contradicts the root.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nextscale import checkpoint

_SIZE = 32


def leaf(content: bytes, label: int) -> bytes:
    """The hash of one record: its label and its bytes."""
    return hashlib.sha256(b"\0" + label.to_bytes(8, "little", signed=True) + content).digest()


def root(leaves: Iterable[bytes]) -> str:
    """The hash of all records, in hexadecimal; of none, that of nothing."""
    level = list(leaves) or [hashlib.sha256(b"").digest()]
    while len(level) > 1:
        pairs = [level[start : start + 2] for start in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\1" + b"".join(pair)).digest() for pair in pairs]
    return level[0].hex()


def write_leaves(path: Path, leaves: Sequence[bytes]) -> None:
    """Keep the leaves in a file."""
    checkpoint.write_file(path, b"".join(leaves))


def read_leaves(path: Path, *, expected: str) -> list[bytes]:
    """The leaves in a file. Raises ValueError when they are not those of the root, or missing."""
    content = path.read_bytes() if path.exists() else b""
    leaves = [content[start : start + _SIZE] for start in range(0, len(content), _SIZE)]
    if root(leaves) != expected:
        raise ValueError(f"{path} does not hold the hashes of the records that the ledger has seen")
    return leaves


def differences(before: Sequence[bytes], after: Sequence[bytes], name: Callable[[int], str]) -> list[str]:
    """Which records are others than before, in words.

    Args:
        before: the leaves of then.
        after: those of now.
        name: of a record of now, by its number.
    """
    if len(before) == len(after):
        changed = [number for number, old in enumerate(before) if after[number] != old]
        if Counter(before) == Counter(after):
            return (
                [f"{len(changed)} records stand in another order, first {name(changed[0])}"]
                if changed
                else []
            )
        return [f"{name(number)} was changed" for number in changed]
    texts = [f"{len(after)} records, were {len(before)}"]
    more, fewer = Counter(after) - Counter(before), Counter(before) - Counter(after)
    texts += [f"{name(number)} is new or doubled" for number, item in enumerate(after) if item in more]
    return texts + [f"record {number} is gone" for number, item in enumerate(before) if item in fewer]
