"""`raw.usage_dead_letters`: rows that were acknowledged and can't be loaded, whole and with the reason.

Belongs here: SQL of dead letters and of the tries to load them again. Does not belong here: loading them
(`replay`), rows that can be loaded (`raw_events`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from clickhouse_connect.driver.client import Client

from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.platform import clickhouse
from apex_pipelines.platform.logging import get_logger

log = get_logger(__name__)

_BASE64 = "base64:"
_NAMES_PER_QUERY = 1_000  # a server takes 128 KiB in one parameter
_decode_rows = msgspec.msgpack.Decoder(list[AcceptedEvent]).decode
_decode_row = msgspec.json.Decoder(AcceptedEvent).decode

_BURIED = """
select batch_id, batch_row
from raw.usage_dead_letters
where (batch_id, batch_row) in {names:Array(Tuple(String, UInt32))}
"""
_OPEN = """
select batch_id, batch_row, row_count, reason, seen_at, tries, length(raw) + length(payload) as size
from raw.usage_dead_letters_open
where position(lower(reason), lower({reason:String})) > 0
order by seen_at, batch_id, batch_row
"""
# Reasons name the value that was refused; told apart by their words alone, a thousand letters are one line.
_REASONS = """
select
    replaceRegexpAll(reason, '[0-9]+', 'N') as kind,
    count() as letters,
    sum(row_count) as rows,
    min(seen_at) as first_seen,
    max(seen_at) as last_seen
from raw.usage_dead_letters_open
where position(lower(reason), lower({reason:String})) > 0
group by kind
order by letters desc, kind
"""
_WHOLE = """
select batch_id, batch_row, row_count, raw, payload, reason, seen_at, tries
from raw.usage_dead_letters_open
where (batch_id, batch_row) in {names:Array(Tuple(String, UInt32))}
order by seen_at, batch_id, batch_row
"""


class NoSuchLetter(ValueError):
    """No open dead letter has this id."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Rows `batch_row` to ``batch_row + row_count`` of a batch, that can't be loaded.

    Attributes
    ----------
    raw : bytes
        MessagePack array of events, the bytes as they were in the spool.
    payload : str
        The same for people: a JSON array of the event, or base64 of what can't be decoded.
    """

    batch_id: str
    batch_row: int
    row_count: int
    raw: bytes
    payload: str
    reason: str

    @classmethod
    def of_event(
        cls, batch_id: str, batch_row: int, raw: bytes, event: AcceptedEvent, reason: str
    ) -> DeadLetter:
        """The letter of an event that the table refuses."""
        return cls(batch_id, batch_row, 1, raw, msgspec.json.encode(event).decode(), reason)

    @classmethod
    def of_frame(cls, batch_id: str, first_row: int, row_count: int, raw: bytes, reason: str) -> DeadLetter:
        """The letter of a frame that can't be decoded."""
        payload = f"{_BASE64}{base64.b64encode(raw).decode()}"
        return cls(batch_id, first_row, row_count, raw, payload, reason)


@dataclass(frozen=True, slots=True)
class LetterName:
    """Names a dead letter for ever; as text it is ``<batch_id>:<batch_row>``."""

    batch_id: str
    batch_row: int

    def __str__(self) -> str:
        return f"{self.batch_id}:{self.batch_row}"

    @classmethod
    def parse(cls, text: str) -> LetterName:
        """The name in `text`; raises NoSuchLetter when it is none."""
        batch_id, _, row = text.rpartition(":")
        if not batch_id or not row.isascii() or not row.isdigit() or int(row) > 0xFFFF_FFFF:
            raise NoSuchLetter(
                f"{text!r} is no id of a dead letter; `apex ingest dead-letters list` shows them"
            )
        return cls(batch_id, int(row))


