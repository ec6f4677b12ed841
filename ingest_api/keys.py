"""Who an API key belongs to: answers from memory while fresh, from PostgreSQL otherwise.

Belongs here: caching, and what holds while PostgreSQL is away. Does not belong here: SQL (`key_lookup`), what
a scope allows (the routes say).

Keys are held as SHA-256 digests only. An answer is used for `fresh_seconds`, which bounds how long a revoked
key still works; when PostgreSQL can't be asked, known keys go on working on their last answer, because
telemetry of paying customers must not be lost to an outage of ours. That ends when the answer is older than
`outage_seconds`, and it holds over restarts: what is known is kept in a file (`key_cache`). After a look-up
that failed, or hangs, no request waits: PostgreSQL is asked in the background, one question at
a time, until it answers again.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from apex_pipelines.platform.logging import get_logger
from ingest_api.key_cache import KeyCache, KnownKey
from ingest_api.key_lookup import KeyLookup, KeyRecord, KeysUnavailable

log = get_logger(__name__)

KEY_PREFIX = "apx_"
_MAX_KEY_CHARACTERS = 128
_MAX_KNOWN = 100_000
_MAX_UNKNOWN = 20_000
_MAX_LOOKUP = 1_000
_RETRY_SECONDS = 1.0  # how long after a failure PostgreSQL is left alone
_CHECK_SECONDS = 1.0  # how long an answer shows that PostgreSQL is there
_NO_KEY = b""  # stands for a question that is about no key
_WAIT_SECONDS = 3.0  # after which PostgreSQL is taken to be away
# Answers that only confirm what the file says are written this often, to renew their age in it.
_CONFIRM_SECONDS = 300.0


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
    """What PostgreSQL said, asked at which monotonic second; `was_known` of a key that it had before."""

    record: KeyRecord | None
    asked_at: float
    was_known: bool = False


class KeyRing:
    """API keys of customers, remembered.

    Parameters
    ----------
    fresh_seconds : float
        How long an answer of PostgreSQL is used without asking again.
    outage_seconds : float
        How old an answer may get while PostgreSQL can't be asked.
    save_seconds : float
        The file is written at most this often.
    """

    def __init__(
        self,
        lookup: KeyLookup,
        cache: KeyCache,
        loop: asyncio.AbstractEventLoop,
        *,
        fresh_seconds: float,
        outage_seconds: float,
        save_seconds: float,
    ) -> None:
        self._lookup = lookup
        self._cache = cache
        self._fresh_seconds = fresh_seconds
        self._outage_seconds = outage_seconds
        self._save_seconds = save_seconds
        self._loop = loop
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keys")
        self._known: OrderedDict[bytes, _Answer] = OrderedDict()
        self._unknown: OrderedDict[bytes, _Answer] = OrderedDict()
        # Asked for with the next query; the result says whether PostgreSQL answered.
        self._wanted: dict[bytes, asyncio.Future[bool]] = {}
        self._is_asking = False
        self._is_away = False
        self._answered_at = -math.inf
        self._probe: asyncio.TimerHandle | None = None
        self._save_timer: asyncio.TimerHandle | None = None
        self._saved_at = -math.inf
        self._is_saving = False
        self._recall()

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
        if answer is None or time.monotonic() - answer.asked_at > self._fresh_seconds:
            answer = await self._refreshed(digest, answer)
        record = answer.record
        if record is None:
            raise KeyRefused(KeyProblem.UNKNOWN)
        problem = _problem(record, now)
        if problem is not None:
            raise KeyRefused(problem)
        return record

    async def is_reachable(self) -> bool:
        """Whether PostgreSQL answers; it is asked about once a second, so that no key waits for a flood."""
        if time.monotonic() - self._answered_at <= _CHECK_SECONDS:
            return not self._is_away
        return await self._is_told(_NO_KEY)

    def has_usable(self, now: datetime) -> bool:
        """Whether some key would be answered for without PostgreSQL."""
        return any(
            answer.record is not None
            and _problem(answer.record, now) is None
            and not self._is_too_old(answer)
            for answer in reversed(self._known.values())
        )

    def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
        if self._save_timer is not None:
            self._save_timer.cancel()
            self._save(self._snapshot())
        self._thread.submit(self._lookup.close)
        self._thread.shutdown()

    def _is_too_old(self, answer: _Answer) -> bool:
        """Whether an answer can't be used even in an outage."""
        age = time.monotonic() - answer.asked_at
        # A key that nobody knew may have been issued meanwhile; one that was taken away stays so.
        return age > (
            self._fresh_seconds if answer.record is None and not answer.was_known else self._outage_seconds
        )

    async def _refreshed(self, digest: bytes, last: _Answer | None) -> _Answer:
        """What PostgreSQL says now; while it is away `last`, if that may still be used.

        Raises
        ------
        KeysUnavailable
            If there is neither.
        """
        if await self._is_told(digest):
            last = self._known.get(digest) or self._unknown.get(digest)
        elif last is not None and self._is_too_old(last):
            last = None
        if last is None:
            raise KeysUnavailable("API keys can't be checked at the moment")
        return last

    async def _is_told(self, digest: bytes) -> bool:
        """Whether PostgreSQL answered about a key. Keys asked for meanwhile share the next query."""
        if self._is_away:
            return False
        told = self._wanted.get(digest)
        if told is None:
            told = self._wanted[digest] = self._loop.create_future()
            if not self._is_asking:
                self._send()
        # Shielded: one client that goes away must not take the answer from the others.
        return await asyncio.shield(told)

    def _send(self) -> None:
        self._is_asking = True
        asked = {digest: self._wanted[digest] for digest in list(self._wanted)[:_MAX_LOOKUP]}
        for digest in asked:
            del self._wanted[digest]
        # What was changed while the question was under way may be missing in the answer.
        asked_at = time.monotonic()
        found = self._loop.run_in_executor(self._thread, self._lookup.find, [*asked.keys() - {_NO_KEY}])
        patience = self._loop.call_later(
            _WAIT_SECONDS, self._give_up, asked, f"no answer within {_WAIT_SECONDS:g} s"
        )
        found.add_done_callback(lambda done: self._take_answer(asked, asked_at, patience, done))

    def _take_answer(
        self,
        asked: dict[bytes, asyncio.Future[bool]],
        asked_at: float,
        patience: asyncio.TimerHandle,
        done: asyncio.Future[dict[bytes, KeyRecord]],
    ) -> None:
        patience.cancel()
        self._is_asking = False
        error = done.exception()
        if error is not None:
            self._give_up(asked, str(error))
            self._probe = self._loop.call_later(_RETRY_SECONDS, self._send)
            return
        if self._is_away:
            self._is_away = False
            log.info("API keys are looked up again")
        self._answered_at = asked_at
        is_news = False
        for digest, told in asked.items():
            if digest != _NO_KEY:
                is_news |= self._keep(digest, _Answer(done.result().get(digest), asked_at))
            if not told.done():
                told.set_result(True)
        if self._wanted:
            self._send()
        self._save_later(self._save_seconds if is_news else max(self._save_seconds, _CONFIRM_SECONDS))

    def _give_up(self, asked: dict[bytes, asyncio.Future[bool]], reason: str) -> None:
        """Let all who wait do without an answer; the query may still be under way."""
        if not self._is_away:
            self._is_away = True
            log.error("API keys can't be looked up; known ones go on working", error=reason)
        for told in (*asked.values(), *self._wanted.values()):
            if not told.done():
                told.set_result(False)
        self._wanted.clear()

    def _keep(self, digest: bytes, answer: _Answer) -> bool:
        """Remember an answer; returns whether it says something new about a key worth keeping in the file."""
        before = self._known.get(digest) or self._unknown.get(digest)
        if answer.record is None and before is not None:
            answer.was_known = before.was_known or before.record is not None
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
        return answer.record != (before.record if before is not None else None)

    def _recall(self) -> None:
        """Take in what the files say; it is asked for again at first use, and stands when nobody answers."""
        now = time.monotonic()
        known = self._cache.load(self._outage_seconds)
        for key in known:
            # Never fresh: whatever happened while this worker was not running must be asked for.
            asked_at = now - max(key.age_seconds, self._fresh_seconds + 1.0)
            self._keep(key.digest, _Answer(key.record, asked_at, was_known=key.record is None))
        if known:
            log.info("API keys are known from before", keys=len(known))

    def _save_later(self, seconds: float) -> None:
        """Write the file `seconds` after it was last written, or sooner if that is planned already."""
        if self._is_saving:
            seconds = max(seconds, self._save_seconds)
        at = max(self._saved_at + seconds, self._loop.time())
        if self._save_timer is not None:
            if self._save_timer.when() <= at:
                return
            self._save_timer.cancel()
        self._save_timer = self._loop.call_at(at, self._save_now)

    def _save_now(self) -> None:
        self._save_timer = None
        if self._is_saving:
            self._save_later(self._save_seconds)
            return
        self._is_saving = True
        # Not in the thread of the look-ups: a slow disk must not hold requests.
        saved = self._loop.run_in_executor(None, self._save, self._snapshot())
        saved.add_done_callback(lambda _: self._saved())

    def _saved(self) -> None:
        self._saved_at = self._loop.time()
        self._is_saving = False

    def _snapshot(self) -> list[KnownKey]:
        now = time.monotonic()
        gone = [(digest, answer) for digest, answer in self._unknown.items() if answer.was_known]
        return [
            KnownKey(digest, answer.record, now - answer.asked_at)
            for digest, answer in [*self._known.items(), *gone]
        ]

    def _save(self, known: list[KnownKey]) -> None:
        try:
            self._cache.save(known)
        except OSError as error:
            log.error("API keys can't be remembered for the next start", error=str(error))


def _problem(record: KeyRecord, now: datetime) -> KeyProblem | None:
    if record.revoked_at is not None:
        return KeyProblem.REVOKED
    if record.expires_at is not None and record.expires_at <= now:
        return KeyProblem.EXPIRED
    return None
