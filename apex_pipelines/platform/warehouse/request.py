"""One HTTP request as ClickHouse's interface understands it: parameters, credentials, body.

Belongs here: reading a request. Does not belong here: running it, answering it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, Any
from urllib.parse import parse_qsl

from apex_pipelines.platform.warehouse.encodings import READABLE, Decoder, EncodingError
from apex_pipelines.platform.warehouse.engine import ExternalTable
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import split_types

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# Parameters of the interface itself; every other one is a setting of the query.
_RESERVED = frozenset(
    {
        "query", "database", "default_format", "user", "password", "quota_key", "query_id", "session_id",
        "session_timeout", "session_check", "close_session", "compress", "decompress", "stacktrace", "role",
        "buffer_size", "wait_end_of_query", "client_protocol_version",
    }
)  # fmt: skip
_FORMAT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
FALSE = frozenset({"0", "false", ""})


class ClientGone(Exception):
    """The client closed the connection before its request was answered."""


@dataclass(frozen=True)
class Request:
    """Method, path, parameters and headers (names in lower case) of a request."""

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    # Parameters that describe external tables and are no settings.
    external: frozenset[str] = frozenset()

    @classmethod
    def from_scope(cls, scope: Mapping[str, Any]) -> Request:
        """Read an ASGI scope. Bytes that are no UTF-8 survive as surrogates."""
        query = scope["query_string"].decode("latin-1")
        params = dict(parse_qsl(query, keep_blank_values=True, encoding="utf-8", errors="surrogateescape"))
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        return cls(scope["method"], scope["path"], params, headers)

    def with_form(self, fields: Mapping[str, str], files: Iterable[str]) -> Request:
        """The same request with the fields of its form as further parameters, and with external tables."""
        external = {f"{file}_{what}" for file in files for what in ("structure", "types", "format")}
        merged = replace(self, params={**self.params, **fields}, external=frozenset(external))
        merged.__dict__["query_id"] = self.query_id  # it is in use already
        return merged

    @property
    def is_greeting(self) -> bool:
        """Whether it asks nothing: a browser or a load balancer at the front door."""
        return self.method in ("GET", "HEAD") and self.path == "/" and "query" not in self.params

    def flag(self, name: str) -> bool:
        """Whether a boolean parameter is given and true."""
        return self.params.get(name, "0").lower() not in FALSE

    @cached_property
    def query_id(self) -> str:
        """The client's id of the query, or a fresh one."""
        return self.params.get("query_id") or self.headers.get("x-clickhouse-query-id") or str(uuid.uuid4())

    @property
    def database(self) -> str | None:
        return self.params.get("database") or self.headers.get("x-clickhouse-database")

    @property
    def default_format(self) -> str:
        """Format for a statement that names none.

        Raises
        ------
        QueryError
            If it can't be a format's name.
        """
        name = self.params.get("default_format") or self.headers.get("x-clickhouse-format") or "TabSeparated"
        if _FORMAT_NAME.fullmatch(name) is None:
            raise QueryError("UNKNOWN_FORMAT", f"Unknown format {name}.", code=73)
        return name

    @property
    def settings(self) -> dict[str, str]:
        return {
            name: value
            for name, value in self.params.items()
            if name not in _RESERVED and not name.startswith("param_") and name not in self.external
        }

    @property
    def query_parameters(self) -> dict[str, str]:
        """Values for `{name:Type}` substitutions."""
        return {name[6:]: value for name, value in self.params.items() if name.startswith("param_")}


def authenticate(request: Request, passwords: Mapping[str, str]) -> str:
    """The user that the request's credentials belong to, compared in constant time.

    Raises
    ------
    QueryError
        REQUIRED_PASSWORD without credentials, AUTHENTICATION_FAILED with wrong ones or two kinds at once.
    """
    headers, params = request.headers, request.params
    authorization = headers.get("authorization", "")
    by_header = "x-clickhouse-user" in headers or "x-clickhouse-key" in headers
    by_param = "user" in params or "password" in params
    if by_header:
        user, password = headers.get("x-clickhouse-user", "default"), headers.get("x-clickhouse-key", "")
        if authorization or by_param:
            raise QueryError(
                "AUTHENTICATION_FAILED",
                "Invalid authentication: X-ClickHouse headers and another kind are both given",
            )
    elif authorization:
        if by_param:
            raise QueryError(
                "AUTHENTICATION_FAILED",
                "Invalid authentication: Authorization header and parameters are both given",
            )
        scheme, _, encoded = authorization.partition(" ")
        try:
            if scheme.lower() != "basic":
                raise ValueError(scheme)
            text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8", "surrogateescape")
        except (binascii.Error, ValueError):
            raise QueryError(
                "AUTHENTICATION_FAILED", "Invalid authentication: the Authorization header is not HTTP Basic"
            ) from None
        user, _, password = text.partition(":")
    else:
        user, password = params.get("user", "default"), params.get("password", "")
    user = user or "default"
    expected = passwords.get(user)
    right = hmac.compare_digest(
        password.encode("utf-8", "surrogateescape"), (expected or "").encode("utf-8", "surrogateescape")
    )
    if expected is None or not right:
        if not (by_header or by_param or authorization):
            raise QueryError("REQUIRED_PASSWORD", f"{user}: Authentication failed: password is required")
        raise QueryError(
            "AUTHENTICATION_FAILED",
            f"{user}: Authentication failed: password is incorrect, or there is no user with such name.",
        )
    return user


