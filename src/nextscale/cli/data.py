"""``nextscale data check``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from nextscale import checkpoint
from nextscale.cli.output import check_new_folder
from nextscale.data.check import check_source
from nextscale.data.sources import open_source

_MOST_LINES = 20


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Read every image of a source and print what was found; returns 1 when some cannot be read."""
    out = Path(options.out) if options.out else None
    if out is not None:
        check_new_folder(out, mark="report.json")
    source = open_source(options.source)
    with tqdm(total=len(source.labels), unit="image", disable=not sys.stderr.isatty()) as bar:
        found, sheet = check_source(source, on_image=bar.update)
    report = {"source": options.source, **found}
    print("\n".join(_lines(report)))
    if out is not None:
        with checkpoint.new_folder(out) as place:
            checkpoint.write_json(place / "report.json", report)
            if sheet is not None:
                Image.fromarray(sheet).save(place / "sheet.png")
        print(
            f"report: {out / 'report.json'}"
            + (f"   pictures: {out / 'sheet.png'}" if sheet is not None else "")
        )
    return 1 if report["unreadable"] else 0


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    classes = report["classes"]
    kinds = "1 class" if len(classes) == 1 else f"{len(classes)} classes"
    yield f"{report['images']} images of {kinds}, {len(report['unreadable'])} unreadable"
    yield from _first([f"  {name}: {count}" for name, count in classes.items()], "classes")
    if len(classes) > 1:
        counts = sorted(classes.values())
        yield f"images per class: {counts[0]} to {counts[-1]}"
    if report["readable"]:
        for side in ("width", "height", "short_side"):
            values = report[side]
            yield f"{side.replace('_', ' ')}: {values['min']} to {values['max']}, median {values['median']:g}"
        below = ", ".join(f"{side}: {count}" for side, count in report["short_side_below"].items())
        yield f"images whose short side is below {below}"
        for name in ("modes", "formats"):
            yield f"{name}: " + ", ".join(f"{kind} {count}" for kind, count in report[name].items())
    yield from _bad(report)


def _bad(report: Mapping[str, Any]) -> Iterator[str]:
    duplicates = report["duplicates"]
    yield (
        f"exact duplicates: {len(duplicates)} groups, "
        f"{report['duplicates_with_different_labels']} of them under different labels"
    )
    order = sorted(duplicates, key=lambda group: len(set(group["labels"])) == 1)
    yield from _first(["  " + " = ".join(_named(group)) for group in order], "groups")
    if report["unreadable"]:
        yield "unreadable:"
        yield from _first([f"  {bad['image']} ({bad['reason']})" for bad in report["unreadable"]], "images")


def _named(group: Mapping[str, Any]) -> list[str]:
    """The images of a group, with labels where these differ."""
    if len(set(group["labels"])) == 1:
        return list(group["images"])
    return [f"{image} [{label}]" for image, label in zip(group["images"], group["labels"], strict=True)]


def _first(lines: Sequence[str], what: str) -> Iterator[str]:
    yield from lines[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield f"  and {len(lines) - _MOST_LINES} more {what} (--out writes all of them)"
