"""Parts of a comparison, for several processes or machines that share its folder: who has three GPUs trains
three families at a time.

Special here: a part is a piece of the study that leaves finished files; the study itself, started when all
parts are done, finds them and does the rest. Parts do not wait for one another.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from nextscale import checkpoint
from nextscale.distributed import Distributed, choose_device
from nextscale.studies.families import (
    Plan,
    description,
    plan_families,
    study_images,
    train_prior,
    train_tokenizer,
)
from nextscale.studies.limits import score_limits
from nextscale.studies.quality import open_scorer, score_family
from nextscale.studies.runs import Voice
from nextscale.studies.settings import ComparisonStudy
from nextscale.train.run_folder import note_folder

_OF_A_FAMILY = ("tokenizer", "prior", "scores")


def part_names(study: ComparisonStudy) -> list[str]:
    """The parts of a study, in an order in which they can be done."""
    of_families = [f"{part}:{family.name}" for part in _OF_A_FAMILY for family in study.families]
    return ["reference", *of_families, "limits"]


def run_parts(
    study: ComparisonStudy, folder: Path, parts: Sequence[str], *, device: str | None = None,
    say: Callable[[str], None], progress: bool = True,
) -> None:  # fmt: skip
    """Do some parts of a comparison one after the other.

    Args:
        study: what is compared.
        folder: of the study.
        parts: of `part_names`: ``reference``, ``limits``, or ``tokenizer``, ``prior``, ``scores`` of a
            family, as ``prior:NAME``.
        device: where to work.
        say: takes one line for people.
        progress: show bars.

    Raises:
        ValueError: no such part; a part that another process is doing; what it needs is not there yet; what
            `nextscale.studies.comparison.run_comparison` refuses.
        nextscale.train.stopping.Stopped: a signal asked for it.
    """
    known = part_names(study)
    for part in parts:
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"unknown part {part!r}: this study has {', '.join(known)}{hint}")
    plans = {plan.name: plan for plan in plan_families(study, folder)}
    voice = Voice(device, say, progress)
    note_folder(folder, description(study))
    for part in parts:
        refusal = f"another process does {part} in {folder}: wait for it, or stop it"
        with checkpoint.held_folder(folder / "parts" / part.replace(":", "-"), refusal):
            _run_part(study, plans, part, folder=folder, voice=voice)


def _run_part(
    study: ComparisonStudy, plans: dict[str, Plan], part: str, *, folder: Path, voice: Voice
) -> None:
    kind, _, name = part.partition(":")
    if kind == "tokenizer":
        return train_tokenizer(plans[name], voice)
    if kind == "prior":
        return train_prior(plans[name], folder, voice)
    (source, validation), some_plan = study_images(study), next(iter(plans.values()))
    ranks = Distributed(0, 1, choose_device(voice.device))
    scorer = open_scorer(
        study, source, some_plan.image_size, folder=folder, ranks=ranks, progress=voice.progress
    )
    if kind == "limits":
        score_limits(study, list(plans.values()), validation, scorer, folder=folder, voice=voice)
    elif kind == "scores":
        score_family(study, plans[name], scorer, folder=folder, voice=voice)
    return None
