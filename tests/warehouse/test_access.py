"""What the user `reader` may do, and every way out of that we could think of.

A file with a random word lies on the machine, a socket listens, and a folder is there to be written to: the
word never comes back, nobody ever connects, nothing is ever written.
"""

# One attempt after another reads best in a line each.
# ruff: noqa: E501

from __future__ import annotations

import base64
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import psutil
import pytest

from tests.conftest import PROJECT_ROOT
from tests.warehouse.conftest import PASSWORD, READER_PASSWORD, Front

DENIED = {"164", "497"}  # READONLY, ACCESS_DENIED


@dataclass
class Prey:
    """What must not be reached: a secret in a file, an address, a folder."""

    word: str
    file: Path
    folder: Path
    port: int
    visitors: list[str] = field(default_factory=list)

    def fill(self, text: str) -> str:
        """`text` with SECRET, URL, PORT, TARGET and FOLDER put in."""
        return (
            text.replace("SECRET", str(self.file))
            .replace("URL", f"http://127.0.0.1:{self.port}/x.csv")
            .replace("PORT", str(self.port))
            .replace("TARGET", str(self.folder / "written"))
            .replace("FOLDER", str(self.file.parent))
        )

    def happened(self) -> list[str]:
        """Who came and what was written since the last time somebody asked."""
        written = list(self.folder.iterdir())
        for file in written:
            file.unlink()
        happened = [*self.visitors, *(file.name for file in written)]
        self.visitors.clear()
        return happened

    def check(self, response: httpx.Response) -> None:
        """The answer tells nothing, and nothing happened."""
        happened = self.happened()
        assert self.word not in response.text, response.text[:500]
        assert self.word not in str(response.headers)
        assert not happened


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A warehouse that runs in a folder of its own, where it would be seen to write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        patch.setenv("PYTHONPATH", str(PROJECT_ROOT))
        front = Front(tmp_path_factory.mktemp("warehouse") / "home")
    front.value("create table events (id UInt64, url String, `a/b` String) engine = MergeTree order by id")
    front.value("insert into events values (1, 'http://x/file', 'file'), (2, 'y', 'url(z)')")
    front.value("create view names as select id, url from events")
    yield front
    front.stop()


@pytest.fixture(scope="module")
def prey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prey]:
    folder = tmp_path_factory.mktemp("prey")
    word = f"zebra{secrets.token_hex(8)}"
    (folder / "secret.csv").write_text(f"{word}\n")
    (folder / "target").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        prey = Prey(word, folder / "secret.csv", folder / "target", listener.getsockname()[1])

        def listen() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                prey.visitors.append("connected")
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield prey


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


class Reader:
    """Asks as `reader`, on one connection; httpx would take longer to ask than the warehouse to answer."""

    def __init__(self, front: Front) -> None:
        self._url = front.url
        self._authorization = basic("reader", READER_PASSWORD)
        self._connection = HTTPConnection("127.0.0.1", front.port, timeout=30)

    def ask(self, query: str, params: Mapping[str, str], method: str = "POST") -> httpx.Response:
        target = f"/?{urlencode(params)}"
        for last in (False, True):
            try:
                self._connection.request(method, target, query.encode(), self._authorization)
                got = self._connection.getresponse()
                return httpx.Response(got.status, headers=got.getheaders(), content=got.read())
            except (HTTPException, ConnectionError):
                # A kept connection may have been closed since.
                self._connection.close()
                if last:
                    raise
        raise AssertionError

    def send_form(self, files: Any, params: Mapping[str, str] | None = None) -> httpx.Response:
        return httpx.post(self._url, params=params, files=files, headers=self._authorization, timeout=30)


@pytest.fixture(scope="module")
def reader(front: Front) -> Reader:
    return Reader(front)


def ask(reader: Reader, query: str, **params: str) -> httpx.Response:
    return reader.ask(query, params)


def value(reader: Reader, query: str, **params: str) -> str:
    response = ask(reader, query, **params)
    assert response.status_code == 200, response.text
    return response.text.removesuffix("\n")


def code(response: httpx.Response) -> str:
    return str(response.headers.get("X-ClickHouse-Exception-Code", ""))


def with_table(reader: Reader, data: str, query: str = "select * from ext", **params: str) -> httpx.Response:
    """Ask with an external table."""
    named = {"query": query, **{f"ext_{name}": text for name, text in params.items()}}
    return reader.send_form({"ext": ("ext", data.encode())}, named)


# -- what a reader may ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("select count() from events", "2"),
        ("select a.id, b.url from events a join events b using id order by id limit 1", "1\thttp://x/file"),
        ("with t as (select id from events) select sum(id) from t", "3"),
        ("from events select max(id)", "2"),
        ("(select 1) union all (select 1)", "1\n1"),
        ("select count() > 0 from system.tables", "1"),
        ("select sum(number) from numbers(5)", "10"),
        ("select sum(id) from merge('default', '^events$')", "3"),
        ("select * from values('a Int8', 1, 2)", "1\n2"),
        ("select * from values('a', 'b')", "a\nb"),
        ("select * from view(select 7)", "7"),
        ("select * from generateSeries(1, 3)", "1\n2\n3"),
        ("exists events", "1"),
        ("exists table default.events", "1"),
        ("select sum(id) from names", "3"),
        ("select arrayReduce('sum', [1, 2]), arrayReduce('quantileExact(0.5)', [1, 2, 3])", "3\t2"),
        ("select length(arrayReduce('groupUniqArray(2)', [1, 2, 3]))", "2"),
    ],
)
def test_a_reader_reads(front: Front, reader: Reader, query: str, answer: str) -> None:
    assert value(reader, query) == answer


