"""A small network that names what is on an image: the yardstick for samples, and a look at images that
needs no download.

Letters: B batch, H W pixels, K classes, F features.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.features.settings import ClassifierSettings

BUNDLED_CLASSIFIER = Path(__file__).parent / "cifar10-classifier"


class _Level(nn.Module):
    """Convolve, halve the resolution, convolve again."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False), nn.BatchNorm2d(dim_out)
        self.conv2, self.norm2 = (
            nn.Conv2d(dim_out, dim_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim_out),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(F.max_pool2d(self.conv1(x_BCHW), 2)))
        return F.relu(self.norm2(self.conv2(hidden)))


class Classifier(nn.Module):
    """Patches of 2x2 pixels, levels of two convolutions that halve the resolution, one linear layer."""

    def __init__(self, settings: ClassifierSettings) -> None:
        super().__init__()
        self.settings = settings
        self.stem = nn.Conv2d(3, settings.stem_dim, 2)
        dims = (settings.stem_dim, *settings.dims)
        self.levels = nn.ModuleList(_Level(a, b) for a, b in pairwise(dims))
        self.head = nn.Linear(settings.dims[-1], len(settings.class_names), bias=False)

    @torch.no_grad()
    def whiten_stem(self, images_BCHW: Tensor) -> None:
        """Start the stem as a whitening transform of the images' 2x2 patches and its negative.

        The first layer then sees decorrelated patches of unit variance, which saves epochs.

        Args:
            images_BCHW: float (B, 3, H, W) in [-1, 1], some thousand.
        """
        patches = F.unfold(images_BCHW, 2).transpose(1, 2).reshape(-1, 12).double()
        variance, directions = torch.linalg.eigh(torch.cov(patches.T))
        filters = (directions / (variance + 5e-4).sqrt()).T.flip(0)  # the largest variance first
        filters = torch.cat([filters, -filters])[: self.settings.stem_dim].view(-1, 3, 2, 2)
        self.stem.weight[: len(filters)] = filters.to(self.stem.weight)
        assert self.stem.bias is not None
        nn.init.zeros_(self.stem.bias)

    @property
    def smallest_side(self) -> int:
        """Pixels that an image must have along each side."""
        return int(2 ** len(self.levels) + 1)

    def maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Images float (B, 3, H, W) in [-1, 1] of any size that is large enough -> what each level sees."""
        maps = [F.relu(self.stem(images_BCHW))]
        for level in self.levels:
            maps.append(level(maps[-1]))
        return maps[1:]

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [-1, 1] -> (B, F), before the last linear layer."""
        return self.maps(images_BCHW)[-1].amax(dim=(2, 3))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [-1, 1] -> logits (B, K).

        Raises:
            ValueError: images of another size.
        """
        side = self.settings.image_size
        if tuple(images_BCHW.shape[1:]) != (3, side, side):
            raise ValueError(f"expected images (B, 3, {side}, {side}), given {tuple(images_BCHW.shape)}")
        return self.judge(self.features(images_BCHW))

    def judge(self, features_BF: Tensor) -> Tensor:
        """What `features` gives -> logits (B, K)."""
        return self.head(features_BF) / 9  # as if the features had been divided: gentle first steps

    @torch.no_grad()
    def assign(self, images_BCHW: Tensor) -> Tensor:
        """The likeliest class of each image, judged together with its mirror image: int64 (B,).

        Args:
            images_BCHW: float32 (B, 3, H, W) in [-1, 1], of the size in the settings.

        Raises:
            ValueError: images of another size.
        """
        return (self(images_BCHW) + self(images_BCHW.flip(dims=(3,)))).argmax(dim=1)


def save_classifier(folder: Path, classifier: Classifier, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a folder with ``config.json`` and ``classifier.safetensors``."""
    with checkpoint.new_folder(folder) as place:
        checkpoint.write_json(place / "config.json", classifier.settings.model_dump(mode="json"))
        tensors = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in classifier.state_dict().items()
        }
        checkpoint.write_tensors(place / "classifier.safetensors", tensors)


def load_classifier(folder: Path = BUNDLED_CLASSIFIER) -> Classifier:
    """A classifier from its folder, by default the bundled one for CIFAR-10.

    Raises ValueError when it is not there.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no classifier folder: it holds no config.json")
    settings = ClassifierSettings.model_validate(json.loads((folder / "config.json").read_text()))
    classifier = Classifier(settings)
    tensors = {
        name: value.float() if value.is_floating_point() else value
        for name, value in checkpoint.read_tensors(folder / "classifier.safetensors").items()
    }
    checkpoint.load_into(classifier, tensors, source=str(folder))
    return classifier.eval().requires_grad_(False)
