"""Power laws y = (factor x)^exponent, fitted by least squares in log space (paper, section 4.2, equation 6).

Special here: a prediction comes with its interval. A handful of points says little about a value far outside
of them, and the interval of Student's t grows accordingly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

#: 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom; beyond the table the last one is used,
#: which is a little wide.
_STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@dataclass(frozen=True)
class PowerLaw:
    """A straight line in log space and how well it fits."""

    exponent: float
    intercept: float  #: natural logarithm of y at x = 1
    correlation: float  #: Pearson's, of log x and log y
    exponent_error: float  #: half of the exponent's 95 % interval
    spread: float  #: standard deviation of the residuals, in natural logarithms
    mean_log_x: float
    squares_log_x: float  #: sum of squared deviations of log x
    num_points: int

    @property
    def factor(self) -> float:
        """The paper's form y = (factor x)^exponent; infinite where a law is so flat that none can be told."""
        with numpy.errstate(over="ignore", divide="ignore", invalid="ignore"):
            factor = numpy.exp(numpy.float64(self.intercept) / self.exponent)
        return float(factor) if factor > 0 else float("inf")

    def predict(self, x: float) -> tuple[float, float, float]:
        """y at x, and the ends of the 95 % interval for a new point there."""
        log_x = numpy.log(x)
        center = self.intercept + self.exponent * log_x
        deviation = (log_x - self.mean_log_x) ** 2 / self.squares_log_x
        error = _quantile(self.num_points) * self.spread * numpy.sqrt(1 + 1 / self.num_points + deviation)
        low, high = numpy.exp(center - error), numpy.exp(center + error)
        return float(numpy.exp(center)), float(low), float(high)


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """The power law through at least three points.

    Raises:
        ValueError: fewer points, equal x, or numbers that have no logarithm.
    """
    log_x, log_y = _logarithms("x", x), _logarithms("y", y)
    if len(log_x) != len(log_y) or len(log_x) < 3:
        raise ValueError(
            f"a power law needs at least 3 points, given {len(log_x)} and {len(log_y)}: train more sizes"
        )
    deviations = log_x - log_x.mean()
    squares = float((deviations**2).sum())
    if squares == 0:
        raise ValueError("a power law needs points with different x: all of them are equal")
    exponent = float((deviations * log_y).sum() / squares)
    intercept = float(log_y.mean() - exponent * log_x.mean())
    residuals = log_y - intercept - exponent * log_x
    spread = float(numpy.sqrt((residuals**2).sum() / (len(log_x) - 2)))
    total = float(((log_y - log_y.mean()) ** 2).sum())
    return PowerLaw(
        exponent, intercept,
        correlation=exponent * (squares / total) ** 0.5 if total else 0.0,
        exponent_error=float(_quantile(len(log_x)) * spread / squares**0.5),
        spread=spread, mean_log_x=float(log_x.mean()), squares_log_x=squares, num_points=len(log_x),
    )  # fmt: skip


def lower_envelope(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, loss), those that no cheaper or equally cheap one beats, by cost."""
    best: list[tuple[float, float]] = []
    for cost, loss in sorted(points):
        if not best or loss < best[-1][1]:
            best.append((cost, loss))
    return best


def _quantile(num_points: int) -> float:
    return _STUDENT_T[min(num_points - 2, len(_STUDENT_T)) - 1]


def _logarithms(name: str, values: Sequence[float]) -> numpy.ndarray:
    array = numpy.asarray(values, dtype=numpy.float64)
    if not (numpy.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"{name} of a power law must be finite and above 0, given {list(values)}")
    logarithms: numpy.ndarray = numpy.log(array)
    return logarithms
