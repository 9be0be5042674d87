"""From scores, times and costs to rows of a table, each with the winner that its numbers name.

Special here: nobody wins by a hair. Where two intervals overlap, the row says that the winner is not clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nextscale.evaluate.statistics import versions
from nextscale.studies.families import Plan
from nextscale.studies.quality import Result
from nextscale.studies.settings import ComparisonStudy

#: Beginnings of the names of scores of which less is better; of all others more is.
_LESS_IS_BETTER = ("FD", "FID", "sFID", "KID")
_TWO_SIDED = 1.96  # standard deviations that hold 95 %


@dataclass(frozen=True)
class Value:
    """A figure of one family, with its 95 % interval where there is one."""

    value: float | None  #: None: not known
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One figure of all families."""

    name: str
    meaning: str
    values: dict[str, Value]
    better: str  #: "less", "more", or "" where nobody wins
    winner: str = ""


def decided(row: Row, *, doubt: str = "") -> Row:
    """The row with its winner: the best family, or why there is none.

    Args:
        row: without a winner.
        doubt: what to add where there are no intervals.
    """
    known = {name: value for name, value in row.values.items() if value.value is not None}
    if not row.better or len(known) < 2:
        return row
    sign = 1 if row.better == "less" else -1
    first, second, *_ = sorted(known, key=lambda name: sign * (known[name].value or 0.0))
    best, next_best = known[first], known[second]
    winner = first + doubt
    if best.value == next_best.value:
        winner = "equal"
    elif not (best.low is None or best.high is None or next_best.low is None or next_best.high is None):
        overlap = best.low <= next_best.high and next_best.low <= best.high
        winner = f"not clear ({first}, intervals overlap)" if overlap else first
    return Row(row.name, row.meaning, row.values, row.better, winner)


def share(value: float, count: int) -> Value:
    """A share of so many samples with its interval, by the normal approximation."""
    error: float = _TWO_SIDED * (value * (1 - value) / count) ** 0.5
    return Value(value, max(0.0, value - error), min(1.0, value + error))


def build_report(
    study: ComparisonStudy, plans: Sequence[Plan], *, scores: dict[str, Result], limits: dict[str, Result],
    times: dict[str, Any], command: str,
) -> dict[str, Any]:  # fmt: skip
    """What ``report.json`` holds.

    Args:
        study: its settings.
        plans: of the families.
        scores: of `nextscale.studies.quality.score_family`, by family.
        limits: of `nextscale.studies.limits.score_limits`.
        times: of `nextscale.studies.timing.time_families`.
        command: that makes this report.
    """
    mains = {name: of["main"] for name, of in scores.items()}
    any_main = next(iter(mains.values()))
    metric = any_main["reference"]["metric"]
    warnings = list(dict.fromkeys(text for main in mains.values() for text in main["warnings"]))
    quality = [
        decided(row, doubt=" (no interval)") for row in _quality_rows(study, scores, mains, metric)
    ]  # fmt: skip
    quality += _limit_rows(limits)
    rows = [
        *quality,
        *(decided(row) for row in (*_time_rows(study, scores, times), *_cost_rows(plans))),
    ]
    return {
        "command": command, "metric": metric, "families": [plan.name for plan in plans],
        "rows": [asdict(row) for row in rows],
        "samplings": _samplings(study, plans, scores, times, metric),
        "chosen": {name: of["chosen"] for name, of in scores.items()},
        "looks": {
            name: [
                {"step": look["step"], "images": look["images"], "flops": look["flops"],
                 metric: look["scores"]["scores"][metric]["value"],
                 "class_agreement": look["scores"].get("class_agreement")}
                for look in of["looks"]
            ]
            for name, of in scores.items()
        },
        "scores": mains, "limits": limits, "times": times, "reference": any_main["reference"],
        "features_digest": any_main["features_digest"], "versions": versions(),
        "warnings": warnings, "settings": study.model_dump(mode="json"),
    }  # fmt: skip


def _quality_rows(
    study: ComparisonStudy, scores: dict[str, Result], mains: dict[str, Result], metric: str
) -> list[Row]:
    rows, count = [], study.num_samples
    for name in next(iter(mains.values()))["scores"]:
        values = {
            family: Value(*(main["scores"][name].get(key) for key in ("value", "low", "high")))
            for family, main in mains.items()
        }
        better = "less" if name.startswith(_LESS_IS_BETTER) else "more"
        against = "95 % interval over the choice of samples" if name == metric else "no interval"
        rows.append(Row(name, f"{count:,} samples against the training images; {against}", values, better))
    few = {
        family: Value(of["samplings"][of["chosen"]]["scores"][metric]["value"])
        for family, of in scores.items()
    }
    tried = ", ".join(
        f"{family.name} {scores[family.name]['chosen']!r} of {sum(way.candidate for way in family.samplings)}"
        for family in study.families
    )
    about = f"{study.few_samples:,} samples, by which the ways to sample were chosen: {tried}"
    rows.append(Row(f"{metric}, few samples", about, few, "less"))
    if all("class_agreement" in main for main in mains.values()):
        agreed = {family: share(main["class_agreement"], count) for family, main in mains.items()}
        about = f"share of {count:,} samples that the bundled classifier assigns to their class"
        rows.append(Row("class agreement", about, agreed, "more"))
    return rows


