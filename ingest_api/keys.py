"""Who an API key belongs to: answers from memory while fresh, from PostgreSQL otherwise.

Belongs here: caching, and what holds while PostgreSQL is away. Does not belong here: SQL (`key_lookup`), what
a scope allows (the routes say).

Keys are held as SHA-256 digests only. An answer is used for `fresh_seconds`, which bounds how long a revoked
key still works; when PostgreSQL can't be asked, known keys go on working on their last answer, because
telemetry of paying customers must not be lost to an outage of ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from apex_pipelines.platform.logging import get_logger
from ingest_api.key_lookup import KeyLookup, KeyRecord, KeysUnavailable

log = get_logger(__name__)

KEY_PREFIX = "apx_"
_MAX_KEY_CHARACTERS = 128
_MAX_KNOWN = 100_000
_MAX_UNKNOWN = 20_000
_MAX_LOOKUP = 1_000
_RETRY_SECONDS = 1.0  # how long after a failure PostgreSQL is left alone
_WAIT_SECONDS = 3.0  # how long a request waits for an answer


class KeyProblem(StrEnum):
    """Why a key does not open the door; codes of the API."""

    MISSING = "missing_api_key"
    UNKNOWN = "unknown_api_key"
    REVOKED = "revoked_api_key"
    EXPIRED = "expired_api_key"


class KeyRefused(Exception):
    """The key is not valid."""

    def __init__(self, problem: KeyProblem) -> None:
        super().__init__(problem.value)
        self.problem = problem


@dataclass(slots=True)
class _Answer:
    record: KeyRecord | None
    checked_at: float


class KeyRing:
    """API keys of customers, remembered.

    Parameters
    ----------
    fresh_seconds : float
        How long an answer of PostgreSQL is used without asking again.
    """

    def __init__(self, lookup: KeyLookup, fresh_seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._lookup = lookup
        self._fresh_seconds = fresh_seconds
        self._loop = loop
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keys")
        self._known: OrderedDict[bytes, _Answer] = OrderedDict()
        self._unknown: OrderedDict[bytes, _Answer] = OrderedDict()
        self._wanted: dict[bytes, asyncio.Future[None]] = {}
        self._is_asking = False
        self._away_until = 0.0

    async def resolve(self, key: str | None, now: datetime) -> KeyRecord:
        """The record of `key`, which is valid at `now`.

        Raises
        ------
        KeyRefused
            If the key is missing, unknown, revoked or expired.
        KeysUnavailable
            If only PostgreSQL could tell, and it does not answer.
        """
        if not key:
            raise KeyRefused(KeyProblem.MISSING)
        if not key.startswith(KEY_PREFIX) or len(key) > _MAX_KEY_CHARACTERS:
            raise KeyRefused(KeyProblem.UNKNOWN)
        digest = hashlib.sha256(key.encode()).digest()
        answer = self._known.get(digest) or self._unknown.get(digest)
        if answer is None or time.monotonic() - answer.checked_at > self._fresh_seconds:
            answer = await self._ask(digest) or answer
            if answer is None or (answer.record is None and self._is_stale(answer)):
                raise KeysUnavailable("API keys can't be checked at the moment")
        record = answer.record
        if record is None:
            raise KeyRefused(KeyProblem.UNKNOWN)
        if record.revoked_at is not None:
            raise KeyRefused(KeyProblem.REVOKED)
        if record.expires_at is not None and record.expires_at <= now:
            raise KeyRefused(KeyProblem.EXPIRED)
        return record

    async def is_reachable(self) -> bool:
        """Whether PostgreSQL answers now."""
        try:
            asked = self._loop.run_in_executor(self._thread, self._lookup.find, [])
            await asyncio.wait_for(asked, _WAIT_SECONDS)
        except (KeysUnavailable, TimeoutError):
            return False
        return True

    def close(self) -> None:
        self._thread.submit(self._lookup.close)
        self._thread.shutdown()

    def _is_stale(self, answer: _Answer) -> bool:
        return time.monotonic() - answer.checked_at > self._fresh_seconds

    async def _ask(self, digest: bytes) -> _Answer | None:
        """A fresh answer, or None when PostgreSQL is away. Keys asked for meanwhile share the next query."""
        if time.monotonic() < self._away_until:
            return None
        told = self._wanted.get(digest)
        if told is None:
            told = self._wanted[digest] = self._loop.create_future()
            if not self._is_asking:
                self._is_asking = True
                self._send()
        try:
            # Shielded: one client that goes away must not take the answer from the others.
            await asyncio.wait_for(asyncio.shield(told), _WAIT_SECONDS)
        except (KeysUnavailable, TimeoutError):
            return None
        return self._known.get(digest) or self._unknown.get(digest)

    def _send(self) -> None:
        asked = {digest: self._wanted[digest] for digest in list(self._wanted)[:_MAX_LOOKUP]}
        for digest in asked:
            del self._wanted[digest]
        found = self._loop.run_in_executor(self._thread, self._lookup.find, list(asked))
        found.add_done_callback(lambda done: self._remember(asked, done))

    def _remember(
        self, asked: dict[bytes, asyncio.Future[None]], done: asyncio.Future[dict[bytes, KeyRecord]]
    ) -> None:
        error = done.exception()
        now = time.monotonic()
        if error is not None:
            self._away_until = now + _RETRY_SECONDS
            unanswered = KeysUnavailable(str(error))
        for digest, told in asked.items():
            if error is None:
                self._keep(digest, _Answer(done.result().get(digest), now))
            if told.done():
                continue
            if error is None:
                told.set_result(None)
            else:
                told.set_exception(unanswered)
                told.exception()  # nobody may be waiting any more; that is no error of its own
        if self._wanted:
            self._send()
        else:
            self._is_asking = False
        if error is not None:
            log.error("API keys can't be looked up; known ones go on working", error=str(error))

    def _keep(self, digest: bytes, answer: _Answer) -> None:
        kept, other, limit = (
            (self._unknown, self._known, _MAX_UNKNOWN)
            if answer.record is None
            else (self._known, self._unknown, _MAX_KNOWN)
        )
        other.pop(digest, None)
        kept.pop(digest, None)
        kept[digest] = answer
        if len(kept) > limit:
            kept.popitem(last=False)  # the answer that is oldest
