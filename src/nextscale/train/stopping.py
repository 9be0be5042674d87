"""Being asked to stop: SIGTERM (a scheduler) and SIGINT (Ctrl-C) end a run after the step it is in.

Special here: the first signal asks, the second one does what it always did. Of several processes that train
together all stop after the same step: each one's request is a vote that travels with the gradients. There
later signals change nothing, since a scheduler and torchrun may both send one; torchrun kills after 30 s.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run ended early because it was asked to; its state is saved."""

    #: What a command then exits with: EX_TEMPFAIL, "try again".
    EXIT_CODE = 75

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(f"stopped by {cause} after step {step}; run the same command again to go on")
        self.step, self.cause = step, cause


class StopRequest:
    """Whether somebody asked, and whether the work at hand may be dropped at once."""

    def __init__(self, *, alone: bool = True) -> None:
        self.cause = ""  #: what ends the run; the same in all processes
        self._heard, self._alone, self._droppable = "", alone, False

    def ask(self, cause: str) -> None:
        """Note the request, and break off the work of `unless_asked`."""
        self._heard = cause
        if self._alone:
            self.cause = cause
            if self._droppable:
                raise _Dropped

    def votes(self) -> Tensor:
        """What this process has heard, to be summed over all of them: float32, one number per signal."""
        return torch.tensor([float(self._heard == number.name) for number in _SIGNALS])

    def settle(self, votes: Tensor) -> None:
        """Learn from the sum of all votes whether anybody was asked."""
        for number, vote in zip(_SIGNALS, votes.tolist(), strict=True):
            if vote:
                self.cause = number.name

    def unless_asked(self, work: Callable[[], Result]) -> Result | None:
        """The result of work that changes no state of the run, such as an evaluation.

        None where a request came before or breaks it off. Of several processes none breaks off alone: they
        always do the work.
        """
        if not self._alone:
            return work()
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
def stop_requests(*, alone: bool = True) -> Iterator[StopRequest]:
    """Listen to the signals while the block runs (in the main thread: nobody else can).

    Args:
        alone: whether this process trains by itself.
    """
    request = StopRequest(alone=alone)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _frame: FrameType | None) -> None:
        if alone:
            give_back()
        request.ask(signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        give_back()
