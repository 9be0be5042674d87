"""A stretch of a run, trained again from its checkpoint and held against the ledger, bit by bit.

Special here: nothing in the run's folder is changed: a folder for the time being gets a copy of the
checkpoint, and a ledger of its own. Whoever spoils a step cannot know which stretch will be replayed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextscale import checkpoint
from nextscale.distributed import Distributed
from nextscale.integrity.fingerprint import changes, take_fingerprint
from nextscale.integrity.history import History, read_history
from nextscale.integrity.ledger import FILE, follow
from nextscale.integrity.settings import LedgerSettings
from nextscale.train.auditing import FOLDER as AUDITED
from nextscale.train.run import settings_that_decide, train_run
from nextscale.train.settings import AnyRun, ClassifierRun, DecoderRun, PriorRun, TokenizerRun
from nextscale.train.stopping import Stopped

#: What of a step must be the same to the bit wherever it is taken.
_EXACT = ("batch", "lr")


@dataclass
class Replayed:
    """What came of it."""

    first: int  #: the step that it began after
    last: int  #: the step that it ended with
    num_steps: int = 0  #: that were compared
    num_tensors: int = 0  #: digests that were compared
    told: list[str] = field(default_factory=list)  #: what a reader should know
    found: list[str] = field(default_factory=list)  #: differences, the first one first


@dataclass
class _Recorded:
    """What a ledger says of a stretch; of steps that were taken twice, the last time."""

    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[int, dict[str, str]] = field(default_factory=dict)  #: of checkpoints: digests
    weights: dict[int, dict[str, str]] = field(default_factory=dict)  #: between them
    #: between two checkpoints, by their steps: of all that each process has read, a digest
    batches: dict[tuple[int, int], list[str]] = field(default_factory=dict)


def replay(
    folder: Path, *, first: int, last: int, ranks: Distributed, say: Callable[[str], None],
    progress: bool = True, tolerance: float = 0.0,
) -> Replayed:  # fmt: skip
    """Train a stretch of a run again.

    Args:
        folder: of the run.
        first: the stretch begins at the newest checkpoint that is there at or before this step; 0 needs none.
        last: its last step.
        ranks: as many processes as the run had.
        say: takes one line for people.
        progress: show a bar.
        tolerance: how much losses and gradient norms may differ, relatively; 0: nothing, and weights are
            compared, too. For another machine.

    Raises:
        ValueError: no such run or stretch, a ledger that is broken, or another number of processes.
    """
    history = _history_of(folder)
    assert history.last_start is not None
    if not 0 <= first < last <= history.step:
        raise ValueError(
            f"steps {first} to {last}: expected --from below --to, and both among the {history.step} steps "
            f"that {folder} has taken"
        )
    if history.last_start["processes"] != ranks.world_size:
        raise ValueError(
            f"{folder} was trained by {history.last_start['processes']} processes, here are "
            f"{ranks.world_size}: start as many with torchrun"
        )
    start = _start_of(folder, first)
    before = _recorded(folder / FILE)
    run = _run_of(history.last_start["settings"], last, with_weights=bool(before.weights))
    result = Replayed(0 if start is None else int(start.name.removeprefix("step-")), last)
    if ranks.is_first and history.fingerprint is not None:
        refused, _ = changes(history.fingerprint, take_fingerprint({}).lines)
        result.told += [f"since the run, {text}" for text in refused]
    with _folder_for_now(ranks) as place:
        with ranks.together():
            if ranks.is_first:
                _prepare(place, folder, run, start)
        try:
            train_run(run, place, say=say, progress=progress, ranks=ranks)
        except Stopped as stopped:
            if stopped.step != last:
                raise
        if ranks.is_first:
            _compare(before, _recorded(place / FILE), result, tolerance=tolerance)
    return result


def _history_of(folder: Path) -> History:
    if not (folder / FILE).is_file():
        raise ValueError(f"{folder} is no run with a ledger: give the folder that train wrote (--out)")
    history = read_history(folder / FILE)
    if history.faults:
        raise ValueError(f"{history.faults[0]}: nothing can be held against it; see nextscale verify")
    if history.last_start is None:
        raise ValueError(f"{folder / FILE} records no start: there is nothing to replay")
    return history


def _start_of(folder: Path, first: int) -> Path | None:
    """The newest whole checkpoint at or before a step; None: the run's beginning."""
    places = [*(folder / "checkpoints").glob("step-*"), *(folder / AUDITED).glob("step-*")]
    for place in sorted(places, key=lambda item: item.name, reverse=True):
        if int(place.name.removeprefix("step-")) <= first:
            checkpoint.check_digests(place)
            return place
    return None


