"""Batches of training images, whose place in the run is one number: the step.

Letters: B batch, V views, N all samples, L tokens of all scales, H W pixels.
Special here: which images a step sees, in which order, cropped where, follows from (seed, step) alone, so
that a resumed run goes on exactly; the number of worker processes changes nothing. Of several processes that
train together each reads its ``part`` of a step's places. Where bad images are skipped, the next readable one
of the source stands in, with its own random numbers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nextscale.data.settings import DataSettings
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import BadImageError, Source, Subset
from nextscale.data.transforms import read_image, resize_and_crop
from nextscale.pixels import to_model
from nextscale.rng import epoch_order, sample_uniforms, sample_uniforms_of

#: Uniform numbers of a sample in an epoch: the first few for the transforms, the rest is `Batch.uniforms_BR`.
NUM_TRANSFORM_UNIFORMS, NUM_UNIFORMS = 4, 260
#: All places of a step.
WHOLE = slice(None)


@dataclass(frozen=True)
class Batch:
    """What a training step reads."""

    items: Tensor  #: images float32 (B, 3, H, W) in [-1, 1], or tokens int64 (B, L) where these were kept
    labels_B: Tensor  #: int64
    uniforms_BR: Tensor  #: float32 in [0, 1): this step's random numbers of each sample
    samples_B: Tensor  #: int64, the number of each sample in its source
    skipped: tuple[str, ...] = ()  #: names of bad images whose place another one has taken


@dataclass(frozen=True)
class Place:
    """A sample at a step of training."""

    epoch: int
    sample: int


@dataclass(frozen=True)
class _Item:
    """A sample as the worker processes send it."""

    pixels: numpy.ndarray
    label: int
    uniforms: numpy.ndarray
    sample: int
    skipped: tuple[str, ...]


class _Samples(Dataset):  # type: ignore[type-arg]
    """Turns a place into arrays; runs in the worker processes. Gives the error where the run must stop, since
    raised there it would come out wrapped in a traceback.
    """

    def __init__(self, source: Source, size: tuple[int, int], settings: DataSettings, seed: int) -> None:
        self.source, self.size, self.settings, self.seed = source, size, settings, seed

    def __getitem__(self, place: Place) -> _Item | ValueError:
        skipped: list[str] = []
        count = len(self.source.labels)
        for sample in ((place.sample + offset) % count for offset in range(count)):
            try:
                return self._item(place.epoch, sample, tuple(skipped))
            except BadImageError as error:
                if self.settings.on_bad_image == "stop":
                    return error
                skipped.append(error.name)
        return _none_readable(skipped)

    def _item(self, epoch: int, sample: int, skipped: tuple[str, ...]) -> _Item:
        uniforms = sample_uniforms(self.seed, epoch, sample, NUM_UNIFORMS)
        top, left, mirror = uniforms[:3]
        random_place = (top, left) if self.settings.enlarge > 1 else (0.5, 0.5)
        pixels = _crop(self.source, sample, self.size, enlarge=self.settings.enlarge, place=random_place)
        if self.settings.flip and mirror < 0.5:
            pixels = pixels[:, ::-1]
        return _Item(pixels, int(self.source.labels[sample]), _for_training(uniforms), sample, skipped)


def _crop(source: Source, index: int, size: tuple[int, int], **options: Any) -> numpy.ndarray:
    """`resize_and_crop` of an image of a source. Raises BadImageError."""
    image = read_image(source, index)
    try:
        return resize_and_crop(image, size, **options)
    except ValueError as error:
        raise BadImageError(source.name(index), error) from error


class NoneReadableError(ValueError):
    """Bad images are left out, and there is no other."""


def _none_readable(names: Sequence[str]) -> NoneReadableError:
    return NoneReadableError(
        f"none of {len(names)} images can be read: {names[0]} and all others are damaged"
    )


def _collate(items: list[_Item | ValueError]) -> Batch | ValueError:
    good = []
    for item in items:
        if isinstance(item, ValueError):
            return item
        good.append(item)
    return Batch(
        items=to_model(numpy.stack([item.pixels for item in good])),
        labels_B=torch.tensor([item.label for item in good], dtype=torch.int64),
        uniforms_BR=torch.from_numpy(numpy.stack([item.uniforms for item in good])),
        samples_B=torch.tensor([item.sample for item in good], dtype=torch.int64),
        skipped=tuple(sorted({name for item in good for name in item.skipped})),
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
    tokens_VNL: numpy.ndarray, labels_N: numpy.ndarray, *, batch_size: int, seed: int, steps: range,
    part: slice = WHOLE,
) -> Iterator[Batch]:  # fmt: skip
    """The same samples in the same order with the same random numbers, from kept tokens: epoch e reads view e
    mod V. Of a memory map only what a batch needs is read.
    """
    num_views, num_samples = tokens_VNL.shape[:2]
    for step in steps:
        places = places_of_step(step, batch_size=batch_size, num_samples=num_samples, seed=seed)[part]
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
    source: Source, settings: DataSettings, *, size: tuple[int, int], batch_size: int, seed: int,
    steps: range, skipped: SkippedImages | None = None, part: slice = WHOLE,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of these steps, images of ``size`` (H, W).

    Args:
        source: images.
        settings: what happens to them, and whether a bad one stops or is skipped.
        size: of the crops.
        batch_size: images per step.
        seed: of every random choice.
        steps: which steps.
        skipped: takes the names of bad images.
        part: which of the places of each step, counted from 0 to ``batch_size``.

    Raises:
        ValueError: an unreadable image, or no readable one at all where bad ones are skipped.
    """
    num_samples = len(source.labels)
    places = (
        places_of_step(step, batch_size=batch_size, num_samples=num_samples, seed=seed)[part]
        for step in steps
    )
    return batches_of_places(source, settings, size=size, seed=seed, places=places, skipped=skipped)


