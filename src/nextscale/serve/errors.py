"""Errors in the shape of the Images API: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from nextscale.serve.order import (
    BatchFailed,
    Cancelled,
    Closing,
    DeadlineExceeded,
    OrderError,
    QueueFull,
    Refused,
)


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """An answer that is no success."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, detail=message, headers=headers)
        self.code, self.param = code, param

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = _TYPES.get(
            self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error"
        )
        detail = ErrorDetail(message=self.detail, type=kind, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump()

    @property
    def response(self) -> JSONResponse:
        """The same as a response."""
        return JSONResponse(self.body, self.status_code, headers=self.headers)


#: What an order ends with, as status and code.
_ENDS: dict[type[OrderError], tuple[int, str]] = {
    QueueFull: (429, "queue_full"),
    Closing: (503, "closing_down"),
    Refused: (400, "invalid_image"),
    DeadlineExceeded: (408, "deadline_exceeded"),
    Cancelled: (499, "client_left"),
    BatchFailed: (500, "batch_failed"),
}


def of_order(error: OrderError) -> ApiError:
    """The answer for an order that ends without pictures."""
    status, code = _ENDS[type(error)]
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, QueueFull) else None
    if isinstance(error, DeadlineExceeded):
        headers = {"x-should-retry": "false"}  # the openai clients would ask again
    return ApiError(status, str(error), code=code, headers=headers)


def of_validation(error: RequestValidationError, known: Sequence[str]) -> ApiError:
    """The answer for fields that do not fit: an unknown one with its nearest match, or else the first."""
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    name = ".".join(where) or None
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f": expected {', '.join(known)}"
        return ApiError(400, f"unknown field {where[-1]!r}{hint}", code="unknown_field", param=name)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']}", code="invalid_json")
    given = f" {_short(first['input'])}" if where and first["type"] != "missing" else ""
    return ApiError(
        400, f"{name or 'the body'}{given}: {first['msg']}", code="invalid_value", param=name
    )  # fmt: skip


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
