"""Items that are made before they are asked for, by a thread.

Special here: for GPUs, which wait for every batch otherwise. On CPUs the thread would take its time from the
training itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")

_POLL = 0.1  #: seconds after which a waiting thread looks whether it is still wanted


def made_ahead(items: Iterator[Item], *, count: int = 2) -> Generator[Item, None, None]:
    """The same items in the same order; up to ``count`` of them are made before they are asked for.

    Whatever making one raises is raised here in its turn. Closing this closes ``items``, where that is a
    generator, and waits for the thread.
    """
    ready: Queue[tuple[Item | None, BaseException | None]] = Queue(count)
    enough = Event()
    thread = Thread(target=_make, args=(items, ready, enough), name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        enough.set()
        thread.join()


def _make(
    items: Iterator[Item], ready: Queue[tuple[Item | None, BaseException | None]], enough: Event
) -> None:
    try:
        for item in items:
            if not _put(ready, (item, None), enough):
                break
        else:
            _put(ready, (None, None), enough)
    except BaseException as error:  # it is raised where the items are read
        _put(ready, (None, error), enough)
    finally:
        if isinstance(items, Generator):
            items.close()


def _put(
    ready: Queue[tuple[Item | None, BaseException | None]],
    item: tuple[Item | None, BaseException | None], enough: Event,
) -> bool:  # fmt: skip
    """Whether the item was taken before the reader had enough."""
    while not enough.is_set():
        try:
            ready.put(item, timeout=_POLL)
        except Full:
            continue
        return True
    return False
