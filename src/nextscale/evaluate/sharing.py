"""Validation images divided among processes, which add up what they find.

Special here: a sharded model wants all processes in every forward pass, so each gets as many batches as the
others; where it has no images left, a gray one keeps it in step, which does not count. A bad image is an
error of all of them.

Letters: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy
import torch

from nextscale.data.loader import NoneReadableError, chosen_indices, evaluation_batches
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source, Subset
from nextscale.distributed import Distributed


class SharedBatch(NamedTuple):
    """What a process evaluates at a time."""

    pixels_BHWC: numpy.ndarray  #: uint8 (B, H, W, 3)
    labels_B: numpy.ndarray  #: int64 (B,)
    counts: bool  #: False: only to keep in step with the others


def shared_batches(
    source: Source, *, size: tuple[int, int], batch_size: int, limit: int | None = None,
    skipped: SkippedImages | None = None, ranks: Distributed,
) -> Iterator[SharedBatch]:  # fmt: skip
    """This process's share of `evaluation_batches`: every n-th of the images that one process would see.

    Raises:
        ValueError: as `evaluation_batches`, on all processes (SharedError) when one of them meets it.
    """
    chosen = chosen_indices(len(source.labels), limit)[ranks.rank :: ranks.world_size]
    batches = evaluation_batches(Subset(source, chosen), size=size, batch_size=batch_size, skipped=skipped)
    stand_in = numpy.full((1, *size, 3), 128, numpy.uint8), numpy.zeros(1, numpy.int64)
    any_readable, none_readable = False, None
    while True:
        given = None
        with ranks.together():
            try:
                given = next(batches, None)
            except NoneReadableError as error:  # others may have better ones
                none_readable = error
        if not ranks.agree(given is not None):
            break
        any_readable = True
        pixels, labels = given or stand_in
        yield SharedBatch(pixels, labels, counts=given is not None)
    with ranks.together():
        if none_readable and not any_readable:
            raise none_readable


def shared_mean(parts: Sequence[numpy.ndarray], ranks: Distributed) -> float:
    """The mean of the numbers in all arrays of all processes, any of which may have none."""
    numbers = numpy.concatenate([numpy.zeros(0), *parts])
    sum_and_count = torch.tensor([numbers.sum(), len(numbers)], dtype=torch.float64)
    ranks.sum_([sum_and_count])
    return float(sum_and_count[0] / sum_and_count[1])
