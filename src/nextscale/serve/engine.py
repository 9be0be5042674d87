"""The engine: one queue, one thread that owns the model, batches of whatever waits.

Letters: B images of an order.
Special here: nothing waits while the machine is idle, and what arrives while a batch runs joins the next. A
batch takes the oldest order and, in their order, all others that may share it and fit. Between two scales the
worker looks up: orders whose deadline passed are told, and a batch that nobody waits for any more ends.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from nextscale.generate.editing import split_settings
from nextscale.generate.generator import Generator
from nextscale.generate.joint import Share, Stage, can_share, num_stages, stages
from nextscale.generate.request import Request, build_request
from nextscale.serve.order import (
    BatchFailed,
    Closing,
    DeadlineExceeded,
    EditOrder,
    Order,
    OrderError,
    QueueFull,
    Refused,
    Update,
)
from nextscale.serve.settings import EngineSettings
from nextscale.serve.waiting import Waiting

_LOG = logging.getLogger(__name__)
_FAILED = "something went wrong while these pictures were made; the server has noted it: try again"
_CLOSING = "the server is closing down: ask another one, or try again later"


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Observer:
    """What is told of the engine's work, mostly from its own thread; one that raises is logged, no more."""

    batch: Callable[[int, float], None] = _nothing  #: images in one that came to its end, and its seconds
    preview: Callable[[float], None] = _nothing  #: seconds from an order's acceptance to its first preview
    end: Callable[[str, float], None] = _nothing  #: of an order: "finished" or its error's name; seconds


@dataclass(frozen=True)
class EngineState:
    """How the engine does."""

    alive: bool  #: whether its thread works
    closing: bool
    queued: int  #: images that wait
    running: int  #: images in the batch that is being made


