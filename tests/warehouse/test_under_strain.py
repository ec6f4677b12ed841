"""What a second reading found: cut inserts, stops, sessions, forms, descriptors under strain."""

from __future__ import annotations

import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import psutil
import pytest

from apex_pipelines.platform.warehouse import sql
from apex_pipelines.platform.warehouse.engine import Insert
from apex_pipelines.platform.warehouse.errors import QueryError
from tests.warehouse.conftest import PASSWORD, Front


def code(response: object) -> str:
    return str(response.headers.get("X-ClickHouse-Exception-Code", ""))  # type: ignore[attr-defined]


class OneStatement:
    """Stands where a connection does, to see what an insert makes of an engine that can't be told."""

    def __init__(self) -> None:
        self.read = b""

    def query(self, text: bytes) -> tuple[bytes, object]:
        path = text.split(b"'")[1]
        with open(path, "rb", buffering=0) as pipe:
            while piece := pipe.read(1 << 16):
                self.read += piece
        return b"", None


def test_a_cancelled_insert_waits_until_the_engine_has_been_told() -> None:
    """The end of the pipe is the end of the data, so it must not come before the KILL has worked."""
    engine = OneStatement()
    told: list[int] = []

    def kill() -> bool:
        told.append(len(engine.read))
        if len(told) < 4:
            raise QueryError("NOT_ENOUGH_SPACE", "no descriptor left")
        return True

    statement = sql.parse(b"insert into t format TSV\n", complete=True)
    assert statement is not None
    insert = Insert(engine, statement, kill)  # type: ignore[arg-type]
    insert.append(b"1\n2")
    insert.cancel()
    assert len(told) == 4


def test_an_insert_that_is_cut_off_leaves_no_row_however_many_are(front: Front) -> None:
    front.value("create or replace table cut_off (a UInt64, s String) engine = MergeTree order by a")
    head = (
        f"POST /?query={quote('insert into cut_off format TSV')} HTTP/1.1\r\nHost: x\r\n"
        f"X-ClickHouse-Key: {PASSWORD}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    rows = b"1\tabcdefghij\n" * 5_000

    def cut(_: int) -> None:
        with socket.create_connection(("127.0.0.1", front.port)) as wire:
            wire.sendall(head + b"%x\r\n%s\r\n" % (len(rows), rows))
            wire.sendall(b"%x\r\n1\tab" % 100)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(cut, range(72)))
    deadline = time.monotonic() + 20
    while front.value("select count() from system.processes where query ilike 'insert into cut_off%'") != "0":
        assert time.monotonic() < deadline, "cut inserts still run"
        time.sleep(0.1)
    assert front.value("select count() from cut_off") == "0"


def test_nothing_begins_after_a_stop_was_asked_for_and_what_runs_is_answered(own_front: Front) -> None:
    own_front.value("create table late (a UInt64) engine = MergeTree order by a")
    with (
        socket.create_connection(("127.0.0.1", own_front.port)) as late,
        socket.create_connection(("127.0.0.1", own_front.port)) as running,
    ):
        head = (
            f"POST /?query={quote('insert into late format TSV')} HTTP/1.1\r\n"
            f"X-ClickHouse-Key: {PASSWORD}\r\n"
        )
        running.sendall(f"{head}Content-Length: 4\r\n\r\n1\n".encode())
        late.sendall(head.encode())
        time.sleep(0.5)
        own_front.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert own_front.process.poll() is None
        running.sendall(b"2\n")
        assert running.recv(1000).startswith(b"HTTP/1.1 200")
        late.settimeout(5)
        assert b" 200 " not in late.recv(1000)
    assert own_front.process.wait(20) == 0
    own_front.start()
    assert own_front.value("select sum(a) from late") == "3"


