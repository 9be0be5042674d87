"""Streaming moments and the Fréchet distance against NumPy and SciPy, in any batches, on any ranks."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import scipy.linalg
import torch
from torch import Tensor

from nextscale.distributed import Distributed
from nextscale.evaluate.frechet import frechet_distance, root
from nextscale.evaluate.moments import Moments
from ranks_for_tests import free_port

DIM = 6


def features(count: int, dim: int = DIM, seed: int = 0) -> Tensor:
    """Correlated features whose means differ."""
    numbers = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    drawn = torch.randn(count, dim, dtype=torch.float64, generator=numbers)
    return drawn @ mix + torch.arange(dim) + seed


def moments(rows: Tensor, batch: int = 64) -> Moments:
    found = Moments(rows.shape[1])
    for part in rows.split(batch):
        found.add(part)
    return found


def largest_relative(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).abs().max() / expected.abs().max())


def distance_of_rows(a: Tensor, b: Tensor) -> float:
    """From the rows themselves: the singular values of X1 X2^T are the roots, whatever the rank."""
    shift = a.mean(0) - b.mean(0)
    one, other = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (a, b))
    shared = numpy.linalg.svd((one @ other.T).numpy(), compute_uv=False).sum()
    return float(shift.square().sum() + one.square().sum() + other.square().sum() - 2 * shared)


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


def _one_of(rank: int, world_size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    rows = features(50) * 1e-3 + 1e3
    mine = moments(rows[rank:40:world_size] if rank < 2 else rows[40:])  # ranks of different sizes
    if world_size == 2:
        mine = moments(rows) if rank == 0 else Moments(DIM)  # one that has seen nothing
    whole = mine.reduced(Distributed(rank, world_size, torch.device("cpu")))
    torch.save(whole.tensors(), Path(folder) / f"{world_size}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_find_the_moments_of_all_rows(world_size: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of, (world_size, free_port(), str(tmp_path)), nprocs=world_size)
    found = [torch.load(tmp_path / f"{world_size}-{rank}.pt") for rank in range(world_size)]
    rows = features(50) * 1e-3 + 1e3
    if world_size == 3:
        rows = torch.cat([rows[0:40:3], rows[1:40:3], rows[40:]])
    for tensors in found:
        assert int(tensors["count"]) == len(rows)
        assert largest_relative(tensors["mean_D"], moments(rows).mean_D) < 1e-14
        assert largest_relative(tensors["covariance_DD"], moments(rows).covariance_DD) < 1e-10
        for name, value in tensors.items():
            assert torch.equal(value, found[0][name])


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
