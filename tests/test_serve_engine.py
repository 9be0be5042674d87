"""The engine: who shares a batch, who is told what, and that nothing accepted stays without an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy
import pytest

from models_for_tests import random_generator
from nextscale.serve.engine import Engine
from nextscale.serve.order import (
    ALL,
    Cancelled,
    DeadlineExceeded,
    EditOrder,
    Order,
    QueueFull,
    Refused,
    shown_stages,
)
from serving_for_tests import WAIT, Gate, all_updates, busy, order


def test_pictures_are_those_of_the_generator(start: Callable[..., Engine]) -> None:
    engine, generator = start(), random_generator()
    sampling = {"guidance": 2.0, "top_k": 9}
    waiting = engine.submit(Order((3, "frog"), (5, 6), sampling, previews=ALL))
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


def test_stages_that_are_shown() -> None:
    assert [sorted(shown_stages(count, 10)) for count in range(4)] == [[], [3], [3, 6], [3, 5, 7]]
    assert shown_stages(3, 4) == {1, 2} and shown_stages(3, 2) == {0} and shown_stages(1, 1) == set()
    assert shown_stages(ALL, 4) == {0, 1, 2} and shown_stages(ALL, 1) == set()


def test_only_wanted_previews_are_decoded(start: Callable[..., Engine]) -> None:
    engine = start()
    decoded: list[int] = []
    decode = engine.generator.tokenizer.decode_features
    engine.generator.tokenizer.decode_features = lambda x: decoded.append(len(x)) or decode(x)  # type: ignore
    assert engine.submit(order(1)).result(WAIT).finished and decoded == [1]
    assert engine.submit(order(1, previews=1)).result(WAIT).finished and decoded == [1, 1, 1]


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
