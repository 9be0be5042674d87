"""A network of three numbers per image, and images in memory, for tests of scoring."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from nextscale.distributed import Distributed
from nextscale.evaluate.measure import make_reference
from nextscale.evaluate.statistics import Reference
from nextscale.features.extractor import Extractor

ALONE = Distributed(0, 1, torch.device("cpu"))
DIM = 3


def mean_colors(*, spatial: bool = False, digest: str = "d" * 64, nan: bool = False) -> Extractor:
    """Mean red, green and blue of each image, in [0, 1]; on request a few pixels as spatial features."""

    def look(pixels_BCHW: Tensor) -> dict[str, Tensor]:
        values = pixels_BCHW.float() / 255
        pool_BD = values.mean(dim=(2, 3)) * (float("nan") if nan else 1)
        seen = {"pool": pool_BD, "logits": 10 * pool_BD}
        return seen | ({"spatial": values[:, :, 0, :2].flatten(1)} if spatial else {})

    return Extractor("FD-CIFAR", DIM, digest, None, torch.device("cpu"), look)


class ArrayImages:
    """Random images, as any other set of images."""

    preprocessing = "none"

    def __init__(self, count: int, *, seed: int = 0, size: tuple[int, int] = (6, 5)) -> None:
        numbers = numpy.random.default_rng(seed)
        tints = numbers.integers(0, 256, (count, 1, 1, 3))
        noise = numbers.integers(0, 256, (count, *size, 3))
        self.pixels = ((tints + noise) // 2).astype(numpy.uint8)
        self.count, self.image_size = count, size
        self.labels: numpy.ndarray | None = numpy.arange(count) % 2
        self.class_names: tuple[str, ...] | None = ("even", "odd")
        self.reads = 0

    def read(self, indices: range) -> tuple[numpy.ndarray, dict[str, numpy.ndarray]]:
        self.reads += len(indices)
        return self.pixels[indices.start : indices.stop], {}


def reference_of(images: ArrayImages, extractor: Extractor, **changes: Any) -> Reference:
    """The statistics of images in memory, made by one process."""
    given = {
        "features": "cifar", "kind": "training", "name": "memory", "ranks": ALONE, "progress": None, **changes
    }  # fmt: skip
    return make_reference(images, extractor, **given)  # type: ignore[arg-type]
