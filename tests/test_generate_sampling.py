"""From logits to tokens: filters against loops over lists, draws against the probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from models_for_tests import slow_draw, slow_filter
from nextscale.generate import sampling
from nextscale.generate.guidance import guide, ramp
from nextscale.generate.sampling import (
    Draw,
    draw_tokens,
    filter_logits,
    kept_weights,
    kept_weights_by_sorting,
    mix_codes,
)
from nextscale.rng import code_uniforms, token_uniforms

# few different values, so that ties are common
levels = st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0])
rows = st.lists(levels, min_size=2, max_size=9)
EDGES = [0.0, 5e-324, 2.0**-53, 0.5, 1 - 2.0**-53]


def _draw(batch: int = 1, *, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0) -> Draw:
    return Draw.of([top_k] * batch, [top_p] * batch, [temperature] * batch)


def _filtered(logits: Sequence[float], draw: Draw) -> list[float]:
    return filter_logits(torch.tensor([[logits]]), draw).softmax(-1, dtype=torch.float64)[0, 0].tolist()


@given(rows, st.data())
def test_filters_against_loops(logits: list[float], data: st.DataObject) -> None:
    top_k = data.draw(st.integers(0, len(logits)))
    top_p = data.draw(st.sampled_from([1e-9, 0.1, 0.3, 0.5, 0.77, 0.9, 0.999, 1.0]))
    temperature = data.draw(st.sampled_from([0.3, 1.0, 2.5]))
    expected = slow_filter(logits, top_k=top_k, top_p=top_p, temperature=temperature)
    by_k = sorted(slow_filter(logits, top_k=top_k, top_p=1.0, temperature=temperature), reverse=True)
    # a sum within rounding of p may fall on either side
    assume(top_p == 1 or all(abs(total - top_p) > 1e-6 for total in numpy.cumsum(by_k)))
    given_back = _filtered(logits, _draw(top_k=top_k, top_p=top_p, temperature=temperature))
    assert [chance > 0 for chance in given_back] == [chance > 0 for chance in expected]
    assert given_back == pytest.approx(expected, abs=1e-6)


@given(rows, st.floats(1e-300, 1e-12), st.integers(0, 2))
def test_top_p_keeps_at_least_the_likeliest(logits: list[float], top_p: float, top_k: int) -> None:
    chances = _filtered(logits, _draw(top_k=top_k, top_p=top_p))
    assert chances.count(1.0) == 1 and logits[chances.index(1.0)] == max(logits)


@given(st.data())
def test_the_fast_way_keeps_the_same_to_the_last_bit(data: st.DataObject) -> None:
    """Ties, codes without any chance, and settings of every kind side by side."""
    vocab_size, batch = data.draw(st.integers(2, 70)), data.draw(st.integers(1, 3))
    level = st.sampled_from([-torch.inf, -3.0, -0.5, 0.25, 0.2, 2.0]) | st.floats(-9, 9, width=32)
    row = st.lists(level, min_size=vocab_size, max_size=vocab_size).filter(lambda row: max(row) > -torch.inf)
    logits = torch.tensor([[data.draw(row) for _ in range(3)] for _ in range(batch)])
    settings = st.tuples(
        st.integers(0, vocab_size) | st.sampled_from([0, 1]),
        st.sampled_from([1e-9, 0.2, 0.5, 0.6, 0.96, 1.0]),
        st.sampled_from([0.3, 1.0, 2.5]),
    )
    draw = Draw.of(*zip(*(data.draw(settings) for _ in range(batch)), strict=True))
    assert torch.equal(kept_weights(logits, draw), kept_weights_by_sorting(logits, draw))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (900, 1.0), (0, 0.96), (900, 0.96), (1, 0.5)])
@pytest.mark.parametrize("coarse", [False, True], ids=["float32", "ties"])
def test_the_fast_way_at_the_size_of_published_models(top_k: int, top_p: float, coarse: bool) -> None:
    logits = torch.randn(2, 40, 4096) * 3
    logits = logits.bfloat16().float() if coarse else logits
    draw = Draw.of([top_k, 50], [top_p, 0.9], [1.0, 0.8])
    assert torch.equal(kept_weights(logits, draw), kept_weights_by_sorting(logits, draw))


@pytest.mark.parametrize("at_once", [1, 100, 2**18])
def test_drawn_in_parts_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(sampling, "_AT_ONCE", at_once)
    logits, uniforms = torch.randn(3, 7, 40), torch.rand(3, 7, dtype=torch.float64)
    draw = Draw.of([0, 9, 1], [0.8, 1.0, 0.5], [1.0, 0.7, 1.0])
    sums = kept_weights_by_sorting(logits, draw).cumsum(dim=-1)
    expected = (sums <= uniforms[..., None] * sums[..., -1:]).sum(dim=-1)
    assert torch.equal(draw_tokens(logits, uniforms, draw), expected)


def test_ties() -> None:
    """All codes that tie at the k-th place stay; top-p takes the first of equals until it has enough."""
    assert _filtered([0.0, 2.0, 0.0, -1.0, 0.0], _draw(top_k=2))[3] == 0
    assert sum(chance > 0 for chance in _filtered([0.0, 2.0, 0.0, -1.0, 0.0], _draw(top_k=2))) == 4
    assert _filtered([1.0, 1.0, 1.0, 1.0], _draw(top_p=0.5)) == [0.5, 0.5, 0, 0]
    assert _filtered([1.0, 1.0, 1.0, 1.0], _draw(top_p=0.6)) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_off_means_off() -> None:
    logits = torch.randn(2, 3, 11)
    assert torch.equal(filter_logits(logits, _draw(2)), logits)
    assert torch.equal(filter_logits(logits, _draw(2, top_k=11)), logits)


def test_every_row_has_its_own_settings() -> None:
    logits = torch.randn(4, 3, 11)
    settings = [(0, 1.0, 1.0), (3, 1.0, 2.0), (0, 0.4, 0.5), (5, 0.7, 1.0)]
    mixed = Draw.of(*zip(*settings, strict=True))
    uniforms = torch.rand(4, 3, dtype=torch.float64)
    tokens = draw_tokens(logits, uniforms, mixed)
    for row, (top_k, top_p, temperature) in enumerate(settings):
        place = slice(row, row + 1)
        alone = _draw(top_k=top_k, top_p=top_p, temperature=temperature)
        assert torch.equal(filter_logits(logits, mixed)[place], filter_logits(logits[place], alone))
        assert torch.equal(tokens[place], draw_tokens(logits[place], uniforms[place], alone))


@given(rows, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5), st.integers(0, 2))
def test_draws_against_loops(logits: list[float], uniforms: list[float], top_k: int) -> None:
    assume(top_k != 1 or logits.count(max(logits)) == 1)
    chances = slow_filter(logits, top_k=top_k, top_p=1.0, temperature=1.0)
    steps = numpy.cumsum(chances)
    assume(all(abs(step - uniform) > 1e-6 for step in steps for uniform in uniforms))
    tokens = draw_tokens(
        torch.tensor([[logits] * len(uniforms)]),
        torch.tensor([uniforms], dtype=torch.float64),
        _draw(top_k=top_k),
    )
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist() == [slow_draw(chances, uniform) for uniform in uniforms]


@given(st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=30), st.data())
def test_a_code_without_probability_is_never_drawn(logits: list[float], data: st.DataObject) -> None:
    top_k = data.draw(st.integers(0, len(logits)))
    top_p = data.draw(st.sampled_from([1e-6, 0.5, 0.99, 1.0]))
    uniforms = EDGES + data.draw(st.lists(st.floats(0, 1, exclude_max=True), max_size=3))
    draw = _draw(top_k=top_k, top_p=top_p)
    given_BTV = torch.tensor(logits).expand(1, len(uniforms), -1)
    tokens = draw_tokens(given_BTV, torch.tensor([uniforms], dtype=torch.float64), draw)
    chances = filter_logits(given_BTV, draw).softmax(-1, dtype=torch.float64)
    assert (chances.gather(-1, tokens[..., None]) > 0).all()


@pytest.mark.parametrize("alone", [0, 3, 6])
def test_all_probability_on_one_code(alone: int) -> None:
    logits = torch.full((1, len(EDGES), 7), -torch.inf)
    logits[..., alone] = 2.0
    tokens = draw_tokens(logits, torch.tensor([EDGES], dtype=torch.float64), _draw())
    assert tokens.unique().tolist() == [alone]


def _counts(logits: Tensor, uniforms: numpy.ndarray, draw: Draw) -> numpy.ndarray:
    tokens = draw_tokens(logits.expand(1, len(uniforms), -1), torch.from_numpy(uniforms)[None], draw)
    counts: numpy.ndarray = torch.bincount(tokens.flatten(), minlength=logits.shape[-1]).numpy()
    return counts


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (4, 1.0, 1.0), (0, 0.7, 1.0), (6, 0.9, 2.0)]
)
def test_frequencies_are_the_probabilities(top_k: int, top_p: float, temperature: float) -> None:
    logits, number = torch.tensor([0.3, -1.2, 2.0, 0.0, 1.1, -0.4, 0.9, -2.0]), 20_000
    draw = _draw(top_k=top_k, top_p=top_p, temperature=temperature)
    chances = slow_filter(logits.tolist(), top_k=top_k, top_p=top_p, temperature=temperature)
    expected = number * numpy.array(chances)
    even = _counts(logits, (numpy.arange(number) + 0.5) / number, draw)
    assert abs(even - expected).max() <= 1.01
    drawn = _counts(logits, token_uniforms(5, number), draw)
    possible = expected > 0
    assert (drawn[~possible] == 0).all()
    chi_square = (numpy.square(drawn - expected)[possible] / expected[possible]).sum()
    assert chi_square < 24.3  # exceeded once in a thousand by 7 degrees of freedom, more rarely by fewer


def test_greedy_takes_the_likeliest_whatever_the_number_and_the_neighbours() -> None:
    """Equal logits included: a bfloat16 head has many."""
    logits = torch.tensor([[[0.0, 3.0, 3.0, 1.0]], [[0.0, 3.0, 3.0, 1.0]]])
    for uniform in EDGES:
        uniforms = torch.full((2, 1), uniform, dtype=torch.float64)
        assert draw_tokens(logits[:1], uniforms[:1], _draw(top_k=1)).item() == 1
        mixed = Draw.of([1, 0], [1.0, 1.0], [1.0, 1.0])
        assert draw_tokens(logits, uniforms, mixed)[0].item() == 1


def test_smooth_mixes_what_the_filters_leave_and_gets_sharper() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0]).expand(1, 4000, -1)
    noise = torch.from_numpy(code_uniforms(3, 0, 4000, 5))[None]
    weights = {
        share: mix_codes(logits, noise, torch.eye(5), _draw(top_k=3), share=share)[0] for share in (0.0, 1.0)
    }
    for share, mixed in weights.items():
        assert mixed.sum(dim=-1).sub(1).abs().max() < 1e-5
        assert (mixed[:, [2, 4]] == 0).all()
        # the likeliest of logits + Gumbel noise is distributed as a draw: here from logits * (1 + share)
        counts = torch.bincount(mixed.argmax(dim=-1), minlength=5) / 4000
        expected = slow_filter((logits[0, 0] * (1 + share)).tolist(), top_k=3, top_p=1.0, temperature=1.0)
        assert counts.tolist() == pytest.approx(expected, abs=0.03)
    assert weights[0.0].amax(-1).mean() < 0.95 < 0.99 < weights[1.0].amax(-1).mean()


def test_smooth_survives_the_ends_of_the_range() -> None:
    noise = torch.tensor([0.0, 1 - 2.0**-24, 0.5]).expand(1, 2, -1)
    mixed = mix_codes(torch.zeros(1, 2, 3), noise, torch.eye(3), _draw(), share=1.0)
    assert mixed.isfinite().all()


def test_guidance_grows_linearly_from_none() -> None:
    assert [ramp(scale, 5) for scale in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert ramp(0, 1) == 1


def test_guidance_pushes_away_from_the_unconditional_guess() -> None:
    conditional, unconditional = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    weights = torch.tensor([0.0, 0.5, 3.0])
    guided = guide(conditional, unconditional, weights)
    assert torch.equal(guided[0], conditional[0])
    for image, weight in enumerate(weights.tolist()):
        expected = (1 + weight) * conditional[image] - weight * unconditional[image]
        assert torch.allclose(guided[image], expected, atol=1e-6)
