"""The schedule of scales: sizes, offsets, split and join, the map from scales to phis."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nextscale.scales import PRESETS, ScaleSchedule


@st.composite
def schedules(draw: st.DrawFn) -> ScaleSchedule:
    """Any schedule, square or not, of up to five scales."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    sizes = st.tuples(st.integers(1, height), st.integers(1, width))
    return ScaleSchedule(sizes=(*draw(st.lists(sizes, max_size=4)), (height, width)))


@given(schedules(), st.integers(1, 3), st.sampled_from([(), (1,), (2, 3)]))
def test_join_is_the_inverse_of_split(schedule: ScaleSchedule, batch: int, rest: tuple[int, ...]) -> None:
    sequence = torch.rand(batch, schedule.num_tokens, *rest)
    maps = schedule.split(sequence)
    assert [item.shape[1] for item in maps] == [h * w for h, w in schedule.sizes]
    assert torch.equal(schedule.join(maps), sequence)
    for scale, item in enumerate(maps):
        assert torch.equal(item, sequence[:, schedule.slice(scale)])


@given(schedules())
def test_offsets_and_levels_agree(schedule: ScaleSchedule) -> None:
    assert len(schedule.offsets) == schedule.num_scales + 1
    assert schedule.offsets[-1] == schedule.num_tokens == sum(schedule.num_cells)
    for token, level in enumerate(schedule.level_ids):
        assert schedule.offsets[level] <= token < schedule.offsets[level + 1]


@given(schedules())
def test_json_gives_the_same_schedule_back(schedule: ScaleSchedule) -> None:
    again = ScaleSchedule.model_validate_json(schedule.model_dump_json())
    assert again == schedule and hash(again) == hash(schedule)


def test_split_gives_views() -> None:
    schedule = ScaleSchedule.square([1, 2])
    sequence = torch.zeros(1, 5)
    schedule.split(sequence)[1].fill_(1)
    assert sequence.tolist() == [[0, 1, 1, 1, 1]]


def test_one_scale() -> None:
    schedule = ScaleSchedule(sizes=((2, 3),))
    assert (schedule.num_scales, schedule.num_tokens, schedule.latent_size) == (1, 6, (2, 3))
    assert schedule.offsets == (0, 6)
    assert schedule.phi_of_scale(4) == (0,)


def test_a_scale_that_is_not_square() -> None:
    schedule = ScaleSchedule(sizes=((1, 2), (2, 4)))
    assert schedule.num_cells == (2, 8)
    assert schedule.level_ids == (0, 0, 1, 1, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(("pixels", "num_tokens"), [(256, 680), (512, 2240)])
def test_presets(pixels: int, num_tokens: int) -> None:
    schedule = PRESETS[pixels]
    assert schedule.num_tokens == num_tokens
    assert schedule.num_scales == 10
    assert schedule.latent_size == (pixels // 16, pixels // 16)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((), "at least one scale"),
        (((0, 1), (2, 2)), r"scale \(0, 1\) does not fit"),
        (((3, 1), (2, 2)), r"scale \(3, 1\) does not fit.*\(2, 2\)"),
        (((1, 3), (2, 2)), "coarse to fine"),
    ],
)
def test_sizes_that_make_no_pyramid(sizes: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScaleSchedule(sizes=sizes)


def test_split_and_join_name_both_lengths() -> None:
    schedule = ScaleSchedule.square([1, 2])
    with pytest.raises(ValueError, match=r"expected \(B, 5, \.\.\.\).*given \(2, 6\)"):
        schedule.split(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"expected \(B, 5, \.\.\.\).*given \(5,\)"):
        schedule.split(torch.zeros(5))
    with pytest.raises(ValueError, match=r"\(1, 4\) cells, given \(4, 1\)"):
        schedule.join([torch.zeros(1, 4), torch.zeros(1, 1)])
    with pytest.raises(ValueError, match=r"given \(1,\)"):
        schedule.join([torch.zeros(1, 1)])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_a_schedule_for_any_latent_map(height: int, width: int, num_scales: int) -> None:
    schedule = ScaleSchedule.for_latent(height, width, num_scales)
    assert schedule.latent_size == (height, width)
    assert 1 <= schedule.num_scales <= num_scales
    areas = schedule.num_cells
    assert all(small < large for small, large in itertools.pairwise(areas))
    if num_scales > 1:
        assert min(schedule.sizes[0]) == 1


def test_a_schedule_that_grows_evenly() -> None:
    assert ScaleSchedule.for_latent(16, 16, 5) == ScaleSchedule.square([1, 2, 4, 8, 16])
    assert ScaleSchedule.for_latent(4, 8, 3).sizes == ((1, 2), (2, 4), (4, 8))


#: What the released implementation computes for four phis; several are ties that rounding in float64 decides.
FOUR_PHIS = {
    3: (0, 2, 3),
    4: (0, 1, 2, 3),
    5: (0, 1, 2, 2, 3),
    6: (0, 0, 1, 2, 3, 3),
    10: (0, 0, 1, 1, 1, 2, 2, 3, 3, 3),
    14: (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3),
}


@pytest.mark.parametrize("num_scales", FOUR_PHIS)
def test_four_phis_are_chosen_as_in_the_released_models(num_scales: int) -> None:
    schedule = ScaleSchedule.square(range(1, num_scales + 1))
    assert schedule.phi_of_scale(4) == FOUR_PHIS[num_scales]


@given(st.integers(1, 20), st.integers(1, 20).filter(lambda number: number != 4))
def test_other_numbers_of_phis(num_scales: int, num_phis: int) -> None:
    chosen = ScaleSchedule.square(range(1, num_scales + 1)).phi_of_scale(num_phis)
    ticks = numpy.linspace(1 / 2 / num_phis, 1 - 1 / 2 / num_phis, num_phis)
    for scale, phi in enumerate(chosen):
        place = scale / max(num_scales - 1, 1)
        assert abs(ticks[phi] - place) == pytest.approx(abs(ticks - place).min())
    assert list(chosen) == sorted(chosen)


def test_no_phi_at_all() -> None:
    with pytest.raises(ValueError, match="num_phis must be at least 1, given 0"):
        ScaleSchedule.square([1, 2]).phi_of_scale(0)