def _limit_rows(limits: dict[str, Result]) -> list[Row]:
    """What the tokenizers alone lose; nobody wins, since it is no family's merit."""
    any_limit = next(iter(limits.values()))
    about = f"of {any_limit['reference']['count']:,} validation images by the tokenizer alone, against these"
    rows = [
        Row(
            f"{name} of reconstructions", f"{about}; diffusion: of its features before quantisation",
            {
                family: Value(*(limit["scores"][name].get(key) for key in ("value", "low", "high")))
                for family, limit in limits.items()
            }, "",
        )
        for name in any_limit["scores"]
    ]  # fmt: skip
    psnr = {family: Value(limit["reconstruction"]["psnr"]) for family, limit in limits.items()}
    rows.append(Row("PSNR of reconstructions", "in dB, mean over these images", psnr, ""))
    if "class_agreement" in any_limit:
        count = any_limit["reference"]["count"]
        agreed = {family: share(limit["class_agreement"], count) for family, limit in limits.items()}
        rows.append(Row("class agreement of reconstructions", "of these images", agreed, ""))
    return rows


def _time_rows(study: ComparisonStudy, scores: dict[str, Result], times: dict[str, Any]) -> list[Row]:
    rows = []
    for key, what in (("seconds", "seconds"), ("seconds_per_step", "seconds per sampling step")):
        for batch in study.timing_batches:
            chosen = {
                name: row for name, of in scores.items()
                if (row := _time_of(times, name, of["chosen"], batch)) is not None
            }  # fmt: skip
            values = {name: Value(row[key]) for name, row in chosen.items()}
            rounds = study.timing_rounds
            about = f"median of {rounds} calls, families in turn; prior, guidance and decoder"
            if key == "seconds_per_step":
                steps = ", ".join(f"{name} {row['steps']}" for name, row in chosen.items())
                about = f"the same divided by the steps: {steps}"
            rows.append(Row(f"{what}, batch {batch}", about, values, "less"))
    return rows


def _time_of(times: dict[str, Any], family: str, sampling: str, batch: int) -> dict[str, Any] | None:
    """What was timed; None where that way was not."""
    return next(
        (
            row for row in times["times"]
            if (row["family"], row["sampling"], row["batch"]) == (family, sampling, batch)
        ),
        None,
    )  # fmt: skip


def _cost_rows(plans: Sequence[Plan]) -> list[Row]:
    def row(name: str, meaning: str, values: Sequence[float | None]) -> Row:
        named = zip(plans, values, strict=True)
        return Row(name, meaning, {plan.name: Value(value) for plan, value in named}, "")

    three = "three forward passes for each image seen"
    return [
        row("parameters", "of the prior, embeddings and head included", [p.cost.parameters for p in plans]),
        row("training FLOPs", f"of the prior: {three}; made equal", [p.prior_flops for p in plans]),
        row("steps", "of the prior's training", [p.prior.loop.num_steps for p in plans]),
        row("images seen", "by the prior in training", [p.images for p in plans]),
        row(
            "tokenizer training FLOPs", f"{three}, discriminator left out; none where a model was given",
            [p.tokenizer_flops for p in plans],
        ),
        row(
            "encoding FLOPs", "of the frozen tokenizer for the prior's training; apart from the above",
            [p.encoding_flops for p in plans],
        ),
    ]  # fmt: skip


def _samplings(
    study: ComparisonStudy, plans: Sequence[Plan], scores: dict[str, Result], times: dict[str, Any],
    metric: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Every way to sample: quality of few samples, and the time of an image in the largest batch, if any."""
    batch, rows = max(study.timing_batches), []
    for plan in plans:
        for name, result in scores[plan.name]["samplings"].items():
            of_way = _time_of(times, plan.name, name, batch)
            rows.append({
                "family": plan.name, "sampling": name, "settings": result["samples"]["sampling"],
                "steps": of_way and of_way["steps"], "batch": batch,
                "seconds_per_image": of_way and of_way["seconds"] / batch,
                metric: result["scores"][metric]["value"],
                "class_agreement": result.get("class_agreement"),
            })  # fmt: skip
    return rows
