"""What the ledger of a run tells, and whether it contradicts itself or a head that was published.

Special here: a run that goes on repeats the steps after its last checkpoint. On one machine they must come
out to the bit as before; where they do not, chance or somebody changed something, and the difference is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextscale.integrity.anchors import Anchor
from nextscale.integrity.ledger import EMPTY, Head, LedgerError, follow, head_of

#: What must come out alike when a step is taken again.
_REPEATABLE = ("batch", "lr", "loss", "norms")


@dataclass
class History:
    """A ledger, read."""

    ledger: str = ""  #: the hash of its first record; empty: there is none
    head: Head = EMPTY  #: of the whole part
    step: int = 0  #: the last one that was recorded
    num_steps: int = 0  #: records of steps, repeated ones too
    first_start: dict[str, Any] | None = None
    last_start: dict[str, Any] | None = None  #: the newest record of kind start or resume
    checkpoints: dict[int, dict[str, Any]] = field(default_factory=dict)  #: newest record by step
    fingerprint: dict[str, str] | None = None  #: the newest one's lines
    wrong: set[str] = field(default_factory=set)  #: what it said of files that are not what was installed
    data: dict[str, dict[str, Any]] = field(default_factory=dict)  #: root and count of each set of images
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)  #: newest record by name of the model
    policy: str = ""  #: digest of the one that the run began under, or went on under last
    others: set[str] = field(default_factory=set)  #: ledgers whose place this one took with leave
    faults: list[str] = field(default_factory=list)  #: what contradicts, the first one first
    repeats: list[str] = field(default_factory=list)  #: steps that came out otherwise when taken again
    _seen: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Take the next record in."""
        if self.head.number < 0:
            self.ledger = record["hash"]
        self.head = head_of(record)
        kind, where = record["kind"], f"record {record['number']}"
        if kind in ("setting", "changed"):  # from here on, steps may come out otherwise
            self._seen.clear()
        elif kind in ("start", "resume"):
            self.first_start = self.first_start or record
            self.last_start, self.step = record, record["step"]
            self.others |= set(record.get("others", ()))
        elif kind == "step":
            self.num_steps += 1
            if record["step"] != self.step + 1:
                self.faults.append(f"{where}: step {record['step']} follows step {self.step}")
            self.step = record["step"]
            self._compare(record)
        elif kind == "checkpoint":
            self.checkpoints[record["step"]] = record
        elif kind == "fingerprint":
            self.fingerprint, self.wrong = record["lines"], set(record["wrong"])
        elif kind == "approved":
            self.policy = record["policy"]
        elif kind == "data":
            self.data = record["sets"]
        elif kind == "export":
            self.exports[record["name"]] = record

    def _compare(self, record: dict[str, Any]) -> None:
        """Hold a step against its earlier turn."""
        found = tuple(hash(str(record.get(name))) for name in _REPEATABLE)
        before = self._seen.get(self.step, found)
        others = [name for name, old, new in zip(_REPEATABLE, before, found, strict=True) if old != new]
        if others:
            self.repeats.append(
                f"step {self.step} came out otherwise when it was taken again (record {record['number']}): "
                f"{', '.join(others)}"
            )
        self._seen[self.step] = found


def read_history(path: Path, *, anchors: Sequence[Anchor] = ()) -> History:
    """Read a ledger to its first bad record, and hold it against published heads.

    Args:
        path: the file; it may be absent.
        anchors: heads of this run's ledgers. Those of ledgers that this one replaced with leave do not count.
    """
    history = History()
    wanted = {anchor.head.number for anchor in anchors}
    hashes: dict[int, str] = {}
    if path.exists():
        try:
            for record in follow(path):
                history.add(record)
                if record["number"] in wanted:
                    hashes[record["number"]] = record["hash"]
        except LedgerError as error:
            history.faults.insert(0, str(error))
    unread = bool(history.faults)
    for anchor in sorted(anchors, key=lambda item: item.head.number):
        complaint = _contradiction(history, anchor, hashes, unread=unread)
        if complaint:
            history.faults.append(f"{path}: {complaint}")
            break
    return history


def _contradiction(history: History, anchor: Anchor, hashes: dict[int, str], *, unread: bool) -> str | None:
    """What a published head says against a ledger."""
    if not history.ledger:
        return (
            None
            if unread
            else f"is gone or empty, though {anchor.place} knows {anchor.head.number + 1} records"
        )
    if anchor.ledger in history.others:
        return None
    if anchor.ledger != history.ledger:
        return f"is another ledger than the one of {anchor.place}"
    if anchor.head.number > history.head.number:
        if unread:
            return None
        return (
            f"was cut or rolled back: it ends with record {history.head.number}, {anchor.place} knows record "
            f"{anchor.head.number}"
        )
    if hashes[anchor.head.number] != anchor.head.hash:
        return f"was written anew: record {anchor.head.number} is not the one of {anchor.place}"
    return None
