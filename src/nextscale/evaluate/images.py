"""What can be scored or held against: samples of a model, reconstructions, images of a source or of a file.

Letters: B batch, H W pixels, L tokens of all scales.
Special here: all of them give uint8 images by number, so that any process can work on any part; image i of a
model has seed ``first_seed + i``, whichever process makes it and in whatever batch. Nothing is written in
between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy
import torch

from nextscale.data.loader import chosen_indices
from nextscale.data.sources import BadImageError, Source, Subset
from nextscale.data.transforms import read_image, resize_and_crop
from nextscale.evaluate.similarity import SSIM_WINDOW, psnr, ssim
from nextscale.features.perceptual import PerceptualDistance
from nextscale.generate.generator import Generator
from nextscale.pixels import to_model, to_uint8
from nextscale.tokenizer.model import Tokenizer

Extras = dict[str, numpy.ndarray]
_NUM_LOOKED_AT = 100  # images that are searched for JPEGs


class Images(Protocol):
    """Images of one size, by number."""

    count: int
    image_size: tuple[int, int]
    labels: numpy.ndarray | None  # int64 (count,)
    class_names: tuple[str, ...] | None

    def read(self, indices: range) -> tuple[numpy.ndarray, Extras]:
        """Some images in a row, uint8 (B, H, W, 3), and what else is known of each: arrays by name."""
        ...


class Samples:
    """Samples of a model: labels in turn, one seed each."""

    def __init__(
        self, generator: Generator, *, count: int, first_seed: int, sampling: Mapping[str, Any]
    ) -> None:
        self.generator, self.count, self.first_seed, self.sampling = generator, count, first_seed, sampling
        self.class_names: tuple[str, ...] | None = generator.class_names
        self.image_size = generator.tokenizer.image_size
        self.labels: numpy.ndarray | None = numpy.arange(count, dtype=numpy.int64) % len(
            generator.class_names
        )

    def with_sampling(self, changes: Mapping[str, Any]) -> Samples:
        """The same labels and seeds, sampled otherwise."""
        sampling = {**self.sampling, **changes}
        return Samples(self.generator, count=self.count, first_seed=self.first_seed, sampling=sampling)

    def read(self, indices: range) -> tuple[numpy.ndarray, Extras]:
        assert self.labels is not None
        seeds = range(self.first_seed + indices.start, self.first_seed + indices.stop)
        labels = self.labels[indices.start : indices.stop].tolist()
        return self.generator(labels, seeds=seeds, **self.sampling).images, {}


class SourceImages:
    """Images of a source, all of one size.

    Args:
        source: images.
        size: (H, W) to which every image is resized and cropped; None: all must have the size of the first.
        limit: images at most, spread over the source.
    """

    def __init__(
        self, source: Source, *, size: tuple[int, int] | None = None, limit: int | None = None
    ) -> None:
        if limit is not None:
            source = Subset(source, chosen_indices(len(source.labels), limit))
        self.source, self.count, self.resized = source, len(source.labels), size is not None
        self.labels: numpy.ndarray | None = source.labels
        self.class_names: tuple[str, ...] | None = source.class_names
        self.image_size = size or read_image(source, 0).size[::-1]

    def read(self, indices: range) -> tuple[numpy.ndarray, Extras]:
        return numpy.stack([self._image(index) for index in indices]), {}

    def _image(self, index: int) -> numpy.ndarray:
        image = read_image(self.source, index)
        if not self.resized and image.size[::-1] != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"{self.source.name(index)} has {image.height} x {image.width} pixels, the first image "
                f"{height} x {width}: images that are scored must have one size, and are never resized"
            )
        try:
            return resize_and_crop(image, self.image_size)
        except ValueError as error:
            raise BadImageError(self.source.name(index), error) from error

    @property
    def preprocessing(self) -> str:
        """What happens to the images, in words."""
        return (
            "upright, sRGB, short side resized to fit (Lanczos, antialiased), center crop, uint8"
            if self.resized else "upright, sRGB, uint8"
        )  # fmt: skip


class Reconstructions:
    """What a tokenizer makes of images, with ``psnr``, ``ssim``, ``tokens`` and the ``original`` of each.

    Args:
        tokenizer: in evaluation mode.
        originals: the images.
        perceptual: gives ``lpips`` too.
        quantized: False sends the features to the decoder as they are; there are no ``tokens`` then.
    """

    def __init__(
        self, tokenizer: Tokenizer, originals: SourceImages, *, perceptual: PerceptualDistance | None = None,
        quantized: bool = True,
    ) -> None:  # fmt: skip
        self.tokenizer, self.originals, self.count = tokenizer, originals, originals.count
        self.perceptual, self.quantized = perceptual, quantized
        self.image_size = tokenizer.image_size
        self.labels, self.class_names = originals.labels, originals.class_names

    @torch.no_grad()
    def read(self, indices: range) -> tuple[numpy.ndarray, Extras]:
        originals, _ = self.originals.read(indices)
        device = next(self.tokenizer.parameters()).device
        images_BCHW, extras = to_model(originals).to(device), {"original": originals}
        if self.quantized:
            tokens_BL = self.tokenizer.encode(images_BCHW)
            decoded = to_uint8(self.tokenizer.decode(tokens_BL))
            extras["tokens"] = tokens_BL.cpu().numpy()
        else:
            decoded = to_uint8(self.tokenizer.decode_features(self.tokenizer.features(images_BCHW)))
        extras["psnr"] = psnr(originals, decoded)
        if min(self.image_size) >= SSIM_WINDOW:
            extras["ssim"] = ssim(originals, decoded)
        if self.perceptual is not None:
            distances = self.perceptual(to_model(decoded).to(device), to_model(originals).to(device))
            extras["lpips"] = distances.cpu().numpy()
        return decoded, extras


def share_of_jpegs(source: Source) -> float:
    """The share of JPEGs among up to 100 images spread over a source, by their first bytes."""
    indices = chosen_indices(len(source.labels), _NUM_LOOKED_AT)
    return sum(source.read(int(index))[:2] == b"\xff\xd8" for index in indices) / len(indices)


def check_labels(labels: Sequence[int] | numpy.ndarray, num_classes: int, *, where: str) -> None:
    """Raise ValueError for a label beyond the classes."""
    if len(labels) and not 0 <= int(min(labels)) <= int(max(labels)) < num_classes:
        raise ValueError(f"{where} holds labels {min(labels)}..{max(labels)}: expected 0..{num_classes - 1}")
