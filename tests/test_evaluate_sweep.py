"""Sweeps: which points they mean, their table, and their plot."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from nextscale.evaluate.sweep import draw_sweep, parse_sweeps, point_name, table


def _results(count: int) -> list[dict[str, Any]]:
    return [
        {"scores": {
            "FD-CIFAR": {"value": 10.0 - i, "low": 9.0 - i, "high": 11.5 - i},
            "KID-CIFAR": {"value": 1.25, "std": 0.5},
            "recall-CIFAR": {"value": i / 10},
        }, "class_agreement": 0.5}
        for i in range(count)
    ]  # fmt: skip


def test_ranges_and_lists() -> None:
    assert parse_sweeps(["guidance=1:3:0.5"]) == [{"guidance": 1 + i / 2} for i in range(5)]
    assert parse_sweeps(["temperature=1:1.35:0.1"]) == [{"temperature": t} for t in (1.0, 1.1, 1.2, 1.3)]
    points = parse_sweeps(["top-k=0,10", "top_p=0.9,1"])
    assert points == [{"top_k": k, "top_p": p} for k in (0, 10) for p in (0.9, 1.0)]
    assert isinstance(points[0]["top_k"], int)
    assert [point_name(point) for point in points[:2]] == ["top_k=0,top_p=0.9", "top_k=0,top_p=1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["guidence=1:2:1"], "unknown setting 'guidence': .* did you mean guidance?"),
        (["seed=1:2:1"], "unknown setting 'seed': expected one of guidance, top_k, top_p, temperature"),
        (["guidance"], "expected NAME=FIRST:LAST:STEP or NAME=VALUE,VALUE"),
        (["guidance=a,b"], "expected NAME="),
        (["guidance=nan,1"], "expected NAME="),
        (["guidance=1:2"], "such as guidance=1:3:0.25, upwards"),
        (["guidance=2:1:0.5"], "upwards"),
        (["guidance=1:2:0"], "upwards"),
        (["guidance=1:2:-1"], "upwards"),
        (["guidance=0:1e9:0.001"], "values: expected at most 1000"),
        (["guidance=0:99:1", "top_k=0:99:1"], "asks for 10000 points: expected at most 1000"),
        (["guidance=1,2", "guidance=3,4"], "guidance is swept twice"),
    ],
)
def test_refused(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sweeps(given)


def test_the_table() -> None:
    points = parse_sweeps(["guidance=1,2.5"])
    assert table(points, _results(2)).splitlines() == [
        "| guidance | FD-CIFAR | KID-CIFAR | recall-CIFAR | class agreement |",
        "| --- | --- | --- | --- | --- |",
        "| 1 | 10 (9 to 11.5) | 1.25 ± 0.5 | 0 | 0.5 |",
        "| 2.5 | 9 (8 to 10.5) | 1.25 ± 0.5 | 0.1 | 0.5 |",
    ]


def test_the_plot_has_an_axis_per_score_and_a_line_per_combination() -> None:
    pictures = []
    for given in (["guidance=3,1,2"], ["guidance=1,2,3", "top_p=0.5,1"]):
        points, picture = parse_sweeps(given), io.BytesIO()
        draw_sweep(points, _results(len(points)), picture)
        with Image.open(picture) as image:
            pictures.append((image.format, image.size))
    assert {kind for kind, _ in pictures} == {"PNG"} and pictures[0][1][0] > 1000
