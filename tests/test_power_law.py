"""Power laws: exact on exact data, as SciPy on noisy data, honest about what lies outside."""

from __future__ import annotations

import numpy
import pytest
from scipy import stats

from nextscale.studies.power_law import fit_power_law, lower_envelope


def test_an_exact_law_comes_back() -> None:
    x = numpy.geomspace(1e5, 1e7, 5)
    law = fit_power_law(x, (2.5e-3 * x) ** -0.2)
    assert law.exponent == pytest.approx(-0.2, abs=1e-12)
    assert law.factor == pytest.approx(2.5e-3, rel=1e-9)
    assert law.correlation == pytest.approx(-1, abs=1e-12)
    assert law.predict(1e9)[0] == pytest.approx((2.5e6) ** -0.2, rel=1e-9)


def test_a_noisy_law_is_that_of_scipy() -> None:
    random = numpy.random.default_rng(0)
    x = numpy.geomspace(1e5, 1e7, 6)
    y = (1e-4 * x) ** -0.15 * numpy.exp(0.03 * random.standard_normal(6))
    law, line = fit_power_law(x, y), stats.linregress(numpy.log(x), numpy.log(y))
    assert law.exponent == pytest.approx(line.slope, rel=1e-10)
    assert law.correlation == pytest.approx(line.rvalue, rel=1e-10)
    assert law.exponent_error == pytest.approx(stats.t.ppf(0.975, 4) * line.stderr, rel=1e-3)


def test_the_interval_holds_new_points_as_often_as_it_says() -> None:
    random, hits = numpy.random.default_rng(1), 0
    x = numpy.geomspace(1e5, 1e7, 5)
    for _ in range(600):
        noise = numpy.exp(0.05 * random.standard_normal(6))
        law = fit_power_law(x, x**-0.2 * noise[:5])
        _, low, high = law.predict(1e9)
        hits += low <= 1e9**-0.2 * noise[5] <= high
    assert 0.92 < hits / 600 < 0.98


def test_the_interval_grows_outside() -> None:
    law = fit_power_law([1, 2, 4, 8], [4.0, 3.1, 2.2, 1.8])
    widths = [high / low for _, low, high in map(law.predict, (3, 30, 300))]
    assert widths[0] < widths[1] < widths[2]


def test_the_lower_envelope_leaves_out_what_is_beaten() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 4.5), (3.0, 4.2), (4.0, 3.0)]
    assert lower_envelope(points) == [(1.0, 5.0), (2.0, 4.0), (4.0, 3.0)]


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2], [1, 2], "at least 3 points"),
        ([1, 1, 1], [1, 2, 3], "different x"),
        ([1, 2, 3], [1, 0, 3], "above 0"),
        ([1, 2, float("nan")], [1, 2, 3], "finite"),
    ],
)
def test_what_has_no_power_law_is_refused(x: list[float], y: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_power_law(x, y)
