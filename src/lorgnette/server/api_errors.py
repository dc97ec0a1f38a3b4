"""Errors of the HTTP API, in the form that OpenAI's clients read."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse

ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class ApiError(Exception):
    """A request that is refused or that failed: an HTTP status and OpenAI's error object.

    param: the part of the request that is wrong, such as "messages.0.content". code: what programs look at.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: ErrorType = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = dict(headers or {})
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def to_response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=self.headers)

    def to_event(self) -> str:
        """The event that ends a stream, for a failure after its first byte."""
        return format_event(self.body)


def format_event(value: Any) -> str:
    """A server-sent event."""
    return f"data: {format_json(value)}\n\n"


def format_json(value: Any) -> str:
    """JSON on one line, also for clients whose lines end as those of Python's `splitlines`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)


_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Beyond the control characters, which JSON always escapes."""


async def _answer_api_error(_: Request, error: ApiError) -> JSONResponse:
    return error.to_response()


async def _answer_defect(_: Request, error: Exception) -> JSONResponse:
    """Starlette raises it again, and the server prints its traceback."""
    message = f"the server has a defect: {type(error).__name__}"
    return ApiError(500, message, type="server_error").to_response()


ERROR_HANDLERS: Mapping[Any, Any] = {ApiError: _answer_api_error, Exception: _answer_defect}
"""What Starlette answers a request with whose endpoint raises."""
