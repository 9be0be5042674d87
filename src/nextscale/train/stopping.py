"""Being asked to stop: SIGTERM (a scheduler) and SIGINT (Ctrl-C) end a run after the step it is in.

Special here: the first signal asks, the second one does what it always did.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run ended early because it was asked to; its state is saved."""

    #: What a command then exits with: EX_TEMPFAIL, "try again".
    EXIT_CODE = 75

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(f"stopped by {cause} after step {step}; run the same command again to go on")
        self.step = step


class StopRequest:
    """Whether somebody asked, and whether the work at hand may be dropped at once."""

    def __init__(self) -> None:
        self.cause = ""
        self._droppable = False

    def ask(self, cause: str) -> None:
        """Note the request, and break off the work of `unless_asked`."""
        self.cause = cause
        if self._droppable:
            raise _Dropped

    def unless_asked(self, work: Callable[[], Result]) -> Result | None:
        """The result of work that changes no state of the run, such as an evaluation.

        None where a request came before or breaks it off.
        """
        try:
            self._droppable = True
            return None if self.cause else work()
        except _Dropped:
            return None
        finally:
            self._droppable = False


class _Dropped(BaseException):
    """Carries a request out of droppable work."""


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen to the signals while the block runs (in the main thread: nobody else can)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _frame: FrameType | None) -> None:
        give_back()
        request.ask(signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        give_back()
