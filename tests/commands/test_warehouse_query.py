"""`apex warehouse query` as a script meets it: streams, exit codes, one message on stderr."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import click
import pytest
from clickhouse_connect.driver.client import Client

from apex_pipelines.commands.warehouse.client import credentials
from apex_pipelines.commands.warehouse.script import Script
from apex_pipelines.platform import clickhouse
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import free_port

APEX = str(Path(sys.executable).with_name("apex"))


@pytest.fixture
def client(settings: Settings, _warehouse: Settings) -> Iterator[Client]:
    """A client of the warehouse that `settings` points at."""
    settings.clickhouse_url = clickhouse.clickhouse_url(_warehouse)
    client = clickhouse.connect(settings, query_origin="tests")
    yield client
    client.close()


@pytest.fixture
def table(client: Client) -> Iterator[str]:
    """An empty table (a Int64, s String) of the test's own."""
    name = f"query_{uuid.uuid4().hex}"
    client.command(f"create table {name} (a Int64, s String) engine = MergeTree order by a")
    yield name
    client.command(f"drop table {name}")


def query(
    settings: Settings, *arguments: str, given: bytes | None = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [APEX, "warehouse", "query", *arguments],
        env=child_environment(settings), input=given, capture_output=True, timeout=60, cwd=cwd,
    )  # fmt: skip


