"""How long sampling takes: all families in one run, in turn, medians.

Special here: on a shared machine the speed drifts, so every round times each of them once before the next
round begins. A time is that of a whole call: prior, guidance and decoder.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nextscale import checkpoint
from nextscale.evaluate.statistics import versions
from nextscale.generate.generator import Generator
from nextscale.generate.settings import DEFAULT_STEPS
from nextscale.studies.families import Plan
from nextscale.studies.runs import Voice
from nextscale.studies.settings import ComparisonStudy, Sampled


def generation_steps(generator: Generator, sampling: dict[str, Any]) -> int:
    """How often the prior is asked for one batch of images: scales, tokens, or steps of diffusion."""
    prior, schedule = generator.settings.prior, generator.settings.schedule
    assert prior is not None
    if prior.kind == "next_scale":
        return schedule.num_scales
    if prior.kind == "next_token":
        return schedule.num_tokens
    used = generator.settings.sampling.model_dump() | sampling
    return int(used["num_steps"] or DEFAULT_STEPS[used["sampler"]])


def time_families(
    study: ComparisonStudy, plans: Sequence[Plan], chosen: Mapping[str, str], *, folder: Path,
    device: torch.device, voice: Voice,
) -> dict[str, Any]:  # fmt: skip
    """Time the families at every batch size, or read what was timed.

    Args:
        study: how often, and which ways to sample.
        plans: of the families.
        chosen: by family, the candidate that is timed; ways that are no candidates are timed as well.
        folder: of the study.
        device: where to work.
        voice: of the study.

    Returns:
        What ``times.json`` holds: ``setting`` (device, threads, rounds, versions) and ``times``, a list of
        ``family``, ``sampling``, ``batch``, ``steps``, ``seconds`` (the median), ``seconds_per_step`` and
        ``all_seconds``.
    """
    file = folder / "times.json"
    ways = {
        plan.name: [
            way for way in plan.family.samplings if way.name == chosen[plan.name] or not way.candidate
        ]
        for plan in plans
    }  # fmt: skip
    setting = {
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(), "machine": platform.machine(), "rounds": study.timing_rounds,
        "batches": list(study.timing_batches), "versions": versions(), "precision": study.precision,
        "samplings": {
            name: [way.model_dump(exclude_none=True) for way in of_family] for name, of_family in ways.items()
        },
    }  # fmt: skip
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept["setting"] == setting:
            voice.say("times: done")
            return kept
    voice.say("times")
    generators = {
        plan.name: Generator.load(
            folder / "priors" / plan.name / "model", device=device, dtype=study.precision
        )
        for plan in plans
    }  # fmt: skip
    times = _times(generators, ways, batches=study.timing_batches, rounds=study.timing_rounds)
    result = {"setting": setting, "times": times}
    checkpoint.write_json(file, result)
    return result


def _times(
    generators: Mapping[str, Generator], ways: Mapping[str, Sequence[Sampled]], *, batches: Sequence[int],
    rounds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    jobs = [
        (name, way, batch) for batch in batches for name, of_family in ways.items() for way in of_family
    ]  # fmt: skip
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for name, of_family in ways.items():  # the first call of a model is slower
        _time(generators[name], of_family[0], batch=1)
    for _ in range(rounds):
        for name, way, batch in jobs:
            taken = _time(generators[name], way, batch=batch)
            seconds.setdefault((name, way.name, batch), []).append(taken)
    times = []
    for name, way, batch in jobs:
        of_job, steps = seconds[name, way.name, batch], generation_steps(generators[name], way.given)
        median = statistics.median(of_job)
        times.append({
            "family": name, "sampling": way.name, "batch": batch, "steps": steps, "seconds": median,
            "seconds_per_step": median / steps, "all_seconds": of_job,
        })  # fmt: skip
    return times


def _time(generator: Generator, way: Sampled, *, batch: int) -> float:
    labels = [number % len(generator.class_names) for number in range(batch)]
    device = generator.prior.position.device
    _wait(device)
    start = time.perf_counter()
    generator(labels, seeds=range(batch), **way.given)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
