"""The noise that a diffusion prior learns to take away: how much there is at each time, and one step back.

Letters: B batch, L cells, C channels. Alpha-bar of a time: the share of the features' variance that is left.
Special here: 1000 times with betas that grow linearly from 1e-4 to 0.02, as in DDPM (arXiv 2006.11239,
section 4) and DiT (arXiv 2212.09748). They are constants: a model learned with them would be wrong with
others.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

NUM_TIMES = 1000
_FIRST_BETA, _LAST_BETA = 1e-4, 0.02


def alpha_bars() -> numpy.ndarray:
    """Alpha-bar after each time: float64 (1000,), falling from near 1 to near 0 (DDPM, equation 4)."""
    bars: numpy.ndarray = numpy.cumprod(1 - numpy.linspace(_FIRST_BETA, _LAST_BETA, NUM_TIMES))
    return bars


def add_noise(clean_BLC: Tensor, noise_BLC: Tensor, times_B: Tensor) -> Tensor:
    """sqrt(alpha-bar) clean + sqrt(1 - alpha-bar) noise (DDPM, equation 4).

    Args:
        clean_BLC: float32 (B, L, C), standardised features.
        noise_BLC: float32 (B, L, C), standard normal.
        times_B: int64 (B,) in [0, 1000).
    """
    bars_B = torch.from_numpy(alpha_bars()).to(times_B.device)[times_B][:, None, None]
    return bars_B.sqrt().to(clean_BLC.dtype) * clean_BLC + (1 - bars_B).sqrt().to(clean_BLC.dtype) * noise_BLC


class Step(NamedTuple):
    """A step of sampling, from one time to an earlier one."""

    time: int  #: in [0, 1000), what the prior is told
    bar: float  #: alpha-bar at this time
    next_bar: float  #: alpha-bar where the step ends; 1 at the last one


def steps_back(count: int) -> list[Step]:
    """``count`` steps from pure noise to none, at evenly spaced times from 999 to 0.

    Raises:
        ValueError: a count outside 1 to 1000.
    """
    if not 1 <= count <= NUM_TIMES:
        raise ValueError(f"num_steps {count} is out of range: expected 1 to {NUM_TIMES}")
    times = [NUM_TIMES - 1] if count == 1 else numpy.linspace(NUM_TIMES - 1, 0, count).round().astype(int)
    bars = alpha_bars()
    ends = [*(float(bars[time]) for time in times), 1.0]
    return [Step(int(time), *span) for time, span in zip(times, pairwise(ends), strict=True)]


def clean_guess(noisy_BLC: Tensor, noise_BLC: Tensor, step: Step) -> Tensor:
    """The features without the noise that they are believed to hold: `add_noise` solved for the clean."""
    result: Tensor = (noisy_BLC - (1 - step.bar) ** 0.5 * noise_BLC) / step.bar**0.5
    return result


def ddim_step(clean_BLC: Tensor, noise_BLC: Tensor, step: Step) -> Tensor:
    """Deterministic (arXiv 2010.02502, equation 12, eta = 0): the same noise, less of it."""
    result: Tensor = step.next_bar**0.5 * clean_BLC + (1 - step.next_bar) ** 0.5 * noise_BLC
    return result


def ddpm_step(noisy_BLC: Tensor, clean_BLC: Tensor, fresh_BLC: Tensor, step: Step) -> Tensor:
    """A draw from the posterior of the next time, given this one and the clean features (DDPM, equation 7).

    Its variance is that posterior's, "beta tilde": fixed, where DiT learns one between it and beta. Where
    steps skip times, alpha is the quotient of the two alpha-bars (arXiv 2102.09672, equation 19).

    Args:
        noisy_BLC: at this time.
        clean_BLC: from `clean_guess`.
        fresh_BLC: standard normal; the last step has variance 0 and does not read it.
        step: from `steps_back`.
    """
    alpha = step.bar / step.next_bar
    of_clean = step.next_bar**0.5 * (1 - alpha) / (1 - step.bar)
    of_noisy = alpha**0.5 * (1 - step.next_bar) / (1 - step.bar)
    variance = (1 - alpha) * (1 - step.next_bar) / (1 - step.bar)
    result: Tensor = of_clean * clean_BLC + of_noisy * noisy_BLC + variance**0.5 * fresh_BLC
    return result