def start(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [APEX, "warehouse", "query", *arguments],
        env=child_environment(settings),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_until_running(client: Client, mark: str, *, running: bool = True, seconds: float = 20) -> None:
    """Wait until a query whose text holds `mark` runs in the warehouse, or no longer does."""
    count = (
        f"select count() from system.processes where query like '%{mark}%' and query not like '%processes%'"
    )
    deadline = time.monotonic() + seconds
    while bool(client.query(count).first_row[0]) is not running:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- results ---------------------------------------------------------------------------------------


def test_sql_comes_as_an_argument_from_a_file_or_from_standard_input(
    settings: Settings, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "one.sql").write_text("select 1 as a, 'x' as b")
    for done in (
        query(settings, "select 1 as a, 'x' as b"),
        query(settings, "--file", str(tmp_path / "one.sql")),
        query(settings, given=b"select 1 as a, 'x' as b"),
        query(settings, "-", given=b"select 1 as a, 'x' as b;\n"),
    ):
        assert (done.returncode, done.stdout, done.stderr) == (0, b"1\tx\n", b"")


def test_the_format_is_the_statements_own_then_the_options_then_tab_separated(
    settings: Settings, client: Client
) -> None:
    assert query(settings, "select 1 as a", "--json").stdout == b'{"a":1}\n'
    assert query(settings, "select 1 as a", "--format", "CSVWithNames").stdout == b'"a"\n1\n'
    assert query(settings, "select 1 as a format TSVWithNames", "--json").stdout == b"a\n1\n"
    assert query(settings, "select 1", "--json", "--format", "CSV").returncode == 2


def test_parameters_are_values_and_settings_hold(settings: Settings, client: Client) -> None:
    awkward = "C:\\temp\tit's\n{x:Int8}"
    done = query(
        settings, "select {s:String}, length({s:String}), {l:Array(String)}[2], {n:UInt8} format JSONCompact",
        "--param", f"s={awkward}", "-p", "l=['a','b=c']", "-p", "n=7", "-s", "max_threads=3",
        "--setting", "output_format_json_quote_64bit_integers=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f'["C:\\\\temp\\tit\'s\\n{{x:Int8}}", {len(awkward)}, "b=c", 7]'.encode() in done.stdout
    assert query(settings, "select getSetting('max_threads')", "-s", "max_threads=3").stdout == b"3\n"


def test_a_result_is_written_while_it_comes(settings: Settings, client: Client) -> None:
    # Rows as large as what the warehouse itself gathers before it sends.
    slow = (
        "select number, repeat('xxxxxxxxxx', 300000), sleep(0.5) from numbers(5) settings max_block_size = 1"
    )
    process = start(settings, slow)
    assert process.stdout
    assert process.stdout.readline().startswith(b"0\txxx")
    first = time.monotonic()
    assert process.stdout.read().count(b"\n") == 4
    assert time.monotonic() - first > 0.9
    assert process.wait(10) == 0


def test_a_large_result_is_not_held(settings: Settings, client: Client) -> None:
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (200_000_000, 200_000_000));"
        "from apex_pipelines.cli import main; sys.argv[0] = 'apex'; main()"
    )
    sql = "select number, repeat('x', 100) from numbers(5000000)"
    with subprocess.Popen(
        [sys.executable, "-c", limited, "warehouse", "query", sql],
        env=child_environment(settings), stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout
        size = sum(len(piece) for piece in iter(lambda: process.stdout.read(1 << 20), b""))  # type: ignore[union-attr]
    assert process.returncode == 0
    assert size > 500_000_000


def test_time_and_rows_read_go_to_stderr(settings: Settings, client: Client) -> None:
    done = query(settings, "select count() from numbers(1000) where number % 2", "--time")
    assert done.stdout == b"500\n"
    assert b" s, 1,000 rows read" in done.stderr


def test_progress_when_asked_for_says_how_far_it_is(settings: Settings, client: Client) -> None:
    done = query(settings, "select sleep(1.3)", "--progress")
    assert done.stdout == b"0\n"
    assert done.stderr.startswith(b"1 s, 0 bytes\n")


# -- statements ------------------------------------------------------------------------------------


def test_statements_run_in_order_in_one_session_and_stop_at_the_first_error(
    settings: Settings, client: Client, table: str
) -> None:
    script = f"""
        -- what one statement sets; the next one finds
        set max_threads = 5; select getSetting('max_threads');
        create temporary table mine (a Int8);
        use system; select currentDatabase();
        insert into default.{table} values (1, 'a;b'), (2, 'it''s');;
        insert into default.{table} (a) select 3;
        select count() from nowhere;
        insert into default.{table} (a) select 4;
    """
    done = query(settings, given=script.encode())
    assert done.returncode == 1
    assert done.stdout == b"5\nsystem\n"
    assert b"statement 8, line 8: Code: 60." in done.stderr
    assert client.query(f"select a, s from {table} order by a").result_rows == [
        (1, "a;b"),
        (2, "it's"),
        (3, ""),
    ]


@pytest.mark.parametrize(
    ("script", "texts", "data"),
    [
        ("", [], None),
        (" ; -- nothing\n;/* ; */", [], None),
        ("select 1", ["select 1"], None),
        ("select ';' -- ;\n; select 2;\n", ["select ';' -- ;\n", "select 2"], None),
        ("insert into t values (';'); select 2", ["insert into t values (';')", "select 2"], None),
        ("insert into t format CSV\n1;2\n'", ["insert into t format CSV\n"], "1;2\n'"),
        ("insert into t format CSV 1,2", ["insert into t format CSV "], "1,2"),
        ("insert into t format CSV; select 2", ["insert into t format CSV\n", "select 2"], None),
        ("insert into t select 1; select 2", ["insert into t select 1", "select 2"], None),
        ("with 1 as a select a; select 2", ["with 1 as a select a", "select 2"], None),
        ("select 'not closed; select 2", ["select 'not closed; select 2"], None),
    ],
)
def test_a_script_is_cut_where_clickhouse_would(script: str, texts: list[str], data: str | None) -> None:
    found = list(Script(BytesIO(script.encode())))
    assert [statement.text.decode() for statement in found] == texts
    assert [statement.last for statement in found] == [
        number == len(texts) for number in range(1, len(texts) + 1)
    ]
    held = [b"".join(statement.data).decode() for statement in found if statement.data]
    assert held == ([] if data is None else [data])


def test_a_script_longer_than_a_read_is_cut_the_same() -> None:
    wanted = [f"select {number}, ';{'x' * (number % 977)}'" for number in range(2000)]
    found = list(Script(BytesIO(";\n".join(wanted).encode())))
    assert [statement.text.decode() for statement in found] == wanted
    assert [statement.line for statement in found] == list(range(1, 2001))


# -- inserts ---------------------------------------------------------------------------------------


def test_data_of_an_insert_comes_from_a_file_from_a_pipe_or_behind_the_statement(
    settings: Settings, client: Client, table: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text('1,"x;y"\n')
    into = f"insert into {table} format"
    for done in (
        query(settings, f"{into} CSV", "--data", str(tmp_path / "rows.csv")),
        query(settings, f"{into} JSONEachRow;", given=b'{"a": 2, "s": "it\'s"}\n'),
        query(settings, given=f"{into} TSV\n3\tz;z\n".encode()),
        query(settings, f"{into} CSV 4,inline", "--time"),
        query(settings, f"insert into {table} values", given=b"(5, 'v')"),
        query(
            settings,
            f"insert into {table} select a, s from input('a Int64, s String') format CSV",
            given=b"6,i\n",
        ),
    ):
        assert (done.returncode, done.stdout) == (0, b""), done.stderr
    rows = client.query(f"select a, s from {table} order by a").result_rows
    assert rows == [(1, "x;y"), (2, "it's"), (3, "z;z"), (4, "inline"), (5, "v"), (6, "i")]


def test_much_data_is_streamed_and_rows_written_are_told(
    settings: Settings, client: Client, table: str
) -> None:
    data = b"".join(b"%d\tsome text\n" % number for number in range(1_000_000))
    done = query(settings, f"insert into {table} format TSV", "--time", given=data)
    assert done.returncode == 0, done.stderr
    assert b"1,000,000 rows written" in done.stderr
    assert client.query(f"select count(), max(a) from {table}").first_row == (1_000_000, 999_999)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["insert into {table} format CSV"], b"standard input has no data for this INSERT"),
        (["insert into {table} format CSV", "--data", "nowhere.csv"], b"nowhere.csv"),
        (["select 1", "--data", "/etc/hostname"], b"no INSERT took the data"),
        (["insert into nowhere format CSV", "--data", "large.csv"], b"nowhere does not exist"),
        (["insert into {table} format CSV", "--data", "large.csv"], b"Cannot parse input"),
    ],
)
def test_data_that_is_missing_or_wrong_is_an_error(
    settings: Settings, client: Client, table: str, tmp_path: Path, arguments: list[str], said: bytes
) -> None:
    (tmp_path / "large.csv").write_text("no number,x\n" * 2_000_000)
    done = query(settings, *(argument.format(table=table) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert b"Traceback" not in done.stderr
    assert client.query(f"select count() from {table}").first_row == (0,)


# -- errors and ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["select * from nowhere"], b"Error: Code: 60. DB::Exception: Unknown table expression"),
        (["selec 1"], b"(SYNTAX_ERROR)"),
        (["select 1", "-s", "no_such=1"], b"no_such"),
        (["select {a:Int8}"], b"Substitution `a` is not set"),
        (["select 1", "--user", "nobody"], b"nobody: Authentication failed"),
        ([" -- nothing"], b"there is no statement to run"),
        (["--file", "nowhere.sql"], b"nowhere.sql"),
    ],
)
def test_an_error_is_one_message_on_stderr_and_nothing_on_stdout(
    settings: Settings, client: Client, arguments: list[str], said: bytes
) -> None:
    done = query(settings, *arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    assert said in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Stack trace" not in done.stderr
    assert b"(version" not in done.stderr
    assert len(done.stderr) < 1000


def test_a_failure_in_the_middle_of_a_result_is_told_and_its_text_is_no_result(
    settings: Settings, client: Client
) -> None:
    done = query(settings, "select number, throwIf(number = 3000000, 'too far') from numbers(4000000)")
    assert done.returncode == 1
    assert done.stdout.startswith(b"0\t0\n1\t0\n")
    assert b"__exception__" not in done.stdout
    assert b"DB::Exception" not in done.stdout
    assert done.stderr.startswith(b"Error: Code: 395. DB::Exception: too far")
    assert b"__exception__" not in done.stderr


def test_a_reader_that_has_enough_ends_it_quietly(settings: Settings, client: Client) -> None:
    process = start(settings, "select number from numbers(100000000000)")
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 0
    wait_until_running(client, "numbers(100000000000)", running=False)


def test_ctrl_c_cancels_the_query_and_exits_with_130(settings: Settings, client: Client) -> None:
    mark = uuid.uuid4().hex
    process = start(settings, f"select count() from numbers(100000000000) where toString(number) = '{mark}'")
    wait_until_running(client, mark)
    process.send_signal(signal.SIGINT)
    output, told = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, b"")
    assert told.strip() == b"interrupted"
    wait_until_running(client, mark, running=False)


