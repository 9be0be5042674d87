"""Accepted orders: what their clients wait on.

Special here: one thread makes pictures, others (or event loops) wait for them. A preview that nobody fetched
is replaced by the next one, so that a slow reader neither holds up the worker nor piles up memory; the end
is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections.abc import AsyncIterator, Callable

from nextscale.generate.request import Request
from nextscale.serve.order import Cancelled, Order, OrderError, Update, shown_stages


class Waiting:
    """An accepted order, a `nextscale.serve.order.Ticket`.

    Args:
        order: what was asked for.
        request: the same, checked, on the host.
        num_stages: how many times there are pictures, the finished ones included.
        deadline_s: seconds from now until it is worthless.
        told: is told of its end, and of the seconds until then.
    """

    def __init__(
        self, order: Order, request: Request, *, num_stages: int, deadline_s: float,
        told: Callable[[Update | OrderError, float], None],
    ) -> None:  # fmt: skip
        self.order, self.request, self.num_stages = order, request, num_stages
        self.shown = shown_stages(order.previews, num_stages)
        self.accepted = time.monotonic()
        self.deadline = self.accepted + deadline_s
        self._told = told
        self._changed = threading.Condition()
        self._preview: Update | None = None
        self._end: Update | OrderError | None = None
        self._wakers: list[Callable[[], None]] = []

    @property
    def size(self) -> int:
        """Its number of images."""
        return len(self.order.seeds)

    @property
    def ended(self) -> bool:
        """Whether it has its pictures, or the reason why there are none."""
        return self._end is not None

    def show(self, preview: Update) -> None:
        """Offer a preview in place of an earlier one; an order that has ended takes none."""
        with self._changed:
            if self._end is None:
                self._preview = preview
                self._wake()

    def end(self, end: Update | OrderError) -> bool:
        """Give it its one end; returns False when it has one already."""
        with self._changed:
            if self._end is not None:
                return False
            self._end = end
            self._changed.notify_all()
            self._wake()
        self._told(end, time.monotonic() - self.accepted)
        return True

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.end(Cancelled("cancelled: its client left"))

    def result(self, timeout_s: float | None = None) -> Update:
        """Block until the finished pictures are there. Raises OrderError, TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._end is not None, timeout_s):
                raise TimeoutError(f"no pictures within {timeout_s} s; they are still being made")
            return _pictures(self._end)

    async def updates(self) -> AsyncIterator[Update]:
        """Previews, then the finished pictures. Raises OrderError."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: its server is gone
                loop.call_soon_threadsafe(news.set)

        with self._changed:
            self._wakers.append(wake)
        try:
            while True:
                news.clear()
                with self._changed:
                    preview, end = self._preview, self._end
                    self._preview = None
                if end is not None:
                    yield _pictures(end)
                    return
                if preview is not None:
                    yield preview
                    continue
                await news.wait()
        finally:
            with self._changed:
                self._wakers.remove(wake)

    def _wake(self) -> None:
        for wake in self._wakers:
            wake()


def _pictures(end: Update | OrderError | None) -> Update:
    if isinstance(end, Update):
        return end
    assert end is not None
    raise copy.copy(end)  # a raised one knows the frames it passed, and would keep its order alive by them