@pytest.mark.parametrize(
    "query",
    [
        "show databases", "show tables", "show tables from system like 'part%'", "show create table events",
        "show create names", "show columns from events", "describe events", "desc table names",
        "describe (select 1 as a)", "explain select * from events", "explain syntax select 1 + 1",
        "explain pipeline select sum(id) from events", "explain query tree select 1",
        "show settings like 'max_mem%'", "show functions like 'plus'", "show processlist",
    ],
)  # fmt: skip
def test_a_reader_sees_the_schema(front: Front, reader: Reader, query: str) -> None:
    assert value(reader, query)
    assert json.loads(value(reader, f"{query} format JSON"))["rows"] > 0


@pytest.mark.parametrize(
    "query",
    [
        "select 'file' as url, 'url(x)', 'remote(''a'')', '/etc/passwd' from events",
        "select url from events where url like '%file(%' or url = 'executable(''x'')'",
        "select `a/b` as `c/d`, url as `url/x` from events order by `c/d`",
        "select url, count() as s3 from events group by url order by s3",
        "select e.url, e.`a/b` from events as e",
        "with url as (select 1 as mysql) select mysql from url",
        "select id as remote, remote + 1 as sqlite from events",
        "select domain(url), path(url), cutURLParameter(url, 'a') from events -- file('/etc/passwd')",
        "select 1 /* url('http://x') */ + 1",
        "select $$file('/etc/passwd')$$",
        "select `a/b` from events where `a/b` in ('file', 'url(z)')",
        "select splitByChar('/', url) as parts, arrayMap(x -> concat('/', x), parts) from events",
        "explain select `a/b` from events",
        "show tables like 'file'",
        "select arrayStringConcat(groupArray(url), ',default (') from events",
        "select number as cluster from numbers(2) order by cluster",
    ],
)
def test_words_that_only_look_dangerous_pass(front: Front, reader: Reader, query: str) -> None:
    value(reader, query)


def test_a_reader_is_refused_no_format(front: Front, reader: Reader) -> None:
    names = front.value("select name from system.formats where is_output").split()
    assert len(names) > 50
    refused = [name for name in names
               if code(ask(reader, f"select id, url from events format {name}")) in DENIED]  # fmt: skip
    assert not refused


def test_a_reader_has_external_tables(front: Front, reader: Reader) -> None:
    query = "select s from ext join events using id order by id"
    response = with_table(reader, "1,a\n2,b\n", query, structure="id UInt64, s String", format="CSV")
    assert response.text == "a\nb\n"
    response = with_table(reader, "(1, 'a')", structure="id UInt64, s String", format="Values")
    assert response.text == "1\ta\n"
    response = with_table(reader, '{"id": 1}', structure="id UInt64", format="JSONEachRow")
    assert response.text == "1\n"


@pytest.mark.parametrize(
    ("query", "params", "answer"),
    [
        ("select {a:Int32} + 1", {"param_a": "41"}, "42"),
        ("select count() from {t:Identifier}", {"param_t": "events"}, "2"),
        ("select {s:String}", {"param_s": "file('/x')"}, "file(\\'/x\\')"),
        ("select getSetting('max_threads')", {"max_threads": "3"}, "3"),
        ("select getSetting('log_comment')", {"log_comment": "a report"}, "a report"),
        ("select toDateTime(0)", {"session_timezone": "Asia/Tokyo"}, "1970-01-01 09:00:00"),
        ("select number from numbers(9)", {"limit": "2", "offset": "1"}, "1\n2"),
        ("select currentDatabase()", {"database": "system"}, "system"),
        ("select 1", {"session_id": "of a reader"}, "1"),
        ("select getSetting('readonly')", {"readonly": "0"}, "1"),
        ("select getSetting('readonly')", {"readonly": "2"}, "1"),
        ("select getSetting('readonly')", {"readonly": "x"}, "1"),
        ("select 1 as a", {"default_format": "JSONEachRow"}, '{"a":1}'),
    ],
    ids=str,
)
def test_a_reader_has_parameters_and_settings(
    front: Front, reader: Reader, query: str, params: dict[str, str], answer: str
) -> None:
    for _ in range(2):
        assert value(reader, query, **params) == answer


# -- what a reader may not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "insert into events values (3, '', '')", "insert into events select * from events",
        "insert into events format CSV\n3,,\n", "with 1 as x insert into events select x, '', ''",
        "insert into function file('TARGET', 'CSV') select 1", "insert into function null('a Int8') select 1",
        "create table t (a Int8) engine = Memory", "create temporary table t (a Int8)", "create database d",
        "create view v as select 1", "create function f as x -> x", "create user u", "create role r",
        "create or replace table events (a Int8) engine = Memory", "create named collection c as a = 1",
        "create dictionary d (a UInt64) primary key a", "drop table events", "drop view names",
        "drop database default", "truncate table events", "detach table events", "attach table events",
        "attach table t from 'SECRET' (a String) engine = Log", "undrop table events",
        "rename table events to other", "exchange tables events and names", "alter table events delete where 1",
        "alter table events add column c Int8", "delete from events where 1", "update events set url = '' where 1",
        "optimize table events final", "set max_threads = 1", "set readonly = 0", "use system",
        "kill query where 1", "kill mutation where 1", "system reload config", "system flush logs",
        "system stop merges", "system shutdown", "system drop mark cache", "backup table events to File('TARGET')",
        "backup database default to Disk('default', 'x')", "restore table events from File('SECRET')",
        "grant select on *.* to default", "revoke all on *.* from default", "begin transaction", "commit",
        "execute as default select 1", "check table events", "select 1 parallel with drop table events",
        "drop table events parallel with drop table events", "select 1; drop table events",
        "explain insert into events select 1, '', ''", "select 1 into outfile 'TARGET'",
        "(select 1) into outfile 'TARGET'", "select 1 into/**/outfile 'TARGET'",
        "select 1 -- \ninto outfile 'TARGET' truncate", "select 1 format CSV into outfile 'TARGET'",
        "select 1 /* /* */ into outfile 'TARGET' /* */ */ into outfile 'TARGET'",
        "select $'$ ' $'$ into outfile $$TARGET$$ --'", "select * from (select 1 into outfile 'TARGET')",
        "explain select 1 into outfile 'TARGET'", "show tables into outfile 'TARGET'",
        "select 1 settings max_threads = 1 into outfile 'TARGET'",
        "select 1 format CSV settings max_threads = 1 into outfile 'TARGET'",
        "insert into events from infile 'SECRET' format CSV", "select 1 from infile 'SECRET'",
    ],
)  # fmt: skip
@pytest.mark.parametrize("params", [{}, {"default_format": "Native"}, {"readonly": "0"}], ids=str)
def test_a_reader_changes_nothing(
    front: Front, reader: Reader, prey: Prey, query: str, params: dict[str, str]
) -> None:
    response = ask(reader, prey.fill(query), **params)
    assert response.status_code >= 400
    prey.check(response)
    state = "select count(), sum(id), (select arraySort(groupArray(name)) from system.tables where database = 'default') from events"
    assert value(reader, state) == "2\t3\t['events','names']"


