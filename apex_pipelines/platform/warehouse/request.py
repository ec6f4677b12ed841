"""One HTTP request as ClickHouse's interface understands it: parameters, external tables, body.

Belongs here: reading a request. Does not belong here: who may ask (`access`), running it, answering it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO
from urllib.parse import parse_qsl, unquote

from apex_pipelines.platform.warehouse.blocks import BlockDecoder
from apex_pipelines.platform.warehouse.encodings import ALIASES, READABLE, Decoder, EncodingError
from apex_pipelines.platform.warehouse.engine import ExternalTable
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.http1 import Head, HttpConnection
from apex_pipelines.platform.warehouse.lexer import split_types

# Parameters of the interface itself; every other one is a setting of the query.
_RESERVED = frozenset(
    {
        "query", "database", "default_format", "user", "password", "quota_key", "query_id", "session_id",
        "session_timeout", "session_check", "close_session", "compress", "decompress", "stacktrace", "role",
        "buffer_size", "wait_end_of_query", "client_protocol_version",
    }
)  # fmt: skip
_ORIGIN = re.compile(r"^https?://[^/?]*", re.IGNORECASE)
_FORMAT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
FALSE = frozenset({"0", "false", ""})


def is_small_number(text: str) -> bool:
    """Whether it is a whole number that the engine too could hold; Python refuses thousands of digits."""
    return text.isdecimal() and len(text) < 20


@dataclass(frozen=True)
class Request:
    """Method, path, parameters and headers (names in lower case) of a request.

    Attributes
    ----------
    query_id : str
        The client's id of the query, or a fresh one.
    """

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    query_id: str
    # Parameters that describe external tables and are no settings.
    external: frozenset[str] = frozenset()

    @classmethod
    def from_head(cls, head: Head) -> Request:
        """Read the head of a request. Bytes that are no UTF-8 survive as surrogates."""
        # A proxy may name scheme and host as well.
        target = _ORIGIN.sub("", head.target.decode("latin-1"))
        path, _, query = target.partition("?")
        params = dict(parse_qsl(query, keep_blank_values=True, encoding="utf-8", errors="surrogateescape"))
        query_id = params.get("query_id") or head.headers.get("x-clickhouse-query-id") or str(uuid.uuid4())
        return cls(head.method, unquote(path) or "/", params, head.headers, query_id)

    def with_form(self, fields: Mapping[str, str], files: Iterable[str]) -> Request:
        """The same request with the fields of its form as further parameters, and with external tables."""
        external = {f"{file}_{what}" for file in files for what in ("structure", "types", "format")}
        params = {**self.params, **fields}
        return replace(
            self,
            params=params,
            external=frozenset(external),
            query_id=params.get("query_id") or self.query_id,
        )

    @property
    def is_greeting(self) -> bool:
        """Whether it asks nothing: a browser or a load balancer at the front door."""
        return self.method in ("GET", "HEAD") and self.path == "/" and "query" not in self.params

    def flag(self, name: str) -> bool:
        """Whether a boolean parameter is given and true."""
        return self.params.get(name, "0").lower() not in FALSE

    def check_role(self) -> None:
        """Refuse a role, of which there are none here.

        Raises
        ------
        QueryError
            UNKNOWN_ROLE.
        """
        if role := self.params.get("role"):
            raise QueryError("UNKNOWN_ROLE", f"There is no role `{role}` in user directories")

    @property
    def database(self) -> str | None:
        """Database to run in; None for the session's, or `default`."""
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
            raise QueryError("UNKNOWN_FORMAT", f"Unknown format {name}.")
        return name

    @property
    def native_revision(self) -> int:
        """Protocol revision in whose form the client wants Native blocks; 0 for the plain one.

        Raises
        ------
        QueryError
            BAD_ARGUMENTS when it is no whole number.
        """
        wanted = self.params.get("client_protocol_version", "") or "0"
        if not wanted.isdecimal():
            raise QueryError("BAD_ARGUMENTS", f"client_protocol_version '{wanted}' is not a whole number")
        return int(wanted)

    @property
    def settings(self) -> dict[str, str]:
        """Every parameter that is not the interface's own."""
        return {
            name: value
            for name, value in self.params.items()
            if name not in _RESERVED and not name.startswith("param_") and name not in self.external
        }

    @property
    def query_parameters(self) -> dict[str, str]:
        """Values for `{name:Type}` substitutions."""
        return {name[6:]: value for name, value in self.params.items() if name.startswith("param_")}


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

    def __init__(self, request: Request, connection: HttpConnection, limit: int) -> None:
        self._connection = connection
        self._left = limit
        self._limit = limit
        self._steps: Iterator[bytes] = iter(())
        # An HTTP encoding is around ClickHouse's own blocks, when a client uses both.
        self._decoders: list[Decoder | BlockDecoder] = [*_http_decoder(request)]
        if request.flag("decompress"):
            self._decoders.append(BlockDecoder())
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            self._too_large()

    def _too_large(self) -> None:
        raise QueryError(
            "QUERY_IS_TOO_LARGE",
            f"The body is larger than {self._limit} bytes (APEX_WAREHOUSE_MAX_BODY_BYTES); send it in parts",
        )

    def next(self) -> bytes | None:
        """The next piece of plain body; None at its end.

        Raises
        ------
        ClientGone
            When the client closed the connection before.
        QueryError
            When the body is larger than allowed or not what its encoding says.
        """
        try:
            while (step := next(self._steps, None)) is None:
                raw = self._connection.read_body()
                if raw is None:
                    for decoder in self._decoders:
                        decoder.finish()
                    return None
                self._left -= len(raw)
                if self._left < 0:
                    self._too_large()
                self._steps = _decoded(raw, self._decoders)
        except EncodingError as error:
            raise QueryError(error.name, str(error)) from error
        return step

    def pieces(self) -> Iterator[bytes]:
        """What is left of the plain body."""
        while (piece := self.next()) is not None:
            yield piece


def _http_decoder(request: Request) -> list[Decoder]:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return []
    encoding = ALIASES.get(encoding, encoding)
    if encoding not in READABLE:
        raise QueryError(
            "NOT_IMPLEMENTED", f"Unknown compression method: {encoding}. Known: {', '.join(READABLE)}"
        )
    return [Decoder(encoding)]


def _decoded(data: bytes, decoders: Sequence[Decoder | BlockDecoder]) -> Iterator[bytes]:
    """What `data` yields after all decoders, step by step."""
    if not decoders:
        yield data
        return
    for piece in decoders[0].feed(data):
        yield from _decoded(piece, decoders[1:])
