"""Answers to an order while its client is there: the end alone, or server-sent events.

Special here: whoever leaves cancels, at whatever moment.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from nextscale.serve.errors import of_order
from nextscale.serve.order import OrderError, Ticket, Update

#: Makes events of an update and of its number, counted from 0.
Tell = Callable[[Update, int], AsyncIterator[bytes]]


def event(name: str, data: dict[str, Any]) -> bytes:
    """One event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def finished(request: Request, ticket: Ticket) -> Update:
    """The pictures of an order.

    Raises:
        ApiError: why there are none.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.cancel()

    watcher = asyncio.create_task(watch())
    try:
        async for update in ticket.updates():
            if update.finished:
                return update
    except OrderError as error:
        raise of_order(error) from error
    finally:
        watcher.cancel()
        ticket.cancel()  # of no effect on one that ended
    raise AssertionError("every order ends")


class Stream(StreamingResponse):
    """The events of an order, the last of them ``error`` where there are no pictures.

    Args:
        ticket: of the order.
        tell: makes events of its updates.
    """

    def __init__(self, ticket: Ticket, tell: Tell) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy shall hold them back
        super().__init__(_events(ticket, tell), media_type="text/event-stream", headers=headers)
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # here, for a client may leave before the first event was asked for
            self._ticket.cancel()


async def _events(ticket: Ticket, tell: Tell) -> AsyncIterator[bytes]:
    number = 0
    try:
        async for update in ticket.updates():
            async for one in tell(update, number):
                yield one
            number += 1
    except OrderError as error:
        yield event("error", {"type": "error", **of_order(error).body})
