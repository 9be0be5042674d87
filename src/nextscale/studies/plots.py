"""Pictures of studies. Needs matplotlib (extra ``eval``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
    figure.savefig(picture, dpi=100)
    plt.close(figure)


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
