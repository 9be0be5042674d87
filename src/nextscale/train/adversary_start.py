"""Putting a discriminator beside what is trained against it."""

from __future__ import annotations

import torch
from torch import nn

from nextscale.distributed import place
from nextscale.features.vit import load_vit
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.adversary import Adversary
from nextscale.train.discriminator import DinoHeads, DinoView, Discriminator
from nextscale.train.optimizer import ParameterGroup
from nextscale.train.settings import DecoderRun, TokenizerRun


def with_discriminator(
    tokenizer: Tokenizer, run: TokenizerRun | DecoderRun, *, device: torch.device
) -> tuple[Adversary, nn.ModuleDict, tuple[ParameterGroup, ...]]:
    """The adversary of a tokenizer, both as one module, and how the discriminator's part of it is trained.

    Raises:
        ValueError: files of weights that are not there, or are none.
    """
    settings = run.discriminator
    view: DinoView | None = None
    if settings.dino_weights:
        network = load_vit(settings.dino_weights, purpose="weights of DINO")
        view = DinoView(place(network, device))
        discriminator: nn.Module = DinoHeads(settings, view)
    else:
        discriminator = Discriminator(settings, tokenizer.image_size)
    place(discriminator, device)
    group = ParameterGroup(
        "discriminator", lr_factor=settings.lr_factor, betas=settings.betas, clip_norm=settings.clip_norm
    )
    adversary = Adversary(
        discriminator, settings, last_layer=tokenizer.decoder.conv_out.weight, weight=run.losses.adversarial,
        num_steps=run.loop.num_steps, view=view,
    )  # fmt: skip
    return adversary, nn.ModuleDict({"tokenizer": tokenizer, "discriminator": discriminator}), (group,)
