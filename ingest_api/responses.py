"""Answers of the API and the errors that become one.

Belongs here: the envelope of errors and headers. Does not belong here: which error when (the routes), who may
read an answer (`cors`).
"""

from __future__ import annotations

import msgspec

# Quantities go out as the exact JSON numbers that they came in as.
_encode = msgspec.json.Encoder(decimal_format="number").encode

Headers = list[tuple[str, str]]

# On every answer: a browser must not guess a type, nor tell other sites where it was.
SECURITY_HEADERS: Headers = [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")]
# Answers are one customer's data, or true only now.
NOT_STORED = ("cache-control", "no-store")


class Response(msgspec.Struct, frozen=True):
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
    """What went wrong.

    Attributes
    ----------
    code : str
        For programs; it never changes its meaning.
    message : str
        For people: what was wrong, with which value, what to do.
    request_id : str
        Finds the request in our log; also in the header X-Request-Id.
    """

    code: str
    message: str
    request_id: str


class ErrorBody(msgspec.Struct, kw_only=True):
    """Body of every answer that is an error."""

    success: bool = False
    error: ErrorDetail


def json_response(body: object, status: int = 200, headers: Headers | None = None) -> Response:
    """`body`, a struct or plain data, as JSON."""
    all_headers = [("content-type", "application/json"), NOT_STORED, *(headers or [])]
    return Response(status, _encode(body), all_headers)


def text_response(body: str, content_type: str) -> Response:
    """`body` as text of the given type."""
    return Response(200, body.encode(), [("content-type", content_type), NOT_STORED])


def error_response(error: HttpError, request_id: str) -> Response:
    """The answer to a request that ended in `error`."""
    body = ErrorBody(error=ErrorDetail(error.code, str(error), request_id))
    return json_response(body, error.status, error.headers)
