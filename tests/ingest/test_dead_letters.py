"""What can't be loaded is kept byte by byte, and a replay loads it once, whenever it becomes loadable."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DataError
from clickhouse_connect.driver.query import QueryResult

from apex_pipelines.commands.dead_letters import dead_letters
from apex_pipelines.metering.events import AcceptedEvent
from apex_pipelines.metering.landing import landed
from apex_pipelines.settings import Settings
from ingest_api import replay as replaying
from ingest_api.dead_letters import DeadLetter, DeadLetters, LetterName, NoSuchLetter, Outcome
from ingest_api.raw_events import Batch, RawEvents
from ingest_api.spool.segments import SEALED, new_segment_name
from ingest_api.spool.writing import SegmentFile
from tests.ingest.loading import loading, rows, wait_until_empty
from tests.ingest.spool_files import accepted, spool

_MAX_PARAMETER_BYTES = 131_072  # the default of http_max_field_value_size
BINARY = b"\xc1 no msgpack \x00\xff\xfe\n'\"\\"


class Refusing:
    """Makes the table refuse some event ids, as a bug of ours would, until it is mended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: set[str] = set()
        self.reason = "value of {} is out of range"
        whole = RawEvents.insert

        def insert(table: RawEvents, batches: Sequence[Batch]) -> None:
            bad = [
                event.event_id for batch in batches for event in batch.events if event.event_id in self.ids
            ]
            if bad:
                raise DataError(self.reason.format(bad[0]))
            whole(table, batches)

        monkeypatch.setattr(RawEvents, "insert", insert)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    return Refusing(monkeypatch)


@pytest.fixture
def letters(warehouse: Client) -> DeadLetters:
    return DeadLetters(lambda: warehouse)


@pytest.fixture
def command(settings: Settings, warehouse: Client) -> Callable[..., Result]:
    """Runs `apex ingest dead-letters ...`."""
    return lambda *arguments: CliRunner().invoke(dead_letters, arguments, obj=settings)


def load(settings: Settings) -> None:
    with loading(settings):
        wait_until_empty(settings.spool_dir)


def test_bytes_are_kept_exactly(
    settings: Settings, warehouse: Client, letters: DeadLetters, refusing: Refusing
) -> None:
    refusing.ids = {"naïve 😀\x00"}
    odd = accepted("naïve 😀\x00", metadata='{"k":"\\u0000"}')
    # A field that a newer version appended must survive although this one does not know it.
    newer = msgspec.msgpack.encode([[*msgspec.structs.astuple(odd), "new field", 7]])
    settings.spool_dir.mkdir(parents=True)
    segment = SegmentFile.create(settings.spool_dir, "w0")
    segment.append([(newer, 1), (BINARY, 3), (msgspec.msgpack.encode([accepted("good")]), 1)])
    segment.seal()
    load(settings)
    found = letters.whole([LetterName(segment.batch_id, 0), LetterName(segment.batch_id, 1)])
    by_row = {letter.letter.batch_row: letter for letter in found}
    assert by_row[0].letter.raw == newer
    assert by_row[0].events() == [odd]
    assert (by_row[1].letter.raw, by_row[1].letter.row_count) == (BINARY, 3)
    assert rows(warehouse) == [("good", segment.batch_id, 4)]


def test_a_replay_loads_what_has_become_loadable_and_keeps_the_rest_with_its_new_reason(
    settings: Settings, warehouse: Client, letters: DeadLetters, refusing: Refusing
) -> None:
    refusing.ids = {"evt-3", "evt-7"}
    batch_id = spool(settings.spool_dir, [accepted(f"evt-{number}") for number in range(10)])
    load(settings)
    assert (len(rows(warehouse)), landed(warehouse).dead_letters) == (8, 2)

    refusing.ids = {"evt-7"}
    refusing.reason = "another trouble with {}"
    report = replaying.replay(settings)
    assert report.landed == [LetterName(batch_id, 3)]
    assert [failed.name for failed in report.failed] == [LetterName(batch_id, 7)]
    (left,) = letters.open()
    assert (left.name.batch_row, left.reason, left.tries) == (7, "another trouble with evt-7", 1)

    refusing.ids = set()
    assert replaying.replay(settings).landed == [LetterName(batch_id, 7)]
    expected = [(f"evt-{number}", batch_id, number) for number in range(10)]
    assert rows(warehouse) == expected
    assert landed(warehouse).dead_letters == 0
    # Nothing is left to do, and nothing is done.
    assert replaying.replay(settings).done == 0
    assert rows(warehouse) == expected


