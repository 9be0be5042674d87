"""Sampling with a diffusion prior: from noise to features in small steps.

Letters: B batch, L latent cells, C channels, h w cells.
Special here: all noise of an image comes from its own seed. The features go to the decoder as they are: for
the tokenizer's own features that gives better images than quantising them first (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
from torch import Tensor

from nextscale.generate.guidance import guide
from nextscale.generate.request import Request
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.noise import clean_guess, ddim_step, ddpm_step, steps_back
from nextscale.rng import image_normals


def step_by_step(prior: DiffusionPrior, request: Request) -> Iterator[tuple[None, Tensor]]:
    """After each step, the features (B, C, h, w) as they are then believed to be; there are no tokens."""
    device, guided = request.labels_B.device, request.guided
    labels = request.labels_B
    if guided:  # both branches in one batch
        labels = torch.cat([labels, torch.full_like(labels, prior.unconditional)])
    shape = (len(prior.position), len(prior.mean_C))

    def normals(draw: int) -> Tensor:
        drawn = [image_normals(seed, draw, shape) for seed in request.seeds]
        return torch.from_numpy(numpy.stack(drawn)).to(device)

    noisy_BLC = normals(0)
    for number, step in enumerate(steps_back(request.num_steps), start=1):
        noise_BLC = prior(
            labels, torch.cat([noisy_BLC] * 2) if guided else noisy_BLC, torch.full_like(labels, step.time)
        )
        if guided:
            noise_BLC = guide(noise_BLC[: len(noisy_BLC)], noise_BLC[len(noisy_BLC) :], request.guidance_B)
        clean_BLC = clean_guess(noisy_BLC, noise_BLC, step)
        if request.sampler == "ddim":
            noisy_BLC = ddim_step(clean_BLC, noise_BLC, step)
        else:
            noisy_BLC = ddpm_step(noisy_BLC, clean_BLC, normals(number), step)
        yield None, prior.features(clean_BLC)
