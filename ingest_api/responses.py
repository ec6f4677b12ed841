"""Answers of the API and the errors that become one.

Belongs here: the envelope of errors and headers. Does not belong here: which error when (the routes).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

# Quantities go out as the exact JSON numbers that they came in as.
_encode = msgspec.json.Encoder(decimal_format="number").encode

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Response:
    """Status, body and headers of one answer."""

    status: int
    body: bytes
    headers: Headers


class HttpError(Exception):
    """A request that is answered with an error; `code` is for programs, the message for people."""

    def __init__(self, status: int, code: str, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or []


class ErrorDetail(msgspec.Struct):
    """What went wrong: a code that stays, and a message."""

    code: str
    message: str


class ErrorBody(msgspec.Struct, kw_only=True):
    """Body of every answer that is an error."""

    success: bool = False
    error: ErrorDetail


def json_response(body: object, status: int = 200, headers: Headers | None = None) -> Response:
    """`body`, a struct or plain data, as JSON."""
    return Response(status, _encode(body), [("content-type", "application/json"), *(headers or [])])


def text_response(body: str, content_type: str) -> Response:
    """`body` as text of the given type."""
    return Response(200, body.encode(), [("content-type", content_type)])


def error_response(error: HttpError) -> Response:
    """The answer to a request that ended in `error`."""
    body = ErrorBody(error=ErrorDetail(error.code, str(error)))
    return json_response(body, error.status, error.headers)
