"""Streaming moments and the Fréchet distance against NumPy and SciPy, in any batches, on any ranks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import scipy.linalg
import torch
from torch import Tensor

from features_for_tests import DIM, distance_of_rows, features, largest_relative, moments
from nextscale.distributed import Distributed
from nextscale.evaluate.frechet import frechet_distance, root
from nextscale.evaluate.moments import Moments


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_moments_against_numpy_far_from_zero(spread: float) -> None:
    rows = features(333) * spread + 1e3
    found = moments(rows)
    assert found.count == 333
    assert largest_relative(found.mean_D, torch.from_numpy(rows.numpy().mean(0))) < 1e-14
    deviations = (rows - rows[0]).numpy()  # exact, since the rows lie close together
    assert largest_relative(found.covariance_DD, torch.from_numpy(numpy.cov(deviations.T))) < 1e-10


def test_batches_do_not_matter() -> None:
    a, b = features(500), features(300, seed=1)
    distances = [
        frechet_distance(moments(a.float(), size), moments(b.float(), size)) for size in (1, 50, 64, 500)
    ]
    assert distances == pytest.approx([distances[0]] * 4, rel=1e-10)


def test_merging_is_adding_and_changes_neither() -> None:
    rows = features(90)
    parts = [moments(part, 7) for part in (rows[:20], rows[20:21], rows[21:], rows[:0])]
    before = parts[0].covariance_DD.clone()
    merged = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    assert merged.count == 90 and parts[0].count == 20
    assert torch.equal(parts[0].covariance_DD, before)
    assert largest_relative(merged.mean_D, moments(rows).mean_D) < 1e-14
    assert largest_relative(merged.covariance_DD, moments(rows).covariance_DD) < 1e-14
    alone = parts[0].reduced(Distributed(0, 1, torch.device("cpu")))
    alone.add(rows)
    assert parts[0].count == 20 and torch.equal(parts[0].covariance_DD, before)


class _Threads:
    """Ranks that are threads of this process: sums in the order of ranks, as an exchange gives them."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.given = world_size, [[] for _ in range(world_size)]  # type: ignore[var-annotated]
        self.barrier = threading.Barrier(world_size, timeout=60)

    def __call__(self, rank: int) -> Any:
        return SimpleNamespace(world_size=self.world_size, sum_=lambda tensors: self._sum_(rank, tensors))

    def _sum_(self, rank: int, tensors: list[Tensor]) -> None:
        self.given[rank] = [tensor.clone() for tensor in tensors]
        self.barrier.wait()
        for index, tensor in enumerate(tensors):
            tensor.copy_(sum(given[index] for given in self.given))
        self.barrier.wait()


@pytest.mark.parametrize("sizes", [(50,), (50, 0), (20, 30), (1, 9, 40), (0, 0, 50)], ids=str)
def test_processes_find_the_moments_of_all_rows(sizes: tuple[int, ...]) -> None:
    rows = features(50) * 1e-3 + 1e3
    parts = [moments(part) for part in rows.split(list(sizes))]
    ranks = _Threads(len(sizes))
    with ThreadPoolExecutor(len(sizes)) as pool:
        found = list(pool.map(lambda rank: parts[rank].reduced(ranks(rank)), range(len(sizes))))
    for whole, part, size in zip(found, parts, sizes, strict=True):
        assert (whole.count, part.count) == (50, size)
        assert largest_relative(whole.mean_D, moments(rows).mean_D) < 1e-14
        assert largest_relative(whole.covariance_DD, moments(rows).covariance_DD) < 1e-10
        assert torch.equal(whole.covariance_DD, found[0].covariance_DD)


def test_what_is_refused() -> None:
    rows = features(5)
    rows[1, 2], rows[3, 0] = float("nan"), float("inf")
    found = Moments(DIM)
    with pytest.raises(ValueError, match="2 of 5 rows of features hold NaN or infinity"):
        found.add(rows)
    with pytest.raises(ValueError, match=r"expected features \(B, 6\), given \(5, 3\)"):
        found.add(rows[:, :3])
    found.add(rows[:1])
    with pytest.raises(ValueError, match="at least 2 samples, given 1"):
        _ = found.covariance_DD
    with pytest.raises(ValueError, match="6 features cannot be joined with those of 3"):
        found.merge(Moments(3))
    with pytest.raises(ValueError, match="width 6 against 3"):
        frechet_distance(found, Moments(3))


def test_tensors_bring_moments_back() -> None:
    found = moments(features(20))
    again = Moments.from_tensors(found.tensors())
    assert again.count == 20 and torch.equal(again.mean_D, found.mean_D)
    assert largest_relative(again.covariance_DD, found.covariance_DD) < 1e-15
    again.add(features(5))
    assert found.count == 20
    for changes, text in (
        ({"mean_D": torch.zeros(3)}, "expected"), ({"count": torch.tensor(1)}, "1 samples"),
        ({"mean_D": found.mean_D * float("nan")}, "NaN"),
        ({"covariance_DD": torch.randn(DIM, DIM)}, "not symmetric"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            Moments.from_tensors({**found.tensors(), **changes})
    with pytest.raises(ValueError, match="lack mean_D"):
        Moments.from_tensors({"count": torch.tensor(3), "covariance_DD": found.covariance_DD})


def test_distance_against_scipy() -> None:
    a, b = features(400, 24), features(300, 24, seed=1) * 1.5
    one, other = (numpy.cov(rows.numpy().T) for rows in (a, b))
    mixed = scipy.linalg.sqrtm(one @ other)
    shift = (a.mean(0) - b.mean(0)).square().sum()
    expected = float(shift) + numpy.trace(one + other - 2 * mixed.real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(moments(a), moments(a)) < 1e-10 * numpy.trace(one)


@pytest.mark.parametrize("counts", [(10, 12), (10, 200), (64, 65)], ids=str)
def test_distance_of_fewer_samples_than_features(counts: tuple[int, int]) -> None:
    a, b = features(counts[0], 64), features(counts[1], 64, seed=1)
    found = frechet_distance(moments(a), moments(b))
    assert found == pytest.approx(distance_of_rows(a, b), rel=1e-10)
    same = frechet_distance(moments(a), moments(a))
    assert 0 <= same < 1e-10 * float(moments(a).covariance_DD.trace())


def test_distance_along_one_axis_by_hand() -> None:
    """N(0, 4) and N(3, 25): 9 + (2 - 5)^2."""
    a = torch.tensor([[-(2.0**0.5)], [0.0], [0.0], [2.0**0.5]]) * 3**0.5
    b = a / 2 * 5 + 3
    assert float(moments(a).covariance_DD) == pytest.approx(4)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(18, rel=1e-6)


def test_the_root_gives_the_covariance() -> None:
    covariance = moments(features(5, 9)).covariance_DD
    found = root(covariance)
    assert largest_relative(found @ found.T, covariance) < 1e-13
    assert int((found.norm(dim=0) > 0).sum()) == 4  # five rows span four directions around their mean
