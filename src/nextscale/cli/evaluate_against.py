"""``nextscale evaluate`` with a reference: what was asked for is put together and checked before any work."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from nextscale import checkpoint
from nextscale.cli.protocols import check_no_contradiction, read_protocol
from nextscale.cli.references import Opened, open_reference
from nextscale.cli.subjects import Subject, find_classifier, open_subject, samples_of
from nextscale.distributed import Distributed
from nextscale.evaluate.images import Samples
from nextscale.evaluate.scores import singular_warnings
from nextscale.evaluate.scoring import Scorer
from nextscale.evaluate.statistics import check_kind
from nextscale.evaluate.sweep import Point, check_plots, draw_sweep, parse_sweeps, point_name, table
from nextscale.train.run_folder import claimed_by_first

_BATCH, _RESAMPLES = 50, 200


def run(options: argparse.Namespace, ranks: Distributed) -> None:
    """Score against a reference; print the result as JSON, or a sweep's table."""
    with ranks.together():
        points = _points(options)
        subject, opened = _prepare(options, ranks)
        subjects = _swept(subject, points) if points else []
        reference_classes = opened.class_names
        classifier = find_classifier(
            subject.images, features=opened.features, weights=options.weights,
            demanded=options.class_agreement, reference_classes=reference_classes, ranks=ranks,
        )  # fmt: skip
    out = Path(options.out) if options.out else None
    with ExitStack() as hold:
        if out is not None:
            about = {**subject.description, "reference": opened.description, "sweep": options.sweep}
            about |= {"resamples": options.resamples, "class_agreement": options.class_agreement}
            hold.enter_context(claimed_by_first(out, about, ranks))
        reference = opened.finish(ranks, keep=out and out / "reference.npz")
        scorer = Scorer(
            opened.extractor, reference, classifier, batch=options.batch or _BATCH, ranks=ranks,
            num_resamples=_RESAMPLES if options.resamples is None else options.resamples, progress=True,
        )  # fmt: skip
        if ranks.is_first:
            for warning in (*subject.warnings, *singular_warnings(subject.images.count, reference)):
                sys.stderr.write(f"nextscale: warning: {warning}\n")
        if points:
            assert out is not None
            _sweep(scorer, points, subjects, out)
            return
        result = scorer(subject.images, description=_described(subject), folder=out, name="scored")
        if ranks.is_first:
            print(json.dumps(result, indent=2))


def _described(subject: Subject) -> dict[str, Any]:
    return subject.description | {"warnings": list(subject.warnings)}


def _prepare(options: argparse.Namespace, ranks: Distributed) -> tuple[Subject, Opened]:
    """What is scored and what it is held against, if the two go together. Raises ValueError."""
    protocol = read_protocol(options.protocol) if options.protocol else None
    if protocol is not None:
        check_no_contradiction(protocol, options)
    subject = open_subject(options, protocol, ranks)
    opened = open_reference(
        options, features=protocol.features if protocol else options.features, kind=options.reference_kind,
        size=subject.images.image_size, ranks=ranks,
    )  # fmt: skip
    scored, kind = (
        subject.description["scored"],
        protocol.reference_kind if protocol else subject.reference_kind,
    )
    if not options.any_reference:
        check_kind(opened.kind, kind, source=options.reference, scored=scored)
    elif opened.kind == kind:
        raise ValueError(f"--any-reference has no effect: {scored} are scored against {kind} images anyway")
    else:
        warning = (
            f"scored against {opened.kind} images, though {scored} are usually scored against {kind} images"
        )
        subject = replace(subject, warnings=(*subject.warnings, warning))
    return subject, opened


def _points(options: argparse.Namespace) -> list[Point]:
    if not options.sweep:
        return []
    points = parse_sweeps(options.sweep)
    if not options.out:
        raise ValueError("--sweep needs --out, the folder of its table and plot")
    for name in points[0]:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} contradicts --sweep {name}: leave one of them out")
    check_plots()
    return points


def _swept(subject: Subject, points: Sequence[Point]) -> list[Subject]:
    """The samples at each point. Raises ValueError for a value out of range, and where nothing is sampled."""
    given = subject.images
    if not isinstance(given, Samples):
        raise ValueError("--sweep goes through settings of sampling: give a model, and no --data")
    return [
        replace(
            samples_of(given.with_sampling(point), subject.description["model"]), warnings=subject.warnings
        )
        for point in points
    ]


def _sweep(scorer: Scorer, points: Sequence[Point], subjects: Sequence[Subject], out: Path) -> None:
    """Score each point in a folder of its own, then write the table and the plot."""
    results = []
    for number, (point, subject) in enumerate(zip(points, subjects, strict=True), start=1):
        name = point_name(point)
        results.append(
            scorer(
                subject.images, description=_described(subject), folder=out / "points" / name,
                name=f"{name} ({number} of {len(points)})",
            )
        )  # fmt: skip
    if not scorer.ranks.is_first:
        return
    text = table(points, results)
    with checkpoint.new_file(out / "sweep.png") as file:
        draw_sweep(points, results, file)
    checkpoint.write_file(out / "sweep.md", text)
    rows = [{"point": point, "result": result} for point, result in zip(points, results, strict=True)]
    checkpoint.write_json(out / "sweep.json", rows)
    print(text, end="")
    print(f"{len(points)} points: {out / 'sweep.png'}")
