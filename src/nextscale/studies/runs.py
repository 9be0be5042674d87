"""Runs that belong to a study: trained once, and known when they are finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nextscale.train.logs import read_log
from nextscale.train.run import settings_that_decide, train_run
from nextscale.train.run_folder import first_difference
from nextscale.train.settings import PriorRun, TokenizerRun


@dataclass(frozen=True)
class Voice:
    """Where and how loudly a study works."""

    device: str | None
    say: Callable[[str], None]  #: takes one line for people
    progress: bool  #: show bars


def train_once(run: TokenizerRun | PriorRun, place: Path, *, line: str, voice: Voice) -> None:
    """Train a run, go on with it, or leave it alone when it is finished.

    Args:
        run: what to train.
        place: its folder.
        line: what to say of it.
        voice: of the study.

    Raises:
        ValueError: the folder holds another run, or the run's settings or data do not fit.
    """
    if _finished(run, place):
        voice.say(f"{line}: done")
        return
    voice.say(line)
    train_run(run, place, device=voice.device, say=voice.say, progress=voice.progress)


def _finished(run: TokenizerRun | PriorRun, place: Path) -> bool:
    """Whether a run has its last scores. Raises ValueError when it was trained with other settings."""
    log = place / "log.jsonl"
    if not (place / "model" / "config.json").is_file() or not log.is_file():
        return False
    looks = {record["step"] for record in read_log(log) if record["kind"] == "evaluate"}
    if run.loop.num_steps not in looks:
        return False
    difference = first_difference(settings_that_decide(run), json.loads((place / "run.json").read_text()))
    if difference:
        raise ValueError(
            f"{place} holds a finished run, now asked for with {difference}: give the same settings, or "
            "another --out"
        )
    return True