@dataclass(frozen=True, slots=True)
class OpenLetter:
    """A letter that waits, without its `size` bytes; `tries` counts replays that failed."""

    name: LetterName
    row_count: int
    reason: str
    seen_at: datetime
    tries: int
    size: int


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """Letters whose reasons differ in numbers only."""

    reason: str
    letters: int
    rows: int
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class WholeLetter:
    """An open letter with its bytes."""

    letter: DeadLetter
    seen_at: datetime
    tries: int

    @property
    def name(self) -> LetterName:
        return LetterName(self.letter.batch_id, self.letter.batch_row)

    def events(self) -> list[AcceptedEvent]:
        """What the letter holds.

        Raises
        ------
        ValueError
            If it still can't be decoded.
        """
        return _decode_rows(self.letter.raw)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a replay ended for one letter; `reason` is empty when it landed."""

    name: LetterName
    reason: str

    @property
    def landed(self) -> bool:
        return not self.reason


class DeadLetters:
    """The tables of dead letters.

    Parameters
    ----------
    client : callable
        Gives the client at each use, since it may be made anew.
    """

    def __init__(self, client: Callable[[], Client]) -> None:
        self._client = client

    def bury(self, letters: Iterable[DeadLetter]) -> int:
        """Keep rows that can't be loaded, each once, with the reason; returns how many were new."""
        letters = list(letters)
        names = [LetterName(letter.batch_id, letter.batch_row) for letter in letters]
        there = {name for part in _in_parts(names) for name in self._buried(part)}
        fresh = [letter for letter, name in zip(letters, names, strict=True) if name not in there]
        for letter in fresh:
            log.error(
                "event can't be loaded; kept in raw.usage_dead_letters",
                batch_id=letter.batch_id, batch_row=letter.batch_row, reason=letter.reason,
            )  # fmt: skip
        if fresh:
            self._insert(
                "usage_dead_letters",
                ["batch_id", "batch_row", "row_count", "payload", "raw", "reason"],
                [
                    [letter.batch_id, letter.batch_row, letter.row_count, letter.payload.encode(), letter.raw,
                     letter.reason]
                    for letter in fresh
                ],
            )  # fmt: skip
        return len(fresh)

    def reasons(self, reason: str = "") -> list[ReasonCount]:
        """Open letters by reason, the most frequent first; only reasons that contain `reason`."""
        rows = self._client().query(_REASONS, parameters={"reason": reason}).result_rows
        return [ReasonCount(*row) for row in rows]

    def open(self, reason: str = "", limit: int | None = None) -> list[OpenLetter]:
        """Open letters, the oldest first; only those whose reason contains `reason`, whatever its case."""
        query = _OPEN if limit is None else f"{_OPEN} limit {limit:d}"
        rows = self._client().query(query, parameters={"reason": reason}).result_rows
        return [OpenLetter(LetterName(row[0], row[1]), *row[2:]) for row in rows]

    def whole(self, names: Sequence[LetterName]) -> list[WholeLetter]:
        """The open ones of these letters, with their bytes, the oldest first."""
        return [letter for part in _in_parts(names) for letter in self._whole(part)]

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Keep how a replay ended."""
        rows = [
            [outcome.name.batch_id, outcome.name.batch_row, outcome.landed, outcome.reason]
            for outcome in outcomes
        ]
        if rows:
            self._insert("usage_dead_letter_replays", ["batch_id", "batch_row", "landed", "reason"], rows)

    def _buried(self, names: Sequence[LetterName]) -> list[LetterName]:
        rows = self._client().query(_BURIED, parameters=_named(names)).result_rows
        return [LetterName(*row) for row in rows]

    def _whole(self, names: Sequence[LetterName]) -> list[WholeLetter]:
        # As bytes: what can't be decoded is no text either.
        result = self._client().query(
            _WHOLE, parameters=_named(names), column_formats={"raw": "bytes", "payload": "bytes"}
        )
        found = []
        for batch_id, batch_row, row_count, raw, payload, reason, seen_at, tries in result.result_rows:
            raw = raw or _raw_of_payload(payload)
            letter = DeadLetter(batch_id, batch_row, row_count, raw, payload.decode(errors="replace"), reason)
            found.append(WholeLetter(letter, seen_at, tries))
        return found

    def _insert(self, table: str, names: list[str], rows: list[list[object]]) -> None:
        self._client().insert(
            table, rows, column_names=names, database="raw", settings=clickhouse.DURABLE_INSERT
        )


def _raw_of_payload(payload: bytes) -> bytes:
    """The bytes of a letter that was written when there was no column for them; they may be no events."""
    text = payload.decode(errors="replace")
    try:
        if text.startswith(_BASE64):
            return base64.b64decode(text.removeprefix(_BASE64), validate=True)
        return msgspec.msgpack.encode([_decode_row(payload)])
    except ValueError:
        return payload


def _named(names: Sequence[LetterName]) -> dict[str, list[tuple[str, int]]]:
    return {"names": [(name.batch_id, name.batch_row) for name in names]}


def _in_parts(names: Sequence[LetterName]) -> Iterator[Sequence[LetterName]]:
    for start in range(0, len(names), _NAMES_PER_QUERY):
        yield names[start : start + _NAMES_PER_QUERY]
