"""From records to events: what each mapping makes of a line, and ids that never change."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_pipelines.importing.errors import MappingProblem
from apex_pipelines.importing.events import BadRecord, MappedRecord, map_record
from apex_pipelines.importing.mapping import Mapping, load_mapping
from apex_pipelines.importing.readers import BadLine, Record, open_source, records

WEB_LOG, CDNOW = load_mapping("web-log"), load_mapping("cdnow")
LINE = '10.0.0.1 - - [17/May/2015:10:05:03 +0200] "GET /a HTTP/1.1" {status} {size} "-" "agent {agent}"'


def read(path: Path, mapping: Mapping) -> list[Record | BadLine]:
    with open_source(path) as source:
        return [item for item in records(source, mapping) if item is not None]


def mapped(path: Path, mapping: Mapping) -> list[MappedRecord]:
    seen: Counter[str] = Counter()
    made = []
    for record in read(path, mapping):
        assert isinstance(record, Record)
        seen[record.content] += 1
        made.append(map_record(mapping, record, seen[record.content]))
    return made


def as_numbers(record: MappedRecord) -> dict[str, int]:
    return {made.event.metric_type: made.stored for made in record.events}


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_request_is_a_call_with_its_bytes_and_perhaps_an_error(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log",
        LINE.format(status=200, size=203023, agent="x"),
        LINE.format(status=404, size="-", agent="x"),
        LINE.format(status=399, size=0, agent='with "stray quotes'),
    )
    ok, missing, empty = mapped(log, WEB_LOG)
    assert as_numbers(ok) == {"api_calls": 1, "data_transfer": 203023}
    assert ok.events[1].event.quantity == "0.000203023"
    assert as_numbers(missing) == {"api_calls": 1, "sdk_errors": 1}
    assert as_numbers(empty) == {"api_calls": 1, "data_transfer": 0}
    assert ok.at.isoformat() == "2015-05-17T08:05:03+00:00"
    assert ok.events[0].event.metadata == {"method": "GET", "status": "200"}


def test_a_purchase_is_discs_and_dollars_and_a_free_one_counts_as_zero(tmp_path: Path) -> None:
    file = write(
        tmp_path / "cdnow",
        " customer_id  date number_of_cds  dollar_value\r",
        " 00001 19970101  1   11.77\r",
        " 00001 19970101  2   0.00\r",
    )
    paid, free = mapped(file, CDNOW)
    assert as_numbers(paid) == {"impressions": 1, "mediated_revenue": 11_770_000}
    assert as_numbers(free) == {"impressions": 2, "mediated_revenue": 0}
    assert (paid.customer, paid.at.isoformat()) == ("00001", "1997-01-01T00:00:00+00:00")


# It writes files: how long that takes says nothing, least of all on a busy machine.
@settings(deadline=None)
@given(
    content=st.lists(st.sampled_from("abc"), min_size=1, max_size=30),
    more=st.lists(st.sampled_from("abcd"), max_size=30),
    shuffle=st.randoms(use_true_random=False),
)
def test_ids_stay_when_the_file_grows_or_is_sorted_otherwise(
    tmp_path_factory: pytest.TempPathFactory, content: list[str], more: list[str], shuffle: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("grow")

    def ids(agents: list[str]) -> list[str]:
        log = write(folder / "log", *(LINE.format(status=200, size=1, agent=agent) for agent in agents))
        return [made.event.event_id for record in mapped(log, WEB_LOG) for made in record.events]

    short, long = ids(content), ids(content + more)
    assert long[: len(short)] == short
    assert len(set(long)) == len(long)  # identical lines are different events
    shuffled = content.copy()
    shuffle.shuffle(shuffled)
    assert set(ids(shuffled)) == set(short)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("1 19971301 1 1.0", "date"),
        ("1 19970101 one 1.0", "number_of_cds"),
        ("1 19970101 -1 1.0", "number_of_cds"),
        ("1 19970101 1.5 1.0", "number_of_cds"),
        ("1 19970101 1 1.1234567", "dollar_value"),
        ("1 19970101 1 NaN", "dollar_value"),
        ("1 19970101 1 1_000", "dollar_value"),
        ("1 19970101 1 99999999999", "dollar_value"),
        (f"{'9' * 600} 19970101 1 1.0", "customer_id"),
    ],
)
def test_a_value_that_can_not_be_right_is_named(tmp_path: Path, row: str, column: str) -> None:
    file = write(tmp_path / "f", "customer_id date number_of_cds dollar_value", row)
    (record,) = read(file, CDNOW)
    assert isinstance(record, Record)
    with pytest.raises(BadRecord, match=f"^{column}: "):
        map_record(CDNOW, record, 1)


OWN = """
name = "shop"
format = "{format}"
customer = "account.id"
[time]
column = "at"
format = "{time}"
[customers]
email_column = "mail"
[[metrics]]
metric_type = "impressions"
column = "views"
when = {{ column = "kind", one_of = ["view", "show"] }}
[[metrics]]
metric_type = "feature_used"
constant = 2
metadata = {{ feature = "shop" }}
"""


def own_mapping(folder: Path, text: str = OWN, **options: str) -> Mapping:
    path = folder / "own.toml"
    path.write_text(text.format(**{"format": "csv", "time": "iso", **options}))
    return load_mapping(path)


def test_quoted_csv_with_commas_newlines_and_a_stray_quote(tmp_path: Path) -> None:
    mapping = own_mapping(tmp_path)
    file = write(
        tmp_path / "f.csv",
        "account.id;at;mail;views;kind",
        '"a;1";2026-01-02T03:04:05+01:00;a@b.example;7;view',
        '"two\nlines";2026-01-02;a@b.example;1;hide',
        'x"y;2026-01-02;"a@b.example;1;view',  # an odd quote must not swallow what follows
        "c;2026-01-02;a@b.example;3;show",
        "short;2026-01-02",
    )
    first, second, stray, third, short = read(file, mapping)
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert isinstance(third, Record)
    assert isinstance(stray, BadLine)
    assert isinstance(short, BadLine)
    assert first.fields["account.id"] == "a;1"
    assert second.fields["account.id"] == "two\nlines"
    assert as_numbers(map_record(mapping, first, 1)) == {"impressions": 7, "feature_used": 2}
    assert as_numbers(map_record(mapping, second, 1)) == {"feature_used": 2}
    assert map_record(mapping, first, 1).at.isoformat() == "2026-01-02T02:04:05+00:00"
    assert third.fields["views"] == "3"
    assert (stray.line, short.line) == (5, 7)


def test_ndjson_reads_nested_fields_and_numbers_exactly(tmp_path: Path) -> None:
    mapping = own_mapping(tmp_path, format="ndjson", time="unix_ms")
    file = write(
        tmp_path / "f.ndjson",
        '{"account": {"id": 7}, "at": 1767323045123, "views": 12345678901234, "kind": "view"}',
        "[1]",
        "{broken",
        '{"account": {"id": {"x": 1}}, "at": 1}',
        '{"account": {"id": "\\ud800"}, "at": 1}',
        "[" * 100_000,
        '{"at": 1767323045123}',
    )
    good, *bad, without_customer = read(file, mapping)
    assert isinstance(good, Record)
    made = map_record(mapping, good, 1)
    assert made.customer == "7"
    assert made.at.isoformat() == "2026-01-02T03:04:05.123000+00:00"
    assert as_numbers(made) == {"impressions": 12345678901234, "feature_used": 2}
    assert [item.line for item in bad if isinstance(item, BadLine)] == [2, 3, 4, 5, 6]
    assert isinstance(without_customer, Record)
    with pytest.raises(BadRecord, match=r"account\.id: missing"):
        map_record(mapping, without_customer, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("impressions", "clicks"), "clicks.*no such metric"),
        (("column = ", "colum = "), "unknown field"),
        (('metadata = {{ feature = "shop" }}', ""), "must carry metadata 'feature'"),
        (("constant = 2", 'constant = 2\ncolumn = "views"'), "either `column` or `constant`"),
        (("feature_used", "impressions"), "listed twice"),
        ((', one_of = ["view", "show"]', ""), "`when` needs"),
        (("[customers]", '[customers]\nplan = "gold"'), "no plan 'gold'"),
        (("[customers]", '[customers]\nname = "{{0}}"'), "may hold {customer}"),
        (('name = "shop"', 'name = "Shop!"'), "name"),
        (("[time]", "[time"), "example"),
    ],
)
def test_a_wrong_mapping_says_where_and_what(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in OWN
    with pytest.raises(MappingProblem, match=message):
        own_mapping(tmp_path, OWN.replace(*change))


def test_an_unknown_mapping_names_those_there_are() -> None:
    with pytest.raises(MappingProblem, match="cdnow, web-log"):
        load_mapping("apache")
