"""Server-sent events, and waiting for an order while its client is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from nextscale.serve.errors import ApiError
from nextscale.serve.order import Ticket, Update


def event(name: str, data: dict[str, Any]) -> bytes:
    """One event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    """A response of events; no proxy shall hold them back."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def finished(request: Request, ticket: Ticket) -> Update:
    """The pictures of an order, which is cancelled when its client leaves.

    Raises:
        OrderError: why there are none.
    """
    async with _watched(request, ticket):
        async for update in ticket.updates():
            if update.finished:
                return update
    raise AssertionError("every order ends")


@asynccontextmanager
async def _watched(request: Request, ticket: Ticket) -> AsyncIterator[None]:
    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        ticket.cancel()  # of no effect on one that ended


def failure(error: ApiError) -> bytes:
    """The event with which a stream ends that has no pictures."""
    return event("error", {"type": "error", **error.body})
