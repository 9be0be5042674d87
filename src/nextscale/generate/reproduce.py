"""A picture made again from what it says about itself, and how far both agree.

Letters: H W pixels.
Special here: how a matrix product rounds depends on its shape, so now and then a token that is drawn alone
is another one than in a batch. What else is in the batch does not matter; a picture is therefore made again
in as many copies as images were made together, and its own row is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy
import torch

from nextscale.generate.editing import Editing, box_mask
from nextscale.generate.generator import Generator
from nextscale.generate.provenance import Record, new_record, pixels_digest
from nextscale.generate.request import Label, Sampling, resolve_label


@dataclass(frozen=True)
class Difference:
    """How two pictures of one size differ."""

    num_pixels: int  #: that differ in any channel
    total: int  #: pixels there are
    largest: int  #: difference of a value, of 255


def compare_pixels(first: numpy.ndarray, second: numpy.ndarray) -> Difference:
    """Compare uint8 (H, W, 3). Raises ValueError for two sizes."""
    if first.shape != second.shape:
        sizes = " and ".join(f"{image.shape[1]} x {image.shape[0]}" for image in (first, second))
        raise ValueError(f"the pictures have {sizes} pixels: the file was changed since")
    apart = numpy.abs(first.astype(numpy.int16) - second.astype(numpy.int16)).max(axis=-1)
    return Difference(int((apart > 0).sum()), apart.size, int(apart.max()))


def in_batches(count: int, batch: int) -> list[tuple[int, int]]:
    """For each of so many images: its row in its batch, and how many images that has."""
    return [(index % batch, min(batch, count - index // batch * batch)) for index in range(count)]


def records(
    generator: Generator, labels: Sequence[Label], seeds: Sequence[int], *,
    places: Sequence[tuple[int, int]], model_digest: str, sampling: dict[str, Any], **more: Any,
) -> list[Record]:  # fmt: skip
    """A record for each image of a call.

    Args:
        generator: that makes them.
        labels: one per image.
        seeds: likewise.
        places: the row of each in its batch, and how many images that has (`in_batches`).
        model_digest: of the folder that the generator was loaded from.
        sampling: the settings that were given, one value for all images.
        more: smooth or edit.
    """
    names, made = generator.class_names, []
    if generator.laid_out and generator.dtype == torch.float32:
        more |= {"laid_out": True}
    for label, seed, (row, batch) in zip(labels, seeds, places, strict=True):
        number = None if label is None else resolve_label(label, names)
        more_of_label = {} if number is None else {"class_name": names[number]}
        made.append(
            new_record(
                torch_version=torch.__version__, device=generator.prior.position.device.type,
                dtype=str(generator.dtype), model_digest=model_digest, sampling=generator.sampling(sampling),
                label=number, seed=int(seed), row=row, batch=batch, **more_of_label, **more,
            )
        )  # fmt: skip
    return made


def make_again(
    generator: Generator,
    record: Record,
    *,
    image: numpy.ndarray | None = None,
    mask: numpy.ndarray | None = None,
) -> numpy.ndarray:
    """The picture that a record describes: uint8 (H, W, 3).

    Args:
        generator: the model, in the record's dtype, and laid out as it says.
        record: of a sample or an edit.
        image: of an edit: what was given, as `Generator.edit` took it.
        mask: likewise, where a mask and no box was given.

    Raises:
        ValueError: another image or mask than was given, or settings that this model does not take.
    """
    kind = generator.settings.prior.kind if generator.settings.prior else "next_scale"
    sampling = record.sampling.known_to(kind)
    labels, seeds = [record.label] * record.batch, [record.seed] * record.batch
    if record.edit is None:
        if image is not None or mask is not None:
            raise ValueError("the picture is a sample, no edit: leave out image and mask")
        copies = generator(labels, seeds=seeds, smooth=record.smooth, **cast(Sampling, sampling))
        return copies.images[record.row]
    edit = record.edit
    _check_given(image, edit.image_digest, "image")
    if mask is not None and edit.mask_digest is None:
        had = "a box, which its record holds" if edit.box else "no mask"
        raise ValueError(f"the edit was made with {had}: leave the mask out")
    if edit.box is not None:
        mask = box_mask(edit.box, generator.tokenizer.image_size)
    elif edit.mask_digest is not None:
        _check_given(mask, edit.mask_digest, "mask")
    assert image is not None
    own = edit.settings.model_dump(exclude_unset=True)
    settings = cast(Editing, {**sampling, **own})
    copies = generator.edit(image, mask=mask, labels=labels, seeds=seeds, task=edit.task, **settings)
    return copies.images[record.row]


def _check_given(given: numpy.ndarray | None, digest: str, name: str) -> None:
    if given is None:
        raise ValueError(f"the picture is an edit of another: give the {name} that it was made from")
    if pixels_digest(given) != digest:
        raise ValueError(f"the {name} is not the one that the picture was made from: its digest differs")
