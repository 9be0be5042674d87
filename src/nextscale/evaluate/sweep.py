"""Which settings a sweep goes through, and its plot."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import IO, Any

from nextscale.generate.settings import SamplingSettings

_MOST_POINTS = 1000
_EXPECTED = "NAME=FIRST:LAST:STEP or NAME=VALUE,VALUE,..., such as guidance=1:3:0.25"

Point = dict[str, float]


def parse_sweeps(texts: Sequence[str]) -> list[Point]:
    """``["guidance=1:2:0.5", "top_p=0.9,1"]`` -> all combinations, the last name changing fastest.

    Raises:
        ValueError: an unknown setting, values that are no numbers, a range without end, or too many points.
    """
    axes: dict[str, list[float]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in SamplingSettings.model_fields:
            near = difflib.get_close_matches(name, SamplingSettings.model_fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(SamplingSettings.model_fields)
            raise ValueError(f"--sweep {text}: unknown setting {name!r}: expected one of {known}{hint}")
        if name in axes:
            raise ValueError(f"--sweep {text}: {name} is swept twice: give all its values at once")
        axes[name] = [_number(name, value) for value in _values(text, values)]
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(points) > _MOST_POINTS:
        raise ValueError(f"--sweep asks for {len(points)} points: expected at most {_MOST_POINTS}")
    return points


def _values(text: str, values: str) -> list[Decimal]:
    """Decimal numbers, so that 1 + 3 x 0.1 is 1.3."""
    words = values.split(":") if ":" in values else values.split(",")
    try:
        numbers = [Decimal(word.strip()) for word in words]
    except InvalidOperation:
        numbers = []
    if not numbers or not all(number.is_finite() for number in numbers):
        raise ValueError(f"--sweep {text}: expected {_EXPECTED}")
    if ":" not in values:
        return numbers
    if len(numbers) != 3 or numbers[2] <= 0 or numbers[1] < numbers[0]:
        raise ValueError(f"--sweep {text}: expected {_EXPECTED}, upwards")
    first, last, step = numbers
    count = int((last - first) / step) + 1
    if count > _MOST_POINTS:
        raise ValueError(f"--sweep {text}: {count} values: expected at most {_MOST_POINTS}")
    return [first + step * index for index in range(count)]


def _number(name: str, value: Decimal) -> float:
    if name == "top_k" and value == value.to_integral_value():
        return int(value)
    return float(value)


def point_name(point: Mapping[str, float]) -> str:
    """``guidance=1.5,top_p=0.9``: the name of its folder."""
    return ",".join(f"{name}={value:g}" for name, value in point.items())


def table(points: Sequence[Point], results: Sequence[Mapping[str, Any]]) -> str:
    """A row per point, a column per score, as Markdown."""
    scores = [_scores(result) for result in results]
    names = list(scores[0])
    rows = [[*points[0], *names], ["---"] * (len(points[0]) + len(names))]
    for point, found in zip(points, scores, strict=True):
        rows.append([f"{value:g}" for value in point.values()] + [_cell(found[name]) for name in names])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that there is one number of."""
    agreement = (
        {"class agreement": {"value": result["class_agreement"]}} if "class_agreement" in result else {}
    )
    return {**result["scores"], **agreement}


def _cell(score: Mapping[str, Any]) -> str:
    text = f"{score['value']:.4g}"
    if "std" in score:
        return f"{text} ± {score['std']:.2g}"
    return f"{text} ({score['low']:.4g} to {score['high']:.4g})" if "low" in score else text


def check_plots() -> None:
    """Raise ValueError where nothing can be plotted, before hours of work rather than after them."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("a sweep draws a plot with matplotlib: pip install 'nextscale[eval]'") from error


def draw_sweep(points: Sequence[Point], results: Sequence[Mapping[str, Any]], picture: IO[bytes]) -> None:
    """One small plot per score over the first swept setting, a line per combination of the others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = [_scores(result) for result in results]
    axis_name, names = next(iter(points[0])), list(found[0])
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3 * rows), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=False):
        for others, members in _lines(points, axis_name).items():
            xs = [points[i][axis_name] for i in members]
            scores = [found[i][name] for i in members]
            (line,) = axis.plot(xs, [score["value"] for score in scores], marker=".", label=others or None)
            if "low" in scores[0]:
                low, high = ([score[end] for score in scores] for end in ("low", "high"))
                axis.fill_between(xs, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
            if others:
                axis.legend(fontsize=7)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(axis_name, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.savefig(picture, dpi=110, format="png")
    plt.close(figure)


def _lines(points: Sequence[Point], axis_name: str) -> dict[str, list[int]]:
    """Numbers of the points that differ in the first setting alone, by what the others are."""
    lines: dict[str, list[int]] = {}
    for index, point in enumerate(points):
        others = {name: value for name, value in point.items() if name != axis_name}
        lines.setdefault(point_name(others), []).append(index)
    for members in lines.values():
        members.sort(key=lambda index: points[index][axis_name])
    return lines