# -- files ----------------------------------------------------------------------------------------------

FILE_QUERIES = [
    "select file('SECRET')", "select `file`('SECRET')", 'select "file"(\'SECRET\')', "select “file”('SECRET')",
    "select `fi\\x6ce`('SECRET')", "select `\\x66\\x69\\x6c\\x65`('SECRET')", 'select "fi\\x6ce"(\'SECRET\')',
    "select file\u00a0('SECRET')", "select\u3000file\u2003('SECRET')", "select file/* ) */('SECRET')",
    "select file -- (\n('SECRET')", "select file #! x\n('SECRET')", "select FILE('SECRET')",
    "select file(‘SECRET’)", "select file($a$SECRET$a$)", "select file('SECRET', 'none')",
    "select arrayMap(file, ['SECRET'])", "select arrayMap(`file`, ['SECRET'])", "select arrayFilter(file, ['SECRET'])",
    "select arrayMap(x -> file(x), ['SECRET'])", "select arrayMap(`fi\\x6ce`, ['SECRET'])",
    "select arrayFold((a, x) -> concat(a, file(x)), ['SECRET'], '')", "select '' in (file('SECRET'))",
    "select * apply file from (select 'SECRET' as p)", "select * apply(file) from (select 'SECRET' as p)",
    "select * apply(x -> file(x)) from (select 'SECRET' as p)", "select * apply `file` from (select 'SECRET' as p)",
    "select columns('p') apply file from (select 'SECRET' as p)", "with file as f select f('SECRET')",
    "with (x -> file(x)) as f select f('SECRET')", "with (select file('SECRET')) as s select s",
    "select (select file('SECRET'))", "select 1 where file('SECRET') != ''", "select 1 order by file('SECRET')",
    "select 1 group by file('SECRET')", "select 1 having file('SECRET') != ''", "select 1 limit length(file('SECRET'))",
    "select 1 union all select file('SECRET')", "select 1 from (select file('SECRET') as f) where f != ''",
    "select * from values('a String', file('SECRET'))", "select * from view(select file('SECRET'))",
    "select * from numbers(length(file('SECRET')))", "select * from (select 1) t join (select file('SECRET')) u on 1",
    "select sum(length(file('SECRET'))) over ()", "select if(1, file('SECRET'), '')", "select 'SECRET' as p, file(p)",
    "select * replace(file('SECRET') as p) from (select 1 as p)", "select groupConcat(file('SECRET'))(x) from (select 'a' as x)",
    "explain select file('SECRET')", "explain syntax select file('SECRET')", "explain plan select file('SECRET')",
    "explain query tree select file('SECRET')", "explain ast select file('SECRET')", "explain analyze select file('SECRET')",
    "explain estimate select file('SECRET')", "explain pipeline select file('SECRET')",
    "describe (select file('SECRET'))", "describe table view(select file('SECRET'))",
    "select toInt32(file('SECRET'))", "select throwIf(1, file('SECRET'))",
    # The table function, and the tables that paths are.
    "select * from file('SECRET')", "select * from `file`('SECRET', 'LineAsString')", "select * from FILE('SECRET')",
    "select * from file(SECRET)", "select * from `SECRET`", 'select * from "SECRET"', "select * from “SECRET”",
    "select * from default.`SECRET`", "select 1 where '' in `SECRET`", "select * from 'SECRET'", "from `SECRET`",
    "select * from (select 1) t join `SECRET` on 1", "select * from numbers(1), `SECRET`", "table `SECRET`",
    "with x as (select * from `SECRET`) select * from x", "select * from view(select * from `SECRET`)",
    "select * from (select * from `SECRET` settings readonly = 0)", "select (select * from `SECRET`)",
    "select 1 union all select * from `SECRET` settings readonly = 0", "select * from loop(`SECRET`)",
    "select * from merge('default', 'SECRET')", "select * from merge('', 'secret')", "select * from loop('default', 'SECRET')",
    "select joinGet('SECRET', 'c1', 1)", "select joinGet('default.SECRET', 'c1', 1)", "select dictGet('SECRET', 'c1', 1)",
    "select hasColumnInTable('default', 'SECRET', 'c1')", "select * from dictionary('SECRET')",
    "select * from mergeTreeIndex('default', 'SECRET')", "select * from mergeTreeProjection('default', 'SECRET', 'x')",
    "describe `SECRET`", "describe file('SECRET')", "describe table file('SECRET', 'CSV')", "desc `SECRET`",
    "describe url('file://SECRET')", "describe table `SECRET` settings describe_compact_output = 1",
    "show create table `SECRET`", "show columns from `SECRET`", "show index from `SECRET`", "explain select * from `SECRET`",
    "explain table override mysql('127.0.0.1:PORT', 'a', 'b', 'c', 'd') columns (a Int8)",
    "select * from fileCluster('default', 'SECRET')", "select * from sqlite('SECRET', 'x')", "select * from filesystem('SECRET')",
    "select * from url('file://SECRET', 'LineAsString')", "select * from executable('SECRET', 'CSV', 'a String')",
    "select * from icebergLocal('SECRET')", "select * from deltaLakeLocal('SECRET')", "select * from python('SECRET')",
    "select * from eval('select 1')", "select * from input('a String')", "select * from viewExplain('EXPLAIN', '', (select file('SECRET')))",
    "select * from viewIfPermitted(select file('SECRET') as a else null('a String'))",
    # Strings that hold code.
    "select * from null('a Int32 default toInt32(file(\\'SECRET\\'))')",
    "select * from null('a Int32 default `fi\\\\x6ce`(\\'SECRET\\')')",
    "select * from null(concat('a Int32 default fi', 'le(\\'SECRET\\')'))",
    "select * from null('a Int32 materialized file(\\'SECRET\\')')",
    "select * from null('a Int32 alias file(\\'SECRET\\')')",
    "select * from generateRandom('a Int32 default toInt32(file(\\'SECRET\\'))') limit 1",
    "select * from viewIfPermitted(select 1 as a else null('a Int32 default toInt32(file(\\'SECRET\\'))'))",
    "describe null('a Int32 default toInt32(file(\\'SECRET\\'))')",
    "select structureToProtobufSchema('a Int32 default toInt32(file(\\'SECRET\\'))')",
    "select structureToCapnProtoSchema('a Int32 default toInt32(file(\\'SECRET\\'))')",
    "select * from values('a Int32 default toInt32(file(\\'SECRET\\'))', 1)",
    "select arrayReduce('groupConcat(file(\\'SECRET\\'))', ['a', 'b'])",
    "select arrayReduce('groupConcat(`fi\\\\x6ce`(\\'SECRET\\'))', ['a', 'b'])",
    "select arrayReduce(concat('groupConcat(fi', 'le(\\'SECRET\\'))'), ['a', 'b'])",
    "with concat('groupConcat(fi', 'le(\\'SECRET\\'))') as f select arrayReduce(f, ['a', 'b'])",
    "select arrayReduceInRanges('groupConcat(file(\\'SECRET\\'))', [(1, 2)], ['a', 'b'])",
    "select initializeAggregation('groupConcat(file(\\'SECRET\\'))', 'a')",
    "select initializeAggregation('groupConcatState(file(\\'SECRET\\'))', 'a') format RowBinary",
    "select cast('x', 'AggregateFunction(groupConcat(file(\\'SECRET\\')), String)')",
    "select * from format(Values, 'a String', $$(file('SECRET'))$$)",
    "select * from format('Values', $$((select * from file('SECRET', 'LineAsString')))$$)",
    "describe format(CSV, 'a Int32 default toInt32(file(\\'SECRET\\'))', '1')",
    "select * from format(CSV, 'a Int32 default toInt32(file(\\'SECRET\\'))', '1')",
    "describe format(CSV, concat('a Int32 default toInt32(fi', 'le(\\'SECRET\\'))'), '1')",
    "explain select * from numbers(1), format(CSV, 'a Int32 default toInt32(file(\\'SECRET\\'))', '1')",
    "describe format('{}', 'a Int32 default toInt32(file(\\'SECRET\\'))', '1')",
    "describe format(Values, 'a String', $$(file('SECRET'))$$)", "describe format(Values, $$(file('SECRET'))$$)",
    "select JSONExtract('1', 'Enum8(\\'a\\' = length(file(\\'SECRET\\')))')",
    "select aiGenerate('x', file('SECRET'))", "select aiGenerate('x')", "select arrayMap(aiEmbed, ['x'])",
    # Clauses that change how a result is written.
    "select 1 format Template settings format_template_row = 'SECRET'",
    "select 1 settings format_template_resultset = 'SECRET' format Template",
    "select 1 as a format Protobuf settings format_schema = 'SECRET:M'",
    "select 1 as a format Protobuf settings output_format_schema = 'TARGET'",
    "select 1 settings additional_result_filter = 'toInt32(file(\\'SECRET\\')) = 1'",
    "select * from (select 1 settings additional_result_filter = 'toInt32(file(\\'SECRET\\')) = 1')",
    "select 1 format CSV settings max_threads = 1 union all select file('SECRET')",
    "select formatRow('Template', 1) settings format_template_row = 'SECRET'",
]  # fmt: skip


