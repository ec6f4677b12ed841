"""What is known of API keys, in a file, so that an API that starts while PostgreSQL is away still knows them.

Belongs here: the file: its form, its proof, its place. Does not belong here: when an answer may be used
(`keys`).

Digests only, never keys. Each worker writes a file of its own and reads those of all at its start, so nothing
is locked; of two answers about a key the newer one holds. A key that was known and is gone is kept as gone.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec

from apex_pipelines.platform.clock import Clock
from apex_pipelines.platform.logging import get_logger
from ingest_api.key_lookup import KeyRecord

log = get_logger(__name__)

_FORMAT = "apex-known-keys 2"
_SUFFIX = ".json"
# A clock that was set back makes an answer look as if it came from the future. Further ahead than this, its
# age can't be told and it is not believed.
_CLOCK_MARGIN_SECONDS = 300.0


class CacheUnreadable(ValueError):
    """The file is not one of ours, or not whole."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What PostgreSQL said of a key, and how long ago; `record` is None when it has no such key any more."""

    digest: bytes
    record: KeyRecord | None
    age_seconds: float


class _Entry(msgspec.Struct, array_like=True, frozen=True):
    """A key; `scopes` is None of one that is gone, `customer_id` of one of the operator's."""

    digest: bytes
    checked_at: float
    customer_id: str | None
    scopes: list[str] | None
    expires_at: datetime | None
    revoked_at: datetime | None


class _Header(msgspec.Struct):
    format: str
    store: str
    sha256: str


_decode_header = msgspec.json.Decoder(_Header).decode
_decode_entries = msgspec.json.Decoder(list[_Entry]).decode


class KeyCache:
    """The file of one worker, and reading those of all.

    Parameters
    ----------
    store : str
        Names the PostgreSQL database; answers of another one are not used.
    clock : Clock
        The machine's, by which ages are told over restarts.
    """

    def __init__(self, folder: Path, worker: str, store: str, clock: Clock) -> None:
        self._folder = folder
        self._path = folder / f"{worker}{_SUFFIX}"
        self._store = store
        self._clock = clock

    def load(self, max_age_seconds: float) -> list[KnownKey]:
        """The newest answer about each key that is not older than `max_age_seconds`, oldest first.

        A file that can't be read or isn't ours is reported and passed over.
        """
        newest: dict[bytes, _Entry] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                entries = self._read(path)
            except (OSError, ValueError) as error:
                log.warning("remembered API keys are not used", file=str(path), reason=str(error))
                continue
            for entry in entries:
                known = newest.get(entry.digest)
                if known is None or known.checked_at < entry.checked_at:
                    newest[entry.digest] = entry
        now = self._clock.now().timestamp()
        return [
            KnownKey(entry.digest, _record(entry), max(0.0, now - entry.checked_at))
            for entry in sorted(newest.values(), key=lambda entry: entry.checked_at)
            if -_CLOCK_MARGIN_SECONDS <= now - entry.checked_at <= max_age_seconds
        ]

    def save(self, known: Iterable[KnownKey]) -> None:
        """Replace this worker's file in one step; readable by its owner alone.

        Raises
        ------
        OSError
            If it can't be written; the old one stays.
        """
        now = self._clock.now().timestamp()
        body = msgspec.json.encode([_entry(key, now) for key in known])
        header = _Header(_FORMAT, self._store, hashlib.sha256(body).hexdigest())
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".writing")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(header) + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def _read(self, path: Path) -> list[_Entry]:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise CacheUnreadable("it belongs to another user or is open to others")
            head, _, body = file.read().partition(b"\n")
        header = _decode_header(head)
        if header.format != _FORMAT:
            raise CacheUnreadable(f"its format is {header.format[:40]!r}, not {_FORMAT!r}")
        if header.store != self._store:
            raise CacheUnreadable(f"it is about the keys of {header.store[:200]}, not of {self._store}")
        if header.sha256 != hashlib.sha256(body).hexdigest():
            raise CacheUnreadable("its checksum does not match")
        return _decode_entries(body)


def store_name(database_url: str | None) -> str:
    """A name for the database behind a libpq URL, without user and password; None is the embedded one."""
    if database_url is None:
        return "embedded"
    parts = urlsplit(database_url)
    folder = parse_qs(parts.query).get("host", [""])[0]
    address = parts.netloc.rpartition("@")[2]
    return f"{address or folder}{parts.path}"


def _record(entry: _Entry) -> KeyRecord | None:
    if entry.scopes is None:
        return None
    return KeyRecord(
        entry.digest, entry.customer_id, frozenset(entry.scopes), entry.expires_at, entry.revoked_at
    )


def _entry(known: KnownKey, now: float) -> _Entry:
    checked_at = now - known.age_seconds
    record = known.record
    if record is None:
        return _Entry(known.digest, checked_at, None, None, None, None)
    scopes = sorted(record.scopes)
    return _Entry(known.digest, checked_at, record.customer_id, scopes, record.expires_at, record.revoked_at)
