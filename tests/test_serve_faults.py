"""Clients that leave or do not read, a full queue, a signal under load, a batch that fails: over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from models_for_tests import random_generator
from nextscale.serve.guard import Guard
from nextscale.serve.metrics import Metrics
from nextscale.serve.settings import ServerSettings
from serving_for_tests import WAIT, Gate, Running, running, started

STREAM = json.dumps({"prompt": "frog", "stream": True, "partial_images": 3}).encode()


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for something that takes a moment."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def opened(server: Running, body: bytes = STREAM) -> socket.socket:
    """A connection that has asked for pictures, and reads nothing yet."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=WAIT)
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_clients_that_leave_cost_nothing() -> None:
    gate = Gate()
    with running(gate=gate, engine={"max_queue": 200}) as server, server.client() as client:
        gate.shut()
        first = opened(server)
        assert gate.reached.wait(WAIT)
        connections = [opened(server, STREAM if n % 2 else b'{"prompt": "ship"}') for n in range(100)]
        until(lambda: server.engine.state().queued == 100, "all are accepted")
        for connection in (first, *connections):
            connection.close()
        until(lambda: server.engine.state().queued == 0, "all are cancelled")
        gate.open.set()
        assert client.images.generate(prompt="frog").data
        assert sum(gate.batches[1:]) == 1, "none of those who left was served"
        assert threading.active_count() < 60


def test_clients_that_leave_while_they_are_served() -> None:
    gate = Gate()
    with running(gate=gate) as server, server.client() as client:
        gate.shut()
        leaving = opened(server)
        assert gate.reached.wait(WAIT)
        staying = threading.Thread(target=lambda: client.images.generate(prompt="frog"))
        staying.start()
        leaving.close()
        until(lambda: server.engine.state().running == 0, "nobody waits for the batch")
        gate.open.set()
        staying.join(WAIT)
        assert not staying.is_alive() and server.engine.state().alive


def test_who_does_not_read_holds_nobody_up() -> None:
    with running(max_images=32) as server, server.client() as client:
        body = json.dumps({"prompt": "frog", "n": 32, "stream": True, "partial_images": 3}).encode()
        slow = [opened(server, body) for _ in range(8)]
        for _ in range(5):
            assert client.images.generate(prompt="frog").data
        for connection in slow:
            connection.close()