@pytest.mark.parametrize("query", FILE_QUERIES)
def test_a_reader_reads_no_file(front: Front, reader: Reader, prey: Prey, query: str) -> None:
    for format_name in ("TabSeparated", "Native"):
        prey.check(ask(reader, prey.fill(query), default_format=format_name))


@pytest.mark.parametrize(
    "query", ["select file('SECRET')", "describe `SECRET`", "select arrayMap(file, [''])"]
)
def test_the_refusal_names_its_reason(front: Front, reader: Reader, prey: Prey, query: str) -> None:
    response = ask(reader, prey.fill(query))
    assert (response.status_code, code(response)) == (403, "497")
    assert "privileges" in response.text


@pytest.mark.parametrize(
    "query",
    [
        "select * from {t:Identifier}", "describe {t:Identifier}", "describe table {t:Identifier}",
        "exists {t:Identifier}", "show create table {t:Identifier}", "select {t:Identifier}('SECRET')",
        "select arrayMap({t:Identifier}, ['SECRET'])", "select * from { t : Identifier }",
        "select * apply {t:Identifier} from (select 'SECRET')", "select * from {t:Identifier}('SECRET')",
        "explain select * from {t:Identifier}", "select * from default.{t:Identifier}",
        "select * from {t:Identifier}.x", "with {t:Identifier} as f select f('SECRET')",
    ],
)  # fmt: skip
def test_a_name_that_comes_as_a_parameter_reaches_no_file(
    front: Front, reader: Reader, prey: Prey, query: str
) -> None:
    for name in ("file", "SECRET", "fi\\x6ce", "`file`", "url", "default.`SECRET`"):
        prey.check(ask(reader, prey.fill(query), param_t=prey.fill(name)))