def test_few_descriptors_slow_clients_down_and_stop_nothing(own_front: Front) -> None:
    """As a machine has them whose administrator allows 1,024."""
    own_front.stop()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1024:
        pytest.skip("fewer are allowed here already")
    own_front.process = own_front.launch()
    resource.prlimit(own_front.process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    deadline = time.monotonic() + 20
    while True:
        try:
            assert own_front.value("select 1") == "1"
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    idle = []
    for _ in range(1100):
        try:
            idle.append(socket.create_connection(("127.0.0.1", own_front.port), timeout=1))
        except OSError:
            break
    busy = psutil.Process(own_front.process.pid).cpu_percent(interval=1.0)
    for wire in idle:
        wire.close()
    time.sleep(0.5)
    assert busy < 60, "it spins"
    assert own_front.value("select 1") == "1"


# -- sessions --------------------------------------------------------------------------------------


def test_what_a_statement_did_is_answered_even_if_its_session_can_not_be_given_back(front: Front) -> None:
    session = {"session_id": "lost"}
    front.value("create database lost_db")
    front.value("create or replace table kept (a UInt8) engine = MergeTree order by a")
    front.value("use lost_db", params=session)
    front.value("drop database lost_db")
    response = front.request(
        "insert into default.kept format TSV", content=b"1\n", params=session | {"database": "default"}
    )
    assert response.status_code == 200, response.text
    assert front.value("select count() from kept") == "1"
    assert front.value("select currentDatabase()", params=session) == "default"


def test_settings_of_a_session_last_and_parameters_of_a_request_do_not(front: Front) -> None:
    session = {"session_id": "lasting"}
    front.value("set max_execution_time = 5, max_memory_usage = 123456789, max_threads = 1", params=session)
    query = (
        "select getSetting('max_execution_time'), getSetting('max_memory_usage'), getSetting('max_threads')"
    )
    assert front.value(query, params=session) == "5\t123456789\t1"
    assert front.value("select {x:Int32}", params=session | {"param_x": "7"}) == "7"
    assert code(front.request("select {x:Int32}", params=session)) == "456"
    assert front.value("select {x:Int32}", params=session | {"param_x": "8"}) == "8"


@pytest.mark.parametrize("level", ["1", "2"])
def test_a_request_may_be_read_only_in_a_session(front: Front, level: str) -> None:
    session = {"session_id": f"reading{level}"}
    front.value("create temporary table mine (a UInt8)", params=session)
    readonly = session | {"readonly": level}
    assert front.value("select count() from mine", params=readonly) == "0"
    assert code(front.request("insert into mine values (1)", params=readonly)) == "164"
    front.value("insert into mine values (1)", params=session)
    assert front.value("select count() from mine", params=session) == "1"


def test_a_request_that_fails_leaves_the_sessions_own_tables(front: Front) -> None:
    session = {"session_id": "own_tables"}
    front.value("create temporary table ext (a UInt8)", params=session)
    front.value("insert into ext values (1), (2)", params=session)
    files = {"ext": ("ext", b"3\n")}
    params = session | {"ext_types": "UInt8"}
    assert code(front.request("select * from ext", params=params, files=files)) == "57"
    assert front.value("select count() from ext", params=session) == "2"


# -- what is sent ----------------------------------------------------------------------------------


def test_two_files_of_one_name_are_refused(front: Front) -> None:
    files = [("ext", ("a", b"1\n")), ("ext", ("b", b"2\n"))]
    response = front.request("select * from ext", params={"ext_types": "UInt8"}, files=files)
    assert response.status_code == 400
    assert "two parts are called ext" in response.text


def test_the_fields_of_a_form_have_a_limit_together(front: Front) -> None:
    files = [(f"field{number}", (None, "x" * 3_000_000)) for number in range(7)]
    response = front.request("select 1", files=files)
    assert response.status_code == 400
    assert "fields are larger" in response.text


@pytest.mark.measures
def test_a_statement_that_comes_byte_by_byte_costs_no_more(front: Front) -> None:
    text = b"with " + b"1," * 5_000 + b"1 select 1"
    started = time.monotonic()
    assert front.value("", content=(text[at : at + 1] for at in range(len(text)))) == "1"
    assert time.monotonic() - started < 10


def test_what_waits_for_its_end_has_a_limit(front: Front) -> None:
    query = "select repeat('x', 1000) from numbers(2000000)"
    assert code(front.request(query, params={"wait_end_of_query": 1})) == "396"


def test_the_limit_of_a_query_is_on_what_the_client_sent(front: Front) -> None:
    front.value("create or replace table short (a UInt8) engine = Memory")
    response = front.request("insert into short format TSV", content=b"1\n", params={"max_query_size": 40})
    assert response.status_code == 200, response.text


def test_a_query_can_not_hide_behind_another_id(front: Front) -> None:
    response = front.request("select 1 settings stream_like_engine_insert_queue = 'q'")
    assert code(response) == "164"
    text = "select count() from system.settings where name = 'stream_like_engine_insert_queue'"
    assert front.value(text) == "1"


def test_a_target_may_name_its_origin(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as wire:
        target = f"{front.url}/?query=select+1"
        wire.sendall(f"GET {target} HTTP/1.1\r\nX-ClickHouse-Key: {PASSWORD}\r\n\r\n".encode())
        assert wire.recv(10_000).endswith(b"\r\n\r\n1\n")


# The engine opens files of its own meanwhile; a leak would be there in each of the tries.
@pytest.mark.measures
def test_requests_that_fail_early_give_their_descriptors_back(front: Front) -> None:
    process = psutil.Process(front.process.pid)
    front.value("select 1")
    before = process.num_fds()
    for _ in range(50):
        assert front.request("select 1", params={"default_format": "a!"}).status_code == 404
    assert process.num_fds() < before + 20


def test_stalled_uploads_leave_room_for_queries(front: Front) -> None:
    front.value("create or replace table stalled (a UInt8) engine = Memory")
    head = (
        f"POST /?query={quote('insert into stalled format TSV')} HTTP/1.1\r\nHost: x\r\n"
        f"X-ClickHouse-Key: {PASSWORD}\r\nContent-Length: 10\r\n\r\n1\n"
    ).encode()
    wires = [socket.create_connection(("127.0.0.1", front.port)) for _ in range(70)]
    for wire in wires:
        wire.sendall(head)
    time.sleep(1)
    assert front.value("select 1") == "1"
    for wire in wires:
        wire.close()


def test_a_process_with_a_small_limit_of_its_own_raises_it(own_front: Front) -> None:
    soft, hard = resource.prlimit(own_front.process.pid, resource.RLIMIT_NOFILE)
    assert soft == min(hard, 65_536) or hard == resource.RLIM_INFINITY
