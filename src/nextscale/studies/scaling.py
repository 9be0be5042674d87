"""How the loss of a prior falls with its size and with the arithmetic spent on it (paper, section 4.2).

Special here: a ladder is ordinary trainings, so a study goes on where it stopped and a rung can be looked at
like any other run. Sizes are whole numbers of parameters, embeddings and head included, as in the paper;
arithmetic is three forward passes for each image seen (`nextscale.prior.cost`). The frontier over arithmetic
takes every look at every rung, and keeps those that no cheaper one beats; looks on the way see
``loop.evaluate_images`` validation images, the last one of a rung sees all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nextscale import checkpoint
from nextscale.data.sources import open_source
from nextscale.generate.folder import build_prior, read_settings
from nextscale.models import find_model
from nextscale.prior.cost import Cost, cost
from nextscale.studies.plots import draw_power_laws, plots
from nextscale.studies.power_law import PowerLaw, fit_power_law, lower_envelope
from nextscale.studies.runs import Voice, train_once
from nextscale.studies.settings import Rung, ScalingStudy
from nextscale.train.logs import read_log
from nextscale.train.run import settings_that_decide
from nextscale.train.run_folder import claimed_folder, note_folder
from nextscale.train.settings import PriorRun

_LEAST_FRONTIER = 3  #: points that a power law needs


@dataclass(frozen=True)
class Look:
    """Scores of one rung after some training."""

    rung: str
    parameters: int
    images: int  #: seen so far
    flops: float  #: spent so far
    loss: float  #: nats per token, all scales
    last_scale_loss: float
    error: float  #: share of tokens that were not the likeliest one


def plan(study: ScalingStudy) -> list[Cost]:
    """What each rung costs; nothing is trained.

    Raises:
        ValueError: data or tokenizer are missing, a rung cannot be built, or sizes do not grow.
    """
    run = study.run
    if not run.tokenizer_from:
        raise ValueError("no tokenizer given: set --run.tokenizer_from to the model folder of a trained one")
    base = read_settings(find_model(run.tokenizer_from))
    class_names = open_source(run.data.validation or run.data.source).class_names
    quantizer, costs = base.tokenizer.quantizer, []
    for rung in study.rungs:
        prior = _run_of(study, rung, Path()).prior
        with torch.device("meta"):
            try:
                build_prior(base.model_copy(update={"prior": prior, "class_names": class_names}))
            except ValueError as error:
                raise ValueError(f"rung {rung.name}: {error}") from error
        costs.append(
            cost(
                prior, base.schedule, vocab_size=quantizer.vocab_size, code_dim=quantizer.code_dim,
                num_classes=len(class_names),
            )
        )  # fmt: skip
        if len(costs) > 1 and costs[-1].parameters <= costs[-2].parameters:
            raise ValueError(
                f"rung {rung.name} has {costs[-1].parameters:,} parameters, the one before "
                f"{costs[-2].parameters:,}: give the rungs smallest first"
            )
    return costs


def describe_plan(study: ScalingStudy, costs: Sequence[Cost]) -> list[str]:
    """A line per rung and the sum, for people."""
    images = study.run.loop.batch_size * study.run.loop.num_steps
    lines = [
        f"rung {number} of {len(costs)}, {rung.name}: {of_rung.parameters:,} parameters, "
        f"{of_rung.training_flops * images:.3g} FLOPs of training"
        for number, (rung, of_rung) in enumerate(zip(study.rungs, costs, strict=True), start=1)
    ]
    total = sum(of_rung.training_flops for of_rung in costs) * images
    return [*lines, f"in all {total:.3g} FLOPs of training, {images:,} images each"]


def run_scaling(
    study: ScalingStudy, folder: Path, *, device: str | None = None, say: Callable[[str], None],
    progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train what is missing of the ladder, fit, and write ``scaling.json`` and ``scaling.png``.

    Args:
        study: the ladder.
        folder: of the study; each rung is a run in it.
        device: where to train.
        say: takes one line for people.
        progress: show bars.

    Returns:
        What ``scaling.json`` holds: the looks, and for each law its numbers and its prediction.

    Raises:
        ValueError: settings, data or folder do not fit, or matplotlib is missing.
        nextscale.train.stopping.Stopped: a signal asked for it.
    """
    plots()  # complains now rather than after hours
    lines, looks = describe_plan(study, plan(study)), list[Look]()
    with claimed_folder(folder, _description(study)):
        for rung, line in zip(study.rungs, lines, strict=False):
            place, run = folder / rung.name, _run_of(study, rung, folder)
            train_once(run, place, line=line, voice=Voice(device, say, progress))
            looks += looks_of(run, rung.name, place)
        say(lines[-1])
        result = fit(looks, extrapolate=study.extrapolate)
        checkpoint.write_json(folder / "scaling.json", result)
        draw_power_laws(result, folder / "scaling.png")
    return result


def _description(study: ScalingStudy) -> dict[str, Any]:
    """What must stay the same in a ladder's folder; rungs may be added."""
    return {"study": "scaling", "run": settings_that_decide(study.run)}