@pytest.mark.parametrize(
    "query",
    ["exists `PATH`", "exists table `PATH`", "exists {t:Identifier}", "select * from `PATH`",
     "select * from {t:Identifier}", "select hasColumnInTable('default', 'PATH', 'c1')",
     "show create table {t:Identifier}", "describe {t:Identifier}"],
)  # fmt: skip
def test_a_reader_does_not_learn_which_files_exist(
    front: Front, reader: Reader, prey: Prey, query: str
) -> None:
    answers = set()
    for path in (str(prey.file), str(prey.file).replace("secret", "absent")):
        response = ask(reader, query.replace("PATH", path), param_t=path)
        answers.add((response.status_code, response.text.replace(path, "PATH")))
    assert len(answers) == 1, answers


def test_values_with_a_structure_is_no_oracle(front: Front, reader: Reader, prey: Prey) -> None:
    answers = set()
    for guess in ("z", "q"):
        condition = prey.fill(f"toInt32(if(file(\\'SECRET\\') like \\'{guess}%\\', \\'1\\', \\'no\\'))")
        response = ask(reader, f"select * from values('a Int32 default {condition}', 1)")
        answers.add((response.status_code, response.text.replace(f"'{guess}%", "")))
    assert len(answers) == 1, answers


@pytest.mark.parametrize(
    ("structure", "format_name", "data"),
    [
        ("a String", "Values", "(file('SECRET'))"),
        ("a String", "Values", "(concat('', file('SECRET')))"),
        ("a String", "Values", "((select * from file('SECRET', 'LineAsString')))"),
        ("a Int32", "Values", "(file('SECRET'))"),
        ("a Int32 default toInt32(file('SECRET'))", "CSV", "1"),
        ("a Int32 default `fi\\x6ce`('SECRET')", "CSV", "1"),
        ("a Int32 materialized file('SECRET')", "CSV", "1"),
        ("a Int32 alias file('SECRET')", "CSV", "1"),
        ("a Int32 default (select * from file('SECRET', 'LineAsString'))", "CSV", "1"),
        ("a Int8') as select file('SECRET') --", "CSV", "1"),
        ("a Int8) engine = File(CSV, 'SECRET') --", "CSV", "1"),
        ("a String", "CSV settings max_threads = 1", "1"),
        ("a String", "CSV from infile 'SECRET'", "1"),
        ("a String", "Template", "1"),
        ("a String", "Values select file('SECRET')", "1"),
        ("a AggregateFunction(groupConcat(file('SECRET')), String)", "CSV", "1"),
    ],
)
def test_an_external_table_brings_nothing_in(
    front: Front, reader: Reader, prey: Prey, structure: str, format_name: str, data: str
) -> None:
    data, structure = prey.fill(data), prey.fill(structure)
    prey.check(with_table(reader, data, format=format_name, structure=structure))
    prey.check(with_table(reader, data, format=format_name, types=structure.removeprefix("a ")))


@pytest.mark.parametrize(
    "name", ["a`b", "default.events", "SECRET", "file('SECRET')", "system.one", "events"]
)
def test_an_external_table_is_named_as_it_likes(front: Front, reader: Reader, prey: Prey, name: str) -> None:
    name = prey.fill(name)
    params = {"query": "select 1", f"{name}_structure": "a Int8", f"{name}_format": "CSV"}
    prey.check(reader.send_form({name: ("x", b"1")}, params))
    assert front.value("select count(), sum(id) from events") == "2\t3"


# -- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "params"),
    [
        # These change the query by which the guard asks what a statement is.
        ("select file('SECRET') as a", {"select": "columns('^a$'), 'select 1'"}),
        ("select toInt32(file('SECRET')) as a", {"select": "'select 1'"}),
        ("select arrayJoin([file('SECRET'), file('SECRET')])", {"offset": "1"}),
        ("select arrayJoin([file('SECRET'), file('SECRET')])", {"filter": "0"}),
        ("select file('SECRET')", {"dialect": "kusto", "allow_experimental_kusto_dialect": "1"}),
        ("print file('SECRET')", {"dialect": "kusto", "allow_experimental_kusto_dialect": "1"}),
        ("select file('SECRET')", {"dialect": "trino", "allow_experimental_polyglot_dialect": "1"}),
        ("select 1", {"implicit_select": "1", "param_x": "file"}),
        # These hold code.
        ("select 1 as a", {"select": "toInt32(file('SECRET'))"}),
        ("select 1 as a", {"filter": "toInt32(file('SECRET'))"}),
        ("select 1 as a", {"order": "toInt32(file('SECRET'))"}),
        ("select 1 as a", {"additional_result_filter": "toInt32(file('SECRET')) = 1"}),
        ("select 1 from system.one", {"additional_table_filters": "{'system.one': 'toInt32(file(\\'SECRET\\')) = 1'}"}),
        ("select 'a' as a format Protobuf",
         {"format_schema_source": "query", "format_schema": "select file('SECRET')", "format_schema_message_name": "M"}),
        # These name files, and addresses.
        ("select 1 format Template", {"format_template_row": "SECRET"}),
        ("select 1 format Template", {"format_template_resultset": "SECRET"}),
        ("select 1", {"format": "Template", "format_template_row": "SECRET"}),
        ("select formatRow('Template', 1)", {"format_template_row": "SECRET"}),
        ("select 'a' as a format Protobuf", {"format_schema": "SECRET:M"}),
        ("select 'a' as a format Protobuf",
         {"output_format_schema": "TARGET.proto", "format_protobuf_use_autogenerated_schema": "1"}),
        ("select 'a' as a format CapnProto",
         {"output_format_schema": "TARGET.capnp", "format_capn_proto_use_autogenerated_schema": "1"}),
        ("select 'a' as a format AvroConfluent",
         {"format_avro_schema_registry_url": "URL", "output_format_avro_confluent_subject": "x"}),
        # These would be more than a name.
        ("select 1", {"default_format": "CSV settings x = 1"}),
        ("select 1", {"default_format": "CSV INTO OUTFILE 'TARGET'"}),
        ("select 1", {"default_format": "CSV\nINTO OUTFILE 'TARGET' --"}),
        ("select 1", {"output_format": "CSV into outfile 'TARGET'"}),
        ("select * from `secret.csv`", {"database": "FOLDER"}),
        ("select 1", {"database": "x`; insert into function file('TARGET') select 1; --"}),
        ("select 1", {"database": "default` settings readonly = 0 --"}),
        ("select getSetting('readonly')", {"max_threads": "1', readonly = 0, max_threads = '1"}),
        ("select getSetting('readonly')", {"max_threads` = 1, `readonly": "0"}),
        ("select getSetting('readonly')", {"profile": "default"}),
        ("select getSetting('readonly')", {"param_x": "1', readonly = 0 --"}),
    ],
    ids=str,
)  # fmt: skip
def test_settings_open_nothing(
    front: Front, reader: Reader, prey: Prey, query: str, params: dict[str, str]
) -> None:
    response = ask(
        reader, prey.fill(query), **{prey.fill(name): prey.fill(text) for name, text in params.items()}
    )
    prey.check(response)
    if "getSetting" in query:
        assert response.status_code >= 400 or response.text == "1\n"


