"""The engine with careless neighbours: what leaves, breaks or is refused takes nothing else along."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import Callable

import numpy
import pytest
import torch

from models_for_tests import random_generator
from nextscale import Generator
from nextscale.serve.engine import Engine, Observer
from nextscale.serve.order import ALL, BatchFailed, EditOrder, Order, QueueFull, Refused
from nextscale.serve.settings import EngineSettings
from serving_for_tests import WAIT, Gate, busy, order

TOO_HIGH = EditOrder(numpy.zeros((9, 8, 3), dtype=numpy.uint8), "variation")


def test_those_who_left_do_not_pile_up_behind_a_batch(start: Callable[..., Engine], gate: Gate) -> None:
    engine = start(max_queue=4)
    first = busy(engine, gate)
    left = []
    for seed in range(300):
        waiting = engine.submit(order(seed))
        waiting.cancel()
        left.append(weakref.ref(waiting))
        del waiting
    assert sum(reference() is not None for reference in left) == 1, "the last, until somebody else comes"
    gate.open.set()
    assert first.result(WAIT).finished


@pytest.mark.parametrize("edit", [None, TOO_HIGH])
def test_an_order_is_forgotten_with_its_ticket(start: Callable[..., Engine], edit: EditOrder | None) -> None:
    engine = start()
    gc.collect()
    gc.disable()  # pictures must not wait for a collector that does not know how large they are
    try:
        waiting = engine.submit(order(1, edit=edit))
        if edit is None:
            assert waiting.result(WAIT).finished
        else:
            with pytest.raises(Refused) as refused:
                waiting.result(WAIT)
            del refused
        reference = weakref.ref(waiting)
        del waiting
        until = time.monotonic() + WAIT
        while reference() is not None and time.monotonic() < until:
            time.sleep(0.01)
        assert reference() is None and engine.state().alive, "an idle engine holds none either"
    finally:
        gc.enable()


def test_an_edit_that_breaks_fails_alone(
    start: Callable[..., Engine], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start()
    busy(engine, gate)
    words = numpy.full((8, 8), "kept")
    image = numpy.zeros((8, 8, 3), dtype=numpy.uint8)
    broken = engine.submit(order(1, edit=EditOrder(image, "inpaint", words)))
    sound = engine.submit(order(2))
    gate.open.set()
    assert numpy.array_equal(sound.result(WAIT).images, random_generator()([1], seeds=[2]).images)
    with pytest.raises(BatchFailed, match="something went wrong"):
        broken.result(WAIT)
    assert "TypeError" in caplog.text and gate.batches == [1, 1]


def test_what_was_refused_says_nothing_of_speed(start: Callable[..., Engine], gate: Gate) -> None:
    told: list[int] = []
    engine = start(Observer(batch=lambda images, _seconds: told.append(images)), max_queue=8)
    for _ in range(20):
        with pytest.raises(Refused):
            engine.submit(order(1, edit=TOO_HIGH)).result(WAIT)
    busy(engine, gate)
    for seed in range(8):
        engine.submit(order(seed))
    with pytest.raises(QueueFull) as refused:
        engine.submit(order(9))
    assert refused.value.retry_after_s == 2, "as long as no batch was measured"
    gate.open.set()
    engine.drain(WAIT)
    assert told == [1, 8]


@pytest.mark.parametrize("hook", ["batch", "preview", "end"])
def test_an_observer_that_raises_stops_nothing(
    start: Callable[..., Engine], gate: Gate, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    def raising(*_: object) -> None:
        raise RuntimeError("no more counters")

    engine = start(Observer(**{hook: raising}))
    for _ in range(2):
        first = busy(engine, gate)
        others = [engine.submit(order(seed, previews=ALL)) for seed in (1, 2)]
        gate.open.set()
        assert all(waiting.result(WAIT).finished for waiting in (first, *others))
    engine.drain(WAIT)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors and all("observer" in record.getMessage() for record in errors)


def test_an_order_that_never_fits_the_queue_is_no_matter_of_waiting(start: Callable[..., Engine]) -> None:
    engine = start(max_queue=1)
    with pytest.raises(ValueError, match=r"2 images: at most 1 are made together"):
        engine.submit(Order((1, 1), (1, 2)))


def test_accepting_touches_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random_generator()
    monkeypatch.setattr(Generator, "request", lambda *_: pytest.fail("tensors on the model's device"))
    engine = Engine(generator, EngineSettings())
    engine._worker.is_alive = lambda: True  # type: ignore[method-assign]
    waiting = engine.submit(order(1))
    assert waiting.request.labels_B.device == torch.device("cpu")
