"""ClickHouse's HTTP interface, request by request."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.warehouse.conftest import PASSWORD, Front


def summary(response: httpx.Response) -> dict[str, int]:
    return {name: int(value) for name, value in json.loads(response.headers["X-ClickHouse-Summary"]).items()}


# -- the statement ---------------------------------------------------------------------------------


def test_query_in_url_in_body_and_split_between_them(front: Front) -> None:
    assert front.value("select 1") == "1"
    assert front.value("select 1", method="GET") == "1"
    assert front.value("select 1", content=b"+ 1") == "2"


def test_health(front: Front) -> None:
    for path in ("/ping", "/replicas_status", "/"):
        assert httpx.get(front.url + path).text == "Ok.\n"
    assert httpx.get(front.url + "/nowhere").status_code == 404


@pytest.mark.parametrize(
    "query", ["show databases", "show tables from system", "describe system.one", "exists t"]
)
def test_statements_about_the_schema_have_results(front: Front, query: str) -> None:
    assert front.value(query)
    assert json.loads(front.value(f"{query} format JSON"))["rows"] > 0


def test_formats_by_clause_by_parameter_and_by_header(front: Front) -> None:
    assert front.value("select 1 as a format JSONEachRow") == '{"a":1}'
    assert front.value("select 1 as a", params={"default_format": "CSVWithNames"}) == '"a"\n1'
    assert front.value("select 1 as a", headers={"X-ClickHouse-Format": "JSONEachRow"}) == '{"a":1}'
    response = front.request("select 1 as a format JSON")
    assert response.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert response.headers["X-ClickHouse-Format"] == "JSON"
    assert response.json()["data"] == [{"a": 1}]


def test_a_document_format_is_one_document_however_large(front: Front) -> None:
    response = front.request("select number from numbers(500000) format JSON")
    document = response.json()
    assert (len(document["data"]), document["rows"]) == (500_000, 500_000)
    assert front.value("select number as n from numbers(500000) format CSVWithNames").count('"n"') == 1


def test_headers_of_an_answer(front: Front) -> None:
    response = front.request("select number from numbers(10)", params={"query_id": "mine"})
    assert response.headers["X-ClickHouse-Query-Id"] == "mine"
    assert response.headers["X-ClickHouse-Timezone"] == "UTC"
    assert response.headers["X-ClickHouse-Server-Display-Name"]
    assert summary(response)["read_rows"] == summary(response)["result_rows"] == 10


def test_a_statement_without_result_names_no_format(front: Front) -> None:
    response = front.request("create table if not exists without_result (a Int8) engine = Memory")
    assert (response.status_code, response.content) == (200, b"")
    assert "X-ClickHouse-Format" not in response.headers


def test_settings_database_and_parameters_hold_for_one_request(front: Front) -> None:
    assert front.value("select getSetting('max_threads')", params={"max_threads": "3"}) == "3"
    assert front.value("select getSetting('max_threads')") != "3"
    assert front.value("select currentDatabase()", params={"database": "system"}) == "system"
    assert front.value("select currentDatabase()") == "default"
    params = {"param_text": "it's \\t {x}", "param_list": "['a','b']", "param_a$b": "13"}
    query = "select {text:String}, {list:Array(String)}, {a$b:Int32} format JSONCompactEachRow"
    assert json.loads(front.value(query, params=params)) == ["it's \t {x}", ["a", "b"], 13]


def test_tab_separated_times_are_utc_and_inserts_are_synchronous_by_default(front: Front) -> None:
    assert front.value("select timezone(), getSetting('async_insert')") == "UTC\tfalse"


# -- who asks --------------------------------------------------------------------------------------


def test_every_way_to_say_who_one_is(front: Front) -> None:
    headers = {"X-ClickHouse-User": "default", "X-ClickHouse-Key": PASSWORD}
    assert front.value("select 1", auth=None, headers=headers) == "1"
    assert front.value("select 1", auth=None, params={"user": "default", "password": PASSWORD}) == "1"


@pytest.mark.parametrize(
    "options",
    [
        {"auth": ("default", "wrong")},
        {"auth": ("nobody", PASSWORD)},
        {"auth": None, "headers": {"X-ClickHouse-User": "default"}},
        {"auth": None, "headers": {"Authorization": "Bearer x"}},
        {"auth": None, "params": {"password": ""}},
        {"headers": {"X-ClickHouse-Key": PASSWORD}},
    ],
)
def test_wrong_credentials_are_refused(front: Front, options: dict[str, Any]) -> None:
    response = front.request("select 1", **options)
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (403, "516")
    assert PASSWORD not in response.text


def test_no_credentials_are_asked_for(front: Front) -> None:
    response = front.request("select 1", auth=None)
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (401, "194")
    assert response.headers["WWW-Authenticate"].startswith("Basic")


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("selec 1", 400, 62),
        ("", 400, 62),
        ("select 1; select 2", 400, 62),
        ("select * from nosuch", 404, 60),
        ("select nosuch", 404, 47),
        ("select nosuch(1)", 404, 46),
        ("select * from nosuch.t", 404, 81),
        ("select 1 format NoSuch", 404, 73),
        ("insert into nosuch format CSV\n1", 404, 60),
        ("select throwIf(1)", 500, 395),
        ("select {a:Int32}", 500, 456),
        ("select 1 into outfile '/tmp/x'", 500, 148),
        ("create table bad (a NoSuch) engine = Memory", 404, 50),
    ],
)
def test_errors_have_clickhouses_code_and_status(front: Front, query: str, status: int, code: int) -> None:
    response = front.request(query)
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (status, str(code))
    assert response.text.startswith(f"Code: {code}. DB::Exception: ")
    assert "(version 26." in response.text
    assert "X-ClickHouse-Format" not in response.headers


def test_an_unknown_setting_is_an_error(front: Front) -> None:
    assert front.request("select 1", params={"no_such": "1"}).headers["X-ClickHouse-Exception-Code"] == "115"


def test_a_query_that_fails_after_much_was_sent_says_so_inside_the_result(front: Front) -> None:
    response = front.request("select throwIf(number = 3000000), number from numbers(4000000)")
    assert response.status_code == 200
    tag = response.headers["X-ClickHouse-Exception-Tag"]
    assert f"__exception__\r\n{tag}\r\nCode: 395." in response.text
    assert response.text.endswith(f" {tag}\r\n__exception__\r\n")


def test_wait_end_of_query_gives_the_status_of_the_whole(front: Front) -> None:
    query = "select throwIf(number = 3000000), number from numbers(4000000)"
    response = front.request(query, params={"wait_end_of_query": 1})
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (500, "395")


def test_get_does_not_modify(front: Front) -> None:
    front.value("create or replace table by_get (a Int8) engine = Memory")
    for query in ("insert into by_get values (1)", "drop table by_get", "insert into by_get select 1"):
        response = front.request(query, method="GET")
        assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (500, "164")
    assert front.value("select count() from by_get", method="GET") == "0"


def test_a_body_beyond_the_query_size_is_refused(front: Front) -> None:
    assert front.request("select '" + "x" * 300_000 + "'").headers["X-ClickHouse-Exception-Code"] == "62"
    assert len(front.value("select '" + "x" * 300_000 + "'", params={"max_query_size": "1000000"})) == 300_000


def test_an_error_that_quotes_bytes_which_are_no_text_is_still_clickhouses(front: Front) -> None:
    front.value("create or replace table numbers_only (a Int8) engine = Memory")
    response = front.request("insert into numbers_only format TSV", content=b"\xff\xfe\n")
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (400, "27")
    assert front.value("select hex({s:String})", params={"param_s": "\xff"}) == "C3BF"


# -- while it runs ---------------------------------------------------------------------------------

SLOW = (
    "select sleepEachRow(0.05), number, throwIf(number = {fails}) "
    "from numbers(20) settings max_block_size = 1"
)


def test_progress_is_told_in_headers_while_a_query_runs(front: Front) -> None:
    params = {"send_progress_in_http_headers": 1, "http_headers_progress_interval_ms": 50}
    response = front.request(SLOW.format(fails=-1), params=params)
    steps = [
        json.loads(value) for name, value in response.headers.multi_items() if name == "x-clickhouse-progress"
    ]
    read = [int(step["read_rows"]) for step in steps]
    assert len(read) > 5
    assert read == sorted(read)
    assert {step["total_rows_to_read"] for step in steps} == {"20"}
    assert summary(response)["read_rows"] == response.text.count("\n") == 20
    assert response.headers["X-ClickHouse-Format"] == "TabSeparated"


def test_a_query_that_fails_after_progress_was_told_names_its_error_under_status_200(front: Front) -> None:
    response = front.request(SLOW.format(fails=10), params={"send_progress_in_http_headers": 1})
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (200, "395")
    assert response.text.startswith("Code: 395.")


def test_native_blocks_come_as_they_are_made_and_an_error_after_them(front: Front) -> None:
    arrived: list[float] = []
    query = SLOW.format(fails=15) + " format Native"
    began = time.monotonic()
    auth = ("default", PASSWORD)
    plain = {"Accept-Encoding": "identity"}  # an encoder holds small pieces back
    with httpx.stream("POST", front.url, content=query, auth=auth, headers=plain, timeout=60) as response:
        assert response.status_code == 200
        tag = response.headers["X-ClickHouse-Exception-Tag"].encode()
        body = b""
        for piece in response.iter_raw():
            arrived.append(time.monotonic() - began)
            body += piece
    assert len(arrived) > 3
    assert arrived[0] < 0.7
    assert body.endswith(b" %s\r\n__exception__\r\n" % tag)


def test_a_statement_of_any_kind_says_what_it_did(front: Front) -> None:
    front.value("create or replace table counted (a UInt64) engine = MergeTree order by a")
    response = front.request("insert into counted select number from numbers(1000)")
    assert summary(response)["written_rows"] == 1000
    response = front.request("select * from counted format Null")
    assert summary(response)["read_rows"] == 1000


def test_the_query_log_has_what_clients_sent_and_is_kept_over_a_restart(own_front: Front) -> None:
    text = " -- mine\n  select 42 settings log_comment = 'kept'"
    for format_name in ("Native", "CSV"):
        params = {"query_id": f"mine-{format_name}", "default_format": format_name}
        assert own_front.request(text, params=params).status_code == 200
    own_front.value("system flush logs")
    own_front.stop()
    own_front.start()
    rows = own_front.value(
        "select query_id, initial_query_id, query, has(mapKeys(Settings), 'stream_like_engine_insert_queue') "
        "from system.query_log where type = 'QueryFinish' and log_comment = 'kept' "
        "order by query_id format JSONCompactEachRow"
    )
    found = [json.loads(row) for row in rows.splitlines()]
    assert [row[0] for row in found] == [row[1] for row in found] == ["mine-CSV", "mine-Native"]
    assert all(row[2].startswith(text) and "/dev/fd" not in row[2] and row[3] == 0 for row in found)
    definition = own_front.value(
        "select create_table_query from system.tables where database = 'engine_logs'"
    )
    assert "toIntervalDay(14)" in definition


# -- sessions --------------------------------------------------------------------------------------


def test_a_session_keeps_settings_and_temporary_tables(front: Front) -> None:
    session = {"session_id": "keeps"}
    front.value("create temporary table mine (a Int8)", params=session)
    front.value("insert into mine values (1), (2)", params=session)
    front.value("set max_threads = 5", params=session)
    assert front.value("select count() from mine", params=session) == "2"
    once = session | {"max_threads": "2", "database": "system"}
    assert front.value("select getSetting('max_threads'), currentDatabase()", params=once) == "2\tsystem"
    assert front.value("select getSetting('max_threads'), currentDatabase()", params=session) == "5\tdefault"
    assert front.request("select * from mine").headers["X-ClickHouse-Exception-Code"] == "60"


def test_a_busy_session_is_locked(front: Front) -> None:
    session = {"session_id": "busy"}
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(front.value, "select sleep(1.5)", params=session)
        time.sleep(0.5)
        response = front.request("select 1", params=session)
        assert response.headers["X-ClickHouse-Exception-Code"] == "373"
        assert slow.result() == "0"
    assert front.value("select 1", params=session) == "1"


def test_a_session_ends(front: Front) -> None:
    short = {"session_id": "short", "session_timeout": "1"}
    front.value("create temporary table gone (a Int8)", params=short)
    time.sleep(1.5)
    response = front.request("select 1", params=short | {"session_check": "1"})
    assert (response.status_code, response.headers["X-ClickHouse-Exception-Code"]) == (500, "372")
    response = front.request("select 1", params=short | {"session_timeout": "5000"})
    assert response.headers["X-ClickHouse-Exception-Code"] == "374"


# -- external data ---------------------------------------------------------------------------------


def test_external_tables_come_with_the_query(front: Front) -> None:
    files = {"ext": ("ext.csv", b"1,a\n2,b\n"), "more": ("more.tsv", b"2\n")}
    params = {"ext_structure": "id Int32, s String", "ext_format": "CSV", "more_types": "Int32"}
    query = "select s from ext where id in (select _1 from more)"
    assert front.value(query, params=params, files=files) == "b"
    assert front.request("select * from ext").headers["X-ClickHouse-Exception-Code"] == "60"


def test_query_and_parameters_may_come_as_a_form(front: Front) -> None:
    form = {"query": (None, "select {a:Int32} + 1"), "param_a": (None, "41"), "default_format": (None, "CSV")}
    assert front.value(files=form, query="") == "42"


def test_a_form_cut_short_is_refused(front: Front) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    body = b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nselect 1\r\n'
    assert front.request(content=body, headers=headers).status_code == 400
    assert front.value(content=body + b"--b--\r\n", headers=headers, query="") == "1"


def test_input_transforms_data_on_its_way_in(front: Front) -> None:
    front.value("create or replace table from_input (a Int32) engine = MergeTree order by a")
    query = "insert into from_input select n * 2 from input('n Int32') where n > 1 format CSV"
    response = front.request(query, content=b"1\n2\n3\n")
    assert (response.status_code, summary(response)["written_rows"]) == (200, 2), response.text
    assert front.value("select groupArray(a) from from_input") == "[4,6]"


# -- side by side ----------------------------------------------------------------------------------


def test_eight_clients_at_once_each_get_their_own_answer(front: Front) -> None:
    def ask(number: int) -> bool:
        query = f"select {number}, count(), sum(number) from numbers({number * 10_000})"
        n = number * 10_000
        return front.value(query) == f"{number}\t{n}\t{n * (n - 1) // 2}"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(1, 81)))


@pytest.mark.measures
def test_a_long_query_does_not_block_short_ones_and_can_be_killed_by_its_id(front: Front) -> None:
    with ThreadPoolExecutor(1) as pool:
        query = "select count() from numbers(1000000000000) where sipHash64(number) = 1"
        long = pool.submit(front.request, query, params={"query_id": "long", "max_threads": 1})
        time.sleep(0.5)
        started = time.monotonic()
        assert front.value("select 1") == "1"
        assert time.monotonic() - started < 1
        twice = front.request("select 1", params={"query_id": "long"})
        assert twice.headers["X-ClickHouse-Exception-Code"] == "216"
        assert "long" not in front.value("kill query where query_id = 'other' sync")
        front.value("kill query where query_id = 'long' sync")
        assert long.result(10).headers["X-ClickHouse-Exception-Code"] == "394"


@pytest.mark.parametrize("query", ["select count() from numbers(1000000000000) where sipHash64(number) = 1",
                                   "select number from numbers(1000000000000)"])  # fmt: skip
def test_a_query_ends_when_its_client_goes_away(front: Front, query: str) -> None:
    marked = f"{query} settings log_comment = 'abandoned', max_threads = 1"

    with (
        suppress(httpx.ReadTimeout),
        httpx.Client(auth=("default", PASSWORD), timeout=1) as client,
        client.stream("POST", front.url, content=marked) as response,
    ):
        next(response.iter_raw())
    running = "select count() from system.processes where Settings['log_comment'] = 'abandoned'"
    deadline = time.monotonic() + 10
    while front.value(running) != "0":
        assert time.monotonic() < deadline, "the query still runs"
        time.sleep(0.1)
