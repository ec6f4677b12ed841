"""A request as handlers see it, and the id by which it can be found again.

Belongs here: what all handlers are given. Does not belong here: reading it off the wire (`http_connection`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec
import uuid_utils

from ingest_api.request_body import RequestHeaders
from ingest_api.responses import Response

# What may stand in a header, a log line and a shell without quoting.
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{0,127}")


class Request(msgspec.Struct, frozen=True):
    """One request; `body` is decompressed and within the limits, `query` as it was sent.

    `trace` belongs to `tracing`: None where nothing is traced.
    """

    id: str
    headers: RequestHeaders
    query: str = ""
    body: bytes = b""
    trace: object = None


Handler = Callable[[Request], Awaitable[Response]]


def request_id(headers: RequestHeaders) -> str:
    """The client's `X-Request-Id` when it is sane, else a new UUIDv7."""
    given = headers.get("x-request-id")
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return str(uuid_utils.uuid7())
