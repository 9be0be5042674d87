"""The engine when things go wrong or end: nothing accepted stays without an answer."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from nextscale.serve.engine import Engine
from nextscale.serve.order import (
    ALL,
    BatchFailed,
    Cancelled,
    Closing,
    DeadlineExceeded,
    OrderError,
    Update,
)
from serving_for_tests import WAIT, Gate, all_updates, busy, order


def test_a_failing_batch_fails_its_orders_alone(
    start: Callable[..., Engine], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start()
    first = busy(engine, gate)
    victims = [engine.submit(order(seed)) for seed in (1, 2)]
    steps, calls = engine.generator.steps, []

    def failing(request: Any) -> Iterator[Any]:
        calls.append(request)
        if len(calls) == 1:
            raise RuntimeError("out of memory at 0x1234")
        return steps(request)

    engine.generator.steps = failing  # type: ignore[method-assign]
    gate.open.set()
    assert first.result(WAIT).finished
    for waiting in victims:
        with pytest.raises(BatchFailed) as failed:
            waiting.result(WAIT)
        assert "0x1234" not in str(failed.value)
    assert "out of memory at 0x1234" in caplog.text
    assert engine.submit(order(3)).result(WAIT).finished and engine.state().alive


def test_draining_finishes_what_was_accepted(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start(max_batch=2)
    first = busy(engine, gate)
    queued = [engine.submit(order(seed)) for seed in range(5)]
    drained = threading.Thread(target=engine.drain, args=(WAIT,))
    drained.start()
    while not engine.state().closing:
        time.sleep(0.01)
    with pytest.raises(Closing):
        engine.submit(order(9))
    gate.open.set()
    drained.join(WAIT)
    assert all(waiting.result(0).finished for waiting in (first, *queued))
    assert not engine.state().alive


def test_draining_tells_those_for_whom_there_is_no_time(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start()
    accepted = [busy(engine, gate), *(engine.submit(order(seed)) for seed in range(3))]
    engine.drain(0.05)
    for waiting in accepted:
        with pytest.raises(Closing, match="closing down"):
            waiting.result(0)
    gate.open.set()


def test_a_slow_reader_gets_the_last_preview_and_the_end(start: Callable[..., Engine]) -> None:
    engine = start()

    async def read_slowly() -> list[Update]:
        waiting = engine.submit(order(3, previews=ALL))
        await asyncio.to_thread(waiting.result, WAIT)
        return await all_updates(waiting)

    (last,) = asyncio.run(read_slowly())
    assert last.finished


def test_every_order_has_one_end_whatever_happens(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start(max_batch=8, max_queue=400)
    choice = numpy.random.default_rng(0)
    orders = []
    for seed in range(300):
        waiting = engine.submit(order(seed, deadline_s=float(choice.choice([1e-3, 60]))))
        orders.append(waiting)
        if choice.random() < 0.2:
            orders[choice.integers(len(orders))].cancel()
    ends = []
    for waiting in orders:
        try:
            ends.append(type(waiting.result(WAIT)))
        except OrderError as error:
            ends.append(type(error))
    assert set(ends) == {Update, Cancelled, DeadlineExceeded}
    engine.drain(WAIT)
    names = ["finished" if kind is Update else kind.__name__ for kind in ends]
    assert Counter(gate.ends) == Counter(names), "each is counted once"


def test_finished_orders_leave_nothing_behind(start: Callable[..., Engine]) -> None:
    engine = start()
    left = []
    for seed in range(20):
        waiting = engine.submit(order(seed, previews=ALL))
        assert waiting.result(WAIT).finished
        left.append(weakref.ref(waiting))
        del waiting
    assert engine.submit(order(99)).result(WAIT).finished
    gc.collect()
    assert sum(reference() is not None for reference in left) == 0


def test_the_worker_leaves_gradients_alone(start: Callable[..., Engine]) -> None:
    engine = start()
    assert engine.submit(order(1)).result(WAIT).finished
    assert torch.is_grad_enabled()
