"""One guided step of DiT-XL/2, as `diffusers` implements it where that is installed, else as we do.

Letters: B batch, C channels, H W cells of the latent map.
Special here: DiT-XL/2 works on a latent map of an eighth of the image's side in patches of 2 x 2 cells, our
prior on a sixteenth, cell by cell: as many places for the same image, and as many operations. `diffusers`
embeds time and class anew in every block (750M parameters in place of 675M).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nextscale.generate.settings import ModelSettings
from nextscale.prior.diffusion import DiffusionPrior
from nextscale.prior.settings import DiffusionSettings
from nextscale.studies.bench.models import random_prior

_LATENT_CHANNELS, _GUIDANCE = 4, 4.0


def dit_step(
    model: ModelSettings, *, dtype: str, device: torch.device
) -> tuple[Callable[[int], Tensor], str]:
    """A function that takes a step for so many images, and what it is: its size and whose implementation.

    Args:
        model: with a diffusion prior on our tokenizer's map, whose sizes are used.
        dtype: of weights and products.
        device: where it works.
    """
    settings = model.prior
    assert isinstance(settings, DiffusionSettings)
    size = "DiT-XL/2" if (settings.depth, settings.width) == (28, 1152) else "DiT"
    if importlib.util.find_spec("diffusers") is None:
        return _our_step(model, dtype=dtype, device=device), f"{size} (own)"
    return _their_step(settings, model, dtype=dtype, device=device), f"{size} (diffusers)"


def _our_step(model: ModelSettings, *, dtype: str, device: torch.device) -> Callable[[int], Tensor]:
    prior = random_prior(model, device).to(getattr(torch, dtype))
    assert isinstance(prior, DiffusionPrior)

    @torch.no_grad()
    def step(batch: int) -> Tensor:
        noisy_BLC = torch.randn(batch, len(prior.position), len(prior.mean_C), device=device)
        labels_B = torch.arange(batch, device=device) % prior.num_classes
        labels_B = torch.cat([labels_B, torch.full_like(labels_B, prior.unconditional)])
        noise = prior(labels_B, torch.cat([noisy_BLC] * 2), torch.full_like(labels_B, 500))
        return _guided(noisy_BLC, noise)

    return step


def _their_step(
    settings: DiffusionSettings, model: ModelSettings, *, dtype: str, device: torch.device
) -> Callable[[int], Tensor]:
    import diffusers

    make: Any = diffusers.DiTTransformer2DModel  # typed in part alone
    side, classes = 2 * model.schedule.latent_size[0], len(model.class_names)
    with torch.device(device):
        network = make(
            num_attention_heads=settings.heads, attention_head_dim=settings.width // settings.heads,
            num_layers=settings.depth, sample_size=side, in_channels=_LATENT_CHANNELS,
            out_channels=2 * _LATENT_CHANNELS, patch_size=2, num_embeds_ada_norm=classes,
        )  # fmt: skip
    network = network.eval().requires_grad_(False).to(getattr(torch, dtype))

    @torch.no_grad()
    def step(batch: int) -> Tensor:
        noisy = torch.randn(batch, _LATENT_CHANNELS, side, side, device=device, dtype=network.dtype)
        labels_B = torch.arange(batch, device=device) % classes
        labels_B = torch.cat([labels_B, torch.full_like(labels_B, classes)])
        times_B = torch.full_like(labels_B, 500)
        both = network(torch.cat([noisy] * 2), timestep=times_B, class_labels=labels_B).sample
        return _guided(noisy, both[:, :_LATENT_CHANNELS])

    return step


def _guided(noisy: Tensor, noise: Tensor) -> Tensor:
    """A step of DDIM from guided noise, with made-up alpha-bars."""
    conditional, unconditional = noise.chunk(2)
    guided = unconditional + _GUIDANCE * (conditional - unconditional)
    clean = (noisy - 0.8 * guided) / 0.6
    result: Tensor = 0.61 * clean + 0.79 * guided
    return result