class Engine:
    """Makes pictures for whoever asks, several orders at a time.

    Args:
        generator: the model; nobody else may use it from now on.
        settings: sizes of batch and queue, and the deadline.
        observer: is told what happens.
    """

    def __init__(
        self, generator: Generator, settings: EngineSettings, *, observer: Observer | None = None
    ) -> None:
        self.generator, self.settings = generator, settings
        self._observer = observer or Observer()
        self._news = threading.Condition()
        self._queue: deque[Waiting] = deque()
        self._running: list[Waiting] = []
        self._closing = False
        self._rate = 0.0  #: images per second of the last batches
        self._worker = threading.Thread(target=self._work, name="nextscale engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._worker.start()

    def state(self) -> EngineState:
        """How it does."""
        with self._news:
            queued, running = _images(self._queue), _images(self._running)
            return EngineState(self._worker.is_alive(), self._closing, queued, running)

    def submit(self, order: Order) -> Waiting:
        """Accept an order; any thread may.

        Returns:
            A `nextscale.serve.order.Ticket`.

        Raises:
            ValueError: labels or settings that this model does not take, or more images than a batch holds.
            QueueFull: too many images wait.
            Closing: the server goes down.
        """
        most = min(self.settings.max_batch, self.settings.max_queue)
        if len(order.seeds) > most:
            raise ValueError(f"{len(order.seeds)} images: at most {most} are made together")
        deadline_s = self.settings.deadline_s if order.deadline_s is None else order.deadline_s
        if not 0 < deadline_s <= self.settings.deadline_s:
            raise ValueError(
                f"deadline {deadline_s:g} s is out of range: expected above 0, at most "
                f"{self.settings.deadline_s:g}"
            )
        request = _checked(self.generator, order)
        stages = num_stages(self.generator, request)
        waiting = Waiting(order, request, num_stages=stages, deadline_s=deadline_s, told=self._ended)
        with self._news:
            if self._closing or not self._worker.is_alive():
                raise Closing(_CLOSING)
            self._queue = deque(other for other in self._queue if not other.ended)  # or they pile up
            queued = _images(self._queue)
            if queued + waiting.size > self.settings.max_queue:
                raise QueueFull(
                    f"{queued} images wait already, of at most {self.settings.max_queue}: try again later",
                    retry_after_s=self._seconds_for(queued),
                )
            self._queue.append(waiting)
            self._news.notify_all()
        return waiting

    def drain(self, grace_s: float) -> None:
        """Accept nothing more, finish what was accepted within ``grace_s`` seconds, tell the others."""
        until = time.monotonic() + grace_s
        with self._news:
            self._closing = True
            self._news.notify_all()
        if self._worker.ident is not None:
            self._worker.join(max(0.0, until - time.monotonic()))
        with self._news:
            left = [*self._queue, *self._running]
            self._queue.clear()
        for waiting in left:
            waiting.end(Closing(_CLOSING))

    def _seconds_for(self, images: int) -> int:
        """Until so many images are made, as far as is known, at least 1."""
        return max(1, math.ceil(images / self._rate)) if self._rate else 2

    def _work(self) -> None:
        while self._take_turn():  # a call of its own, so that nothing of a batch is held while none is made
            pass

    def _take_turn(self) -> bool:
        """Wait for orders and make a batch of them; returns False when there will be none any more."""
        with self._news:
            self._news.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return False  # closing, and all is done
        self._tell_late()
        with self._news:
            self._running = batch = self._next_batch()
        images, started = 0, time.monotonic()
        try:
            images = self._make(batch)
        except Exception:
            _LOG.exception("a batch of %d orders failed", len(batch))
            for waiting in batch:
                waiting.end(BatchFailed(_FAILED))
        seconds = time.monotonic() - started
        with self._news:
            self._running = []
        if images:
            rate = images / max(seconds, 1e-9)
            self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
            self._tell(self._observer.batch, images, seconds)
        return True

    def _next_batch(self) -> list[Waiting]:
        """Take the oldest order from the queue, and all that fit beside it; those that ended are dropped."""
        batch: list[Waiting] = []
        left: list[Waiting] = []
        room = self.settings.max_batch
        for waiting in self._queue:
            if waiting.ended:
                continue
            if waiting.size <= room and (not batch or can_share(batch[0].request, waiting.request)):
                batch.append(waiting)
                room -= waiting.size
            else:
                left.append(waiting)
        self._queue = deque(left)
        return batch

    def _make(self, batch: list[Waiting]) -> int:
        """Returns how many images came to their end; 0: nobody waits for any."""
        shares, made = self._prepare(batch)
        if not made:
            return 0
        for stage in stages(self.generator, shares):
            self._tell_late()
            if all(waiting.ended for waiting in made):
                return 0
            self._show(stage, made)
        return sum(waiting.size for waiting in made)

    def _prepare(self, batch: list[Waiting]) -> tuple[list[Share], list[Waiting]]:
        """Shares of those orders that can be made: what is wrong with one ends that one alone."""
        shares: list[Share] = []
        made: list[Waiting] = []
        for waiting in batch:
            try:
                shares.append(_prepared(self.generator, waiting.order))
                made.append(waiting)
            except ValueError as error:  # its image
                waiting.end(Refused(str(error)))
            except Exception:
                _LOG.exception("an order could not be prepared")
                waiting.end(BatchFailed(_FAILED))
        return shares, made

    def _show(self, stage: Stage, made: list[Waiting]) -> None:
        """Hand out the pictures of one stage to those who want them."""
        wanted = [
            place for place, waiting in enumerate(made)
            if not waiting.ended and (stage.last or stage.number in waiting.shown)
        ]  # fmt: skip
        firsts = [0, *accumulate(waiting.size for waiting in made)]
        for place, images in zip(wanted, stage.pictures(wanted), strict=True):
            update = Update(stage.number, images, stage.last, first=firsts[place], together=firsts[-1])
            if stage.last:
                made[place].end(update)
                continue
            made[place].show(update)
            if stage.number == min(made[place].shown):
                self._tell(self._observer.preview, time.monotonic() - made[place].accepted)

    def _tell_late(self) -> None:
        """End all orders whose deadline passed."""
        now = time.monotonic()
        with self._news:
            late = [waiting for waiting in (*self._queue, *self._running) if waiting.deadline < now]
        for waiting in late:
            waiting.end(DeadlineExceeded("its deadline passed before its pictures were made"))

    def _ended(self, end: Update | OrderError, seconds: float) -> None:
        outcome = "finished" if isinstance(end, Update) else type(end).__name__
        self._tell(self._observer.end, outcome, seconds)

    def _tell(self, told: Callable[..., None], *what: object) -> None:
        try:
            told(*what)
        except Exception:
            _LOG.exception("an observer of the engine failed")


def _images(orders: Iterable[Waiting]) -> int:
    """Of the orders that somebody still waits for."""
    return sum(waiting.size for waiting in orders if not waiting.ended)


def _checked(generator: Generator, order: Order) -> Request:
    """What can be checked without encoding an image.

    On the host: a copy to a GPU would wait for all that the worker has asked of it.
    """
    sampling: Any = dict(order.sampling)
    if order.edit is not None:
        split_settings(order.edit.task, _edit_settings(order.edit, order))
    return build_request(
        order.labels, order.seeds, generator.settings, overrides=sampling, smooth=False,
        device=torch.device("cpu"),
    )  # fmt: skip


def _prepared(generator: Generator, order: Order) -> Share:
    if order.edit is None:
        sampling: Any = dict(order.sampling)
        return Share(generator.request(order.labels, order.seeds, False, sampling))
    edit = order.edit
    task: Any = edit.task
    request, prepared = generator.edit_request(
        edit.image, edit.mask, order.labels, order.seeds, task, _edit_settings(edit, order)
    )
    return Share(request, prepared)


def _edit_settings(edit: EditOrder, order: Order) -> Any:
    return {**order.sampling, **edit.settings}
