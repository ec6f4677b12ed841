"""Short questions to ClickHouse from the event loop: a few kept connections, a time limit, typed rows.

Belongs here: connections, parameters, errors. Does not belong here: any query (`counted_usage`).

No thread and no driver: one keep-alive connection of `platform.http_connection` answers a `select 1` in a
millisecond, and importing clickhouse-connect would add a tenth of a second to each worker's start.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit

import msgspec

from apex_pipelines.platform.http_connection import Answer, Endpoint, HttpConnection

Row = TypeVar("Row")

_CONNECTIONS = 4
_WAIT_SECONDS = 3.0
# `readonly = 2` forbids all but reading and leaves settings to us. The answer is held back until it is whole,
# so that an error half-way has a status of its own.
_SETTINGS = {
    "readonly": "2",
    "max_execution_time": "3",
    "wait_end_of_query": "1",
    "default_format": "JSONCompactEachRow",
    "output_format_json_quote_64bit_integers": "0",
    "cancel_http_readonly_queries_on_client_close": "1",
    "log_comment": "ingest-api",
}
_UNKNOWN_TABLE_CODES = frozenset({"60", "81"})
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0"})

Parameter = str | int | Sequence[str]


class WarehouseUnavailable(Exception):
    """ClickHouse can't be asked right now, or failed to answer."""


class TableMissing(WarehouseUnavailable):
    """A table that the query names does not exist, or no longer."""


class WarehouseReader:
    """A pool of connections, made when needed.

    Parameters
    ----------
    url : callable
        Tells the URL with credentials at the moment of connecting.
    """

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url
        self._idle: list[HttpConnection] = []
        self._slots = asyncio.Semaphore(_CONNECTIONS)

    async def rows(self, query: str, parameters: Mapping[str, Parameter], row_type: type[Row]) -> list[Row]:
        """All rows of `query`, whose ``{name:Type}`` the server fills in from `parameters`.

        Raises
        ------
        TableMissing
            If a table does not exist.
        WarehouseUnavailable
            If there is no answer in time, or it is an error.
        """
        try:
            async with asyncio.timeout(_WAIT_SECONDS), self._slots:
                answer = await self._ask(query, parameters)
        except (OSError, ValueError) as error:  # a timeout is an OSError
            raise WarehouseUnavailable(str(error) or f"no answer within {_WAIT_SECONDS:g} s") from error
        if answer.status != 200:
            code = answer.headers.get("x-clickhouse-exception-code", "")
            problem = TableMissing if code in _UNKNOWN_TABLE_CODES else WarehouseUnavailable
            raise problem(
                f"ClickHouse answered {answer.status}: {answer.body[:300].decode(errors='replace')}"
            )
        return msgspec.json.Decoder(row_type).decode_lines(answer.body)

    async def _ask(self, query: str, parameters: Mapping[str, Parameter]) -> Answer:
        options = _SETTINGS | {f"param_{name}": _text(value) for name, value in parameters.items()}
        path, headers = "/?" + urlencode(options), _headers(self._url())
        while self._idle:
            # The server may have closed a connection that was idle; a question can be asked again.
            try:
                return await self._post(self._idle.pop(), path, headers, query)
            except ConnectionError:
                continue
        return await self._post(await self._connect(), path, headers, query)

    async def _connect(self) -> HttpConnection:
        parts = urlsplit(self._url())
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        return await HttpConnection.connect(Endpoint.of(address))

    async def _post(
        self, connection: HttpConnection, path: str, headers: dict[str, str], query: str
    ) -> Answer:
        try:
            answer = await connection.post(path, headers, query.encode())
        except BaseException:
            connection.close()  # also when given up: the server then ends the query
            raise
        if connection.usable:
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


def _headers(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    credentials = f"{unquote(parts.username or 'default')}:{unquote(parts.password or '')}"
    return {"authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}


def _text(value: Parameter) -> str:
    """A value in the form in which the server reads query parameters: text as in TSV, arrays as literals."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    quoted = ("'" + item.translate(_ESCAPES).replace("'", "\\'") + "'" for item in value)
    return "[" + ",".join(quoted) + "]"
