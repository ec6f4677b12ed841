"""An API that starts while PostgreSQL is away still knows the keys that it knew, and those taken away."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from apex_pipelines.customers.keys import issue_key, revoke_key
from apex_pipelines.customers.models import Customer
from apex_pipelines.platform import postgres
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from ingest_api.key_cache import KeyCache, KnownKey, store_name
from ingest_api.key_lookup import KeyRecord, KeysUnavailable
from ingest_api.keys import KeyProblem, KeyRefused, KeyRing
from tests.ingest.conftest import CREATED, Api, event, kill_postgres
from tests.ingest.test_answers import NOW
from tests.ingest.waiting import until

DAY = 86_400.0


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def record(key: str, **changes: object) -> KeyRecord:
    fields: dict[str, object] = {
        "digest": digest(key), "customer_id": f"cus_{key}", "scopes": frozenset({"ingest"}),
        "expires_at": None, "revoked_at": None,
    }  # fmt: skip
    return KeyRecord(**{**fields, **changes})  # type: ignore[arg-type]


class Answers:
    """Stands for PostgreSQL: what it knows, or that it is away."""

    def __init__(self, *records: KeyRecord) -> None:
        self.records = {known.digest: known for known in records}
        self.is_away = False
        self.asked = 0
        self.slow_seconds = 0.0
        self.answers = threading.Event()  # cleared while it hangs
        self.answers.set()

    def find(self, digests: list[bytes]) -> dict[bytes, KeyRecord]:
        self.asked += 1
        if self.is_away:
            raise KeysUnavailable("away")
        found = {name: self.records[name] for name in digests if name in self.records}
        time.sleep(self.slow_seconds)
        self.answers.wait(20)
        return found

    def close(self) -> None: ...


def cache(folder: Path, clock: ManualClock, worker: str = "w0", store: str = "db") -> KeyCache:
    return KeyCache(folder, worker, store, clock)


def ring(answers: Answers, kept: KeyCache, *, fresh: float = 5.0) -> KeyRing:
    return KeyRing(
        answers, kept, asyncio.get_running_loop(),  # type: ignore[arg-type]
        fresh_seconds=fresh, outage_seconds=DAY, save_seconds=5.0,
    )  # fmt: skip


def in_a_life(use: Callable[[], object]) -> None:
    """Runs a coroutine function as one life of a worker."""
    asyncio.run(use())  # type: ignore[arg-type]


def test_answers_survive_as_they_are(tmp_path: Path, clock: ManualClock) -> None:
    known = [
        KnownKey(digest("a"), record("a", expires_at=NOW, scopes=frozenset({"ingest", "historical"})), 7.0),
        KnownKey(digest("b"), record("b", revoked_at=NOW), 5.0),
        KnownKey(digest("o"), record("o", customer_id=None, scopes=frozenset({"operator"})), 4.0),
        KnownKey(digest("c"), None, 3.0),
    ]
    cache(tmp_path, clock).save(known)
    assert cache(tmp_path, clock, "w1").load(DAY) == known


def test_the_file_is_private_and_holds_no_key(tmp_path: Path, clock: ManualClock) -> None:
    cache(tmp_path / "keys", clock).save([KnownKey(digest("apx_live_secret"), record("x"), 0.0)])
    (path,) = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"apx_live_secret" not in path.read_bytes()


def test_answers_age_over_restarts_and_end(tmp_path: Path, clock: ManualClock) -> None:
    cache(tmp_path, clock).save(
        [KnownKey(digest("a"), record("a"), 0.0), KnownKey(digest("b"), None, 3_600.0)]
    )
    clock.advance(timedelta(hours=23, minutes=30))
    (left,) = cache(tmp_path, clock).load(DAY)
    assert (left.digest, left.age_seconds) == (digest("a"), 84_600.0)
    clock.advance(timedelta(hours=1))
    assert cache(tmp_path, clock).load(DAY) == []


def test_of_two_workers_the_newer_answer_holds(tmp_path: Path, clock: ManualClock) -> None:
    revoked = record("a", revoked_at=NOW)
    cache(tmp_path, clock, "w0").save([KnownKey(digest("a"), revoked, 10.0)])
    cache(tmp_path, clock, "w1").save([KnownKey(digest("a"), record("a"), 20.0)])
    assert [key.record for key in cache(tmp_path, clock).load(DAY)] == [revoked]


def _flip(data: bytes) -> bytes:
    return data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:-5], "checksum"),
        (_flip, "checksum"),
        (lambda data: b"", "JSON|truncated|Input"),
        (lambda data: b"\xff\x00 something else entirely", "malformed|invalid|JSON"),
        (lambda data: data.replace(b"apex-known-keys 2", b"apex-known-keys 9"), "format"),
    ],
)
def test_a_broken_file_is_passed_over_with_a_warning(
    tmp_path: Path,
    clock: ManualClock,
    capfd: pytest.CaptureFixture[str],
    spoil: Callable[[bytes], bytes],
    reason: str,
) -> None:
    cache(tmp_path, clock, "w0").save([KnownKey(digest("a"), record("a"), 0.0)])
    cache(tmp_path, clock, "w1").save([KnownKey(digest("b"), record("b"), 0.0)])
    path = tmp_path / "w0.json"
    path.write_bytes(spoil(path.read_bytes()))
    assert [key.digest for key in cache(tmp_path, clock).load(DAY)] == [digest("b")]
    output = "".join(capfd.readouterr())
    assert "remembered API keys are not used" in output
    assert any(word in output for word in reason.split("|"))


def test_a_file_of_another_database_or_open_to_others_is_not_believed(
    tmp_path: Path, clock: ManualClock
) -> None:
    cache(tmp_path, clock, store="other").save([KnownKey(digest("a"), record("a"), 0.0)])
    assert cache(tmp_path, clock).load(DAY) == []
    cache(tmp_path, clock).save([KnownKey(digest("a"), record("a"), 0.0)])
    assert len(cache(tmp_path, clock).load(DAY)) == 1
    (tmp_path / "w0.json").chmod(0o644)
    assert cache(tmp_path, clock).load(DAY) == []


def test_a_database_is_named_without_its_password() -> None:
    assert store_name("postgresql://me:secret@db.example:5432/apex?sslmode=require") == "db.example:5432/apex"
    assert store_name("postgresql://me:secret@/apex?host=/run/pg") == "/run/pg/apex"
    assert store_name(None) == "embedded"


def test_a_ring_that_starts_in_an_outage_knows_what_the_one_before_knew(
    tmp_path: Path, clock: ManualClock
) -> None:
    answers = Answers(record("apx_good"), record("apx_gone"), record("apx_revoked", revoked_at=NOW))

    async def before() -> None:
        keys = ring(answers, cache(tmp_path, clock), fresh=0.05)
        assert (await keys.resolve("apx_good", NOW)).customer_id == "cus_apx_good"
        await keys.resolve("apx_gone", NOW)
        del answers.records[digest("apx_gone")]
        await asyncio.sleep(0.1)
        for key in ("apx_gone", "apx_revoked", "apx_never"):
            with pytest.raises(KeyRefused):
                await keys.resolve(key, NOW)
        await asyncio.to_thread(keys.close)

    async def after() -> None:
        answers.is_away = True
        keys = ring(answers, cache(tmp_path, clock))
        assert (await keys.resolve("apx_good", NOW)).customer_id == "cus_apx_good"
        for key, problem in (("apx_revoked", KeyProblem.REVOKED), ("apx_gone", KeyProblem.UNKNOWN)):
            with pytest.raises(KeyRefused) as refused:
                await keys.resolve(key, NOW)
            assert refused.value.problem == problem
        with pytest.raises(KeysUnavailable):
            await keys.resolve("apx_never", NOW)  # nobody can know whether it was issued meanwhile
        # PostgreSQL is back: what it says replaces what was remembered.
        answers.is_away = False
        answers.records = {
            digest("apx_good"): record("apx_good", revoked_at=NOW),
            digest("apx_gone"): record("apx_gone"),
        }
        await asyncio.sleep(1.1)
        with pytest.raises(KeyRefused):
            await keys.resolve("apx_good", NOW)
        await keys.resolve("apx_gone", NOW)
        await asyncio.to_thread(keys.close)

    async def much_later() -> None:
        answers.is_away = True
        clock.advance(timedelta(hours=25))
        keys = ring(answers, cache(tmp_path, clock))
        with pytest.raises(KeysUnavailable):
            await keys.resolve("apx_gone", NOW)
        await asyncio.to_thread(keys.close)

    for life in (before, after, much_later):
        in_a_life(life)


def test_an_answer_ages_from_when_it_was_asked_for(tmp_path: Path, clock: ManualClock) -> None:
    """A key that is revoked while the answer is under way works no longer than promised."""
    answers = Answers(record("apx_good"))
    answers.slow_seconds = 0.3

    async def use() -> None:
        keys = ring(answers, cache(tmp_path, clock), fresh=0.5)
        asked_at = time.monotonic()
        asked = asyncio.create_task(keys.resolve("apx_good", NOW))
        await asyncio.sleep(0.1)
        answers.records[digest("apx_good")] = record("apx_good", revoked_at=NOW)
        assert (await asked).revoked_at is None  # it had been looked up before
        await asyncio.sleep(max(0.0, asked_at + 0.55 - time.monotonic()))
        with pytest.raises(KeyRefused):
            await keys.resolve("apx_good", NOW)
        await asyncio.to_thread(keys.close)

    in_a_life(use)


def test_a_key_that_nobody_has_is_refused_however_slowly_that_is_told(
    tmp_path: Path, clock: ManualClock
) -> None:
    answers = Answers()
    answers.slow_seconds = 0.1

    async def use() -> None:
        keys = ring(answers, cache(tmp_path, clock), fresh=0.0)
        with pytest.raises(KeyRefused):
            await keys.resolve("apx_nobody", NOW)
        await asyncio.to_thread(keys.close)

    in_a_life(use)


@pytest.mark.measures
def test_while_postgres_hangs_only_the_first_request_waits(tmp_path: Path, clock: ManualClock) -> None:
    names = [f"apx_{number}" for number in range(5)]
    answers = Answers(*(record(name) for name in names))

    async def use() -> None:
        keys = ring(answers, cache(tmp_path, clock), fresh=0.1)
        await asyncio.gather(*(keys.resolve(name, NOW) for name in names))
        answers.answers.clear()
        await asyncio.sleep(0.15)
        begun = time.monotonic()
        await asyncio.gather(*(keys.resolve(name, NOW) for name in names))
        assert 2.5 < time.monotonic() - begun < 5
        asked, begun = answers.asked, time.monotonic()
        for name in names * 20:
            await keys.resolve(name, NOW)
            with pytest.raises(KeysUnavailable):
                await keys.resolve(f"{name}-late", NOW)
        assert time.monotonic() - begun < 1
        assert answers.asked == asked  # one question is enough to learn that it answers again
        answers.answers.set()
        answers.records[digest(names[0])] = record(names[0], revoked_at=NOW)
        await asyncio.sleep(0.2)
        with pytest.raises(KeyRefused):
            await keys.resolve(names[0], NOW)
        await asyncio.to_thread(keys.close)

    in_a_life(use)


@pytest.mark.measures
def test_while_postgres_refuses_it_is_asked_once_a_second_and_nobody_waits(
    tmp_path: Path, clock: ManualClock
) -> None:
    answers = Answers(record("apx_good"))

    async def use() -> None:
        keys = ring(answers, cache(tmp_path, clock), fresh=0.0)
        await keys.resolve("apx_good", NOW)
        answers.is_away = True
        asked, until = answers.asked, time.monotonic() + 1.5
        while time.monotonic() < until:
            await keys.resolve("apx_good", NOW)
            await asyncio.sleep(0.01)
        assert answers.asked - asked == 2
        # Back, without any request that would find out: a key that was taken away meanwhile works no more.
        answers.is_away = False
        answers.records[digest("apx_good")] = record("apx_good", revoked_at=NOW)
        await asyncio.sleep(1.1)
        with pytest.raises(KeyRefused):
            await keys.resolve("apx_good", NOW)
        await asyncio.to_thread(keys.close)

    in_a_life(use)


@pytest.mark.measures
def test_a_flood_of_checks_asks_postgres_once_and_holds_up_no_key(tmp_path: Path, clock: ManualClock) -> None:
    answers = Answers(record("apx_good", expires_at=NOW + timedelta(hours=1)))
    answers.slow_seconds = 0.05

    async def use() -> None:
        keys = ring(answers, cache(tmp_path, clock))
        checks = [asyncio.create_task(keys.is_reachable()) for _ in range(200)]
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        await keys.resolve("apx_good", NOW)
        assert time.monotonic() - begun < 1
        assert all(await asyncio.gather(*checks))
        assert answers.asked == 2
        assert await keys.is_reachable()
        assert answers.asked == 2
        answers.is_away = True
        await asyncio.sleep(1.1)
        assert not any(await asyncio.gather(*(keys.is_reachable() for _ in range(200))))
        assert answers.asked == 3
        assert keys.has_usable(NOW)
        assert not keys.has_usable(NOW + timedelta(hours=1))
        await asyncio.to_thread(keys.close)

    in_a_life(use)
    assert [key.digest for key in cache(tmp_path, clock).load(DAY)] == [digest("apx_good")]


def test_the_file_is_written_at_once_for_news_and_then_seldom(tmp_path: Path, clock: ManualClock) -> None:
    names = [f"apx_{number}" for number in range(20)]
    answers = Answers(*(record(name) for name in names))

    async def use() -> None:
        keys = ring(answers, cache(tmp_path, clock))
        await keys.resolve(names[0], NOW)
        while not (tmp_path / "w0.json").exists():
            await asyncio.sleep(0.01)
        first = (tmp_path / "w0.json").stat().st_ino
        for name in names[1:]:
            await keys.resolve(name, NOW)
        await asyncio.sleep(0.2)
        assert (tmp_path / "w0.json").stat().st_ino == first  # five seconds have not passed
        assert len(cache(tmp_path, clock).load(DAY)) == 1
        await asyncio.to_thread(keys.close)  # but nothing is lost at the end

    in_a_life(use)
    assert len(cache(tmp_path, clock).load(DAY)) == 20


def test_a_folder_that_takes_no_files_stops_nothing(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "keys").write_text("a file where the folder should be")

    async def use() -> None:
        keys = ring(Answers(record("apx_good")), cache(tmp_path / "keys", clock))
        await keys.resolve("apx_good", NOW)
        await asyncio.sleep(0.1)
        await keys.resolve("apx_good", NOW)
        await asyncio.to_thread(keys.close)

    in_a_life(use)


def test_an_api_restarted_while_postgres_is_dead_serves_the_keys_it_knew(
    own_postgres: Settings,
    settings: Settings,
    process_environment: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    engine = postgres.create_engine(own_postgres)
    with engine.begin() as connection:
        connection.execute(
            sa.insert(Customer).values(
                id="cus_1", name="ada", email="ada@example.com", source="signup", created_at=CREATED
            )
        )
        good, revoked, late = (issue_key(connection, "cus_1", CREATED) for _ in range(3))
    environment = process_environment(APEX_API_KEY_CACHE_SECONDS="0.2", APEX_API_KEY_FILE_SECONDS="0.1")
    api = Api(settings, tmp_path / "api.log", environment, 2)

    def status(key: str, name: str) -> tuple[int, str]:
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=api.url, timeout=20) as http:  # a connection each: both workers get some
            answer = http.post("/api/usage/track", json=event(event_id=name), headers=headers)
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    api.start()
    try:
        assert status(good.plaintext, "a")[0] == 200
        assert status(revoked.plaintext, "b")[0] == 200
        with engine.begin() as connection:
            revoke_key(connection, revoked.id, NOW)
        until(lambda: [status(revoked.plaintext, "c")[0] for _ in range(6)] == [401] * 6)
        files = settings.home_path / "known-keys"
        until(lambda: any(b"2026-06-01" in path.read_bytes() for path in files.glob("*.json")))
        kill_postgres(own_postgres)
        for end in (api.kill, api.stop):  # a crash, then an orderly restart
            end()
            api.start()
            for number in range(6):
                assert status(good.plaintext, f"d{number}") == (200, "")
                assert status(revoked.plaintext, "e") == (401, "revoked_api_key")
            assert status(late.plaintext, "f") == (503, "keys_unavailable")
        postgres.start_embedded(own_postgres)
        until(lambda: status(late.plaintext, "g")[0] == 200, 30)
        with engine.begin() as connection:
            revoke_key(connection, good.id, NOW)
        until(lambda: [status(good.plaintext, "h")[0] for _ in range(6)] == [401] * 6)
        for path in files.glob("*.json"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert path.stat().st_uid == os.geteuid()
            assert good.plaintext.encode() not in path.read_bytes()
    finally:
        api.stop()
        engine.dispose()


def test_keys_of_a_day_before_are_not_accepted_in_an_outage(
    settings: Settings, process_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    settings.database_url = "postgresql://nobody@127.0.0.1:1/none"
    old = ManualClock(datetime.fromtimestamp(time.time() - 25 * 3_600, UTC))
    kept = KeyCache(settings.home_path / "known-keys", "w9", store_name(settings.database_url), old)
    kept.save([KnownKey(digest("apx_live_x"), record("apx_live_x"), 0.0)])
    body, headers = event(), {"authorization": "Bearer apx_live_x"}
    for hours, expected in (("24", 503), ("26", 200)):
        api = Api(settings, tmp_path / "api.log", process_environment(APEX_API_KEY_OUTAGE_HOURS=hours))
        api.start()
        try:
            answer = httpx.post(f"{api.url}/api/usage/track", json=body, headers=headers, timeout=20)
            assert answer.status_code == expected
            ready = httpx.get(f"{api.url}/ready", timeout=20)
            assert (ready.status_code, ready.json()["checks"]["keys"]["ok"]) == (expected, expected == 200)
        finally:
            api.stop()
