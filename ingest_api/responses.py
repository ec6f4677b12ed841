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
# Ends the connection behind the answer.
CLOSE = ("connection", "close")
_JSON: Headers = [("content-type", "application/json"), NOT_STORED]


class Response(msgspec.Struct, frozen=True):
    """Status, body and headers of one answer."""

    status: int
    body: bytes
    headers: Headers


class Answer(msgspec.Struct, frozen=True):
    """What goes out on the wire: header lines as bytes, but for those that the connection knows best.

    `closes` says that the lines hold `CLOSE`.
    """

    status: int
    headers: bytes
    body: bytes
    closes: bool


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
    return Response(status, _encode(body), [*_JSON, *headers] if headers else _JSON)


def text_response(body: str, content_type: str) -> Response:
    """`body` as text of the given type."""
    return Response(200, body.encode(), [("content-type", content_type), NOT_STORED])


def error_response(error: HttpError, request_id: str) -> Response:
    """The answer to a request that ended in `error`."""
    body = ErrorBody(error=ErrorDetail(error.code, str(error), request_id))
    return json_response(body, error.status, error.headers)


def answer(response: Response, request_id: str, more: Headers) -> Answer:
    """`response` as it goes out, with the headers that each answer has, and `more`.

    Raises
    ------
    ValueError
        If a header holds a line break, which would let its sender write headers of his own.
    """
    if response.headers is _JSON and not more:
        lines, closes = _JSON_LINES, False
    else:
        headers = [*response.headers, *SECURITY_HEADERS, *more]
        lines, closes = _lines(headers), CLOSE in headers
    return Answer(
        response.status, b"%bx-request-id: %b\r\n" % (lines, request_id.encode()), response.body, closes
    )


def _lines(headers: Headers) -> bytes:
    text = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError(f"a line break in one of the headers {headers!r}")
    return text.encode("latin-1")


_JSON_LINES = _lines([*_JSON, *SECURITY_HEADERS])