def test_a_server_that_does_not_answer_is_told_with_what_to_do(settings: Settings) -> None:
    embedded = settings.model_copy(update={"warehouse_port": free_port()})
    done = query(embedded, "select 1")
    assert done.returncode == 1
    assert f"http://127.0.0.1:{embedded.warehouse_port}".encode() in done.stderr
    assert b"Start it with `apex up` or `apex warehouse serve`." in done.stderr
    settings.clickhouse_url = f"http://me:secret@127.0.0.1:{free_port()}/"
    done = query(settings, "select 1")
    assert b"Is APEX_CLICKHOUSE_URL right?" in done.stderr
    assert b"secret" not in done.stderr
    settings.clickhouse_url = "http://me:secret@127.0.0.1:99999"
    assert b"APEX_CLICKHOUSE_URL is wrong" in query(settings, "select 1").stderr


class _Strange(BaseHTTPRequestHandler):
    """A server that isn't ClickHouse on one path, and one that breaks off in a result."""

    def do_POST(self) -> None:
        if "broken" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"begun\n")
        else:
            self.send_error(404, "No such page")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


def test_what_is_no_clickhouse_or_breaks_off_is_an_error(settings: Settings) -> None:
    with HTTPServer(("127.0.0.1", 0), _Strange) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings.clickhouse_url = f"http://127.0.0.1:{server.server_port}"
        assert b"404, not as ClickHouse" in query(settings, "select 1").stderr
        done = query(settings, "select 1", "-s", "broken=1")
        assert (done.returncode, done.stdout) == (1, b"begun\n")
        assert b"broke" in done.stderr
        server.shutdown()


def test_who_asks_is_the_urls_user_the_reader_or_who_is_named(settings: Settings) -> None:
    settings.clickhouse_url = "http://m%40x:se%2Fcret@ch.example:8123"
    assert credentials(settings, user=None, read_only=False) == ("m@x", "se/cret")
    assert credentials(settings, user="m@x", read_only=False) == ("m@x", "se/cret")
    assert credentials(settings, user="other", read_only=False) == ("other", "")
    assert credentials(settings, user=None, read_only=True)[0] == "reader"
    with pytest.raises(click.UsageError, match="can't be combined"):
        credentials(settings, user="other", read_only=True)


def test_help_has_examples(settings: Settings) -> None:
    assert b"Examples:" in query(settings, "--help").stdout