def test_what_nobody_reads_is_given_up() -> None:
    ended: list[BaseException | None] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except BaseException as error:
            ended.append(error)
            raise

    async def unread(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    settings = ServerSettings(write_timeout_s=0.05)
    guard = Guard(app, settings=settings, keys=None, metrics=Metrics())
    scope = {"type": "http", "path": "/", "method": "GET", "headers": [(b"host", b"localhost")]}
    asyncio.run(asyncio.wait_for(guard(scope, asyncio.Event().wait, unread), WAIT))  # type: ignore[arg-type]
    assert isinstance(ended[0], TimeoutError), "the app is told, and frees what it holds"


def test_a_full_queue_says_when_to_come_back() -> None:
    gate = Gate()
    with running(gate=gate, engine={"max_queue": 4}) as server, server.client() as client:
        gate.shut()
        waiting = [opened(server)]
        assert gate.reached.wait(WAIT)
        waiting += [opened(server) for _ in range(4)]
        until(lambda: server.engine.state().queued == 4, "the queue is full")
        with pytest.raises(openai.RateLimitError, match=r"4 images wait already, of at most 4") as refused:
            client.images.generate(prompt="frog")
        assert refused.value.code == "queue_full" and int(refused.value.response.headers["retry-after"]) >= 1
        gate.open.set()
        for connection in waiting:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert b"image_generation.completed" in answer.read()
            connection.close()
        assert client.images.generate(prompt="frog").data


def test_a_batch_that_fails_is_told_and_the_next_one_works(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    with running(gate=gate) as server, server.client() as client:
        steps = server.engine.generator.steps

        def failing(_: Any) -> Iterator[Any]:
            raise RuntimeError("secret path")

        server.engine.generator.steps = failing  # type: ignore[method-assign]
        with pytest.raises(openai.InternalServerError, match=r"something went wrong") as failed:
            client.images.generate(prompt="frog")
        assert failed.value.status_code == 500 and "secret" not in str(failed.value)
        with pytest.raises(openai.APIError, match=r"something went wrong"):
            list(client.images.generate(prompt="frog", stream=True))
        server.engine.generator.steps = steps  # type: ignore[method-assign]
        assert client.images.generate(prompt="frog").data
        assert caplog.text.count("secret path") >= 2


def test_what_outlasts_the_grace_is_told() -> None:
    gate = Gate()
    with running(gate=gate, grace_s=0.5) as server:
        gate.shut()
        plain, stream = opened(server, b'{"prompt": "ship"}'), opened(server)
        assert gate.reached.wait(WAIT)
        until(lambda: server.engine.state().running + server.engine.state().queued == 2, "both are there")
        server.server.should_exit = True
        for connection in (plain, stream):
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == (503 if connection is plain else 200)
            assert b"closing down" in answer.read()
            connection.close()


def test_what_nobody_thought_of_has_the_shape_of_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with running() as server, server.client() as client:

        def broken(_: Any) -> Any:
            raise RuntimeError("secret path")

        server.engine.submit = broken  # type: ignore[method-assign]
        with pytest.raises(openai.InternalServerError, match=r"something went wrong") as failed:
            client.images.generate(prompt="frog")
        assert failed.value.code == "server_error" and "secret" not in str(failed.value)
        assert "secret path" in caplog.text


def test_deadlines_are_told() -> None:
    gate = Gate()
    with running(gate=gate) as server, server.client() as client:
        gate.shut()
        opening = threading.Timer(0.3, gate.open.set)
        opening.start()
        with pytest.raises(openai.APIStatusError, match=r"its deadline passed") as late:
            client.images.generate(prompt="frog", extra_body={"deadline_s": 0.1})
        assert late.value.status_code == 408
        opening.join()


@pytest.mark.slow
def test_a_signal_under_load_loses_nobody(tmp_path: Path) -> None:
    answers: list[str] = []
    asked: list[int] = []

    def ask(client: openai.OpenAI) -> None:
        while not answers or answers.count("refused") == 0:
            asked.append(1)
            try:
                if len(asked) % 2:
                    assert client.images.generate(prompt="frog", n=4).data
                else:
                    *_, last = client.images.generate(prompt="frog", stream=True, partial_images=2)
                    assert last.type == "image_generation.completed"
                answers.append("pictures")
            except openai.APIConnectionError:
                answers.append("refused")  # nobody listens any more
            except openai.APIError as error:
                answers.append("told" if "closing down" in str(error) else str(error))

    random_generator().save(tmp_path / "small")
    with started([str(tmp_path / "small"), "--page", "no"]) as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=WAIT)
        with client:
            threads = [threading.Thread(target=ask, args=(client,)) for _ in range(12)]
            for thread in threads:
                thread.start()
            until(lambda: answers.count("pictures") > 20, "the server is busy")
            process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join(WAIT)
        assert process.wait(WAIT) == 0
    assert len(answers) == len(asked) and set(answers) <= {"pictures", "told", "refused"}


def test_a_body_that_does_not_come_is_given_up() -> None:
    with running(read_timeout_s=0.3) as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), timeout=WAIT) as connection:
            head = (
                f"POST /v1/images/generations HTTP/1.1\r\nHost: {address.netloc}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(STREAM)}\r\n\r\n"
            )
            connection.sendall(head.encode() + STREAM[:9])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 408 and json.loads(answer.read())["error"]["code"] == "too_slow"
        # who sends all of it may then wait longer than that for pictures
        assert server.client().images.generate(prompt="frog").data


def _accepted(server: Running) -> int:
    state = server.engine.state()
    return state.queued + state.running


def test_no_more_requests_than_can_be_held() -> None:
    gate = Gate()
    with running(gate=gate, max_open=3) as server, server.client() as client:
        gate.shut()
        held = [opened(server) for _ in range(3)]
        assert gate.reached.wait(WAIT)
        until(lambda: _accepted(server) == 3, "all are accepted")  # one or two of them run already
        with pytest.raises(openai.InternalServerError, match="3 requests are worked on already") as refused:
            client.images.generate(prompt="frog")
        assert refused.value.status_code == 503 and refused.value.response.headers["Retry-After"] == "1"
        gate.open.set()
        for connection in held:
            connection.close()
        until(lambda: server.engine.state().running == 0, "they are gone")
        assert client.images.generate(prompt="frog").data
