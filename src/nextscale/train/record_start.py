"""The first thing that a run does with its ledger: hold it against what lies in the folder, then go on.

Special here: nothing is mended in silence. What does not fit ends the start with a code; only that code,
given back as `ledger.accept`, lets the run go on, and both are recorded. A broken ledger is kept under
another name.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

import nextscale
from nextscale.data.sources import Source
from nextscale.distributed import Distributed
from nextscale.integrity import merkle
from nextscale.integrity.found import Found, look, recorded_digests
from nextscale.integrity.ledger import EMPTY, FILE, Ledger, cut_torn
from nextscale.integrity.settings import LedgerSettings
from nextscale.train.approving import check_leave
from nextscale.train.inputs import leaves_file, look_at_inputs
from nextscale.train.recording import Recorder, Writing
from nextscale.train.run_folder import flat
from nextscale.train.watching import Watching


def open_recorder(
    folder: Path, settings: LedgerSettings, *, facts: dict[str, Any], images: Mapping[str, Source],
    ranks: Distributed,
) -> Recorder:  # fmt: skip
    """The ledger of a run's folder, to go on with; only the first process has one.

    Args:
        folder: of the run, held by this one.
        settings: of the ledger.
        facts: what a record of the start is to hold (`facts_of`).
        images: sets of images by name.
        ranks: the processes that train together.

    Raises:
        ValueError: the folder does not fit its ledger, and that was not accepted; or what is about to be
            trained lacks the approvals that its policy asks for.
    """
    path = folder / FILE
    if not settings.enabled or not ranks.is_first:
        if ranks.is_first and path.exists():
            raise ValueError(
                f"ledger.enabled false would leave a gap in {path}: leave it out, or give another --out"
            )
        return Recorder(folder, settings)
    anchor = Path(settings.anchor).expanduser() if settings.anchor else None
    found = look(folder, anchor=anchor)
    inputs = look_at_inputs(found.history, settings, folder=folder, images=images, ranks=ranks)
    found = replace(found, differences=(*found.differences, *inputs.refused))
    _check_accepted(found, settings.accept)
    leave = check_leave(settings, folder, facts, inputs, under=found.history.policy)
    if found.history.faults and path.exists():
        path.rename(path.with_name(f"ledger-replaced-{found.code}.jsonl"))
    ledger = Ledger(path, EMPTY if found.history.faults else found.history.head)
    return Recorder(
        folder, settings, writing=Writing(ledger, found, facts, inputs, anchor, found.history.ledger, leave)
    )


def _check_accepted(found: Found, accept: str) -> None:
    if found.differences and accept != found.code:
        more = f" and {len(found.differences) - 3} more" if len(found.differences) > 3 else ""
        raise ValueError(
            f"{'; '.join(found.differences[:3])}{more}: find out why, and restore what was there; to "
            f"go on all the same, and have that recorded, add --ledger.accept {found.code}"
        )
    if accept and not found.differences:
        raise ValueError(f"ledger.accept {accept} would have no effect: nothing differs; leave it out")


def facts_of(settings: dict[str, Any], description: dict[str, Any], ranks: Distributed) -> dict[str, Any]:
    """What a record of a start holds besides its step.

    Args:
        settings: of the run.
        description: of the run, as its folder has it; what is no setting there is a digest.
        ranks: the processes that train together.
    """
    device = ranks.device
    return {
        "settings": settings,
        "inputs": {name: value for name, value in description.items() if name not in settings},
        "processes": ranks.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {
            "nextscale": nextscale.__version__, "python": platform.python_version(),
            "torch": torch.__version__, "numpy": numpy.__version__,
        },
    }  # fmt: skip


def watch_memory(recorder: Recorder, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Look from now on, where fingerprints are on, whether code is replaced in memory; on every process."""
    settings = recorder.settings
    if settings.enabled and settings.fingerprint:
        recorder.watching = Watching(module, optimizer, every=settings.recheck_every)
        recorder.watching.check(0)


def record_start(recorder: Recorder, *, step: int, passed_over: Sequence[str]) -> None:
    """Record that a run starts, or goes on after ``step``, and what is other than last time.

    Args:
        recorder: as `open_recorder` gave it.
        step: of the checkpoint that was restored; 0: there is none.
        passed_over: what is said of damaged checkpoints.
    """
    if recorder.writing is None:
        return
    ledger, found, facts = recorder.writing.ledger, recorder.writing.found, recorder.writing.facts
    history = found.history
    torn = cut_torn(ledger.path)
    anew = ledger.head == EMPTY
    before = None if anew else history.last_start
    more: dict[str, Any] = {
        "passed_over": list(passed_over), "torn": torn, "accepted": list(found.differences),
        "others": list(found.replaced) if anew else [], "recorded": history.step,
    }  # fmt: skip
    time = recorder.writing.started = datetime.now(UTC).isoformat(timespec="seconds")
    head = ledger.append(
        "resume" if before else "start", step=step, time=time, **facts,
        **{name: value for name, value in more.items() if value},
    )  # fmt: skip
    if anew:
        recorder.writing.identity = head.hash
    for name, old, new in _changed(before, facts):
        ledger.append("setting", name=name, before=old, after=new)
    if recorder.writing.leave is not None:
        ledger.append("approved", **vars(recorder.writing.leave))
    _record_inputs(recorder.writing, recorder.folder, anew=anew)
    for place in found.checkpoints if anew or found.differences else ():
        files = recorded_digests(place)
        if files is not None:
            number = int(place.name.removeprefix("step-"))
            ledger.append("checkpoint", step=number, files=files, taken_over=True)
    ledger.sync()


def _record_inputs(writing: Writing, folder: Path, *, anew: bool) -> None:
    """Record fingerprint and images where they are not the last ones, and what of it was told."""
    inputs, history = writing.inputs, writing.found.history
    for text in inputs.told:
        writing.ledger.append("changed", text=text)
    if inputs.fingerprint is not None:
        lines, wrong = inputs.fingerprint.lines, inputs.fingerprint.wrong
        if anew or lines != history.fingerprint or set(wrong) != history.wrong:
            writing.ledger.append("fingerprint", lines=lines, wrong=list(wrong))
    sets = inputs.sets
    if sets and (anew or sets != history.data):
        for name, item in inputs.leaves.items():
            merkle.write_leaves(leaves_file(folder, name, str(sets[name]["root"])), item)
        writing.ledger.append("data", sets=sets)


def _changed(before: dict[str, Any] | None, facts: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    if before is None:
        return []
    old, new = flat({name: before.get(name, {}) for name in facts}), flat(facts)
    return [
        (name, old.get(name), new.get(name))
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name)
    ]