def test_a_frame_lands_in_part_and_the_letter_stays_until_all_of_it_is_there(
    settings: Settings, warehouse: Client, letters: DeadLetters, refusing: Refusing
) -> None:
    events = [accepted(f"evt-{number}") for number in range(5)]
    raw = msgspec.msgpack.encode(events)
    letters.bury([DeadLetter.of_frame("w0-x", 10, 5, raw, "5 rows can't be decoded: by the version before")])
    refusing.ids = {"evt-2"}
    assert replaying.replay(settings).failed[0].reason.startswith("1 of 5 rows refused: ")
    assert [row[2] for row in rows(warehouse)] == [10, 11, 13, 14]
    refusing.ids = set()
    assert len(replaying.replay(settings).landed) == 1
    assert [row[2] for row in rows(warehouse)] == [10, 11, 12, 13, 14]


def test_a_letter_of_the_version_before_is_replayed_from_its_payload(
    settings: Settings, warehouse: Client, letters: DeadLetters
) -> None:
    frame = base64.b64encode(msgspec.msgpack.encode([accepted("b"), accepted("c")])).decode()
    warehouse.insert(
        "raw.usage_dead_letters",
        [
            ["w0-old", 0, msgspec.json.encode(accepted("a")).decode(), "why"],
            ["w0-old", 1, f"base64:{frame}", "why"],
        ],
        column_names=["batch_id", "batch_row", "payload", "reason"],
    )
    assert len(replaying.replay(settings).landed) == 2
    assert [row[0] for row in rows(warehouse)] == ["a", "b", "c"]