def test_no_setting_that_holds_text_reaches_outside(front: Front, reader: Reader, prey: Prey) -> None:
    names = front.value("select name from system.settings where type in ('String', 'Map', 'URI')").split()
    assert len(names) > 50
    told = []
    for name in names:
        for text in ("SECRET", "URL", "TARGET", "toInt32(file('SECRET'))", "{'a': 'file(\\'SECRET\\')'}"):
            for format_name in ("Template", "Protobuf", "AvroConfluent"):
                params = {name: prey.fill(text), "format_protobuf_use_autogenerated_schema": "1"}
                response = ask(reader, f"select 'a' as a format {format_name}", **params)
                if prey.happened() or prey.word in response.text:
                    told.append((name, text, format_name))
    assert not told


def test_a_reader_writes_nothing_where_the_warehouse_runs(front: Front, reader: Reader) -> None:
    schema = 'syntax = "proto3"; message M { string a = 1; }'
    params = {"format_schema_source": "string", "format_schema": schema, "format_schema_message_name": "M"}
    ask(reader, "select 'a' as a format Protobuf", **params)
    assert not list(Path(psutil.Process(front.process.pid).cwd()).iterdir())


CEILINGS = "select getSetting('max_memory_usage'), getSetting('max_execution_time'), getSetting('readonly')"


@pytest.mark.parametrize(
    "wanted",
    ["0", "-1", "1e18", "100G", "100000000000000", "0x7fffffffffff", "inf", "", " ", "+99999999999", "auto", "1e3",
     "99999999999999999999999", "9" * 5000, "\u0661\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660"],
    ids=lambda wanted: wanted[:20],
)  # fmt: skip
def test_a_reader_can_not_raise_its_ceilings(front: Front, reader: Reader, wanted: str) -> None:
    most = value(reader, CEILINGS).split("\t")
    for names in (["max_memory_usage", "max_execution_time"], ["max_untracked_memory"]):
        response = ask(reader, CEILINGS, **dict.fromkeys(names, wanted))
        assert "internal error" not in response.text
        if response.status_code == 200:
            memory, seconds, readonly = response.text.split()
            assert 0 < int(memory) <= int(most[0])
            assert 0 < float(seconds) <= float(most[1])
            assert readonly == "1"


@pytest.mark.measures
def test_a_reader_can_lower_its_ceilings(front: Front, reader: Reader) -> None:
    lower = {"max_memory_usage": "100000000", "max_execution_time": "1"}
    assert value(reader, CEILINGS, **lower) == "100000000\t1\t1"
    memory = "select length(groupArray(repeat('x', 1000))) from numbers(2000000)"
    for query in (memory, f"select * from ({memory} settings max_memory_usage = 0)"):
        assert code(ask(reader, query, **lower)) == "241"
    long = "select sum(sipHash64(number)) from numbers(1000000000000) settings max_execution_time = 0"
    started = time.monotonic()
    assert code(ask(reader, f"select * from ({long})", **lower)) == "159"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "name", ["max_memory_usage", "max_execution_time", "readonly", "max_untracked_memory"]
)
def test_a_settings_clause_raises_nothing(front: Front, reader: Reader, name: str) -> None:
    most = value(reader, CEILINGS)
    for number in ("0", "1e18", "10G", "-1", "99999999999"):
        for query in (
            f"{CEILINGS} settings {name} = {number}", f"{CEILINGS} settings {name} = '{number}'",
            f"{CEILINGS} format CSV settings {name} = {number}", f"({CEILINGS} settings {name} = {number})",
            f"{CEILINGS} settings {name} = {number} format CSV", f"select * from ({CEILINGS} settings {name} = {number})",
            f"with x as ({CEILINGS} settings {name} = {number}) select * from x",
        ):  # fmt: skip
            response = ask(reader, query)
            assert response.status_code >= 400 or response.text.strip() == most, query


def test_a_reader_does_not_hide_its_query_from_being_cancelled(front: Front, reader: Reader) -> None:
    """The setting by which a running query is found again is not the client's to give."""
    long = "select count() from numbers(1000000000000) where sipHash64(number) = 1"
    params = {"stream_like_engine_insert_queue": "another", "log_comment": "hidden", "max_threads": "1",
              "max_execution_time": "8"}  # fmt: skip
    auth = ("reader", READER_PASSWORD)
    try:
        response = httpx.post(front.url, content=long, params=params, auth=auth, timeout=0.5)
    except httpx.ReadTimeout:
        running = "select count() from system.processes where Settings['log_comment'] = 'hidden'"
        deadline = time.monotonic() + 3
        while front.value(running) != "0":
            assert time.monotonic() < deadline, "the query still runs though its client is gone"
            time.sleep(0.1)
    else:
        assert code(response) in DENIED