def batches_of_places(
    source: Source, settings: DataSettings, *, size: tuple[int, int], seed: int,
    places: Iterable[list[Place]], skipped: SkippedImages | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """A batch of each list of places, cropped and mirrored as training does. Raises as `training_batches`."""
    loader = DataLoader(
        _Samples(source, size, settings, seed),
        batch_sampler=places,
        collate_fn=_collate,
        num_workers=settings.num_workers,
        prefetch_factor=4 if settings.num_workers else None,
        worker_init_fn=_leave_signals_to_the_parent,
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        if skipped is not None:
            skipped.add(batch.skipped)
        yield batch


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
    source: Source, *, size: tuple[int, int], batch_size: int, limit: int | None = None,
    skipped: SkippedImages | None = None,
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:  # fmt: skip
    """Center crops in order: uint8 (B, H, W, 3) and labels int64 (B,), up to ``limit`` images spread over the
    source.

    Args:
        source: images.
        size: (H, W) of the crops.
        batch_size: images at a time.
        limit: images at most.
        skipped: takes the names of bad images, which are then left out; None: a bad image is an error.

    Raises:
        ValueError: an unreadable image, or no readable one at all where bad ones are left out.
    """
    chosen = chosen_indices(len(source.labels), limit)
    bad: list[str] = []
    for start in range(0, len(chosen), batch_size):
        images, indices = [], []
        for index in chosen[start : start + batch_size]:
            try:
                images.append(_crop(source, int(index), size))
                indices.append(index)
            except BadImageError as error:
                if skipped is None:
                    raise
                bad.append(error.name)
                skipped.add([error.name])
        if images:
            yield numpy.stack(images), source.labels[indices]
    if bad and len(bad) == len(chosen):
        raise _none_readable(bad)


def readable_part(
    source: Source, skipped: SkippedImages, *, on_image: Callable[[], object] = lambda: None
) -> Source:
    """The images of a source that can be read, after reading all of them. ``on_image`` is called after each.

    Raises:
        ValueError: there is none.
    """
    good, bad = [], []
    for index in range(len(source.labels)):
        try:
            read_image(source, index)
            good.append(index)
        except BadImageError as error:
            bad.append(error.name)
        on_image()
    skipped.add(bad)
    if not good:
        raise _none_readable(bad)
    return Subset(source, numpy.array(good)) if bad else source
