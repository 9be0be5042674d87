"""What a tokenizer loses by its reconstructions: pixels, and what a network sees in them.

Letters: B batch, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.distributed import place
from nextscale.features.perceptual import PerceptualDistance, load_perceptual
from nextscale.features.weights import weights_digest
from nextscale.train.settings import DecoderRun, ReconstructionLosses, TokenizerRun


class ReconstructionLoss:
    """The weighted sum of absolute, squared and perceptual error.

    The perceptual network is no part of what is trained or saved; it exists when its weight is above 0.
    """

    def __init__(
        self, run: TokenizerRun | DecoderRun, *, image_size: tuple[int, int], device: torch.device
    ) -> None:
        """Raises ValueError where the perceptual network's files are missing or it needs larger images."""
        self.weights: ReconstructionLosses = run.losses
        self.perceptual: PerceptualDistance | None = None
        if run.losses.perceptual:
            self.perceptual = place(load_perceptual(run.perceptual), device)
            self.perceptual.check_size(image_size)

    def __call__(self, decoded_BCHW: Tensor, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts. Images float32 (B, 3, H, W), originals in [-1, 1]."""
        error = decoded_BCHW - images_BCHW
        l1, l2 = error.abs().mean(), error.square().mean()
        loss, numbers = self.weights.l1 * l1 + self.weights.l2 * l2, {"l1": l1, "l2": l2}
        if self.perceptual is not None:
            distance = self.perceptual(decoded_BCHW, images_BCHW).mean()
            loss, numbers["perceptual"] = loss + self.weights.perceptual * distance, distance
        return loss, numbers


def loss_digests(run: TokenizerRun | DecoderRun) -> dict[str, str]:
    """SHA-256 of the files of other networks that decide what is learnt, as far as a run uses any."""
    losses, perceptual = run.losses, run.perceptual
    files = {
        "perceptual_weights_sha256": perceptual.weights if losses.perceptual else "",
        "perceptual_heads_sha256": perceptual.heads if losses.perceptual else "",
        "dino_weights_sha256": run.discriminator.dino_weights,
    }
    return {
        name: weights_digest(source, purpose=name.removesuffix("_sha256"))
        for name, source in files.items()
        if source
    }
