"""The convolutions of VGG16 (Simonyan and Zisserman 2014, arXiv 1409.1556, table 1, column D).

Letters: B batch, H W pixels.
Special here: names are our own; `load_vgg16` finds the tensors under the names of torchvision and of LPIPS.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.features.weights import read_weights

_NUM_CONVOLUTIONS, _DIMS = (2, 2, 3, 3, 3), (64, 128, 256, 512, 512)
#: What LPIPS subtracts from images in [-1, 1] and divides by: mean and spread of ImageNet's colours.
_SHIFT, _SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class VGG16(nn.Module):
    """Five blocks of 3x3 convolutions, the resolution halved between them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        dim_in = 3
        for count, dim in zip(_NUM_CONVOLUTIONS, _DIMS, strict=True):
            dims = [dim_in] + [dim] * count
            self.blocks.append(
                nn.ModuleList(nn.Conv2d(dims[i], dims[i + 1], 3, padding=1) for i in range(count))
            )
            dim_in = dim

    @property
    def smallest_side(self) -> int:
        """Pixels that an image must have along each side."""
        return int(2 ** (len(self.blocks) - 1))

    def maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Images float (B, 3, H, W) in [-1, 1] -> the last activations of the five blocks."""
        shift, spread = (images_BCHW.new_tensor(values)[:, None, None] for values in (_SHIFT, _SPREAD))
        hidden = (images_BCHW - shift) / spread
        maps: list[Tensor] = []
        for block in self.blocks:
            if maps:
                hidden = F.max_pool2d(hidden, 2)
            assert isinstance(block, nn.ModuleList)
            for convolution in block:
                hidden = F.relu(convolution(hidden))
            maps.append(hidden)
        return maps


def load_vgg16(source: str) -> VGG16:
    """VGG16 with the weights of a file, frozen.

    Args:
        source: see `nextscale.features.weights.read_weights`; names as torchvision gives them
            (``features.0.weight``) or as LPIPS does (``net.slice1.0.weight``).

    Raises:
        ValueError: the file cannot be read, lacks a tensor (the first ones are named), or has other shapes.
    """
    given = read_weights(source, purpose="weights of vgg16")
    with torch.device("meta"):
        network = VGG16()
    tensors: dict[str, Tensor] = {}
    # a convolution and its ReLU take two places in torchvision's list, a pooling one
    starts = accumulate((2 * count + 1 for count in _NUM_CONVOLUTIONS), initial=0)
    for block, (start, count) in enumerate(zip(starts, _NUM_CONVOLUTIONS, strict=False)):
        for index in range(count):
            place = start + 2 * index
            for kind in ("weight", "bias"):
                names = (f"features.{place}.{kind}", f"net.slice{block + 1}.{place}.{kind}")
                value = _first(given, names)
                if value is not None:
                    tensors[f"blocks.{block}.{index}.{kind}"] = value.float()
    if not tensors:
        raise ValueError(
            f"{source} holds no weights of vgg16: expected names such as features.0.weight (torchvision) or "
            f"net.slice1.0.weight (LPIPS), found {', '.join(list(given)[:3]) or 'nothing'}"
        )
    checkpoint.load_into(network, tensors, source=source)
    return network.eval().requires_grad_(False)


def load_heads(source: str) -> list[Tensor]:
    """The weights per channel that LPIPS learned for VGG16 (arXiv 1801.03924): five float32 (C,).

    Raises:
        ValueError: the file cannot be read, lacks a head, or has heads of another width.
    """
    given = read_weights(source, purpose="heads of LPIPS")
    heads = []
    for level, dim in enumerate(_DIMS):
        names = (f"lin{level}.model.1.weight", f"lins.{level}.model.1.weight")
        value = _first(given, names)
        if value is None or value.numel() != dim:
            raise ValueError(
                f"{source} holds no heads of LPIPS for vgg16: expected {names[0]} with {dim} numbers, found "
                f"{', '.join(list(given)[:3]) if value is None else tuple(value.shape)}"
            )
        heads.append(value.float().flatten())
    return heads


def _first(given: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor | None:
    return next((given[name] for name in names if name in given), None)
