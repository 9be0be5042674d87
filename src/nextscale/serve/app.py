"""The HTTP app: routes, guard, errors, health, and the document of it all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

import nextscale
from nextscale.serve import images_api, native_api
from nextscale.serve.engine import Engine
from nextscale.serve.errors import ApiError, ErrorBody, of_validation
from nextscale.serve.guard import Guard
from nextscale.serve.metrics import Metrics
from nextscale.serve.schema import Edit, Generation, NativeEdit, NativeGeneration
from nextscale.serve.service import Service
from nextscale.serve.settings import ServerSettings

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/images/generations": Generation, "/v1/images/edits": Edit, "/api/generate": NativeGeneration,
    "/api/edit": NativeEdit,
}  # fmt: skip
_FORMS = ("/v1/images/edits", "/api/edit")
_EVENT = {"type": "object", "properties": {name: {"type": "string"} for name in ("event", "data")}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "something in it does not fit", 401: "no such key", 403: "not from there",
        404: "no such thing", 408: "the deadline passed", 413: "too large", 429: "too many; see Retry-After",
        500: "a batch failed", 503: "closing down",
    }.items()
}  # fmt: skip


def create_app(
    engine: Engine, settings: ServerSettings, *, name: str, metrics: Metrics,
    keys: Mapping[str, str] | None = None, model_digest: str = "",
) -> FastAPI:  # fmt: skip
    """An app around an engine, which it starts and drains.

    Args:
        engine: not yet started; its observer should be that of ``metrics``.
        settings: limits.
        name: of the model, as clients call it.
        metrics: what ``/metrics`` shows.
        keys: hashes of API keys by name; None: anybody on this machine may ask.
        model_digest: of the model's folder, for what pictures say of themselves; empty: they say nothing.
    """

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.drain, settings.grace_s)

    app = FastAPI(
        title="nextscale", version=nextscale.__version__, lifespan=alive, docs_url=None, redoc_url=None,
        description="Pictures from a next-scale model.",
    )  # fmt: skip
    app.state.service = Service(engine, settings, name, int(time.time()), metrics, model_digest)
    metrics.watch(engine)
    bearer = Security(HTTPBearer(auto_error=False, description="one of the server's API keys"))
    for part in (images_api, native_api):
        app.include_router(part.router, responses=_REFUSALS, dependencies=[bearer])
    _add_health(app, engine, metrics)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Guard, settings=settings, keys=keys, metrics=metrics)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _add_health(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["health"], responses={503: {"description": "not now"}})
    async def readyz() -> Response:
        """Whether it takes orders."""
        state = engine.state()
        ready = state.alive and not state.closing
        what = "ready" if ready else "closing down" if state.closing else "the engine has died"
        return JSONResponse({"status": what}, 200 if ready else 503)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):
        error = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    return error.response


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    model = _BODIES.get(getattr(request.scope.get("route"), "path", ""))
    fields = model.model_fields if model else {}
    known = [field.alias or name for name, field in fields.items()]
    return of_validation(error, known).response


def _document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, where what does not fit is 400, and streams are events."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )  # fmt: skip
        for path, methods in document["paths"].items():
            for method in methods.values():
                method["responses"].pop("422", None)
                if path in _FORMS:  # FastAPI does not see the files in it
                    body = method["requestBody"]["content"]
                    body["multipart/form-data"] = body.pop("application/x-www-form-urlencoded")
                if path in _BODIES:
                    content = method["responses"]["200"].setdefault("content", {})
                    content["text/event-stream"] = {"schema": _EVENT}
        app.openapi_schema = document
    return app.openapi_schema