def _run_of(settings: dict[str, Any], last: int, *, with_weights: bool) -> AnyRun:
    """The run again, without looks on the way (they change nothing that is trained)."""
    marks: dict[str, type[AnyRun]] = {"prior": PriorRun, "tokenizer": TokenizerRun, "drawn_share": DecoderRun}
    kinds = (kind for mark, kind in marks.items() if mark in settings)
    run = next(kinds, ClassifierRun).model_validate(settings)
    loop = run.loop.model_copy(
        update={"evaluate_every": run.loop.num_steps + 1, "patience": 0, "stop_after": last}
    )
    ledger = LedgerSettings(fingerprint=False, data=False, weights_every=int(with_weights))
    return run.model_copy(update={"loop": loop, "ledger": ledger})


def _description(folder: Path, run: AnyRun) -> dict[str, Any]:
    """What says that the folder for the time being holds this run: digests of inputs are those of before."""
    before: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return before | settings_that_decide(run)


@contextmanager
def _folder_for_now(ranks: Distributed) -> Iterator[Path]:
    """An empty folder that all processes see, and that is gone afterwards."""
    made = tempfile.mkdtemp(prefix="nextscale-replay-") if ranks.is_first else ""
    place = Path(ranks.of_first(made)) / "run"
    try:
        yield place
    finally:
        if ranks.is_first:
            shutil.rmtree(place.parent, ignore_errors=True)


def _prepare(place: Path, folder: Path, run: AnyRun, start: Path | None) -> None:
    """Have a folder hold what the run's own held; tokens that it keeps are taken as they are."""
    place.mkdir(parents=True)
    checkpoint.write_json(place / "run.json", _description(folder, run))
    if start is not None:
        target = place / "checkpoints" / start.name
        shutil.copytree(start, target, ignore=shutil.ignore_patterns("anchor.json"))
    if (folder / "tokens").is_dir():
        (place / "tokens").symlink_to((folder / "tokens").resolve())


def _recorded(path: Path) -> _Recorded:
    found, since = _Recorded(), 0
    for record in follow(path):
        kind, step = record["kind"], record.get("step", 0)
        if kind in ("start", "resume"):
            since = step
        elif kind == "step":
            found.steps[step] = record
        elif kind == "weights":
            found.weights[step] = record["tensors"]
        elif kind == "checkpoint" and "tensors" in record:
            found.tensors[step], found.batches[since, step] = record["tensors"], record["batches"]
            since = step
    return found


def _compare(before: _Recorded, after: _Recorded, result: Replayed, *, tolerance: float) -> None:
    """Hold one stretch against the other, step by step; ends after the first step that differs."""
    for step in range(result.first + 1, result.last + 1):
        if step not in before.steps:
            result.told.append(f"step {step} is not in the ledger")
            continue
        result.num_steps += 1
        names = _other_numbers(before.steps[step], after.steps[step], tolerance=tolerance)
        tensors: list[str] = []
        if not tolerance:
            for old, new in ((before.weights, after.weights), (before.tensors, after.tensors)):
                if step in old and step in new:
                    result.num_tensors += len(old[step])
                    tensors += [name for name in new[step] if old[step].get(name) != new[step][name]]
        both = {key for key in before.batches if key[1] == step} & set(after.batches)
        if any(before.batches[key] != after.batches[key] for key in both):
            names.append("what the processes have read since the last checkpoint")
        if names or tensors:
            result.found.append(f"step {step} comes out otherwise: {', '.join(names) or 'its weights'}")
            result.found += _named(before, after, step, tensors)
            return


def _other_numbers(old: dict[str, Any], new: dict[str, Any], *, tolerance: float) -> list[str]:
    """What of a step differs, by name."""
    found = [name for name in _EXACT if old[name] != new[name]]
    pairs = {"loss": (old["loss"], new["loss"])}
    pairs |= {name: (value, new["norms"].get(name, "nan")) for name, value in old["norms"].items()}
    for name, (one, other) in pairs.items():
        first, second = float.fromhex(one), float.fromhex(other)
        if not (one == other or abs(first - second) <= tolerance * abs(first)):
            found.append(f"{name} was {first:.9g}, is {second:.9g}")
    return found


def _named(before: _Recorded, after: _Recorded, step: int, tensors: list[str]) -> list[str]:
    """The first tensor that differs, and how many do; where the step itself has no digests, later ones."""
    if tensors:
        return [f"after step {step}, {len(tensors)} tensors differ, the first one {tensors[0]}"]
    for old, new in ((before.weights, after.weights), (before.tensors, after.tensors)):
        for later in sorted(set(old) & set(new)):
            others = [name for name in new[later] if old[later].get(name) != new[later][name]]
            if later >= step and others:
                return [f"after step {later}, {len(others)} tensors differ, the first one {others[0]}"]
    return []
