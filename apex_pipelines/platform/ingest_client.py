"""A client of the public ingest API, behaving as a good SDK does.

Belongs here: batching, compression, retries. Does not belong here: what the events mean, and where keys come
from. Everything that imports or simulates goes through this client and so through the public API.

An event keeps its `event_id` over all retries; that is what makes repeating safe.
"""

from __future__ import annotations

import asyncio
import math
import random
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from apex_pipelines.platform.http_connection import Answer, Endpoint, HttpConnection
from apex_pipelines.platform.logging import get_logger, mask_secrets

log = get_logger(__name__)

BATCH_PATH = "/api/v1/usage/batch"
_GZIP_FROM_BYTES = 2_048
# Leaves room for brackets and commas under the API's limit of 1 MiB.
_MAX_BODY_BYTES = 1_048_576 - 2_048


class IngestError(RuntimeError):
    """Events could not be delivered; the message says why and what to do."""


class IngestUnavailable(IngestError):
    """The API did not answer, or kept asking to wait, for longer than the client is told to try."""


class KeyRefused(IngestError):
    """The API does not accept the key: unknown, expired, revoked, or without the right."""


class RequestRefused(IngestError):
    """The API refused a whole request; repeating it would not help."""


class ClientEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One event as it goes over the wire.

    Attributes
    ----------
    quantity : int or str
        In the metric's unit; decimals as text, so that nobody makes a float of them.
    timestamp : str
        ISO 8601 with zone.
    """

    event_id: str
    metric_type: str
    quantity: int | str
    timestamp: str
    metadata: dict[str, str] | None = None
    corrects_event_id: str | None = None
    reason: str | None = None


class EventResult(msgspec.Struct, frozen=True, gc=False):
    """What became of one event."""

    event_id: str | None
    status: Literal["accepted", "duplicate", "rejected"]
    reason: str | None = None


class _BatchAnswer(msgspec.Struct, gc=False):
    results: list[EventResult]


class _ErrorDetail(msgspec.Struct):
    code: str = "unknown"
    message: str = ""


class _ErrorAnswer(msgspec.Struct):
    error: _ErrorDetail


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient the client is. All in seconds.

    Attributes
    ----------
    first_pause, longest_pause : float
        Pauses double from the first to the longest; each is drawn between half of that and the whole, so that
        many clients don't come back at the same instant. A Retry-After of the server goes before.
    give_up_after : float
        Time from the first attempt of a request to giving it up.
    answer_within : float
        Time for one attempt, connecting included.
    """

    first_pause: float = 0.1
    longest_pause: float = 5.0
    give_up_after: float = 120.0
    answer_within: float = 30.0


@dataclass(slots=True)
class ClientCounts:
    """What the client has done so far."""

    requests: int = 0
    retries: int = 0
    connections: int = 0


