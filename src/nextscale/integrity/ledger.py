"""The ledger: JSON lines that are only ever appended, each holding the hash of the one before.

Special here: a record's hash is taken over the very bytes of its line, so no other spelling of it passes.
Numbers that must be exact are the text of `float.hex`. What a chain cannot know: whoever may write the file
may also write all of it anew, or cut its end off. For that its head is published
(`nextscale.integrity.anchors`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = "ledger.jsonl"
#: What the first record has in the place of the hash of the one before.
NOTHING = "0" * 64
_HASH_TEXT = ',"hash":"{}"}}\n'
_HASH_BYTES = len(_HASH_TEXT.format(NOTHING))


class LedgerError(ValueError):
    """The chain is broken."""

    def __init__(self, path: Path, number: int, reason: str) -> None:
        super().__init__(f"{path}: record {number} {reason}")
        self.number = number  #: of the first bad record, counted from 0


@dataclass(frozen=True)
class Head:
    """The end of a chain: who knows it knows all that came before."""

    number: int  #: of the last record, counted from 0; -1: there is none
    hash: str


#: The head of a ledger without records.
EMPTY = Head(-1, NOTHING)


def exact(value: float) -> str:
    """A number with all of its bits, as text that `float.fromhex` reads."""
    return float(value).hex()


def _line(record: dict[str, Any]) -> tuple[bytes, str]:
    """A record as its line, and the hash of it."""
    body = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    found = hashlib.sha256(body.encode()).hexdigest()
    return (body[:-1] + _HASH_TEXT.format(found)).encode(), found


def append_whole(file: FileIO, line: bytes) -> None:
    """Write all of a line or none of it: what comes after half a line could not be read. Raises OSError."""
    size = os.fstat(file.fileno()).st_size
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "No space left on device", str(file.name))
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


class Ledger:
    """Appends records; several threads may. Every record is with the system when the call returns.

    Args:
        path: the file, which ends with the record ``head``, or is absent.
        head: of what is there already.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self.path, self.head = path, head
        self._lock = threading.Lock()
        self._file = path.open("ab", buffering=0)

    def append(self, kind: str, **fields: Any) -> Head:
        """Write one record. Raises OSError where the disk is full."""
        assert not {"kind", "number", "previous", "hash"} & set(fields)
        with self._lock:
            number = self.head.number + 1
            line, found = _line({"kind": kind, "number": number, "previous": self.head.hash, **fields})
            append_whole(self._file, line)
            self.head = Head(number, found)
            return self.head

    def sync(self) -> None:
        """Until all records are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def follow(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ledger, from the first one, each checked; a torn last line is left out.

    Raises:
        LedgerError: at the first record that was edited, or does not follow the one before.
    """
    previous, number = NOTHING, 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                return
            record = _checked(path, line, number)
            if record["number"] != number:
                raise LedgerError(
                    path, number, f"is missing: in its place stands the one with number {record['number']}"
                )
            if record["previous"] != previous:
                raise LedgerError(
                    path,
                    number,
                    "does not follow the one before: one of the two was put in the place of another",
                )
            previous = record["hash"]
            yield record


def _checked(path: Path, line: bytes, number: int) -> dict[str, Any]:
    body, end = line[:-_HASH_BYTES] + b"}", line[-_HASH_BYTES:]
    if end != _HASH_TEXT.format(hashlib.sha256(body).hexdigest()).encode():
        raise LedgerError(path, number, "was edited or damaged: its hash is another")
    try:
        record = json.loads(line)
    except ValueError as error:
        raise LedgerError(path, number, f"is no JSON ({error})") from error
    if not isinstance(record, dict) or not {"kind", "number", "previous"} <= set(record):
        raise LedgerError(path, number, "is no record of a ledger")
    return record


def head_of(record: dict[str, Any] | None) -> Head:
    """The head of a chain that ends with this record."""
    return EMPTY if record is None else Head(record["number"], record["hash"])


def cut_torn(path: Path) -> str:
    """Take an unfinished last line, which a crash leaves, off a ledger. Returns its text, to be recorded."""
    end, torn = 0, b""
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
            else:
                torn = line
        if torn:
            file.truncate(end)
            os.fsync(file.fileno())
    return torn.decode(errors="backslashreplace")