def external_table(request: Request, name: str, data: IO[bytes]) -> ExternalTable:
    """An external table from a file of the request's form and the parameters that describe it.

    Raises
    ------
    QueryError
        BAD_ARGUMENTS when there is neither `NAME_structure` nor `NAME_types`.
    """
    structure = request.params.get(f"{name}_structure")
    if structure is None:
        types = request.params.get(f"{name}_types")
        if types is None:
            raise QueryError(
                "BAD_ARGUMENTS",
                f"Neither structure nor types have not been provided for external table {name}. "
                f"Use fields {name}_structure or {name}_types to do so.",
            )
        structure = ", ".join(f"_{number} {kind}" for number, kind in enumerate(split_types(types), 1))
    return ExternalTable(name, structure, request.params.get(f"{name}_format", "TabSeparated"), data)


class Body:
    """The request's body, decoded as it comes; never held whole.

    Parameters
    ----------
    limit : int
        Largest body accepted, in bytes as they travel.
    """

    def __init__(self, request: Request, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._left = limit
        self._limit = limit
        self._ended = False
        self._pending: Future[bytes | None] | None = None
        self._steps: Iterator[bytes] = iter(())
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding in ("", "identity"):
            self._decoder = None
        elif encoding in READABLE:
            self._decoder = Decoder(encoding)
        else:
            raise QueryError(
                "NOT_IMPLEMENTED", f"Unknown compression method: {encoding}. Known: {', '.join(READABLE)}"
            )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            self._too_large()

    def abort(self) -> None:
        """Have `blocking_pieces`, in its thread, raise ClientGone; for the event loop's thread."""
        if self._pending is not None:
            self._pending.cancel()

    def _too_large(self) -> None:
        raise QueryError(
            "REQUEST_ENTITY_TOO_LARGE",
            f"The body is larger than {self._limit} bytes (APEX_WAREHOUSE_MAX_BODY_BYTES); send it in parts",
        )

    async def _next_raw(self) -> bytes | None:
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._ended = not message.get("more_body", False)
            data: bytes = message.get("body", b"")
            self._left -= len(data)
            if self._left < 0:
                self._too_large()
            if data:
                return data
        return None

    def _step(self) -> bytes | None:
        try:
            return next(self._steps, None)
        except EncodingError as error:
            raise QueryError("CANNOT_DECOMPRESS", str(error)) from error

    def _take(self, raw: bytes | None) -> bool:
        """Take in one raw chunk; False at the end."""
        if raw is None:
            if self._decoder is not None:
                try:
                    self._decoder.finish()
                except EncodingError as error:
                    raise QueryError("CANNOT_DECOMPRESS", str(error)) from error
            return False
        self._steps = iter((raw,)) if self._decoder is None else self._decoder.feed(raw)
        return True

    async def next(self) -> bytes | None:
        """The next piece of plain body; None at its end. For the event loop's thread."""
        while (step := self._step()) is None:
            if not self._take(await self._next_raw()):
                return None
        return step

    def blocking_pieces(self) -> Iterator[bytes]:
        """What is left of the plain body, for any other thread than the event loop's."""
        while (piece := self._next_blocking()) is not None:
            yield piece

    def _next_blocking(self) -> bytes | None:
        while (step := self._step()) is None:
            self._pending = asyncio.run_coroutine_threadsafe(self._next_raw(), self._loop)
            try:
                raw = self._pending.result()
            except CancelledError:
                raise ClientGone from None
            if not self._take(raw):
                return None
        return step
