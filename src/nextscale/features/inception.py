"""The Inception network of FID: Inception v3 as published by Google on 2015-12-05 (Szegedy et al. 2015, arXiv
1512.00567; Heusel et al. 2017, arXiv 1706.08500).

Letters: B batch, C channels, H W pixels or cells.
Special here: names are those of the published PyTorch port of its weights, ``pt_inception-2015-12-05``, and
the network is a table of these names. It is not the Inception v3 of torchvision: its pooling skips what lies
beyond the edge, its last block pools with the maximum, it knows 1008 classes, and images are enlarged as
TensorFlow 1 did, with the top left corners of pixels aligned rather than their centers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.features.weights import read_weights

IMAGE_SIZE, POOL_DIM, NUM_LOGITS = 299, 2048, 1008

#: A convolution: channels, kernel height, kernel width.
Layer = tuple[int, int, int]
#: What a branch does one after the other; two layers in one place see the same and are concatenated.
Branch = list[Layer | tuple[Layer, Layer]]


def _block_35(pool_dim: int) -> dict[str, Branch]:
    return {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [(48, 1, 1), (64, 5, 5)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
        "branch_pool": [(pool_dim, 1, 1)],
    }


def _block_17(dim: int) -> dict[str, Branch]:
    return {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [(dim, 1, 1), (dim, 1, 7), (192, 7, 1)],
        "branch7x7dbl": [(dim, 1, 1), (dim, 7, 1), (dim, 1, 7), (dim, 7, 1), (192, 1, 7)],
        "branch_pool": [(192, 1, 1)],
    }


def _block_8() -> dict[str, Branch]:
    fork: tuple[Layer, Layer] = (384, 1, 3), (384, 3, 1)
    return {
        "branch1x1": [(320, 1, 1)],
        "branch3x3": [(384, 1, 1), fork],
        "branch3x3dbl": [(448, 1, 1), (384, 3, 3), fork],
        "branch_pool": [(192, 1, 1)],
    }


#: The first layers: channels, side of the kernel, stride, padding; the image is halved after the names below.
_STEM = {
    "Conv2d_1a_3x3": (32, 3, 2, 0), "Conv2d_2a_3x3": (32, 3, 1, 0), "Conv2d_2b_3x3": (64, 3, 1, 1),
    "Conv2d_3b_1x1": (80, 1, 1, 0), "Conv2d_4a_3x3": (192, 3, 1, 0),
}  # fmt: skip
_POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
_BLOCKS: dict[str, dict[str, Branch]] = {
    "Mixed_5b": _block_35(32), "Mixed_5c": _block_35(64), "Mixed_5d": _block_35(64),
    "Mixed_6a": {
        "branch3x3": [(384, 3, 3)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
        "branch_pool": [],
    },
    "Mixed_6b": _block_17(128), "Mixed_6c": _block_17(160), "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": {
        "branch3x3": [(192, 1, 1), (320, 3, 3)],
        "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)],
        "branch_pool": [],
    },
    "Mixed_7b": _block_8(), "Mixed_7c": _block_8(),
}  # fmt: skip
_HALVING, _POOLS_WITH_MAXIMUM, _SPATIAL = ("Mixed_6a", "Mixed_7a"), ("Mixed_7c",), "Mixed_6d"


class _Convolution(nn.Module):
    def __init__(self, dim_in: int, layer: Layer, *, stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        dim, height, width = layer
        self.conv = nn.Conv2d(dim_in, dim, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(dim, eps=1e-3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHW)))


class _Block(nn.Module):
    """Branches side by side; where it halves, the last layer of each takes every second cell."""

    def __init__(self, name: str, dim_in: int) -> None:
        super().__init__()
        self.halves, self.maximum = name in _HALVING, name in _POOLS_WITH_MAXIMUM
        self.steps: dict[str, list[list[str]]] = {}
        self.dim = 0
        for branch, layers in _BLOCKS[name].items():
            dim, self.steps[branch] = dim_in, []
            for number, place in enumerate(layers, start=1):
                fork = place if isinstance(place[0], tuple) else (place,)
                halves = self.halves and number == len(layers)
                names = [f"{branch}_{number}" if len(layers) > 1 else branch]
                if len(fork) > 1:
                    names = [f"{names[0]}{letter}" for letter in "ab"]
                for key, layer in zip(names, fork, strict=True):
                    padding = (0, 0) if halves else (layer[1] // 2, layer[2] // 2)
                    convolution = _Convolution(dim, layer, stride=2 if halves else 1, padding=padding)
                    self.add_module(key, convolution)
                self.steps[branch].append(names)
                dim = sum(layer[0] for layer in fork)
            self.dim += dim

    def forward(self, x_BCHW: Tensor) -> Tensor:
        outputs = []
        for branch, steps in self.steps.items():
            hidden = self._pooled(x_BCHW) if branch == "branch_pool" else x_BCHW
            for names in steps:
                hidden = torch.cat([self.get_submodule(name)(hidden) for name in names], dim=1)
            outputs.append(hidden)
        return torch.cat(outputs, dim=1)

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        if self.halves:
            return F.max_pool2d(x_BCHW, 3, stride=2)
        if self.maximum:
            return F.max_pool2d(x_BCHW, 3, stride=1, padding=1)
        return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)


class InceptionFID(nn.Module):
    """The network; `load_inception` gives it its weights."""

    def __init__(self) -> None:
        super().__init__()
        dim = 3
        for name, (dim_out, side, stride, padding) in _STEM.items():
            layer = (dim_out, side, side)
            self.add_module(name, _Convolution(dim, layer, stride=stride, padding=(padding, padding)))
            dim = dim_out
        for name in _BLOCKS:
            block = _Block(name, dim)
            self.add_module(name, block)
            dim = block.dim
        self.fc = nn.Linear(dim, NUM_LOGITS)

    def maps(self, pixels_BCHW: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Images uint8 (B, 3, H, W) of any size -> name and map of each stage, one after the other."""
        hidden = (resize_as_tensorflow_1(pixels_BCHW.float(), IMAGE_SIZE) - 128) / 128
        for name in _STEM:
            hidden = self.get_submodule(name)(hidden)
            if name in _POOLED:
                hidden = F.max_pool2d(hidden, 3, stride=2)
            yield name, hidden
        for name in _BLOCKS:
            hidden = self.get_submodule(name)(hidden)
            yield name, hidden

    def forward(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """What FID, sFID and the inception score are made of.

        - ``pool`` (B, 2048): the mean over cells of the last map.
        - ``spatial`` (B, 2023): the first 7 channels of the 17 x 17 map after ``Mixed_6d`` (TensorFlow's
          ``mixed_6/conv``), cell by cell, channels last: the order of the published reference statistics.
        - ``logits_unbiased`` (B, 1008): the last layer without its bias.

        Args:
            pixels_BCHW: uint8 (B, 3, H, W), enlarged or shrunk to 299 pixels a side.
        """
        outputs, last = {}, pixels_BCHW
        for name, last in self.maps(pixels_BCHW):
            if name == _SPATIAL:
                outputs["spatial"] = last[:, :7].permute(0, 2, 3, 1).flatten(1)
        pool = last.mean(dim=(2, 3))
        return {**outputs, "pool": pool, "logits_unbiased": F.linear(pool, self.fc.weight)}


def resize_as_tensorflow_1(images_BCHW: Tensor, side: int) -> Tensor:
    """Bilinear resizing to a square as TensorFlow 1 did it by default: float (B, C, H, W) of any range.

    Pixel i of the result lies at i * H / side of the image, without the half pixels that PyTorch and
    TensorFlow 2 add; beyond the last pixel its value goes on. Nothing is smoothed when images shrink.
    """
    for dim in (2, 3):
        size = images_BCHW.shape[dim]
        if size == side:
            continue
        device = images_BCHW.device
        place = torch.arange(side, dtype=torch.float32, device=device) * (size / side)
        before = place.long()
        after = (before + 1).clamp(max=size - 1)
        share = (place - before).view(-1, 1) if dim == 2 else place - before
        first = images_BCHW.index_select(dim, before)
        images_BCHW = first + (images_BCHW.index_select(dim, after) - first) * share
    return images_BCHW


def load_inception(source: str) -> InceptionFID:
    """The network with the weights of a file, frozen.

    Args:
        source: see `nextscale.features.weights.read_weights`; names as in the published
            ``pt_inception-2015-12-05-6726825d.pth``.

    Raises:
        ValueError: the file cannot be read, or does not hold exactly these tensors.
    """
    with torch.device("meta"):
        network = InceptionFID()
    checkpoint.load_into(network, read_weights(source, purpose="weights of inception"), source=source)
    return network.eval().requires_grad_(False)