def test_a_replay_that_ended_between_insert_and_record_inserts_nothing_again(
    settings: Settings, warehouse: Client, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.bury([_letter("w0-x", row) for row in range(20)])

    class Killed(Exception):
        pass

    def die(_: DeadLetters, outcomes: Sequence[Outcome]) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(DeadLetters, "record", die)
        with pytest.raises(Killed):
            replaying.replay(settings)
    assert len(rows(warehouse)) == 20
    assert landed(warehouse).dead_letters == 20
    assert len(replaying.replay(settings).landed) == 20
    assert len(rows(warehouse)) == 20


def test_letters_whose_segment_the_loader_still_has_are_left_alone(
    settings: Settings, warehouse: Client, letters: DeadLetters
) -> None:
    letters.bury([_letter("w0-busy", 0), _letter("w0-done", 0)])
    settings.spool_dir.mkdir(parents=True)
    (settings.spool_dir / f"w0-busy{SEALED}").touch()
    report = replaying.replay(settings)
    assert (report.landed, report.waiting) == ([LetterName("w0-done", 0)], [LetterName("w0-busy", 0)])
    (settings.spool_dir / f"w0-busy{SEALED}").unlink()
    assert replaying.replay(settings).landed == [LetterName("w0-busy", 0)]


def test_letters_of_thousands_of_segments_are_buried_once(
    warehouse: Client, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a version that writes what this one can't decode: more names than one parameter may hold."""
    ask = Client.query

    def like_a_server(client: Client, query: str, parameters: dict[str, Any], **options: Any) -> QueryResult:
        assert len(str(parameters)) < _MAX_PARAMETER_BYTES  # the embedded engine would take it
        return ask(client, query, parameters=parameters, **options)

    dead = [_letter(new_segment_name("w0"), 0) for _ in range(5_000)]
    with monkeypatch.context() as patched:
        patched.setattr(Client, "query", like_a_server)
        assert letters.bury(dead[:2_500]) == 2_500
        assert letters.bury(dead) == 2_500
    assert landed(warehouse).dead_letters == 5_000


def test_a_second_replay_at_the_same_time_is_turned_away(settings: Settings, warehouse: Client) -> None:
    settings.spool_dir.mkdir(parents=True)
    with replaying._only_replay(settings.spool_dir), pytest.raises(replaying.ReplayRunning):
        replaying.replay(settings)


def _letter(batch_id: str, row: int, reason: str = "number 5 is too large") -> DeadLetter:
    event = accepted(f"{batch_id}-{row}")
    return DeadLetter.of_event(batch_id, row, msgspec.msgpack.encode([event]), event, reason)


@pytest.mark.parametrize(
    "kills", [4, pytest.param(40, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])]
)
def test_killing_a_replay_again_and_again_loads_each_letter_once(
    kills: int,
    settings: Settings,
    warehouse: Client,
    letters: DeadLetters,
    process_environment: Callable[..., dict[str, str]],
) -> None:
    pick = random.Random(4)
    count = 600 * kills
    letters.bury([_letter(f"w0-{number % 50}", number) for number in range(count)])
    environment = process_environment(APEX_LOADER_MAX_ROWS_PER_INSERT="20")
    replay = [sys.executable, "-c", "from apex_pipelines.cli import main; main()"]
    replay += ["ingest", "dead-letters", "replay", "--all"]

    def stored() -> Counter[str]:
        return Counter(str(row[0]) for row in rows(warehouse))

    for _ in range(kills):
        before = len(stored())
        process = subprocess.Popen(
            replay, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while len(stored()) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(pick.uniform(0.0, 0.5))
        process.kill()
        process.wait(10)
        assert max(stored().values()) == 1
    # With inserts of the usual size: in twenties the rest would take minutes.
    whole = process_environment()
    last = subprocess.run(replay, env=whole, capture_output=True, text=True, timeout=300, check=False)
    assert last.returncode == 0, last.stderr
    counts = stored()
    assert (len(counts), set(counts.values())) == (count, {1})
    assert landed(warehouse).dead_letters == 0
    tries = warehouse.query(
        "select count(), uniqExact(batch_id, batch_row) from raw.usage_dead_letter_replays"
    )
    assert tries.result_rows[0][1] == count


def test_the_command_lists_by_reason_shows_bytes_and_replays(
    command: Callable[..., Result], warehouse: Client, letters: DeadLetters
) -> None:
    nothing = command("list")
    assert nothing.exit_code == 0, (nothing.output, nothing.exception)
    assert "nothing to show" in nothing.output
    letters.bury([_letter("w0-a", row, f"value {row} of [quantity] is out of range") for row in range(3)])
    letters.bury([DeadLetter.of_frame("w0-b", 4, 2, BINARY, "2 rows can't be decoded: [/x]")])

    listed = json.loads(command("list", "--json").output)
    assert [(row["reason"], row["letters"], row["rows"]) for row in listed["reasons"]] == [
        ("value N of [quantity] is out of range", 3, 3),
        ("N rows can't be decoded: [/x]", 1, 2),
    ]
    assert [row["id"] for row in listed["letters"]] == ["w0-a:0", "w0-a:1", "w0-a:2", "w0-b:4"]
    table = command("list", "--limit", "1")
    assert table.exit_code == 0
    assert "value N of [quantity]" in table.output
    assert "3 more" in table.output
    assert len(json.loads(command("list", "--reason", "DECODED", "--json").output)["letters"]) == 1

    shown = command("show", "w0-b:4")
    assert shown.exit_code == 0
    assert r"\xc1 no msgpack \x00\xff\xfe\n" in shown.output
    whole = json.loads(command("show", "w0-b:4", "--json").output)
    assert base64.b64decode(whole["raw_base64"]) == BINARY
    assert (whole["events"], whole["rows"]) == (None, 2)
    event: dict[str, Any] = json.loads(command("show", "w0-a:1", "--json").output)["events"][0]
    assert msgspec.convert(list(event.values()), AcceptedEvent).event_id == "w0-a-1"

    for wrong in (("show", "nonsense"), ("show", "w0-a:99"), ("replay", "w0-a:99")):
        failed = command(*wrong)
        assert failed.exit_code == 1
        assert isinstance(failed.exception, NoSuchLetter)
    assert command("replay").exit_code == 2
    assert command("replay", "--all", "w0-a:0").exit_code == 2

    one = command("replay", "w0-a:1", "--json")
    assert (one.exit_code, json.loads(one.output)["landed"]) == (0, ["w0-a:1"])
    by_reason = command("replay", "--reason", "out of range")
    assert (by_reason.exit_code, "2 loaded, 0 failed again" in by_reason.output) == (0, True)
    rest = command("replay", "--all")
    assert rest.exit_code == 1
    assert "0 loaded, 1 failed again" in rest.output
    assert [row[2] for row in rows(warehouse)] == [0, 1, 2]
