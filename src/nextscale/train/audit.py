"""A finished or interrupted run held against its ledger: nothing is trained, nothing is changed.

Special here: learning rates follow from the settings alone, so those that the optimizer really had are
computed again for every step. Whether the other numbers follow is a matter of replaying.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from nextscale import checkpoint
from nextscale.integrity.anchors import published
from nextscale.integrity.fingerprint import first_few
from nextscale.integrity.found import Found, first_other, look
from nextscale.integrity.ledger import FILE, LedgerError, exact, follow
from nextscale.train.schedules import learning_rate
from nextscale.train.settings import LoopSettings, OptimizerSettings

#: Steps that are timed together, and how much slower than all before them is worth a word.
_STRETCH, _SLOW = 50, 1.3


@dataclass
class Verdict:
    """What an audit says, line by line."""

    seen: list[str] = field(default_factory=list)  #: what there is
    told: list[str] = field(default_factory=list)  #: what a reader should know
    found: list[str] = field(default_factory=list)  #: what is not as it was recorded


def audit(folder: Path, *, anchor: Path | None = None) -> Verdict:
    """Look at everything that a run has left.

    Args:
        folder: of the run.
        anchor: file elsewhere that took heads of its ledger.

    Raises:
        ValueError: the folder is no run with a ledger, or a published head cannot be read.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is no run of nextscale: give the folder that train wrote (--out)")
    found = look(folder, anchor=anchor)
    history, verdict = found.history, Verdict()
    if not history.ledger and not found.differences:
        raise ValueError(
            f"{folder} has no ledger: it was trained without one, so nothing can be said about it"
        )
    if anchor is not None and not published(anchor, run=folder):
        verdict.found.append(f"{anchor} holds no head of this run")
    verdict.found += found.differences
    verdict.seen.append(f"ledger: {history.head.number + 1:,} records, {history.num_steps:,} of steps")
    _check_checkpoints(found, verdict)
    _check_exports(folder, found, verdict)
    if (folder / FILE).exists():
        _check_records(folder / FILE, verdict)
    if history.last_start is not None and history.last_start["device"] == "cpu":
        verdict.found += history.repeats
    else:  # sums on a GPU need not come out in one order
        verdict.told += history.repeats
    return verdict


def _check_checkpoints(found: Found, verdict: Verdict) -> None:
    for place in found.checkpoints:
        try:
            checkpoint.check_digests(place)
        except ValueError as error:
            verdict.found.append(str(error))
    names = ", ".join(place.name for place in found.checkpoints) or "none"
    verdict.seen.append(f"checkpoints: {names}")


def _check_exports(folder: Path, found: Found, verdict: Verdict) -> None:
    """The models that the run has written."""
    for name, record in found.history.exports.items():
        place = folder / name
        files = {
            file: checkpoint.digest(place / file) for file in record["files"] if (place / file).is_file()
        }
        other = first_other(record["files"], files)
        if other:
            verdict.found.append(f"{place / other} is not the file that the ledger recorded, or is missing")
        verdict.seen.append(f"{name}: written after step {record['step']}")


def _check_records(path: Path, verdict: Verdict) -> None:
    """Learning rates, and the events that a reader should know of."""
    rate = None
    wrong: list[str] = []
    times: list[tuple[int, float]] = []
    kinds: Counter[str] = Counter()
    try:
        for record in follow(path):
            kinds[record["kind"]] += 1
            if record["kind"] in ("start", "resume"):
                rate = _rates(record["settings"])
                verdict.told += _remarks(record)
            elif record["kind"] == "step" and rate is not None:
                times.append((record["step"], record["ms"]))
                expected = exact(rate(record["step"] - 1))
                if record["lr"][0] != expected:
                    given = float.fromhex(record["lr"][0])
                    wrong.append(
                        f"step {record['step']} was taken with learning rate {given:.9g}, the settings give "
                        f"{float.fromhex(expected):.9g}"
                    )
            elif record["kind"] == "approved":
                names = ", ".join(record["names"])
                verdict.seen.append(f"record {record['number']}: approved by {names} until {record['until']}")
            elif record["kind"] == "audit" and record["outcome"] != "as recorded":
                words = f"step {record['step']}, taken again by a fresh process: {record['outcome']}"
                verdict.told.append(f"record {record['number']}: {words}: {record['text']}")
            elif record["kind"] == "changed":
                verdict.told.append(f"record {record['number']}: {record['text']}")
            elif record["kind"] == "setting":
                words = f"{record['name']} was {record['before']}, is {record['after']}"
                verdict.told.append(f"record {record['number']}: {words}")
    except LedgerError:  # it is found already
        pass
    if wrong:
        verdict.found.append(first_few(wrong, 1))
    verdict.told += slow_stretches(times)
    events = [
        f"{count} {kind}"
        for kind, count in kinds.items()
        if kind in ("start", "resume", "skip", "failed", "stop", "audit", "end")
    ]
    verdict.seen.append(f"events: {', '.join(events)}")


def slow_stretches(times: Sequence[tuple[int, float]]) -> list[str]:
    """Stretches of steps that took 1.3 times as long as all before them, in words.

    Args:
        times: step and milliseconds, in order.
    """
    found = []
    for start in range(_STRETCH, len(times) - _STRETCH + 1, _STRETCH):
        stretch = times[start : start + _STRETCH]
        usual, now = (median(ms for _, ms in part) for part in (times[:start], stretch))
        if now > _SLOW * usual:
            steps = f"steps {stretch[0][0]} to {stretch[-1][0]}"
            found.append(f"{steps} took {now / usual:.2f} times as long as the steps before them")
    return found


def _rates(settings: dict[str, Any]) -> Any:
    """The learning rate of a step, counted from 0, as the settings of a run give it."""
    optimizer = OptimizerSettings.model_validate(settings["optimizer"])
    loop = LoopSettings.model_validate(settings["loop"])
    return lambda step: learning_rate(optimizer, step, num_steps=loop.num_steps, batch_size=loop.batch_size)


def _remarks(record: dict[str, Any]) -> list[str]:
    """What is special about a start."""
    where, texts = f"record {record['number']}, {record['kind']} after step {record['step']}", []
    if record.get("recorded", 0) > record["step"]:
        texts.append(f"{where}, though step {record['recorded']} was recorded: those steps were taken again")
    for text in record.get("accepted", ()):
        texts.append(f"{where}: accepted that {text}")
    for text in record.get("passed_over", ()):
        texts.append(f"{where}: passed over {text}")
    if record.get("torn"):
        texts.append(f"{where}: a crash had torn the last line, {record['torn'][:80]!r}")
    return texts