def run_rungs(
    study: ScalingStudy, folder: Path, names: Sequence[str], *, device: str | None = None,
    say: Callable[[str], None], progress: bool = True,
) -> None:  # fmt: skip
    """Train some rungs of a ladder, while other processes or machines that share its folder train others.

    Where the run keeps tokens, the first rung makes them: the others need it to have begun training.

    Args:
        study: the ladder.
        folder: of the study.
        names: of rungs, as ``depth2-width64``.
        device: where to train.
        say: takes one line for people.
        progress: show bars.

    Raises:
        ValueError: no such rung, or settings, data or folder do not fit.
        nextscale.train.stopping.Stopped: a signal asked for it.
    """
    rungs = {rung.name: rung for rung in study.rungs}
    for name in names:
        if name not in rungs:
            raise ValueError(f"unknown rung {name!r}: this ladder has {', '.join(rungs)}")
    lines = dict(zip(rungs, describe_plan(study, plan(study)), strict=False))
    note_folder(folder, _description(study))
    for name in names:
        run = _run_of(study, rungs[name], folder)
        train_once(run, folder / name, line=lines[name], voice=Voice(device, say, progress))


def _run_of(study: ScalingStudy, rung: Rung, folder: Path) -> PriorRun:
    """The run of one rung. Tokens that the first one keeps serve all others."""
    run, sizes = study.run, {"depth": rung.depth, "model_dim": rung.model_dim, "num_heads": rung.num_heads}
    changes: dict[str, Any] = {"prior": run.prior.model_copy(update=sizes)}
    if rung.base_lr is not None:
        changes["optimizer"] = run.optimizer.model_copy(update={"base_lr": rung.base_lr})
    first = study.rungs[0]
    if run.cache_views and rung != first:
        left_out = {"source": "", "num_workers": 0} if run.data.validation else {"num_workers": 0}
        changes |= {
            "cache_views": 0, "tokens_from": str(folder / first.name / "tokens"),
            "data": run.data.model_copy(update=left_out),
        }  # fmt: skip
    return run.model_copy(update=changes)


def looks_of(run: PriorRun, name: str, folder: Path) -> list[Look]:
    """Every evaluation of a finished run, from its log and its model."""
    model = read_settings(folder / "model")
    quantizer = model.tokenizer.quantizer
    of_model = cost(
        run.prior, model.schedule, vocab_size=quantizer.vocab_size, code_dim=quantizer.code_dim,
        num_classes=len(model.class_names),
    )  # fmt: skip
    last = model.schedule.num_scales - 1
    looks = {}
    for record in read_log(folder / "log.jsonl"):
        if record["kind"] == "evaluate":
            images = record["step"] * run.loop.batch_size
            looks[record["step"]] = Look(  # the last look at a step is that at all validation images
                name, of_model.parameters, images, float(of_model.training_flops * images), record["loss"],
                record[f"scale_loss_{last}"], 1 - record["accuracy"],
            )  # fmt: skip
    return list(looks.values())


def fit(looks: Sequence[Look], *, extrapolate: float) -> dict[str, Any]:
    """The power laws of a ladder: of its finished rungs over size, of its frontier over arithmetic.

    Args:
        looks: of all rungs, each rung's in order.
        extrapolate: how many times the largest x the predictions are for.

    Returns:
        Plain values: ``looks`` and, by name, ``laws``, each with its points, numbers and prediction.
    """
    finished = {look.rung: look for look in looks}.values()
    laws = {}
    for name in ("loss", "last_scale_loss", "error"):
        over_size = [(float(look.parameters), float(getattr(look, name))) for look in finished]
        over_flops = lower_envelope([(look.flops, float(getattr(look, name))) for look in looks])
        laws[f"{name} over parameters"] = _describe(over_size, extrapolate)
        if len(over_flops) >= _LEAST_FRONTIER:
            laws[f"{name} over training FLOPs"] = _describe(over_flops, extrapolate)
    return {"looks": [asdict(look) for look in looks], "laws": laws}


def _describe(points: Sequence[tuple[float, float]], extrapolate: float) -> dict[str, Any]:
    x, y = zip(*points, strict=True)
    law: PowerLaw = fit_power_law(x, y)
    far = max(x) * extrapolate
    value, low, high = law.predict(far)
    return {
        "points": [list(point) for point in points], "exponent": law.exponent,
        "exponent_error": law.exponent_error, "correlation": law.correlation,
        "factor": law.factor if math.isfinite(law.factor) else None,  # JSON knows no infinity
        "prediction": {"x": far, "y": value, "low": low, "high": high},
        "line": [[at, *law.predict(at)] for at in _geometric(min(x), far)],
    }  # fmt: skip


def _geometric(low: float, high: float, count: int = 24) -> list[float]:
    return [low * (high / low) ** (index / (count - 1)) for index in range(count)]


def describe(result: dict[str, Any]) -> list[str]:
    """The laws for people."""
    lines = []
    for name, law in result["laws"].items():
        ahead = law["prediction"]
        lines.append(
            f"{name}: {formula(law)} +- {law['exponent_error']:.4f}, "
            f"correlation {law['correlation']:.4f}; at {ahead['x']:.3g}: {ahead['y']:.4g} "
            f"({ahead['low']:.4g} to {ahead['high']:.4g})"
        )
    return lines


def formula(law: dict[str, Any]) -> str:
    """A law as the paper writes it; a flat one has no factor that could be written."""
    factor = "" if law["factor"] is None else f"{law['factor']:.3g} "
    return f"({factor}x)^{law['exponent']:.4f}"
