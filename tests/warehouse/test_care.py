"""Taking care of a warehouse: backups, full and read-only disks, the log of queries, limits."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import mounted
from tests.warehouse.conftest import PASSWORD, READER_PASSWORD, Front

MIB = 1 << 20
DISK_BYTES = 400 * MIB

NewFront = Callable[[Path], Front]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs") as folder:
        yield folder


@pytest.fixture
def new_front() -> Iterator[NewFront]:
    """Starts warehouses that end with the test."""
    fronts: list[Front] = []

    def start(home: Path) -> Front:
        fronts.append(Front(home))
        return fronts[-1]

    yield start
    for front in fronts:
        front.stop()


def rows(front: Front, table: str) -> str:
    return front.value(f"select count(), sum(a), sum(cityHash64(a, s)) from {table}")


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes free."""
    filler = disk / "filler"
    with filler.open("wb") as out:
        for _ in range((shutil.disk_usage(disk).free - left) // MIB):
            out.write(bytes(MIB))
    return filler


def incompressible(count: int) -> bytes:
    return b"".join(b"%d,%s\n" % (number, os.urandom(32).hex().encode()) for number in range(count))


def code(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.headers.get("X-ClickHouse-Exception-Code")


# -- backups -----------------------------------------------------------------------------------------------


def test_a_table_comes_back_from_its_backup_under_another_name(front: Front) -> None:
    front.value("create table kept (a UInt64, s String) engine = MergeTree order by a")
    front.value("insert into kept select number, toString(number) from numbers(100000)")
    assert front.value("backup table kept to File('kept')").endswith("\tBACKUP_CREATED")
    front.value("insert into kept select number, 'later' from numbers(10)")
    assert front.value("restore table kept as again from File('kept')").endswith("\tRESTORED")
    assert rows(front, "again") == rows(front, "(select * from kept where s != 'later')")
    assert (front.home / "backups" / "kept").exists()


def test_a_database_comes_back_from_its_backup_under_another_name(front: Front) -> None:
    front.value("create database side")
    for name, count in (("one", 1000), ("two", 70_000)):
        front.value(f"create table side.{name} (a UInt64, s String) engine = MergeTree order by a")
        front.value(f"insert into side.{name} select number, toString(number) from numbers({count})")
    front.value("create view side.both as select * from side.one union all select * from side.two")
    front.value("backup database side to File('side')")
    front.value("restore database side as other from File('side')")
    for name in ("one", "two"):
        assert rows(front, f"other.{name}") == rows(front, f"side.{name}")
    assert front.value("select count() from other.both") == "71000"


def test_a_backup_is_not_overwritten(front: Front) -> None:
    front.value("create table once (a UInt64) engine = MergeTree order by a")
    front.value("backup table once to File('once')")
    assert code(front.request("backup table once to File('once')")) == (500, "598")


@pytest.mark.parametrize("name", ["/tmp/outside", "../outside", "deeper/../../outside"])
@pytest.mark.parametrize("statement", ["backup table inner_t to", "restore table inner_t as elsewhere from"])
def test_a_path_outside_the_backup_folder_is_refused(front: Front, statement: str, name: str) -> None:
    front.value("create table if not exists inner_t (a UInt64) engine = MergeTree order by a")
    response = front.request(f"{statement} File('{name}')")
    assert code(response) == (400, "36")
    assert "not allowed for backups" in response.text
    assert not (front.home / "outside").exists()


def test_the_reader_makes_no_backups(front: Front) -> None:
    front.value("create table not_yours (a UInt64) engine = MergeTree order by a")
    response = front.request("backup table not_yours to File('not_yours')", auth=("reader", READER_PASSWORD))
    assert response.headers["X-ClickHouse-Exception-Code"] == "164"
    assert not (front.home / "backups" / "not_yours").exists()


# -- disks -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_reading_goes_on(disk: Path, new_front: NewFront) -> None:
    front = new_front(disk / "home")
    front.value("create table t (a UInt64, s String) engine = MergeTree order by a")
    front.value("insert into t values (1, 'before')")
    filler = fill(disk, left=100 * MIB)

    for attempt in (
        front.request("insert into t values (2, 'full')"),
        front.request("insert into t format CSV", content=b"2,full\n"),
        front.request("insert into t select 2, 'full'"),
    ):
        assert attempt.headers["X-ClickHouse-Exception-Code"] == "243", attempt.text
        assert "NOT_ENOUGH_SPACE" in attempt.text
        assert "APEX_WAREHOUSE_MIN_FREE_BYTES" in attempt.text
    status = httpx.get(f"{front.url}/replicas_status")
    assert status.status_code == 503
    assert str(disk / "home") in status.text
    assert front.value("select a, s from t") == "1\tbefore"

    filler.unlink()
    assert httpx.get(f"{front.url}/replicas_status").status_code == 200
    front.value("insert into t values (3, 'after')")
    assert front.value("select groupArray(s) from (select s from t order by a)") == "['before','after']"


@pytest.mark.parametrize("how", ["streamed", "streamed in many blocks", "selected"])
def test_a_disk_that_fills_up_during_an_insert_tears_nothing(
    disk: Path, new_front: NewFront, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("APEX_WAREHOUSE_MIN_FREE_BYTES", "0")
    front = new_front(disk / "home")
    front.value("create table t (a UInt64, s String) engine = MergeTree order by a")
    front.value("insert into t values (1, 'before')")
    filler = fill(disk, left=12 * MIB)

    if how == "selected":
        response = front.request("insert into t select number, hex(randomString(32)) from numbers(1000000)")
    else:
        blocks = {"max_insert_block_size": 100_000, "min_insert_block_size_rows": 0}
        params = blocks if how == "streamed in many blocks" else {}
        body = incompressible(600_000)
        response = front.request("insert into t format CSV", content=body, params=params)
    # The insert failed, or every row of it is there: an answer that says otherwise is a loss of data.
    assert code(response) == (500, "243"), f"answered {response.headers['X-ClickHouse-Summary']}"
    assert "NOT_ENOUGH_SPACE" in response.text
    if how == "streamed":
        assert front.value("select groupArray(s) from t") == "['before']"
    assert front.value("select count() = uniqExact(a) from t") == "1"

    filler.unlink()
    front.value("truncate table t")
    front.value("insert into t format CSV", content=incompressible(100_000))
    assert front.value("select count(), uniqExact(a) from t") == "100000\t100000"
    front.kill()
    front.start()
    assert front.value("select count(), uniqExact(a) from t") == "100000\t100000"
    assert front.value("select count() from system.detached_parts") == "0"


def test_a_data_folder_that_cannot_be_written_is_said_in_a_line(disk: Path, own_front: Front) -> None:
    own_front.stop()
    for folder in ("warehouse", "backups"):
        (disk / "home" / folder).mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    own_front.home = disk / "home"
    process = own_front.launch(port=own_front.port)
    _, stderr = process.communicate(timeout=30)
    errors = stderr.decode().strip().splitlines()
    assert process.returncode == 1
    assert len(errors) == 1, stderr.decode()
    assert errors[0].startswith("error: ")
    assert str(disk / "home") in errors[0]


# -- the log of queries ------------------------------------------------------------------------------------


def test_queries_are_logged_for_two_weeks(front: Front) -> None:
    front.value("create table logged (a UInt64) engine = MergeTree order by a")
    front.value("insert into logged format CSV", content=b"1\n2\n")
    front.value("select 'find me in the log'")
    front.request("select throwIf(1) as find_the_failure")
    front.value("system flush logs")
    found = front.value(
        "select type, exception_code from system.query_log where type != 'QueryStart' "
        "and (query like '%find me in the log%' or query like '%find_the_failure%') "
        "and query not like '%system.query_log%' order by event_time_microseconds"
    )
    assert found.splitlines()[0] == "QueryFinish\t0"
    assert found.splitlines()[-1].endswith("\t395")
    # Behind whatever `query_log` is, one table keeps its rows.
    keeps = front.value(
        "select count() from system.tables where engine like '%MergeTree' "
        "and engine_full like '%TTL event_date + toIntervalDay(14)%'"
    )
    assert keeps == "1"


def test_the_log_of_queries_has_no_password(front: Front) -> None:
    front.request("select 1", auth=None, params={"user": "default", "password": PASSWORD})
    front.value("system flush logs")
    escaped = PASSWORD.replace("'", "\\'")
    assert (
        front.value(
            f"select count() from system.query_log where query not like '%system.query_log%' "
            f"and (position(query, '{escaped}') > 0 or position(toString(Settings), '{escaped}') > 0)"
        )
        == "0"
    )


# -- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "select count() from numbers(1000000000000)",
        "select sleepEachRow(0.1) from numbers(1000) settings max_block_size = 5",
        "insert into function null('a UInt64') select number from numbers(1000000000000)",
    ],
)
def test_a_query_has_the_time_that_it_asks_for(front: Front, query: str) -> None:
    response = front.request(query, params={"max_execution_time": 1})
    assert code(response) == (408, "159")
    assert "TIMEOUT_EXCEEDED" in response.text


def test_a_query_has_the_time_that_is_set_unless_it_asks(
    tmp_path: Path, new_front: NewFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APEX_WAREHOUSE_QUERY_SECONDS", "1")
    front = new_front(tmp_path / "home")
    query = "select sleepEachRow(0.1) from numbers(17) settings max_block_size = 1"
    assert code(front.request(query)) == (408, "159")
    assert front.request(query, params={"max_execution_time": 30}).status_code == 200


def test_a_query_has_the_memory_that_it_asks_for(front: Front) -> None:
    query = "select length(groupArray(repeat('x', 1000))) from numbers(1000000)"
    response = front.request(query, params={"max_memory_usage": 100_000_000})
    assert code(response) == (500, "241")
    assert "MEMORY_LIMIT_EXCEEDED" in response.text
    assert front.value("select 1") == "1"
