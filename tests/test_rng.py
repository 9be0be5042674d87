"""Random numbers: the same key gives the same numbers, whoever else draws and in whatever order."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale import rng

seeds = st.integers(0, 2**63 - 1)

TOKEN_UNIFORMS = [0.011546754286331562, 0.24154919656271812, 0.11142585551493822]
EPOCH_ORDER = [3, 1, 4, 6, 7, 2, 5, 0]
CANDIDATE = 1849222364468134837


@given(
    st.lists(seeds, min_size=2, max_size=5).flatmap(
        lambda batch: st.tuples(st.just(batch), st.permutations(batch))
    )
)
def test_an_image_does_not_depend_on_its_neighbours_or_their_order(
    batches: tuple[list[int], list[int]],
) -> None:
    first, shuffled = batches
    alone = {seed: rng.token_uniforms(seed, 10) for seed in first}
    for seed in shuffled:
        assert numpy.array_equal(rng.token_uniforms(seed, 10), alone[seed])


def test_nothing_outside_changes_the_numbers() -> None:
    first = rng.token_uniforms(3, 5)
    numpy.random.seed(17)
    numpy.random.random(100)
    assert numpy.array_equal(rng.token_uniforms(3, 5), first)


def test_the_numbers_stay_what_they_are_between_versions() -> None:
    """A seed is a promise: numpy 1.26 and 2.4 draw these, and that must never change."""
    assert rng.token_uniforms(0, 3).tolist() == TOKEN_UNIFORMS
    assert rng.epoch_order(0, 0, 8).tolist() == EPOCH_ORDER
    assert rng.candidate_seed(0, 1) == CANDIDATE


@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_a_shorter_sequence_is_the_start_of_a_longer_one(seed: int, short: int, more: int) -> None:
    assert numpy.array_equal(rng.token_uniforms(seed, short + more)[:short], rng.token_uniforms(seed, short))


@given(seeds, st.integers(0, 9), st.integers(1, 6), st.integers(2, 20))
def test_smooth_sampling_has_one_number_per_cell_and_code(
    seed: int, scale: int, cells: int, codes: int
) -> None:
    numbers = rng.code_uniforms(seed, scale, cells, codes)
    assert numbers.shape == (cells, codes) and numbers.dtype == numpy.float32
    assert (numbers >= 0).all() and (numbers < 1).all()
    assert numpy.array_equal(numbers, rng.code_uniforms(seed, scale, cells, codes))
    assert not numpy.array_equal(numbers, rng.code_uniforms(seed, scale + 1, cells, codes))


@pytest.mark.parametrize(
    "drawn",
    [
        [rng.token_uniforms(seed, 4) for seed in range(50)],
        [rng.sample_uniforms(0, epoch, sample, 4) for epoch in range(7) for sample in range(7)],
        [rng.step_generator(seed, step).random(4) for seed in range(3) for step in range(20)],
    ],
    ids=["tokens", "samples", "steps"],
)
def test_different_keys_give_different_numbers(drawn: list[numpy.ndarray]) -> None:
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn)


@given(seeds, st.lists(st.tuples(st.integers(0, 2**20 - 1), st.integers(0, 2**40 - 1)), max_size=6))
def test_numbers_of_many_samples_are_those_of_each(seed: int, places: list[tuple[int, int]]) -> None:
    drawn = rng.sample_uniforms_of(seed, places, 9)
    assert drawn.shape == (len(places), 9) and drawn.dtype == numpy.float64
    for row, (epoch, sample) in zip(drawn, places, strict=True):
        assert numpy.array_equal(row, rng.sample_uniforms(seed, epoch, sample, 9))


def test_uniforms_are_uniform() -> None:
    numbers = numpy.concatenate([rng.token_uniforms(seed, 100) for seed in range(200)])
    assert numbers.dtype == numpy.float64
    counts = numpy.histogram(numbers, bins=10, range=(0, 1))[0]
    assert abs(counts - 2000).max() < 200  # five standard deviations
    neighbours = numpy.corrcoef(rng.token_uniforms(7, 5000), rng.token_uniforms(8, 5000))[0, 1]
    assert abs(neighbours) < 0.07


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 50))
def test_an_epoch_visits_each_sample_once(seed: int, epoch: int, num_samples: int) -> None:
    assert sorted(rng.epoch_order(seed, epoch, num_samples)) == list(range(num_samples))


def test_epochs_differ_in_order() -> None:
    orders = {tuple(rng.epoch_order(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "1", None])
def test_seeds_that_are_none(seed: object) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 0 to 9223372036854775807"):
        rng.check_seeds([0, seed])  # type: ignore[list-item]


def test_seeds_may_be_numpy_numbers() -> None:
    rng.check_seeds([0, 2**63 - 1, numpy.int64(3)])


@given(seeds, seeds)
def test_candidates_have_seeds_of_their_own(one: int, other: int) -> None:
    of_one, of_other = ([rng.candidate_seed(seed, number) for number in range(8)] for seed in (one, other))
    assert of_one[0] == one and len(set(of_one)) == 8
    rng.check_seeds(of_one)
    assert one == other or not set(of_one) & set(of_other)
