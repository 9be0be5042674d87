"""Batches that a thread makes before they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from nextscale.data.ahead import made_ahead


def _threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_the_same_items_in_the_same_order() -> None:
    assert list(made_ahead(iter(range(1, 100)), count=3)) == list(range(1, 100))
    assert list(made_ahead(iter(()))) == []
    assert _threads() == 0


def test_items_are_there_before_they_are_asked_for() -> None:
    made, third = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(1, 10):
            made.append(number)
            if number == 4:  # one is taken, two wait, one is being handed over
                third.set()
            yield number

    ahead = made_ahead(items(), count=2)
    assert next(ahead) == 1
    assert third.wait(timeout=30)
    assert made == [1, 2, 3, 4]
    ahead.close()


def test_an_error_comes_in_its_turn() -> None:
    def items() -> Iterator[str]:
        yield "one"
        raise ValueError("bad image")

    ahead = made_ahead(items())
    assert next(ahead) == "one"
    with pytest.raises(ValueError, match="bad image"):
        next(ahead)
    assert _threads() == 0


def test_closing_ends_thread_and_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            number = 1
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    ahead = made_ahead(items())
    assert next(ahead) == 1
    ahead.close()
    assert closed.is_set() and _threads() == 0
