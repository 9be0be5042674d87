"""What a generation gives.

Letters: B batch, L tokens, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image
from torch import Tensor

from nextscale.pixels import grid, to_uint8


@dataclass(frozen=True)
class Preview:
    """The image on its way: after one scale, one row of tokens or one step of diffusion."""

    scale: int  #: its number, from 0
    images: numpy.ndarray  #: uint8 (B, H, W, 3)
    tokens_BL: Tensor | None  #: int64, all so far; None for `smooth` and diffusion


@dataclass(frozen=True)
class Result:
    """Finished images."""

    images_BCHW: Tensor  #: float32 in [-1, 1]
    tokens_BL: Tensor | None  #: int64; None for `smooth` and diffusion, which draw no tokens

    @property
    def images(self) -> numpy.ndarray:
        """The images as uint8 (B, H, W, 3)."""
        return to_uint8(self.images_BCHW)

    def save(self, path: str | Path, *, columns: int | None = None) -> None:
        """Write all images as one picture, ``columns`` side by side (by default about a square)."""
        sheet = grid(self.images, columns=columns or int(numpy.ceil(len(self.images_BCHW) ** 0.5)))
        Image.fromarray(sheet).save(path)
