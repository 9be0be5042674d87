"""Families side by side: trained with equal arithmetic, scored on equal samples, timed in turn, reported.

Special here: every finished piece (a tokenizer, a prior, the scores of one way to sample, the times) is a
file or a folder of the study, so the same command goes on after any interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from nextscale import checkpoint
from nextscale.distributed import Distributed, choose_device, num_processes
from nextscale.generate.generator import Generator
from nextscale.pixels import enlarge, grid
from nextscale.studies.families import (
    Plan,
    describe_families,
    description,
    plan_families,
    study_images,
    train_prior,
    train_tokenizer,
)
from nextscale.studies.limits import score_limits
from nextscale.studies.page import write_page
from nextscale.studies.plots import draw_series, plots
from nextscale.studies.quality import open_scorer, score_family
from nextscale.studies.report import build_report
from nextscale.studies.runs import Voice
from nextscale.studies.settings import ComparisonStudy
from nextscale.studies.timing import time_families
from nextscale.train.run_folder import claimed_folder

_MOST_CLASSES, _ROWS = 10, 4  #: that are shown, of each family


def run_comparison(
    study: ComparisonStudy, folder: Path, *, device: str | None = None, say: Callable[[str], None],
    progress: bool = True, command: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Do what is missing of a comparison, and write ``report.json``, ``report.html`` and the plots.

    Args:
        study: what is compared.
        folder: of the study.
        device: where to work.
        say: takes one line for people.
        progress: show bars.
        command: stands in the report, for whoever wants to make it again.

    Returns:
        What ``report.json`` holds.

    Raises:
        ValueError: settings, data or folder do not fit, the priors are of different size, or matplotlib is
            missing.
        nextscale.train.stopping.Stopped: a signal asked for it.
    """
    plots()  # complains now rather than after hours
    if num_processes() > 1:
        raise ValueError("a comparison works in one process: start it without torchrun")
    ranks = Distributed(0, 1, choose_device(device))
    voice, plans = Voice(device, say, progress), plan_families(study, folder)
    with claimed_folder(folder, description(study)):
        for line in describe_families(plans):
            say(line)
        (source, validation), size = study_images(study), plans[0].image_size
        scorer = open_scorer(study, source, size, folder=folder, ranks=ranks, progress=progress)
        for plan in plans:
            train_tokenizer(plan, voice)
        for plan in plans:
            train_prior(plan, folder, voice)
        limits = score_limits(study, plans, validation, scorer, folder=folder, voice=voice)
        scores = {
            plan.name: score_family(study, plan, scorer, folder=folder, voice=voice) for plan in plans
        }  # fmt: skip
        chosen = {name: of["chosen"] for name, of in scores.items()}
        times = time_families(study, plans, chosen, folder=folder, device=ranks.device, voice=voice)
        report = build_report(
            study, plans, scores=scores, limits=limits, times=times, command=command
        )  # fmt: skip
        checkpoint.write_json(folder / "report.json", report)
        _write_pictures_and_page(report, plans, folder, ranks)
    return report


def _write_pictures_and_page(
    report: dict[str, Any], plans: Sequence[Plan], folder: Path, ranks: Distributed
) -> None:
    metric, class_names = report["metric"], plans[0].model.class_names[:_MOST_CLASSES]
    samples = {}
    for plan in plans:
        samples[plan.name] = folder / "samples" / f"{plan.name}.png"
        generator = Generator.load(folder / "priors" / plan.name / "model", device=ranks.device)
        labels = [number for _ in range(_ROWS) for number in range(len(class_names))]
        way = next(way for way in plan.family.samplings if way.name == report["chosen"][plan.name])
        images = generator(labels, seeds=range(len(labels)), **way.given).images
        _write_sheet(images, samples[plan.name], columns=len(class_names))
    plots = {"compute": folder / "quality_training.png", "time": folder / "quality_time.png"}
    compute = {
        name: [(look["flops"], look[metric], "") for look in looks] for name, looks in report["looks"].items()
    }
    draw_series(compute, plots["compute"], x="training FLOPs of the prior", y=metric)
    time: dict[str, list[tuple[float, float, str]]] = {plan.name: [] for plan in plans}
    for row in report["samplings"]:
        if row["seconds_per_image"] is None:
            continue
        time[row["family"]].append((row["seconds_per_image"], row[metric], row["sampling"]))
    draw_series(time, plots["time"], x="seconds per image", y=metric, lines=False)
    page = write_page(report, samples=samples, plots=plots, class_names=class_names)
    checkpoint.write_file(folder / "report.html", page)


def _write_sheet(images: numpy.ndarray, file: Path, *, columns: int) -> None:
    sheet = grid(enlarge(images, max(1, 96 // images.shape[1])), columns=columns)
    with checkpoint.new_file(file) as opened:
        Image.fromarray(sheet).save(opened, "PNG")


def describe(report: dict[str, Any]) -> list[str]:
    """The rows that have a winner, for people."""
    lines = []
    for row in report["rows"]:
        if row["winner"]:
            values = ", ".join(f"{name} {value['value']:.4g}" for name, value in row["values"].items())
            lines.append(f"{row['name']}: {values}; winner: {row['winner']}")
    return lines
