"""Batches of training images, whose place in the run is one number: the step.

Letters: B batch, V views, N all samples, L tokens of all scales, H W pixels.
Special here: which images a step sees, in which order, cropped where, follows from (seed, step) alone, so
that a resumed run goes on exactly; the number of worker processes changes nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nextscale.data.settings import DataSettings
from nextscale.data.sources import Source
from nextscale.data.transforms import decode_image, resize_and_crop
from nextscale.pixels import to_model
from nextscale.rng import epoch_order, sample_uniforms, sample_uniforms_of

#: Uniform numbers of a sample in an epoch: the first few for the transforms, the rest is `Batch.uniforms_BR`.
NUM_TRANSFORM_UNIFORMS, NUM_UNIFORMS = 4, 260


@dataclass(frozen=True)
class Batch:
    """What a training step reads."""

    items: Tensor  #: images float32 (B, 3, H, W) in [-1, 1], or tokens int64 (B, L) where these were kept
    labels_B: Tensor  #: int64
    uniforms_BR: Tensor  #: float32 in [0, 1): this step's random numbers of each sample
    samples_B: Tensor  #: int64, the number of each sample in its source


@dataclass(frozen=True)
class Place:
    """A sample at a step of training."""

    epoch: int
    sample: int


class _Samples(Dataset):  # type: ignore[type-arg]
    """Turns a place into arrays; runs in the worker processes."""

    def __init__(self, source: Source, size: tuple[int, int], settings: DataSettings, seed: int) -> None:
        self.source, self.size, self.settings, self.seed = source, size, settings, seed

    def __getitem__(self, place: Place) -> tuple[numpy.ndarray, int, numpy.ndarray, int]:
        uniforms = sample_uniforms(self.seed, place.epoch, place.sample, NUM_UNIFORMS)
        image = decode_image(self.source.read(place.sample), self.source.name(place.sample))
        top, left, mirror = uniforms[:3]
        random_place = (top, left) if self.settings.enlarge > 1 else (0.5, 0.5)
        pixels = resize_and_crop(image, self.size, enlarge=self.settings.enlarge, place=random_place)
        if self.settings.flip and mirror < 0.5:
            pixels = pixels[:, ::-1]
        return pixels, int(self.source.labels[place.sample]), _for_training(uniforms), place.sample


def _collate(items: list[tuple[numpy.ndarray, int, numpy.ndarray, int]]) -> Batch:
    pixels, labels, uniforms, samples = zip(*items, strict=True)
    return Batch(
        items=to_model(numpy.stack(pixels)),
        labels_B=torch.tensor(labels, dtype=torch.int64),
        uniforms_BR=torch.from_numpy(numpy.stack(uniforms)),
        samples_B=torch.tensor(samples, dtype=torch.int64),
    )


def _for_training(uniforms: numpy.ndarray) -> numpy.ndarray:
    """What the transforms leave of a sample's numbers: float32, still below 1 after rounding."""
    below_one = numpy.float32(1 - 2**-24)
    return numpy.minimum(uniforms[..., NUM_TRANSFORM_UNIFORMS:].astype(numpy.float32), below_one)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_samples: int) -> numpy.ndarray:
    """`epoch_order`, kept while the epoch lasts: at a million samples it takes longer than a step."""
    order = epoch_order(seed, epoch, num_samples)
    order.setflags(write=False)
    return order


def places_of_step(step: int, *, batch_size: int, num_samples: int, seed: int) -> list[Place]:
    """The samples of a step.

    Epochs are laid end to end, so a source smaller than a batch is no special case.
    """
    places: list[Place] = []
    position = step * batch_size
    while len(places) < batch_size:
        epoch, start = divmod(position + len(places), num_samples)
        order = _order(seed, epoch, num_samples)
        places += [Place(epoch, int(i)) for i in order[start : start + batch_size - len(places)]]
    return places


def token_batches(
    tokens_VNL: numpy.ndarray, labels_N: numpy.ndarray, *, batch_size: int, seed: int, steps: range
) -> Iterator[Batch]:
    """The same samples in the same order with the same random numbers, from kept tokens: epoch e reads view e
    mod V. Of a memory map only what a batch needs is read.
    """
    num_views, num_samples = tokens_VNL.shape[:2]
    for step in steps:
        places = places_of_step(step, batch_size=batch_size, num_samples=num_samples, seed=seed)
        samples_B = numpy.array([place.sample for place in places])
        views_B = numpy.array([place.epoch % num_views for place in places])
        uniforms = sample_uniforms_of(seed, ((place.epoch, place.sample) for place in places), NUM_UNIFORMS)
        yield Batch(
            items=torch.from_numpy(tokens_VNL[views_B, samples_B].astype(numpy.int64)),
            labels_B=torch.from_numpy(labels_N[samples_B]),
            uniforms_BR=torch.from_numpy(_for_training(uniforms)),
            samples_B=torch.from_numpy(samples_B),
        )


def training_batches(
    source: Source, settings: DataSettings, *, size: tuple[int, int], batch_size: int, seed: int, steps: range
) -> Iterator[Batch]:
    """The batches of these steps, images of ``size`` (H, W). Raises ValueError for an unreadable image."""
    num_samples = len(source.labels)
    places = (
        places_of_step(step, batch_size=batch_size, num_samples=num_samples, seed=seed) for step in steps
    )
    return batches_of_places(source, settings, size=size, seed=seed, places=places)


def batches_of_places(
    source: Source, settings: DataSettings, *, size: tuple[int, int], seed: int, places: Iterable[list[Place]]
) -> Iterator[Batch]:
    """A batch of each list of places, cropped and mirrored as training does. Raises as `training_batches`."""
    loader = DataLoader(
        _Samples(source, size, settings, seed),
        batch_sampler=places,
        collate_fn=_collate,
        num_workers=settings.num_workers,
        prefetch_factor=4 if settings.num_workers else None,
        worker_init_fn=_leave_signals_to_the_parent,
    )
    yield from loader


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent finishes its step, then ends us."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def chosen_indices(count: int, limit: int | None) -> numpy.ndarray:
    """Up to ``limit`` numbers spread evenly over ``range(count)``: int64."""
    if limit is None or limit >= count:
        return numpy.arange(count)
    return numpy.linspace(0, count - 1, limit).round().astype(numpy.int64)


def evaluation_batches(
    source: Source, *, size: tuple[int, int], batch_size: int, limit: int | None = None
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """Center crops in order: uint8 (B, H, W, 3) and labels int64 (B,), up to ``limit`` images spread over the
    source.
    """
    chosen = chosen_indices(len(source.labels), limit)
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        images = [
            resize_and_crop(decode_image(source.read(int(i)), source.name(int(i))), size) for i in indices
        ]
        yield numpy.stack(images), source.labels[indices]
