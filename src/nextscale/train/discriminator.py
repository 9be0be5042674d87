"""The network that tells reconstructions from originals, patch by patch.

Letters: B batch, H W pixels, h w patches.
Special here: a spectral norm is estimated by `power_iteration`, once per step, not in the forward pass; so a
batch in parts is the same as a whole one, and a forward pass changes nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.train.settings import DiscriminatorSettings

_LARGEST_FACTOR, _GROUPS, _SLOPE = 8, 8, 0.2
#: Iterations at the start, when the estimate knows nothing yet.
_FIRST_ITERATIONS = 20


class SpectralConv2d(nn.Conv2d):
    """A convolution whose kernel is divided by its largest singular value (Miyato et al. 2018, arXiv
    1802.05957, equation 8).
    """

    left: Tensor
    right: Tensor

    def __init__(self, dim_in: int, dim_out: int, size: int, *, stride: int, padding: int) -> None:
        super().__init__(dim_in, dim_out, size, stride=stride, padding=padding)
        self.register_buffer("left", F.normalize(torch.randn(dim_out), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(dim_in * size * size), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self.power_iteration()

    @torch.no_grad()
    def power_iteration(self) -> None:
        """Turn both vectors towards the singular vectors of the kernel."""
        matrix = self.weight.flatten(1)
        self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))
        self.left.copy_(F.normalize(matrix @ self.right, dim=0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        with torch.autocast(x_BCHW.device.type, enabled=False):
            largest = self.left @ (self.weight.flatten(1) @ self.right)
            weight = self.weight / largest
        return self._conv_forward(x_BCHW, weight, self.bias)


class Discriminator(nn.Module):
    """Strided convolutions; every output judges one patch (Isola et al. 2017, arXiv 1611.07004).

    Norms are over groups within an image: what it says of an image depends on that image alone.
    """

    def __init__(self, settings: DiscriminatorSettings, image_size: tuple[int, int]) -> None:
        super().__init__()
        if min(image_size) < 2**settings.num_levels:
            raise ValueError(
                f"discriminator.num_levels {settings.num_levels} leaves nothing of {image_size[0]} x "
                f"{image_size[1]} pixels: give at most {min(image_size).bit_length() - 1}"
            )
        dims = [settings.base_dim * min(2**level, _LARGEST_FACTOR) for level in range(settings.num_levels)]
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for dim_in, dim_out in zip([3, *dims], dims, strict=False):
            self.convolutions.append(_convolution(dim_in, dim_out, 4, settings, stride=2))
            # the first level has no norm: it would take the contrast out of the image
            self.norms.append(nn.GroupNorm(_GROUPS, dim_out) if dim_in != 3 else nn.Identity())
        self.head = _convolution(dims[-1], 1, 3, settings, stride=1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [-1, 1] -> logits float32 (B, h, w), above 0 for originals."""
        hidden = images_BCHW
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = F.leaky_relu(norm(convolution(hidden)), _SLOPE)
        return self.head(hidden).squeeze(1).float()

    def power_iteration(self) -> None:
        """Improve the estimates of the spectral norms, if there are any; once per step."""
        for module in self.modules():
            if isinstance(module, SpectralConv2d):
                module.power_iteration()


def _convolution(
    dim_in: int, dim_out: int, size: int, settings: DiscriminatorSettings, *, stride: int
) -> nn.Conv2d:
    kind = SpectralConv2d if settings.spectral_norm else nn.Conv2d
    return kind(dim_in, dim_out, size, stride=stride, padding=1)
