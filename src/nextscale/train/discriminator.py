"""The networks that tell reconstructions from originals, patch by patch.

Letters: B batch, K blocks that are looked at, D width of a vision transformer, H W pixels, h w patches.
Special here: a spectral norm is estimated by `power_iteration`, once per step, not in the forward pass; so a
batch in parts is the same as a whole one, and a forward pass changes nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.features.vit import VisionTransformer
from nextscale.train.adversary_settings import DiscriminatorSettings

_LARGEST_FACTOR, _GROUPS, _SLOPE = 8, 8, 0.2
#: Iterations at the start, when the estimate knows nothing yet.
_FIRST_ITERATIONS = 20
#: Blocks of a vision transformer that are looked at.
_NUM_VIEWS = 4


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


class DinoView:
    """What a frozen vision transformer sees in an image, at the ends of four equal parts of its depth.

    Images are resized (bilinear, antialiased) to the square that it was trained on, which for the published
    weights has 224 pixels a side; other proportions are not kept. It is no module: neither the optimizer nor
    a checkpoint meets its weights. Gradients pass it to the images.
    """

    def __init__(self, network: VisionTransformer) -> None:
        self.network, depth = network, network.settings.depth
        self.blocks = sorted(
            {max(round(depth * part / _NUM_VIEWS) - 1, 0) for part in range(1, 1 + _NUM_VIEWS)}
        )

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [-1, 1] or somewhat beyond -> (B, K, D, h, w), without class token."""
        side, patch = self.network.settings.image_size, self.network.settings.patch_size
        if images_BCHW.shape[2:] != (side, side):
            images_BCHW = F.interpolate(images_BCHW, size=(side, side), mode="bilinear", antialias=True)
        seen = self.network.after_blocks((images_BCHW + 1) / 2, self.blocks)
        seen_BKTD = torch.stack(seen, dim=1)[:, :, 1:]
        return seen_BKTD.transpose(2, 3).unflatten(3, (side // patch, side // patch))


class DinoHeads(nn.Module):
    """A small head for each block that `DinoView` looks at (Sauer et al. 2023, arXiv 2301.09515, section
    3.2).

    As in `Discriminator` what is said of an image depends on that image alone.
    """

    def __init__(self, settings: DiscriminatorSettings, view: DinoView) -> None:
        super().__init__()
        width = view.network.settings.width
        self.heads = nn.ModuleList(DinoHead(settings, width) for _ in view.blocks)

    def forward(self, seen_BKDhw: Tensor) -> Tensor:
        """What `DinoView` gives -> logits float32 (B, K * h, w), above 0 for originals."""
        views = seen_BKDhw.unbind(dim=1)
        return torch.cat([head(view) for head, view in zip(self.heads, views, strict=True)], dim=1).float()


class DinoHead(nn.Module):
    """Two convolutions, the second around a shortcut, and a judgement: (B, D, h, w) -> (B, h, w)."""

    def __init__(self, settings: DiscriminatorSettings, width: int) -> None:
        super().__init__()
        dim = settings.base_dim
        self.conv1 = _convolution(width, dim, 1, settings, stride=1)
        self.conv2 = _convolution(dim, dim, 3, settings, stride=1)
        self.norm1, self.norm2 = nn.GroupNorm(_GROUPS, dim), nn.GroupNorm(_GROUPS, dim)
        self.judge = _convolution(dim, 1, 1, settings, stride=1)

    def forward(self, seen_BDhw: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.norm1(self.conv1(seen_BDhw)), _SLOPE)
        hidden = hidden + F.leaky_relu(self.norm2(self.conv2(hidden)), _SLOPE)
        return self.judge(hidden).squeeze(1)


def improve_spectral_norms(module: nn.Module) -> None:
    """Bring the estimates of all spectral norms nearer, if there are any; once per step."""
    for part in module.modules():
        if isinstance(part, SpectralConv2d):
            part.power_iteration()


def _convolution(
    dim_in: int, dim_out: int, size: int, settings: DiscriminatorSettings, *, stride: int
) -> nn.Conv2d:
    kind = SpectralConv2d if settings.spectral_norm else nn.Conv2d
    return kind(dim_in, dim_out, size, stride=stride, padding=(size - 1) // 2)
