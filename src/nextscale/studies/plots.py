"""Pictures of studies. Needs matplotlib (extra ``eval``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextscale import checkpoint


def draw_power_laws(result: dict[str, Any], picture: Path) -> None:
    """A plot per law with its points, its line, the 95 % interval and the prediction.

    Raises:
        ValueError: matplotlib is not installed.
    """
    plt = plots()
    laws = result["laws"]
    over_size = [name for name in laws if name.endswith("parameters")]
    over_flops = [name for name in laws if not name.endswith("parameters")]
    rows = [names for names in (over_size, over_flops) if names]
    columns = max(len(names) for names in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(4 * columns, 3.2 * len(rows)), squeeze=False, layout="constrained"
    )
    for row, names in zip(axes, rows, strict=True):
        for axis, name in zip(row, names, strict=False):
            _draw_law(axis, name, laws[name])
        for axis in row[len(names) :]:
            axis.set_visible(False)
    _save(figure, picture)


def _draw_law(axis: Any, name: str, law: dict[str, Any]) -> None:
    x, y, low, high = zip(*law["line"], strict=True)
    axis.fill_between(x, low, high, alpha=0.15, linewidth=0)
    axis.plot(x, y, linewidth=1)
    axis.plot(*zip(*law["points"], strict=True), "o", markersize=4)
    axis.plot(law["prediction"]["x"], law["prediction"]["y"], "x", markersize=6)
    axis.set_xscale("log")
    axis.set_yscale("log")
    for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter(lambda value, _: f"{value:g}")
    what, _, over = name.partition(" over ")
    axis.set_title(
        f"exponent {law['exponent']:.3f} ± {law['exponent_error']:.2g}, "
        f"correlation {law['correlation']:.3f}", fontsize=9,
    )  # fmt: skip
    axis.set_xlabel(over, fontsize=8)
    axis.set_ylabel(what.replace("_", " "), fontsize=8)
    axis.tick_params(labelsize=7, which="both")
    axis.grid(alpha=0.3, which="both")


def draw_series(
    series: dict[str, list[tuple[float, float, str]]], picture: Path, *, x: str, y: str, lines: bool = True
) -> None:
    """A colour per name, both axes logarithmic.

    Args:
        series: by name, points (x, y, what to write beside it).
        picture: PNG to write.
        x: label.
        y: label.
        lines: join the points.

    Raises:
        ValueError: matplotlib is not installed.
    """
    plt = plots()
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, points in series.items():
        xs, ys, notes = zip(*points, strict=True)
        axis.plot(xs, ys, marker="o", markersize=4, linestyle="-" if lines else "", label=name)
        for place in zip(xs, ys, notes, strict=True):
            axis.annotate(place[2], place[:2], xytext=(5, 3), textcoords="offset points", fontsize=7)
    axis.set_xscale("log")
    axis.set_yscale("log")
    for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    _save(figure, picture)


def _save(figure: Any, picture: Path) -> None:
    with checkpoint.new_file(picture) as file:
        figure.savefig(file, dpi=100, format="png")
    plots().close(figure)


def plots() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ValueError("a study draws its curves with matplotlib: install nextscale[eval]") from error
    return plt
