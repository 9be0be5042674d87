"""Networks that turn uint8 images into the features that generators are scored by, behind one call.

Letters: B batch, H W pixels, D features, K classes.
Special here: a score is comparable only where network, weights and resizing are the same, so an extractor
carries the name of its metric and the digest of its weights, which belong beside every number; and it
computes in plain float32, whatever surrounds it (GPUs would round convolutions to TF32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy
import torch
from torch import Tensor

from nextscale import checkpoint
from nextscale.distributed import place
from nextscale.features.classifier import BUNDLED_CLASSIFIER, load_classifier
from nextscale.features.dinov2 import load_dinov2
from nextscale.features.inception import POOL_DIM, load_inception
from nextscale.features.weights import weights_digest

ExtractorName = Literal["inception", "dinov2", "cifar", "classifier"]
_DINOV2_NAMES = {384: "FD-DINOv2-S", 768: "FD-DINOv2-B", 1024: "FD-DINOv2"}


@dataclass(frozen=True)
class Extractor:
    """A frozen network that looks at images."""

    metric_name: str  #: what the Fréchet distance of its pooled features is called
    dim: int  #: D, the width of its pooled features
    digest: str  #: SHA-256 of its file of weights
    image_size: int | None  #: side in pixels that images must have; None: it resizes them itself
    device: torch.device
    look: Callable[[Tensor], dict[str, Tensor]] = field(repr=False)

    @torch.no_grad()
    def __call__(self, images_BHWC: numpy.ndarray) -> dict[str, Tensor]:
        """What the network sees in each image: float32, under ``pool`` (B, D), and more by network.

        Inception adds ``spatial`` (B, 2023) and ``logits_unbiased`` (B, 1008), the classifier ``logits``
        (B, K).

        Args:
            images_BHWC: uint8 (B, H, W, 3).

        Raises:
            ValueError: other arrays, or images of another size than the network takes.
        """
        shape = images_BHWC.shape
        if images_BHWC.dtype != numpy.uint8 or len(shape) != 4 or shape[3] != 3:
            raise ValueError(f"expected images uint8 (B, H, W, 3), given {images_BHWC.dtype} {shape}")
        if self.image_size is not None and shape[1:3] != (self.image_size, self.image_size):
            side = self.image_size
            raise ValueError(
                f"{self.metric_name} is defined on images of {side} x {side} pixels, given {shape[2]} x "
                f"{shape[1]}: resize them, or choose another extractor"
            )
        pixels = torch.from_numpy(numpy.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)))
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        ):
            return self.look(pixels.to(self.device))


def load_extractor(
    name: ExtractorName, weights: str | None = None, *, device: torch.device | None = None
) -> Extractor:
    """A network by its name, frozen.

    - ``cifar``: the bundled classifier for CIFAR-10; ``pool`` is what its last linear layer reads. Each image
      counts as it is: its mirror image is not looked at, or a generator that mirrors half of its images would
      pass unseen.
    - ``classifier``: another one, as ``nextscale train classifier`` leaves it: for images of other sizes and
      classes, or as a second opinion.
    - ``inception``: the network of FID with its published weights, see `nextscale.features.inception`.
    - ``dinov2``: ViT-L/14 for FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675); with ViT-S or ViT-B the name
      says so, since these distances are others.

    Args:
        name: which network.
        weights: see `nextscale.features.weights.read_weights`; of ``classifier`` its folder; None for the
            bundled one.
        device: where it works; the CPU by default.

    Raises:
        ValueError: no such network, weights are missing or given in vain, or they do not fit.
    """
    device = device or torch.device("cpu")
    if name == "cifar":
        if weights is not None:
            raise ValueError(f"weights {weights} given, but cifar is the bundled classifier: leave them out")
        return _classifier(BUNDLED_CLASSIFIER, "FD-CIFAR", device)
    if name == "classifier":
        if not weights:
            raise ValueError(
                "no weights of classifier given: name its folder; nextscale train classifier makes one"
            )
        return _classifier(Path(weights), "FD-CLASSIFIER", device)
    purpose = f"weights of {name}"
    if name == "inception":
        digest = weights_digest(weights or "", purpose=purpose)
        return Extractor("FID", POOL_DIM, digest, None, device, place(load_inception(weights or ""), device))
    if name == "dinov2":
        digest = weights_digest(weights or "", purpose=purpose)
        network = place(load_dinov2(weights or ""), device)
        metric_name = _DINOV2_NAMES.get(network.dim, f"FD-DINOv2-{network.dim}")
        return Extractor(metric_name, network.dim, digest, None, device, network)
    raise ValueError(f"no extractor {name!r}: expected inception, dinov2, cifar or classifier")


def _classifier(folder: Path, metric_name: str, device: torch.device) -> Extractor:
    classifier = place(load_classifier(folder), device)

    def look(pixels_BCHW: Tensor) -> dict[str, Tensor]:
        pool_BD = classifier.features(pixels_BCHW.float() / 127.5 - 1)
        return {"pool": pool_BD, "logits": classifier.judge(pool_BD)}

    digest = checkpoint.digest(folder / "classifier.safetensors")
    settings = classifier.settings
    return Extractor(metric_name, settings.dims[-1], digest, settings.image_size, device, look)