# -- everything that the engine has ---------------------------------------------------------------------

# These may pass: they read nothing but their arguments and this server's tables.
HARMLESS = {
    "numbers", "numbers_mt", "zeros", "zeros_mt", "generateRandom", "generateSeries", "generate_series",
    "primes", "values", "SQLStandardValues", "null", "view", "viewIfPermitted", "merge", "fuzzJSON",
}  # fmt: skip
# These have to.
USEFUL = {"numbers", "generateSeries", "generate_series", "values", "view", "merge"}
GOOD_CALLS = {
    "values": "values(1)", "view": "view(select 1)", "merge": "merge('default', 'events')",
    "generateRandom": "generateRandom('a Int8', 1, 1, 1)", "null": "null('a Int8')",
    "generateSeries": "generateSeries(1, 2)", "generate_series": "generate_series(1, 2)",
    "viewIfPermitted": "viewIfPermitted(select 1 as a else null('a UInt8'))", "loop": "loop('default', 'events')",
    "SQLStandardValues": "SQLStandardValues(1)", "format": "format(CSV, 'a Int8', '1')",
    "file": "file('SECRET', 'LineAsString')", "url": "url('URL', 'CSV', 'a String')",
    "urlCluster": "urlCluster('default', 'URL', 'CSV', 'a String')", "s3": "s3('URL', NOSIGN, 'CSV', 'a String')",
    "s3Cluster": "s3Cluster('default', 'URL', 'CSV', 'a String')", "gcs": "gcs('URL', NOSIGN, 'CSV', 'a String')",
    "oss": "oss('URL', NOSIGN, 'CSV')", "cosn": "cosn('URL', NOSIGN, 'CSV')", "fuzzQuery": "fuzzQuery('select 1')",
    "remote": "remote('127.0.0.1:PORT', system, one)", "remoteSecure": "remoteSecure('127.0.0.1:PORT', system, one)",
    "cluster": "cluster('default', system, one)", "clusterAllReplicas": "clusterAllReplicas('default', system, one)",
    "mysql": "mysql('127.0.0.1:PORT', 'a', 'b', 'c', 'd')", "postgresql": "postgresql('127.0.0.1:PORT', 'a', 'b', 'c', 'd')",
    "mongodb": "mongodb('127.0.0.1:PORT', 'a', 'b', 'c', 'd', 'a String')", "redis": "redis('127.0.0.1:PORT', 'a', 'a String')",
    "sqlite": "sqlite('SECRET', 'a')", "jdbc": "jdbc('jdbc:mysql://127.0.0.1:PORT/?a', 'b')", "odbc": "odbc('DSN=x', 'a', 'b')",
    "hdfs": "hdfs('hdfs://127.0.0.1:PORT/x', 'CSV', 'a String')", "python": "python('print')",
    "executable": "executable('cat SECRET', 'LineAsString', 'a String')", "eval": "eval('select file(\\'SECRET\\')')",
    "azureBlobStorage": "azureBlobStorage('URL', 'a', 'b', 'c', 'd', 'CSV', 'auto', 'a String')",
    "iceberg": "iceberg('URL', NOSIGN)", "deltaLake": "deltaLake('URL', NOSIGN)", "hudi": "hudi('URL', NOSIGN)",
    "filesystem": "filesystem('FOLDER')",
}  # fmt: skip


def test_of_all_table_functions_only_harmless_ones_pass(front: Front, reader: Reader, prey: Prey) -> None:
    names = set(front.value("select name from system.table_functions").split())
    assert {"file", "url", "remote", "executable"} <= names
    passed = set()
    for name in sorted(names):
        call = prey.fill(GOOD_CALLS.get(name, f"{name}(1)"))
        for query in (f"select * from {call} limit 1", f"describe table {call}", f"explain select * from {call}",
                      f"select count() from (select * from {call} limit 1)",
                      f"select 1 where (1, 1) in (select 1, 1 from {call} limit 1)"):  # fmt: skip
            response = ask(reader, query)
            prey.check(response)
            if response.status_code == 200:
                passed.add(name)
        if name not in HARMLESS:
            for query in (f"select * from {name}(1)", f"select * from `{name}`('SECRET', 'a', 'b')",
                          f"select * from {name.upper()}('URL')", f"describe {name}('SECRET')"):  # fmt: skip
                response = ask(reader, prey.fill(query))
                prey.check(response)
                assert response.status_code >= 400, query
    assert passed <= HARMLESS
    assert passed >= USEFUL


def test_no_function_reads_files_or_asks_other_hosts(front: Front, reader: Reader, prey: Prey) -> None:
    """Functions that might, called with what would be a path, an address, or code, if they took one."""
    hints = "file|path|url|network|host|remote|process|execut|connect|structure|schema|model|symbol|aggregate"
    query = (
        "select name from system.functions where not is_aggregate and name not like 'sleep%' "
        f"and (description = '' or match(name || description, '(?i){hints}'))"
    )
    names = set(front.value(query).split())
    assert {"file", "arrayReduce"} <= names
    told = []
    for name in sorted(names):
        for arguments in ("'SECRET'", "'URL', 'URL'", "'groupConcat(file(\\'SECRET\\'))', ['a', 'b']",
                          "'a Int32 default toInt32(file(\\'SECRET\\'))'"):  # fmt: skip
            response = ask(reader, prey.fill(f"select `{name}`({arguments})"))
            # Some give their argument back, which is no secret; the word is.
            if prey.happened() or prey.word in response.text:
                told.append((name, arguments))
    assert not told
    assert front.value("select 1") == "1"


def test_names_may_be_read_as_data(front: Front, reader: Reader) -> None:
    for table in ("system.functions", "system.table_functions"):
        assert value(reader, f"select count() from {table} where name = 'file'") == "1"