def batches(
    events: Sequence[ClientEvent | msgspec.Raw], max_events: int = 1_000, max_bytes: int = _MAX_BODY_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Cut events into request bodies (JSON arrays) within both limits of the API, keeping their order.

    Yields
    ------
    tuple of int and bytes
        How many events, and the body. An event longer than `max_bytes` makes a batch of its own.
    """
    encoder = msgspec.json.Encoder()
    pending: list[bytes] = []
    size = 0
    for event in events:
        encoded = encoder.encode(event)
        if pending and (len(pending) >= max_events or size + len(encoded) + 1 > max_bytes):
            yield len(pending), b"[" + b",".join(pending) + b"]"
            pending, size = [], 0
        pending.append(encoded)
        size += len(encoded) + 1
    if pending:
        yield len(pending), b"[" + b",".join(pending) + b"]"


class IngestClient:
    """Sends events to the API over a bounded number of kept-alive connections; safe to use from many tasks.

    Parameters
    ----------
    base_url : str
        Such as ``http://127.0.0.1:8080``.
    concurrency : int
        Most requests under way, and most connections.
    seed : int or None
        Of the pauses' randomness; None draws one.
    """

    def __init__(
        self,
        base_url: str,
        *,
        concurrency: int = 32,
        retry: RetryPolicy | None = None,
        max_batch_events: int = 1_000,
        seed: int | None = None,
    ) -> None:
        self.base_url = base_url
        self.counts = ClientCounts()
        self._endpoint = Endpoint.of(base_url)
        self._retry = retry or RetryPolicy()
        self._max_batch_events = max_batch_events
        self._slots = asyncio.Semaphore(concurrency)
        self._idle: list[HttpConnection] = []
        self._random = random.Random(seed)  # noqa: S311 - spreads pauses, guards nothing
        self._decode = msgspec.json.Decoder(_BatchAnswer).decode

    async def __aenter__(self) -> IngestClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def send(self, api_key: str, events: Sequence[ClientEvent | msgspec.Raw]) -> list[EventResult]:
        """Deliver events of one customer, batch after batch, in order.

        Returns
        -------
        list of EventResult
            One for each event, in the order given.

        Raises
        ------
        IngestUnavailable, KeyRefused, RequestRefused
            If a batch could not be delivered. Those before it have been.
        """
        results: list[EventResult] = []
        for count, body in batches(events, self._max_batch_events):
            results += await self._deliver(api_key, body, count)
        return results

    async def _deliver(self, api_key: str, body: bytes, count: int) -> list[EventResult]:
        headers = {"authorization": f"Bearer {api_key}", "content-type": "application/json"}
        if len(body) >= _GZIP_FROM_BYTES:
            compressor = zlib.compressobj(level=1, wbits=31)
            body = compressor.compress(body) + compressor.flush()
            headers["content-encoding"] = "gzip"
        loop = asyncio.get_running_loop()
        started = loop.time()
        attempt = 0
        while True:
            asked_to_wait: float | None = None
            try:
                answer = await self._attempt(headers, body)
            except (OSError, TimeoutError) as error:
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if answer.status == 200:
                    return self._read(answer, count)
                if answer.status not in (408, 429) and answer.status < 500:
                    raise _refusal(answer)
                asked_to_wait = retry_after_seconds(answer.headers)
                problem = f"HTTP {answer.status}: {_error_text(answer)}"
            pause = self._pause(attempt, asked_to_wait)
            if loop.time() + pause - started > self._retry.give_up_after:
                raise IngestUnavailable(
                    f"the API at {self.base_url} did not take a batch of {count} events within "
                    f"{self._retry.give_up_after:g} s ({attempt + 1} attempts, the last: {problem}); "
                    "see whether it runs with `apex status`, then send again: what arrived counts only once"
                )
            attempt += 1
            self.counts.retries += 1
            log.debug("batch is tried again", attempt=attempt, pause_seconds=round(pause, 3), problem=problem)
            await asyncio.sleep(pause)

    def _pause(self, attempt: int, asked_to_wait: float | None) -> float:
        if asked_to_wait is not None:
            # A little more than asked, never less.
            return asked_to_wait + self._random.uniform(0, self._retry.first_pause)
        whole = min(self._retry.first_pause * 2 ** min(attempt, 30), self._retry.longest_pause)
        return self._random.uniform(whole / 2, whole)

    async def _attempt(self, headers: dict[str, str], body: bytes) -> Answer:
        self.counts.requests += 1
        async with asyncio.timeout(self._retry.answer_within), self._connection() as connection:
            return await connection.post(BATCH_PATH, headers, body)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[HttpConnection]:
        async with self._slots:
            connection = None
            while self._idle and connection is None:
                # The server may have closed it meanwhile, as it does when it restarts.
                candidate = self._idle.pop()
                connection = candidate if candidate.usable else None
            if connection is None:
                connection = await HttpConnection.connect(self._endpoint)
                self.counts.connections += 1
            try:
                yield connection
            except BaseException:
                connection.close()  # an answer may still be on its way to a request that is given up
                raise
            if connection.usable:
                self._idle.append(connection)

    def _read(self, answer: Answer, count: int) -> list[EventResult]:
        try:
            results = self._decode(answer.body).results
        except msgspec.MsgspecError as error:
            raise RequestRefused(
                f"the API's answer can't be read ({error}); is {self.base_url} our API?"
            ) from error
        if len(results) != count:
            raise RequestRefused(
                f"the API answered for {len(results)} of {count} events; is {self.base_url} our API?"
            )
        return results


def retry_after_seconds(headers: dict[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None without a readable one.

    A date is held against the answer's own Date header, since the server's clock may differ from ours.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    try:
        until, sent = parsedate_to_datetime(value), parsedate_to_datetime(headers["date"])
    except (ValueError, KeyError):
        return None
    return max((_aware(until) - _aware(sent)).total_seconds(), 0.0)


def _aware(instant: datetime) -> datetime:
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _error_text(answer: Answer) -> str:
    try:
        detail = msgspec.json.decode(answer.body, type=_ErrorAnswer).error
    except msgspec.MsgspecError:
        return mask_secrets(answer.body[:200].decode(errors="replace"))
    return mask_secrets(f"{detail.code}: {detail.message}")


def _refusal(answer: Answer) -> IngestError:
    text = _error_text(answer)
    if answer.status in (401, 403):
        return KeyRefused(
            f"the API refused the key (HTTP {answer.status}, {text}); issue a new one with `apex keys`"
        )
    return RequestRefused(
        f"the API refused the request (HTTP {answer.status}, {text}); nothing of it was taken"
    )
