"""The engine: who shares a batch, who is told what, and that nothing accepted stays without an end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from models_for_tests import random_generator
from nextscale.serve.engine import Engine, Observer
from nextscale.serve.order import (
    BatchFailed,
    Cancelled,
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
from serving_for_tests import WAIT, Gate


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def start(gate: Gate) -> Iterator[Callable[..., Engine]]:
    """Starts engines, and ends them."""
    engines: list[Engine] = []

    def start_one(**settings: Any) -> Engine:
        generator = random_generator()
        gate(generator)
        observer = Observer(end=gate.note_end)
        engine = Engine(generator, EngineSettings(**settings), observer=observer)
        engine.start()
        engines.append(engine)
        return engine

    yield start_one
    gate.open.set()
    for engine in engines:
        engine.drain(WAIT)


def order(seed: int, *, label: int | str | None = 1, **changes: Any) -> Order:
    return Order((label,), (seed,), **changes)


def busy(engine: Engine, gate: Gate) -> Waiting:
    """An order that is being made, and stays so until the gate opens."""
    gate.shut()
    first = engine.submit(order(0))
    assert gate.reached.wait(WAIT)
    return first


async def all_updates(waiting: Waiting) -> list[Update]:
    return [update async for update in waiting.updates()]


def test_pictures_are_those_of_the_generator(start: Callable[..., Engine]) -> None:
    engine, generator = start(), random_generator()
    sampling = {"guidance": 2.0, "top_k": 9}
    waiting = engine.submit(Order((3, "frog"), (5, 6), sampling, previews=True))
    *previews, last = asyncio.run(all_updates(waiting))
    streamed = list(generator.stream([3, "frog"], seeds=[5, 6], guidance=2.0, top_k=9))
    assert last.finished and last.scale == len(streamed) - 1
    assert numpy.array_equal(last.images, streamed[-1].images)
    for preview in previews:  # a slow reader may miss some
        assert not preview.finished and numpy.array_equal(preview.images, streamed[preview.scale].images)
    image, keep = streamed[-1].images[0], numpy.eye(8, dtype=numpy.float32)
    edited = engine.submit(
        order(4, edit=EditOrder(image, "inpaint", keep, {"feather": 1}), sampling=sampling)
    )
    expected = generator.edit(image, mask=keep, labels=[1], seeds=[4], feather=1, **sampling)  # type: ignore[arg-type]
    assert numpy.array_equal(edited.result(WAIT).images, expected.images)


def test_what_arrives_while_a_batch_runs_shares_the_next(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start(max_batch=4)
    first = busy(engine, gate)
    others = [engine.submit(order(seed, label=seed % 3, sampling={"top_k": seed})) for seed in range(1, 7)]
    assert engine.state().queued == 6 and engine.state().running == 1
    gate.open.set()
    for waiting in (first, *others):
        assert waiting.result(WAIT).finished
    engine.drain(WAIT)
    assert gate.batches == [1, 4, 2]


def test_orders_stay_whole_and_the_oldest_comes_first(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start(max_batch=4)
    busy(engine, gate)
    large = [engine.submit(Order((1, 1, 1), (1, 2, 3))) for _ in range(2)]
    small = engine.submit(order(4))
    gate.open.set()
    for waiting in (*large, small):
        assert len(waiting.result(WAIT).images) == waiting.size
    engine.drain(WAIT)
    assert gate.batches == [1, 4, 3], "the small one fits beside the first of the large ones"


def test_a_full_queue_refuses_and_says_when_to_come_back(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start(max_queue=3)
    first = busy(engine, gate)
    held = [engine.submit(order(seed)) for seed in range(3)]
    with pytest.raises(QueueFull, match=r"3 images wait already, of at most 3") as refused:
        engine.submit(order(9))
    assert refused.value.retry_after_s >= 1
    held[0].cancel()
    late = engine.submit(order(9))
    gate.open.set()
    assert all(waiting.result(WAIT).finished for waiting in (first, *held[1:], late))


def test_what_is_wrong_is_refused_at_once(start: Callable[..., Engine]) -> None:
    engine = start(max_batch=2, deadline_s=5)
    with pytest.raises(ValueError, match=r"3 images: at most 2"):
        engine.submit(Order((1, 1, 1), (1, 2, 3)))
    with pytest.raises(ValueError, match=r"did you mean 'frog'"):
        engine.submit(order(1, label="frogg"))
    with pytest.raises(ValueError, match=r"top_p 2 is out of range"):
        engine.submit(order(1, sampling={"top_p": 2}))
    with pytest.raises(ValueError, match=r"deadline 6 s is out of range: expected above 0, at most 5"):
        engine.submit(order(1, deadline_s=6))
    with pytest.raises(ValueError, match=r"feather would have no effect on task variation"):
        image = numpy.zeros((8, 8, 3), dtype=numpy.uint8)
        engine.submit(order(1, edit=EditOrder(image, "variation", settings={"feather": 1})))
    assert engine.state().queued == 0


def test_an_image_that_does_not_fit_fails_alone(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start()
    busy(engine, gate)
    image = numpy.zeros((9, 8, 3), dtype=numpy.uint8)
    wrong = engine.submit(order(1, edit=EditOrder(image, "variation")))
    right = engine.submit(order(2))
    gate.open.set()
    with pytest.raises(Refused, match=r"expected an image of 8 x 8 pixels, given 9 x 8"):
        wrong.result(WAIT)
    assert right.result(WAIT).finished


def test_deadlines_pass_in_the_queue_and_in_a_batch(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start()
    gate.shut()
    running = engine.submit(order(0, deadline_s=0.2))
    assert gate.reached.wait(WAIT)
    queued, patient = engine.submit(order(1, deadline_s=0.2)), engine.submit(order(2))
    time.sleep(0.25)
    gate.open.set()
    for waiting in (running, queued):
        with pytest.raises(DeadlineExceeded):
            waiting.result(WAIT)
    assert patient.result(WAIT).finished


def test_nobody_waits_any_more(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start()
    first = busy(engine, gate)
    queued, patient = engine.submit(order(1)), engine.submit(order(2))
    first.cancel()
    queued.cancel()
    gate.open.set()
    assert patient.result(WAIT).finished
    for waiting in (first, queued):
        with pytest.raises(Cancelled):
            waiting.result(WAIT)
    engine.drain(WAIT)
    assert gate.batches == [1, 1], "the cancelled one left the queue"


def test_a_batch_ends_when_all_its_clients_left(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start()
    decoded: list[int] = []
    decode = engine.generator.tokenizer.decode_features
    engine.generator.tokenizer.decode_features = lambda x: decoded.append(len(x)) or decode(x)  # type: ignore
    busy(engine, gate).cancel()
    gate.open.set()
    assert engine.submit(order(2)).result(WAIT).finished
    assert decoded == [1], "the first batch made no picture"


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
        waiting = engine.submit(order(3, previews=True))
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
    told = sum(kind is not Cancelled for kind in ends)
    assert len(gate.ends) == told, "clients who left are not told"


def test_finished_orders_leave_nothing_behind(start: Callable[..., Engine]) -> None:
    engine = start()
    left = []
    for seed in range(20):
        waiting = engine.submit(order(seed, previews=True))
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