def test_no_system_table_tells_a_password(front: Front, reader: Reader) -> None:
    front.request("select 1", auth=None, params={"user": "default", "password": PASSWORD})
    for name in front.value("select name from system.tables where database = 'system'").split():
        response = ask(reader, f"select * from system.`{name}` limit 300 format TSVRaw")
        assert PASSWORD not in response.text, name
        assert READER_PASSWORD not in response.text, name


# -- the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "select * from url('URL', 'CSV', 'a String')", "describe url('URL')", "describe table url('URL', CSV)",
        "select * from s3('URL')", "describe s3('URL', NOSIGN)", "explain select * from url('URL')",
        "select * from remote('127.0.0.1:PORT', system.one)", "describe remote('127.0.0.1:PORT', system.one)",
        "select * from cluster('default', system.one)", "select * from clusterAllReplicas('default', system.one)",
        "select * from mysql('127.0.0.1:PORT', 'a', 'b', 'c', 'd')", "describe postgresql('127.0.0.1:PORT', 'a', 'b', 'c', 'd')",
        "select * from mongodb('mongodb://127.0.0.1:PORT/x', 'a')", "select * from redis('127.0.0.1:PORT', 'k', 'k String')",
        "select * from `URL`", "select * from 'URL'", "describe `URL`", "exists `URL`", "show create table `URL`",
        "select hasColumnInTable('127.0.0.1:PORT', 'default', 'system', 'one', 'dummy')",
        "select hasColumnInTable('127.0.0.1:PORT', 'system', 'one', 'dummy')",
        "select * from format(AvroConfluent, 'a Int32', 'x') settings format_avro_schema_registry_url = 'URL'",
        "select * from null('a Int32 default (select * from url(\\'URL\\', \\'CSV\\', \\'a String\\'))')",
        "select aiGenerate('x')", "select AIGenerate('x')", "select * apply aiClassify from (select 'x')",
        "select * from view(select * from url('URL', CSV, 'a String'))", "with x as (select * from url('URL')) select 1 from x",
        "select 1 in (select * from url('URL', CSV, 'a Int8'))", "select * from loop(url('URL', CSV, 'a Int8'))",
        "select * from viewIfPermitted(select * from url('URL', CSV, 'a Int8') else null('a Int8'))",
        "select * from eval('select * from url(\\'URL\\')')", "select * from executable('curl URL', CSV, 'a String')",
        "select * from python('URL')", "select reverseDNSQuery('127.0.0.1')", "select catboostEvaluate('SECRET', 1)",
    ],
)  # fmt: skip
def test_a_reader_asks_no_other_host(front: Front, reader: Reader, prey: Prey, query: str) -> None:
    for params in ({}, {"param_x": "1", "database": "system"}, {"default_format": "Native"}):
        prey.check(ask(reader, prey.fill(query), **params))


# -- who asks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "params"),
    [
        (basic("reader", "wrong"), {}), (basic("reader", ""), {}), (basic("reader", PASSWORD), {}),
        (basic("default", READER_PASSWORD), {}), (basic("Reader", READER_PASSWORD), {}),
        (basic("", READER_PASSWORD), {}), (basic("reader ", READER_PASSWORD), {}),
        (basic("nobody", READER_PASSWORD), {}), (basic("reader", READER_PASSWORD + "\0"), {}),
        (basic("reader", READER_PASSWORD), {"user": "default"}),
        (basic("reader", READER_PASSWORD), {"password": PASSWORD}),
        (basic("reader", READER_PASSWORD) | {"X-ClickHouse-User": "default"}, {}),
        ({"X-ClickHouse-User": "reader", "X-ClickHouse-Key": PASSWORD}, {}),
        ({"X-ClickHouse-User": "reader", "X-ClickHouse-Key": READER_PASSWORD}, {"user": "default"}),
        ({"X-ClickHouse-Key": READER_PASSWORD}, {}), ({"X-ClickHouse-User": "reader"}, {}),
        ({}, {"user": "reader", "password": PASSWORD}), ({}, {"user": "default", "password": READER_PASSWORD}),
        ({}, {"password": READER_PASSWORD}), ({}, {"user": "reader"}),
        ({"Authorization": "Basic ===="}, {}), ({"Authorization": "Basic"}, {}), ({"Authorization": "x"}, {}),
        ({"Authorization": "Basic cmVhZGVy"}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_credentials_are_refused(front: Front, headers: dict[str, str], params: dict[str, str]) -> None:
    response = httpx.post(front.url, content=b"select 1", headers=headers, params=params)
    assert (response.status_code, code(response)) == (403, "516")
    assert PASSWORD not in response.text
    assert READER_PASSWORD not in response.text


def test_a_reader_is_known_by_header_by_parameter_and_by_basic(front: Front) -> None:
    key = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": READER_PASSWORD}
    ways: list[dict[str, Any]] = [
        {"headers": key},
        {"headers": basic("reader", READER_PASSWORD)},
        {"params": {"user": "reader", "password": READER_PASSWORD}},
    ]
    for way in ways:
        response = httpx.post(front.url, content=b"select getSetting('readonly')", **way)
        assert response.text == "1\n"


def test_who_one_is_does_not_come_in_a_form(front: Front, reader: Reader) -> None:
    drop = {"query": (None, "drop table events"), "user": (None, "default"), "password": (None, PASSWORD)}
    assert reader.send_form(drop).status_code >= 400
    unlock = {"query": (None, "select getSetting('readonly')"), "readonly": (None, "0")}
    assert reader.send_form(unlock).text == "1\n"
    assert front.value("select count() from events") == "2"


def test_a_readers_session_is_not_the_operators(front: Front, reader: Reader) -> None:
    front.value("create temporary table of_default (a Int8)", params={"session_id": "same"})
    assert code(ask(reader, "select * from of_default", session_id="same")) == "60"
    assert code(ask(reader, "create temporary table t (a Int8)", session_id="same")) in DENIED
    assert front.value("select count() from of_default", params={"session_id": "same"}) == "0"
