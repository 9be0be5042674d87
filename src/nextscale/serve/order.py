"""What a client asks of the engine, and what it hears back. No torch here.

Letters: B images of the order, H W pixels.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy

#: Of `Order.previews`: every picture on the way.
ALL = -1


def shown_stages(count: int, num_stages: int) -> frozenset[int]:
    """Which stages are shown on the way: the first after a third of them, the others evenly to the last; or
    `ALL` of them.
    """
    if count == ALL:
        return frozenset(range(num_stages - 1))
    first = (num_stages - 1) // 3
    shown = (first + place * (num_stages - 1 - first) // count for place in range(count))
    return frozenset(shown) - {num_stages - 1}


@dataclass(frozen=True)
class EditOrder:
    """What of a given image stays; see `Generator.edit`."""

    image: numpy.ndarray  #: uint8 (H, W, 3), as the task wants it
    task: str
    mask: numpy.ndarray | None = None  #: float32 (H, W) in [0, 1]; 1 keeps
    settings: Mapping[str, Any] = field(default_factory=dict)  #: those of `EditSettings`


@dataclass(frozen=True)
class Order:
    """Images that are made together, in one batch."""

    labels: tuple[int | str | None, ...]  #: one per image
    seeds: tuple[int, ...]  #: one per image
    sampling: Mapping[str, Any] = field(default_factory=dict)  #: one value for all; None: the model's own
    edit: EditOrder | None = None
    previews: int = 0  #: how many pictures on the way are wanted, see `shown_stages`
    deadline_s: float | None = None  #: seconds from now until it is worthless; None: the engine's own


@dataclass(frozen=True)
class Update:
    """Pictures of one order, on their way or finished."""

    scale: int  #: from 0
    images: numpy.ndarray  #: uint8 (B, H, W, 3)
    finished: bool
    first: int = 0  #: row of the first one in its batch
    together: int = 0  #: images of that batch, those of other orders too


class Ticket(Protocol):
    """One accepted order. Every accepted order ends in a finished `Update` or an `OrderError`."""

    num_stages: int  #: how many times there are pictures, the finished ones included

    def updates(self) -> AsyncIterator[Update]:
        """Previews, if they were asked for, then the finished pictures; a slow reader misses previews, never
        the last.

        Raises:
            OrderError: why there will be none.
        """

    def result(self, timeout_s: float | None = None) -> Update:
        """Block (any thread) until the finished pictures are there. Raises OrderError, TimeoutError."""

    def cancel(self) -> None:
        """Nobody waits for it any more: it leaves the queue, or its batch if no other order is in that."""


class OrderError(Exception):
    """An order that ends without pictures."""


class QueueFull(OrderError):
    """Not accepted; worth another try after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Closing(OrderError):
    """The server goes down and takes or finishes no more."""


class Refused(OrderError):
    """Its image or mask does not fit; the message says what would."""


class DeadlineExceeded(OrderError):
    """Its deadline came before its pictures."""


class Cancelled(OrderError):
    """Its client left."""


class BatchFailed(OrderError):
    """Something went wrong while its batch was made; the message is fit for strangers."""
