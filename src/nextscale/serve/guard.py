"""What stands before the routes: who asks, how often, how much, and how slowly it sends and reads.

Special here: all of it is decided before a body is read, but for its length, which is counted while it comes.
Without keys only pages of this machine may ask: a site that a browser happens to show is turned away by its
Origin, and one that resolves to this machine by the Host that it was called by.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextscale.serve.errors import ApiError
from nextscale.serve.keys import Rates, name_of
from nextscale.serve.metrics import Metrics
from nextscale.serve.settings import ServerSettings

_LOG = logging.getLogger(__name__)
_OPEN = ("/healthz", "/readyz", "/metrics")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_GUARDED = ("/v1/", "/api/")
#: What the page sends to make pictures, to give some, and to log in.
_OF_PAGE = ("/queue/join", "/upload", "/login")
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        settings: limits.
        keys: hashes by name; None: anybody on this machine may ask.
        metrics: are told of every answer.
    """

    def __init__(
        self, app: ASGIApp, *, settings: ServerSettings, keys: Mapping[str, str] | None, metrics: Metrics
    ) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._rates = Rates(settings.rate)
        self._open = 0  #: requests that are worked on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks that
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(_HEADERS)
                self._metrics.requests.labels(_route(scope), str(message["status"])).inc()
            async with asyncio.timeout(self._settings.write_timeout_s):  # of a client that does not read
                await send(message)

        self._open += 1
        try:
            self._check(scope)
            await self._app(scope, self._counting(receive), sending)
        except ApiError as error:
            if not started:
                await error.response(scope, receive, sending)
        except Exception as error:
            if started:
                if not isinstance(error, TimeoutError):
                    raise
                return  # nobody read it
            _LOG.exception("a request to %s failed", _route(scope))
            refusal = ApiError(500, "something went wrong; the server has noted it", code="server_error")
            await refusal.response(scope, receive, sending)
        finally:
            self._open -= 1

    def _check(self, scope: Scope) -> None:
        """Refuse what shall not be read. Raises ApiError."""
        headers, path = Headers(scope=scope), scope["path"]
        if path in _OPEN:
            return
        if self._open > self._settings.max_open:
            message = f"{self._settings.max_open} requests are worked on already: try again later"
            raise ApiError(503, message, code="too_busy", headers={"Retry-After": "1"})
        guarded = path.startswith(_GUARDED)
        if self._keys is None or not guarded:  # the page knows its visitors by a cookie
            _check_origin(headers, here=self._keys is None)
        counted = scope["method"] == "POST" and (guarded or path.endswith(_OF_PAGE))
        if not (guarded or counted):
            return
        name = self._caller(headers, scope) if guarded else f"page of {_address(scope)}"
        if counted and (wait := self._rates.take(name, time.monotonic())):
            message = f"more than {self._settings.rate} requests a minute: try again in {math.ceil(wait)} s"
            raise ApiError(429, message, code="rate_limit", headers={"Retry-After": str(math.ceil(wait))})
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._settings.max_body:
            raise self._too_large()

    def _caller(self, headers: Headers, scope: Scope) -> str:
        """Who asks, by key or by address."""
        if self._keys is None:
            return _address(scope)
        kind, _, key = headers.get("authorization", "").partition(" ")
        name = name_of(key.strip(), self._keys) if kind.lower() == "bearer" else None
        if name is None:
            raise ApiError(
                401, "this server wants one of its API keys, as Authorization: Bearer KEY",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return name

    def _counting(self, receive: Receive) -> Receive:
        count, whole = 0, False
        until = asyncio.get_running_loop().time() + self._settings.read_timeout_s

        async def receiving() -> Message:
            nonlocal count, whole
            if whole:  # what comes now is that the client leaves
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                text = f"the body did not come within {self._settings.read_timeout_s:g} s: send it faster"
                raise ApiError(408, text, code="too_slow", headers={"Connection": "close"}) from None
            whole = not message.get("more_body", False)
            count += len(message.get("body", b""))
            if count > self._settings.max_body:
                raise self._too_large()
            return message

        return receiving

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._settings.max_body:,} bytes: send less"
        return ApiError(413, message, code="too_large", headers={"Connection": "close"})


def _check_origin(headers: Headers, *, here: bool) -> None:
    """Turn pages of other sites away; ``here``: and whoever called this machine by another name."""
    host = urlsplit(f"//{headers.get('host', '')}")
    if here and host.hostname not in _LOOPBACK:
        raise ApiError(
            403, "without API keys this server answers to 127.0.0.1 and localhost only", code="wrong_host"
        )  # fmt: skip
    origin = headers.get("origin")
    if origin and urlsplit(origin).netloc != host.netloc:
        raise ApiError(403, f"pages of {origin} may not ask this server", code="wrong_origin")


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else "somebody"


def _route(scope: Scope) -> str:
    """The path as it stands in the code, so that strangers cannot make up new ones."""
    return getattr(scope.get("route"), "path", "other")
