"""Noise and its removal against plain NumPy, and the transformer that guesses it."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from models_for_tests import CLASSES, CODE_DIM, PRIOR_KINDS, make_loud, prior_settings
from nextscale.prior.diffusion import DiffusionPrior, time_waves
from nextscale.prior.noise import Step, add_noise, alpha_bars, clean_guess, ddim_step, ddpm_step, steps_back
from nextscale.scales import ScaleSchedule

SCHEDULE = ScaleSchedule(sizes=((1, 1), (3, 4)))


def _prior(*, loud: bool = True, **changes: Any) -> DiffusionPrior:
    settings = prior_settings(kind="diffusion", **changes)
    prior = DiffusionPrior(settings, SCHEDULE, code_dim=CODE_DIM, num_classes=len(CLASSES))
    if loud:
        make_loud(prior)
    return prior


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor([1, 10, 4]), torch.randn(3, 12, CODE_DIM), torch.tensor([0, 500, 999])


# noise


def test_alpha_bars_are_products_of_what_each_time_leaves() -> None:
    bars, product = alpha_bars(), 1.0
    for time in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * time / 999)
        assert bars[time] == pytest.approx(product, rel=1e-12)
    assert bars[0] == pytest.approx(0.9999) and bars[-1] == pytest.approx(4.0358e-5, rel=1e-4)


def test_noise_added_at_once_is_noise_added_step_by_step() -> None:
    """In distribution: mean factor and variance of the chain of single steps, equation 2 of DDPM."""
    betas, mean, variance = numpy.linspace(1e-4, 0.02, 1000), 1.0, 0.0
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    for time, beta in enumerate(betas):
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        if time % 111 == 0:
            times = torch.tensor([time])
            assert add_noise(one, zero, times).item() == pytest.approx(mean, rel=1e-9)
            assert add_noise(zero, one, times).item() ** 2 == pytest.approx(variance, rel=1e-9)


def test_steps_go_from_the_last_time_to_the_first() -> None:
    bars = alpha_bars()
    for count in (1, 2, 50, 250, 1000):
        steps = steps_back(count)
        times = [step.time for step in steps]
        assert len(steps) == count and times[0] == 999 and times == sorted(set(times), reverse=True)
        assert count == 1 or times[-1] == 0
        assert [step.bar for step in steps] == [bars[time] for time in times]
        assert [step.next_bar for step in steps] == [*(bars[time] for time in times[1:]), 1.0]
    assert [step.time for step in steps_back(1000)] == list(range(999, -1, -1))
    for count in (0, 1001):
        with pytest.raises(ValueError, match=f"num_steps {count} is out of range: expected 1 to 1000"):
            steps_back(count)


def _posterior(clean: float, noisy: float, *, time: int, before: int | None) -> tuple[float, float]:
    """Mean and variance of the earlier one by Bayes' rule, from two Gaussians on paper: prior N(a clean, A)
    of the earlier, likelihood of noisy given it N(r x, R).
    """
    bars = alpha_bars()
    bar, earlier = bars[time], 1.0 if before is None else bars[before]
    prior_mean, prior_variance = earlier**0.5 * clean, 1 - earlier
    slope, spread = (bar / earlier) ** 0.5, 1 - bar / earlier
    if prior_variance == 0:
        return prior_mean, 0.0
    precision = 1 / prior_variance + slope**2 / spread
    return (prior_mean / prior_variance + slope * noisy / spread) / precision, 1 / precision


@pytest.mark.parametrize("count", [4, 50, 250, 1000])
def test_ddpm_draws_from_the_posterior(count: int) -> None:
    steps = steps_back(count)
    numbers = numpy.random.default_rng(0)
    for index in sorted({0, 1, count // 2, count - 2, count - 1}):
        step, before = steps[index], steps[index + 1].time if index + 1 < count else None
        clean, noisy = numbers.normal(size=2)
        mean, variance = _posterior(clean, noisy, time=step.time, before=before)
        noisy_111, clean_111, fresh_111 = (
            torch.full((1, 1, 1), value, dtype=torch.float64) for value in (noisy, clean, 1.0)
        )
        without = ddpm_step(noisy_111, clean_111, torch.zeros_like(fresh_111), step).item()
        assert without == pytest.approx(mean, rel=1e-9, abs=1e-12)
        drawn = ddpm_step(noisy_111, clean_111, fresh_111, step).item()
        assert (drawn - without) ** 2 == pytest.approx(variance, rel=1e-9, abs=1e-20)


def test_whole_steps_have_the_published_posterior() -> None:
    """DDPM, equation 7, in its own symbols, at every time."""
    betas = numpy.linspace(1e-4, 0.02, 1000)
    bars = numpy.cumprod(1 - betas)
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    for step in steps_back(1000)[:-1]:
        t = step.time
        of_clean = bars[t - 1] ** 0.5 * betas[t] / (1 - bars[t])
        of_noisy = (1 - betas[t]) ** 0.5 * (1 - bars[t - 1]) / (1 - bars[t])
        tilde = (1 - bars[t - 1]) / (1 - bars[t]) * betas[t]
        assert ddpm_step(zero, one, zero, step).item() == pytest.approx(of_clean, rel=1e-9)
        assert ddpm_step(one, zero, zero, step).item() == pytest.approx(of_noisy, rel=1e-9)
        assert ddpm_step(zero, zero, one, step).item() ** 2 == pytest.approx(tilde, rel=1e-9)


def test_ddim_keeps_the_noise_and_takes_less_of_it() -> None:
    clean, noise = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for step in steps_back(7):
        noisy = add_noise(clean, noise, torch.full((3,), step.time))
        assert torch.allclose(clean_guess(noisy, noise, step), clean, atol=1e-9)
        expected = numpy.sqrt(step.next_bar) * clean + numpy.sqrt(1 - step.next_bar) * noise
        assert torch.allclose(ddim_step(clean, noise, step), expected, atol=1e-12)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("count", [1, 10, 50])
def test_who_knows_the_noise_arrives_at_the_clean_features(count: int, sampler: str) -> None:
    clean, noisy = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for step in steps_back(count):
        noise = (noisy - step.bar**0.5 * clean) / (1 - step.bar) ** 0.5
        guess = clean_guess(noisy, noise, step)
        if sampler == "ddim":
            noisy = ddim_step(guess, noise, step)
        else:
            noisy = ddpm_step(noisy, guess, torch.randn_like(noisy), step)
    assert torch.allclose(noisy, clean, atol=1e-8)


def test_the_last_ddpm_step_adds_nothing() -> None:
    noisy, clean, fresh = torch.randn(3, 2, 4, 5)
    assert torch.equal(ddpm_step(noisy, clean, fresh, Step(0, 0.9999, 1.0)), clean)


# the transformer


@pytest.mark.parametrize("kind", PRIOR_KINDS, ids=str)
def test_fresh_blocks_pass_everything_on_and_guess_nothing(kind: dict[str, Any]) -> None:
    """AdaLN-zero: shut gates and a head of zeros."""
    prior = _prior(loud=False, **kind)
    labels, noisy, times = _inputs()
    assert prior(labels, noisy, times).abs().max() == 0
    torch.nn.init.normal_(prior.head.weight)
    guess = prior(labels, noisy, times)
    assert guess.abs().max() > 0.1
    assert torch.equal(prior(labels, noisy, times, keep_D2B=torch.zeros(2, 2, 3)), guess)
    opened = _prior(loud=False, gate_init=0.5, **kind)
    torch.nn.init.normal_(opened.head.weight)
    shut = opened(labels, noisy, times, keep_D2B=torch.zeros(2, 2, 3))
    assert not torch.equal(opened(labels, noisy, times), shut)


@pytest.mark.parametrize("kind", PRIOR_KINDS, ids=str)
def test_every_parameter_gets_a_gradient_with_recomputation_the_same(kind: dict[str, Any]) -> None:
    prior, gradients = _prior(**kind), []
    noisy, times = torch.randn(11, 12, CODE_DIM), torch.arange(11) * 90
    for recompute in (False, True):
        prior.zero_grad()
        prior(torch.arange(11), noisy, times, recompute=recompute).square().mean().backward()
        for name, parameter in prior.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        gradients.append([parameter.grad.clone() for parameter in prior.parameters()])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


@torch.no_grad()
def test_label_time_and_every_cell_matter_and_rows_do_not_meet() -> None:
    prior, (labels, noisy, times) = _prior(), _inputs()
    guess = prior(labels, noisy, times)
    assert guess.shape == noisy.shape and guess.dtype == torch.float32
    assert (prior((labels + 1) % 11, noisy, times) - guess).abs().amax(dim=(1, 2)).min() > 1e-2
    assert (prior(labels, noisy, (times + 300) % 1000) - guess).abs().amax(dim=(1, 2)).min() > 1e-2
    changed = noisy.clone()
    changed[1, 7] += 1
    moved = (prior(labels, changed, times) - guess).abs().amax(dim=2)
    assert (moved[1] > 1e-4).all() and moved[0].max() == moved[2].max() == 0
    with pytest.raises(ValueError, match=r"expected \(B, 12, C\), given \(3, 11, 6\)"):
        prior(labels, noisy[:, 1:], times)


def test_waves_tell_all_times_apart() -> None:
    waves = time_waves(torch.arange(1000)).double()
    assert waves.shape == (1000, 256) and waves.abs().max() <= 1
    assert torch.allclose(waves[:, :128].square() + waves[:, 128:].square(), torch.ones(1000, 128).double())
    distances = torch.cdist(waves, waves) + 99 * torch.eye(1000)
    assert distances.min() > 0.5
    assert waves[3, 0].item() == pytest.approx(numpy.cos(3)) and waves[3, 255].item() == pytest.approx(
        numpy.sin(3 * 10_000 ** (-127 / 128)), rel=1e-4
    )


def test_standardising_and_back() -> None:
    prior, features = _prior(), torch.randn(3, CODE_DIM, 3, 4) * 5 + 2
    mean, deviation = torch.randn(CODE_DIM), torch.rand(CODE_DIM) + 0.5
    prior.measure(mean, deviation)
    standardised = prior.standardise(features)
    assert standardised[1, 7, 2] == pytest.approx(float((features[1, 2, 1, 3] - mean[2]) / deviation[2]))
    assert torch.allclose(prior.features(standardised), features, atol=1e-5)
