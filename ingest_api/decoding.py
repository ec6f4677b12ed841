"""From the bytes of a request to typed events.

Belongs here: the shapes of request bodies, and telling a bad request from a bad event in a good request.
Does not belong here: which events count (`apex_pipelines.metering`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from apex_pipelines.metering.events import UsageEvent
from apex_pipelines.metering.life_events import AnyLifeEvent, LifeEvent
from apex_pipelines.metering.rejections import Rejection, RejectionReason, rejection_of_invalid
from ingest_api.responses import HttpError

T = TypeVar("T")

NDJSON_TYPES = ("application/x-ndjson", "application/ndjson")


class TrackRequest(UsageEvent, frozen=True, kw_only=True, gc=False):
    """Body of `track`: an event, and the key unless the header has it."""

    api_key: str | None = None


class BatchRequest(msgspec.Struct):
    """Body of `batch`: events, and the key unless the header has it."""

    events: list[UsageEvent]
    api_key: str | None = None


class _RawBatchRequest(msgspec.Struct):
    events: list[msgspec.Raw]


class _EventIdOnly(msgspec.Struct):
    event_id: str | None = None


class _ApiKeyOnly(msgspec.Struct):
    api_key: str | None = None


_decode_track = msgspec.json.Decoder(TrackRequest).decode
_decode_life_event = msgspec.json.Decoder(AnyLifeEvent).decode
_decode_event = msgspec.json.Decoder(UsageEvent).decode
_decode_event_id = msgspec.json.Decoder(_EventIdOnly).decode
_decode_api_key = msgspec.json.Decoder(_ApiKeyOnly).decode
_decode_batch = msgspec.json.Decoder(BatchRequest).decode
_decode_raw_batch = msgspec.json.Decoder(_RawBatchRequest).decode
_decode_list = msgspec.json.Decoder(list[UsageEvent]).decode
_decode_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def decode_api_key(body: bytes, content_type: str) -> str | None:
    """The key in a body, if there is one; the rest is passed over, which costs next to nothing.

    Raises
    ------
    HttpError
        400 if the body is no JSON.
    """
    if _is_ndjson(content_type):
        return None  # only events have a place there
    try:
        return _json(_decode_api_key, body).api_key
    except msgspec.ValidationError:
        return None


def decode_track(body: bytes) -> TrackRequest | Rejection:
    """The event of a `track` request, or why it isn't one.

    Raises
    ------
    HttpError
        400 if the body is no JSON.
    """
    try:
        return _json(_decode_track, body)
    except msgspec.ValidationError as error:
        return rejection_of_invalid(error, _event_id(body))


def decode_life_event(body: bytes) -> LifeEvent | Rejection:
    """The life event of a request, or why it isn't one.

    Raises
    ------
    HttpError
        400 if the body is no JSON.
    """
    try:
        event: LifeEvent = _json(_decode_life_event, body)
    except msgspec.ValidationError as error:
        return rejection_of_invalid(error, _event_id(body))
    return event


def decode_batch(
    body: bytes, content_type: str, max_events: int
) -> list[UsageEvent] | list[UsageEvent | Rejection]:
    """The events of a batch, in the client's order, or why one can't be one.

    A batch is an object with `events`, an array, or one JSON object a line (NDJSON; blank lines are passed
    over, as many as there may be events).

    Raises
    ------
    HttpError
        400 if the body has none of these shapes, 413 if there are more than `max_events`.
    """
    if _is_ndjson(content_type):
        # Before there is an object for each line: 1 MiB may be a million of them.
        _check_count(body.count(b"\n"), 2 * max_events, "lines")
        lines = [line for line in body.split(b"\n") if line.strip()]
        _check_count(len(lines), max_events)
        return [_decode_one(line) for line in lines]
    is_array = body.lstrip(b" \t\r\n")[:1] == b"["
    events: list[UsageEvent] | list[UsageEvent | Rejection]
    try:
        events = _json(_decode_list, body) if is_array else _json(_decode_batch, body).events
    except msgspec.ValidationError:
        return _decode_one_by_one(body, is_array=is_array, max_events=max_events)
    _check_count(len(events), max_events)
    return events


def _is_ndjson(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in NDJSON_TYPES


def _decode_one_by_one(body: bytes, *, is_array: bool, max_events: int) -> list[UsageEvent | Rejection]:
    """A batch of which some event is no event: the others must not suffer from it."""
    try:
        raws = _json(_decode_raw_list, body) if is_array else _json(_decode_raw_batch, body).events
    except msgspec.ValidationError as error:
        message = f"a batch is an array of events, or an object with the array `events`: {error}"
        raise HttpError(400, "invalid_batch", message) from error
    _check_count(len(raws), max_events)
    return [_decode_one(bytes(raw)) for raw in raws]


def _decode_one(data: bytes) -> UsageEvent | Rejection:
    try:
        return _decode_event(data)
    except msgspec.ValidationError as error:
        return rejection_of_invalid(error, _event_id(data))
    except (ValueError, RecursionError) as error:
        return Rejection(RejectionReason.MALFORMED_EVENT, f"not valid JSON: {error}")


def _event_id(data: bytes) -> str | None:
    """The event id in an event that is invalid otherwise, so that its sender can tell which it was."""
    try:
        return _decode_event_id(data).event_id
    except (ValueError, RecursionError):
        return None


def _json(decode: Callable[[bytes], T], body: bytes) -> T:
    """Decode; raises msgspec.ValidationError for valid JSON of another shape, HttpError 400 for no JSON."""
    try:
        return decode(body)
    except msgspec.ValidationError:
        raise
    except UnicodeDecodeError as error:
        raise HttpError(400, "invalid_encoding", f"the body is not valid UTF-8: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "invalid_json", f"the body is not valid JSON: {error}") from error


def _check_count(count: int, max_events: int, what: str = "events") -> None:
    if count > max_events:
        message = f"{count} {what} in one batch, at most {max_events}; send them in several requests"
        raise HttpError(413, "too_many_events", message)
