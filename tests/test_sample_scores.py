"""Inception score, kernel distance, precision and recall, bootstrap: against plain NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor

from features_for_tests import features, moments
from nextscale.evaluate import precision_recall as neighbours
from nextscale.evaluate.bootstrap import frechet_interval
from nextscale.evaluate.frechet import frechet_distance
from nextscale.evaluate.inception_score import inception_score
from nextscale.evaluate.kernel_distance import kernel_distance
from nextscale.evaluate.precision_recall import precision_recall


def _score_by_definition(logits: numpy.ndarray) -> float:
    chances = numpy.exp(logits) / numpy.exp(logits).sum(axis=1, keepdims=True)
    divergence = (chances * numpy.log(chances / chances.mean(axis=0))).sum(axis=1)
    return math.exp(divergence.mean())


def test_inception_score_is_the_mean_over_splits() -> None:
    logits = features(25, 7)
    expected = [_score_by_definition(part.numpy()) for part in logits.split(10)]
    mean, spread = inception_score(logits, split_size=10)
    assert mean == pytest.approx(numpy.mean(expected), rel=1e-12)
    assert spread == pytest.approx(numpy.std(expected), rel=1e-10)
    assert inception_score(logits) == pytest.approx((_score_by_definition(logits.numpy()), 0), rel=1e-12)


def test_inception_score_of_extremes() -> None:
    sure = torch.eye(5).repeat(4, 1) * 2000
    assert inception_score(sure)[0] == pytest.approx(5, rel=1e-12)  # every class, without doubt
    assert inception_score(torch.zeros(20, 5))[0] == pytest.approx(1, rel=1e-12)
    assert inception_score(sure[:1])[0] == pytest.approx(1, rel=1e-12)


def _discrepancy_by_loops(x: numpy.ndarray, y: numpy.ndarray) -> float:
    def kernel(one: numpy.ndarray, other: numpy.ndarray) -> float:
        return float((one @ other / len(one) + 1) ** 3)

    count = len(x)
    within = sum(
        kernel(side[i], side[j]) for side in (x, y) for i in range(count) for j in range(count) if i != j
    )
    across = sum(kernel(one, other) for one in x for other in y)
    return within / (count * (count - 1)) - 2 * across / count**2


def test_kernel_distance_against_loops() -> None:
    x, y = features(12, 5), features(12, 5, seed=1)
    mean, spread = kernel_distance(x, y, num_subsets=3, subset_size=12)
    assert mean == pytest.approx(_discrepancy_by_loops(x.numpy(), y.numpy()), rel=1e-12)
    assert spread < 1e-10 * mean  # all images are in every subset


def test_kernel_distance_over_subsets_belongs_to_a_seed() -> None:
    x, y = features(40, 5), features(30, 5, seed=1)
    found = kernel_distance(x, y, num_subsets=20, subset_size=10)
    numbers, values = numpy.random.default_rng(0), []
    for _ in range(20):
        one, other = (side.numpy()[numbers.choice(len(side), 10, replace=False)] for side in (x, y))
        values.append(_discrepancy_by_loops(one, other))
    assert found == pytest.approx((numpy.mean(values), numpy.std(values)), rel=1e-12)
    assert found != kernel_distance(x, y, num_subsets=20, subset_size=10, seed=1)


def test_kernel_distance_is_unbiased() -> None:
    """Two halves of one set: positive and negative values balance, where the biased estimate is far off."""
    x = features(4000, 5)
    mean, spread = kernel_distance(x[:2000], x[2000:], num_subsets=400, subset_size=20)
    assert abs(mean) < 4 * spread / 400**0.5 and spread > 0


def _precision_by_loops(samples: numpy.ndarray, references: numpy.ndarray, k: int) -> float:
    def distance(one: numpy.ndarray, other: numpy.ndarray) -> float:
        return float(((one - other) ** 2).sum())

    radii = [sorted(distance(one, other) for other in references)[k] for one in references]  # [0] is itself
    inside = [
        any(distance(sample, one) <= radius for one, radius in zip(references, radii, strict=True))
        for sample in samples
    ]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("chunk", [2**24, 100], ids=["whole", "chunks"])
def test_precision_and_recall_against_loops(
    offset: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_PAIRS_AT_A_TIME", chunk)
    samples, references = features(50, 4) * 0.7, features(40, 4, seed=1)
    for k in (1, 3):
        expected = (
            _precision_by_loops(samples.numpy(), references.numpy(), k),
            _precision_by_loops(references.numpy(), samples.numpy(), k),
        )
        assert precision_recall(samples + offset, references + offset, num_neighbours=k) == expected
        assert 0 < expected[0] != expected[1] < 1


def test_precision_and_recall_of_extremes() -> None:
    references = features(60, 4)
    assert precision_recall(references, references) == (1, 1)
    assert precision_recall(references + 1e4, references) == (0, 0)
    one_mode = references[:1] + 1e-6 * features(60, 4, seed=2)
    found = precision_recall(one_mode, references)
    assert found.precision == 1 and found.recall < 0.1  # realistic, but always the same


def test_an_interval_is_that_of_distances_of_resampled_features() -> None:
    rows, reference = features(60, 5), moments(features(80, 5, seed=1))
    found = frechet_interval(rows, reference, num_resamples=40, level=0.9, seed=3)
    numbers = numpy.random.default_rng(3)
    distances = numpy.array(
        [
            frechet_distance(moments(rows[torch.from_numpy(numbers.integers(60, size=60))]), reference)
            for _ in range(40)
        ]
    )
    estimate = frechet_distance(moments(rows), reference)
    bias = distances.mean() - estimate
    low, high = numpy.quantile(distances, [0.05, 0.95]) - bias
    given = (found.estimate, found.low, found.high, found.bias)
    assert given == pytest.approx((estimate, low, high, bias), rel=1e-8)
    assert found.low < found.estimate < found.high
    assert (found.level, found.num_resamples, found.seed) == (0.9, 40, 3)
    assert found != frechet_interval(rows, reference, num_resamples=40, level=0.9, seed=4)


def test_an_interval_with_fewer_samples_than_features() -> None:
    rows, reference = features(12, 30), moments(features(20, 30, seed=1))
    found = frechet_interval(rows, reference, num_resamples=10)
    numbers = numpy.random.default_rng(0)
    distances = [
        frechet_distance(moments(rows[torch.from_numpy(numbers.integers(12, size=12))]), reference)
        for _ in range(10)
    ]
    assert found.bias == pytest.approx(numpy.mean(distances) - found.estimate, rel=1e-5)


def test_an_interval_covers_other_draws() -> None:
    """Distances of fresh samples of the same kind lie within most of the time."""
    reference = moments(features(500, 3, seed=1))
    fresh = []
    found = frechet_interval(features(200, 3), reference)
    numbers = torch.Generator().manual_seed(11)
    mix = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for _ in range(100):
        rows = torch.randn(200, 3, dtype=torch.float64, generator=numbers) @ mix + torch.arange(3)
        fresh.append(frechet_distance(moments(rows), reference))
    middle = numpy.median(fresh)
    width = numpy.quantile(fresh, 0.975) - numpy.quantile(fresh, 0.025)
    assert 0.6 < (found.high - found.low) / width < 1.6
    assert abs(found.estimate - middle) < found.high - found.low


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda x: inception_score(x[:0]), "at least one image"),
        (lambda x: inception_score(x * math.nan), "finite"),
        (lambda x: kernel_distance(x, x), "100 subsets of 1000 images cannot be drawn from 9"),
        (lambda x: kernel_distance(x, x[:, :2], subset_size=3), "width 4 against 2"),
        (
            lambda x: precision_recall(x, x[:3]),
            "3 neighbours need more images than that on each side, given 3",
        ),
        (lambda x: precision_recall(x, x[:, :2]), "width 4 against 2"),
        (lambda x: frechet_interval(x, moments(x), level=95), "200 resamples at level 95"),
        (lambda x: frechet_interval(x, moments(x), num_resamples=1), "1 resamples"),
    ],
)
def test_what_is_refused(action: Callable[[Tensor], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        action(features(9, 4))
