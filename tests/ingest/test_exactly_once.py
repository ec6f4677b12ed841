"""Whatever is sent, in whatever order, over whatever crashes: every figure is that of a plain list.

Random histories of two customers go through a real API, loader and warehouse and real runs of the models;
after them each answer of the API and each mart that holds use is compared with `counted_by_hand`.
"""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from apex_pipelines.billing.store import roll_periods
from apex_pipelines.customers.keys import issue_operator_key
from apex_pipelines.customers.tokens import issue_token, token_secret
from apex_pipelines.platform.table_copy import copy_table
from apex_pipelines.settings import Settings
from ingest_api.spool.segments import OPEN, list_segments
from tests.conftest import wait_until_up
from tests.ingest.books import wait_until_landed
from tests.ingest.conftest import CREATED, NOW, STARTED, Account, Api, LoaderProcess, Reader, event
from tests.ingest.counted_by_hand import Count, Event, Terms, first_of_each, refusal
from tests.ingest.test_answers import BAD_EVENTS
from tests.ingest.waiting import until
from tests.warehouse_models.conftest import Models

MARTS = ["usage_daily", "usage_records", "usage_by_period", "customers", "onboarding", "churn_features"]
INDIE = Terms(
    "indie", 9_900, {"impressions": 1_000, "api_calls": 2_000_000, "data_transfer": 100 * 10**9}, STARTED
)
STUDIO = Terms(
    "studio",
    49_900,
    {"impressions": 10_000_000, "api_calls": 20_000_000, "data_transfer": 1_000 * 10**9},
    STARTED,
)
DAYS_ASKED = (1, 7, 30, 365)
# One of a metric's quantities, in storage units: figures that a float or another metric's scale would spoil.
STEPS = {
    "impressions": 7, "api_calls": 1, "data_transfer": 123_456_789, "mediated_revenue": 10_001,
    "sdk_crashes": 1, "doc_views": 1, "feature_used": 1,
}  # fmt: skip
LIFE = {
    "console_login": "console_logins",
    "doc_viewed": "doc_views",
    "support_ticket_opened": "support_tickets",
}
# Dated ones are made here, since time passes.
BAD = [
    (changes, code) for changes, code in BAD_EVENTS if not str(changes.get("timestamp")).startswith("2026")
]


@dataclass(frozen=True)
class Draft:
    """An event before it is known who sends it and when; `number` None leaves the id to the server."""

    number: int | None
    metric: str
    steps: int
    ago: timedelta | None
    corrects: int | None
    feature: str

    def event(self, customer_id: str, now: datetime) -> Event:
        stored = self.steps * STEPS[self.metric]
        is_correction = self.corrects is not None and self.corrects != self.number and stored > 0
        return Event(
            customer_id,
            None if self.number is None else f"evt-{self.number}",
            self.metric,
            -stored if is_correction else stored,
            None if self.ago is None else now - self.ago,
            f"evt-{self.corrects}" if is_correction else "",
            "counted twice" if is_correction else "",
            self.feature if self.metric == "feature_used" else "",
        )


@dataclass(frozen=True)
class Refused:
    """Something in a batch that can never count: its JSON, and the reason to be told."""

    text: str
    reason: str


@dataclass(frozen=True)
class Message:
    """A request as it goes out, and can go out again."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    entries: tuple[Event | Refused, ...]


@dataclass(frozen=True)
class One:
    """Sent by `track`."""

    who: int
    draft: Draft
    key_in_body: bool
    versioned: bool


@dataclass(frozen=True)
class Batch:
    """Sent by `batch`."""

    who: int
    drafts: list[Draft | Refused]
    form: str
    zipped: bool


@dataclass(frozen=True)
class LifeEvent:
    """Reported by the operator."""

    who: int
    kind: str
    number: int
    ago: timedelta | None


@dataclass(frozen=True)
class Again:
    """A message of before as it was, bytes and all; `pick` counts round them."""

    pick: int


@dataclass(frozen=True)
class LostAnswer:
    """A batch whose sender goes away before the answer, and sends it again."""

    batch: Batch
    kill: bool


@dataclass(frozen=True)
class Step:
    """What clients send, and what happens then: a method of `History`."""

    traffic: list[One | Batch | LifeEvent | Again | LostAnswer]
    then: str


HAPPENINGS = [
    "compare_answers", "nothing", "nothing", "restart_api", "kill_api", "kill_worker", "restart_loader",
    "kill_loader", "pause_loader", "resume_loader", "run_the_models", "compare_answers",
    "let_hours_pass", "let_a_day_pass", "let_weeks_pass",
]  # fmt: skip
# Few ids, so that customers share them and events claim those of others.
numbers = st.integers(0, 25)
# Both limits and what lies just behind them; from today into the period before, and beyond what is accepted.
lags = st.one_of(
    st.none(),
    st.sampled_from([
        timedelta(days=35), timedelta(days=35, milliseconds=1), timedelta(minutes=-5),
        timedelta(minutes=-5, milliseconds=-1),
    ]),
    st.integers(0, 40 * 86_400_000).map(lambda ms: timedelta(milliseconds=ms)),
)  # fmt: skip


def drafts(number: st.SearchStrategy[int | None]) -> st.SearchStrategy[Draft]:
    return st.builds(
        Draft,
        number=number,
        metric=st.sampled_from(sorted(STEPS)),
        steps=st.integers(0, 150),
        ago=lags,
        corrects=st.one_of(st.none(), st.none(), st.none(), numbers),
        feature=st.sampled_from(["bidding", "caching", "geo"]),
    )


customers = st.integers(0, 1)
some_drafts = drafts(st.one_of(numbers, numbers, numbers, st.none()))
refused = st.one_of(
    st.sampled_from(BAD).map(lambda bad: Refused(json.dumps(event(**bad[0])), bad[1])),
    st.sampled_from(["5", '"text"', "null", "[]", "{}"]).map(lambda text: Refused(text, "malformed_event")),
)
batches = st.builds(
    Batch,
    who=customers,
    drafts=st.lists(st.one_of(some_drafts, some_drafts, some_drafts, refused), min_size=1, max_size=12),
    form=st.sampled_from(["object", "array", "lines"]),
    zipped=st.booleans(),
)
# Each event has an id, without which nobody can send it again.
repeatable_batches = st.builds(
    Batch,
    who=customers,
    drafts=st.lists(drafts(numbers), min_size=1, max_size=5),
    form=st.just("array"),
    zipped=st.just(False),
)
ones = st.builds(One, who=customers, draft=some_drafts, key_in_body=st.booleans(), versioned=st.booleans())
traffic = st.one_of(
    ones,
    ones,
    batches,
    batches,
    st.builds(LifeEvent, who=customers, kind=st.sampled_from(sorted(LIFE)), number=numbers, ago=lags),
    st.builds(Again, pick=st.integers(0, 1000)),
    st.builds(LostAnswer, batch=repeatable_batches, kill=st.booleans()),
)
steps = st.builds(Step, traffic=st.lists(traffic, min_size=1, max_size=8), then=st.sampled_from(HAPPENINGS))


@dataclass
class World:
    """The running parts, which all histories share; each history has customers of its own."""

    api: Api
    loader: LoaderProcess
    models: Models
    engine: sa.Engine
    new_reader: Callable[..., Reader]
    operator: str
    now: datetime = NOW
    histories: Iterator[int] = field(default_factory=itertools.count)
    is_built: bool = False
    done: Counter[str] = field(default_factory=Counter)
    connected: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.connect()

    def connect(self) -> None:
        self.connected = httpx.Client(base_url=self.api.url, timeout=20)

    def restart_api(self, end: Callable[[], None]) -> None:
        self.connected.close()
        end()
        self.api.environment["APEX_CLOCK"] = self.now.isoformat()
        self.api.start()
        self.connect()

    def kill_worker(self) -> None:
        """The server starts another; when two die within seconds it ends, and the supervisor starts it."""
        (worker,), server = self.api.worker_pids(), self.api.process
        assert server is not None
        self.connected.close()
        os.kill(worker, signal.SIGKILL)
        until(lambda: server.poll() is not None or bool({*self.api.worker_pids()} - {worker}))
        if server.poll() is None:
            wait_until_up(f"{self.api.url}/health", server)
        else:
            self.api.start()
        self.connect()

    def copy_tables(self) -> None:
        """What runs before the models: periods are moved on, operational tables copied."""
        with self.engine.begin() as connection:
            roll_periods(connection, self.now)
        for table in ("customers", "subscriptions", "subscription_changes", "payments"):
            copy_table(self.engine, self.models.client, table, self.now)

    def run_models(self, names: list[str]) -> None:
        if not self.is_built:
            self.models.run("seed", as_of=self.now)
            self.is_built = True
        self.models.run("run", "--select", *(f"+{name}" for name in names), as_of=self.now)

    def forget_models(self) -> None:
        self.models.drop_all()
        self.is_built = False

    def rows(self, query: str, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """Rows of a query about the customers ``{ids}``, with aware instants."""
        result = self.models.client.query(query, parameters={"ids": list(ids)})
        return [tuple(aware(value) for value in row) for row in result.result_rows]


def aware(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


class History:
    """One history of two customers, and the list of what arrived in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        number = next(world.histories)
        self.terms = [INDIE, STUDIO]
        years = timedelta(days=3_650)
        self.readers = [
            world.new_reader(f"{number}a", lifetime=years, included_impressions=1_000),
            world.new_reader(f"{number}b", lifetime=years, plan="studio"),
        ]
        self.ids = [reader.customer_id for reader in self.readers]
        self.arrived: list[Event] = []  # all that was acknowledged and not known as a repeat, in order
        self.remembered: set[tuple[str, str | None]] = set()  # by the worker that runs
        self.shown = 0  # of those that arrived, what the warehouse has
        self.perhaps_twice = 0  # rows of requests whose answer nobody read
        self.messages: list[Message] = []
        self.is_paused = False
        self.is_unsettled = False

    def play(self, history: list[Step]) -> None:
        """Live through it; whatever comes of it, the loader runs afterwards."""
        try:
            for step in history:
                for sending in step.traffic:
                    self.send(sending)
                getattr(self, step.then)()
                self.world.done[step.then] += 1
            self.resume_loader()
            self.compare_answers()
            self.run_the_models()
            # All of it once more, the last first, to an API that remembers nothing: what is counted stays so.
            self.kill_api()
            for message in reversed(self.messages):
                self.deliver(message)
            self.compare_answers()
            self.compare_marts()
            self.compare_answers()
        finally:
            self.resume_loader()
        self.world.done["repeats that landed"] += len(self.arrived) - len(first_of_each(self.arrived))

    # What clients do.

    def send(self, sending: One | Batch | LifeEvent | Again | LostAnswer) -> None:
        if isinstance(sending, Again):
            if self.messages:
                self.deliver(self.messages[sending.pick % len(self.messages)])
        elif isinstance(sending, LostAnswer):
            message = self.batch(sending.batch)
            self.lose_answer(message, kill=sending.kill)
            self.deliver(message, is_sure=False)
        else:
            make = {One: self.one, Batch: self.batch, LifeEvent: self.life_event}[type(sending)]
            self.messages.append(make(sending))
            self.deliver(self.messages[-1])

    def one(self, sending: One) -> Message:
        made = sending.draft.event(self.ids[sending.who], self.world.now)
        account = self.readers[sending.who].account
        body = as_json(made) | ({"api_key": account.key} if sending.key_in_body else {})
        path = "/api/v1/usage/track" if sending.versioned else "/api/usage/track"
        headers = {} if sending.key_in_body else account.bearer
        return Message(path, tuple(headers.items()), json.dumps(body).encode(), (made,))

    def batch(self, sending: Batch) -> Message:
        entries = tuple(
            draft.event(self.ids[sending.who], self.world.now) if isinstance(draft, Draft) else draft
            for draft in sending.drafts
        )
        texts = [json.dumps(as_json(made)) if isinstance(made, Event) else made.text for made in entries]
        headers = dict(self.readers[sending.who].account.bearer)
        if sending.form == "lines":
            body = "\n".join(texts)
            headers["content-type"] = "application/x-ndjson"
        else:
            body = f"[{','.join(texts)}]"
            body = f'{{"events": {body}}}' if sending.form == "object" else body
        content = body.encode()
        if sending.zipped:
            content = gzip.compress(content)
            headers["content-encoding"] = "gzip"
        return Message("/api/usage/batch", tuple(headers.items()), content, entries)

    def life_event(self, sending: LifeEvent) -> Message:
        at = None if sending.ago is None else self.world.now - sending.ago
        made = Event(self.ids[sending.who], f"evt-{sending.number}", LIFE[sending.kind], 1, at)
        body = {"event_type": sending.kind, "customer_id": made.customer_id, "event_id": made.event_id}
        body |= {} if at is None else {"timestamp": at.isoformat()}
        headers = (("authorization", f"Bearer {self.world.operator}"),)
        return Message("/api/events", headers, json.dumps(body).encode(), (made,))

    def lose_answer(self, message: Message, *, kill: bool) -> None:
        connection = http.client.HTTPConnection(self.world.api.url.removeprefix("http://"), timeout=10)
        connection.request("POST", message.path, message.body, dict(message.headers))
        connection.close()
        if kill:
            self.kill_api()
        self.perhaps_twice += len(message.entries)

    # What happens to us.

    def nothing(self) -> None:
        pass

    def restart_api(self) -> None:
        self.world.restart_api(self.world.api.stop)
        self.remembered.clear()

    def kill_api(self) -> None:
        self.world.restart_api(self.world.api.kill)
        self.remembered.clear()

    def kill_worker(self) -> None:
        self.world.kill_worker()
        self.remembered.clear()

    def restart_loader(self) -> None:
        self.resume_loader()
        self.world.loader.stop()
        self.world.loader.start()

    def kill_loader(self) -> None:
        self.world.loader.kill()
        self.world.loader.start()
        self.is_paused = False
        self.is_unsettled = True

    def pause_loader(self) -> None:
        """It rests with nothing in its hands; what arrives from now on waits in the spool."""
        if not self.is_paused:
            self.land()
            self._signal_loader(signal.SIGSTOP)
            self.is_paused = True

    def resume_loader(self) -> None:
        if self.is_paused:
            self._signal_loader(signal.SIGCONT)
            self.is_paused = False

    def _signal_loader(self, number: signal.Signals) -> None:
        assert self.world.loader.process is not None
        self.world.loader.process.send_signal(number)

    def let_hours_pass(self) -> None:
        self._let_pass(timedelta(hours=7))

    def let_a_day_pass(self) -> None:
        self._let_pass(timedelta(days=1))

    def let_weeks_pass(self) -> None:
        self._let_pass(timedelta(days=20))

    def _let_pass(self, by: timedelta) -> None:
        self.world.now += by
        self.restart_api()

    def run_the_models(self) -> None:
        self.world.run_models(["usage_daily", "usage_records"])

    # What must hold.

    def compare_answers(self) -> None:
        self.land()
        counted = first_of_each(self.arrived[: self.shown])
        for reader, terms in zip(self.readers, self.terms, strict=True):
            count = Count(counted, reader.customer_id, terms, self.world.now)
            assert self.read(reader, "current") == count.current()
            assert self.read(reader, "limits") == count.limits()
            for days in DAYS_ASKED:
                assert self.read(reader, f"analytics?days={days}") == count.analytics(days)
        self.compare_landed()

    def compare_marts(self) -> None:
        self.land()
        self.world.copy_tables()
        self.world.run_models(MARTS)
        counted = first_of_each(self.arrived[: self.shown])
        self.compare_events(counted)
        for reader, terms in zip(self.readers, self.terms, strict=True):
            self.compare_figures(Count(counted, reader.customer_id, terms, self.world.now))

    # How.

    def deliver(self, message: Message, *, is_sure: bool = True) -> None:
        """Send it, and compare what is told of each event with what is known of it."""
        answer = self.world.connected.post(message.path, content=message.body, headers=dict(message.headers))
        told = outcomes(answer)
        assert len(told) == len(message.entries), answer.text
        for (status, event_id), entry in zip(told, message.entries, strict=True):
            if isinstance(entry, Refused):
                assert status == entry.reason, entry
                continue
            expected = refusal(entry, self.world.now) or (
                "duplicate" if (entry.customer_id, entry.event_id) in self.remembered else "accepted"
            )
            if expected in ("accepted", "duplicate"):
                assert event_id == (entry.event_id or event_id)
            if not is_sure and (expected, status) == ("accepted", "duplicate"):
                # What was sent before got through.
                self.perhaps_twice -= 1
            else:
                assert status == expected, (entry, answer.text)
            if expected == "accepted":
                self.accept(entry, event_id)
            self.world.done[status] += 1

    def accept(self, entry: Event, event_id: str | None) -> None:
        assert event_id
        at = entry.at or self.world.now
        rounded = at.replace(microsecond=at.microsecond // 1000 * 1000)
        whole = Event(
            entry.customer_id, event_id, entry.metric, entry.quantity, rounded,
            entry.corrects, entry.reason, entry.feature, self.world.now.date(),
        )  # fmt: skip
        self.arrived.append(whole)
        self.remembered.add((whole.customer_id, whole.event_id))

    def land(self) -> None:
        """Wait until the warehouse has all that was acknowledged; while the loader rests, it gets nothing."""
        if self.is_paused:
            return
        wait_until_landed(self.world.api.settings.spool_dir)
        self.shown = len(self.arrived)
        if self.is_unsettled:
            # An insert whose loader was killed may turn up behind the models' mark, which answers see within
            # a second.
            time.sleep(1.1)
            self.is_unsettled = False

    def read(self, reader: Reader, path: str) -> Any:
        answer = self.world.connected.get(
            f"/api/usage/{path}", headers={"authorization": f"Bearer {reader.token}"}
        )
        assert answer.status_code == 200, answer.text
        return answer.json(parse_float=Decimal)

    def compare_landed(self) -> None:
        landed = self.world.rows(
            "select customer_id, event_id, toString(metric_type), quantity, event_time, corrects_event_id, "
            "correction_reason, JSONExtractString(metadata, 'feature') from raw.usage_events "
            "where customer_id in {ids:Array(String)} order by loaded_at, batch_id, batch_row",
            self.ids,
        )
        expected = [event_row(event) for event in self.arrived[: self.shown]]
        if self.perhaps_twice:
            assert set(landed) == set(expected)
            assert len(expected) <= len(landed) <= len(expected) + self.perhaps_twice
        else:
            assert landed == expected
        client = self.world.models.client
        assert client.command("select count() - uniqExact(batch_id, batch_row) from raw.usage_events") == 0
        assert client.command("select count() from raw.usage_dead_letters_open") == 0

    def compare_events(self, counted: list[Event]) -> None:
        stored = self.world.rows(
            "select customer_id, event_id, toString(metric_type), quantity, event_time, corrects_event_id, "
            "correction_reason, dimension from intermediate.int_usage_events "
            "where customer_id in {ids:Array(String)}",
            self.ids,
        )
        assert sorted(stored) == sorted(event_row(event) for event in counted)
        records = self.world.rows(
            "select customer_id, toString(metric_type), quantity, recorded_at from default.usage_records "
            "where customer_id in {ids:Array(String)}",
            self.ids,
        )
        assert sorted(records) == sorted(
            (event.customer_id, event.metric, event.units, event.instant) for event in counted
        )

    def compare_figures(self, count: Count) -> None:
        ids = [count.customer_id]
        daily = self.world.rows(
            "select usage_date, toString(metric_type) as metric, quantity, event_count, correction_count, "
            "first_event_at, last_event_at, dimension_values from marts.usage_daily "
            "where customer_id in {ids:Array(String)} order by usage_date, metric",
            ids,
        )
        assert daily == count.usage_daily()
        by_period = self.world.rows(
            "select period_start, period_end, toString(metric_type) as metric, quantity, included_quantity, "
            "used_ratio from marts.usage_by_period where customer_id in {ids:Array(String)} "
            "order by period_start, metric",
            ids,
        )
        assert by_period == count.usage_by_period()
        expected = count.customer()
        customer = self.world.rows(
            f"select {', '.join(expected)} from marts.customers where customer_id in {{ids:Array(String)}}",
            ids,
        )
        assert customer == [tuple(expected.values())]
        steps = self.world.rows(
            "select toString(step), occurred_at from marts.onboarding "
            "where customer_id in {ids:Array(String)} and step != 'signed_up'",
            ids,
        )
        assert dict(steps) == count.onboarding()
        names = list(count.churn_features(date.max))
        features = self.world.rows(
            f"select feature_date, {', '.join(names)} from marts.churn_features "
            "where customer_id in {ids:Array(String)}",
            ids,
        )
        assert features
        for feature_date, *values in features:
            assert dict(zip(names, values, strict=True)) == count.churn_features(feature_date)


def event_row(event: Event) -> tuple[Any, ...]:
    return (
        event.customer_id, event.event_id, event.metric, event.quantity, event.instant, event.corrects,
        event.reason, event.feature,
    )  # fmt: skip


def as_json(event: Event) -> dict[str, Any]:
    """The event as a client writes it; amounts with decimal places as text, so that they stay exact."""
    whole = event.units == event.units.to_integral_value()
    fields = {
        "metric_type": event.metric,
        "quantity": int(event.units) if whole else str(event.units),
        "event_id": event.event_id,
        "timestamp": event.at and event.at.isoformat(),
        "corrects_event_id": event.corrects or None,
        "reason": event.reason or None,
        "metadata": {"feature": event.feature} if event.feature else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def outcomes(answer: httpx.Response) -> list[tuple[str, str | None]]:
    """What was told of each event, whichever endpoint told it: accepted, duplicate or the reason; its id."""
    body = answer.json()
    if answer.status_code == 422:
        return [(body["error"]["code"], None)]
    assert answer.status_code == 200, answer.text
    if "recorded" in body:
        return [("duplicate" if body.get("duplicate") else "accepted", body["recorded"]["event_id"])]
    told = [(result.get("reason") or result["status"], result["event_id"]) for result in body["results"]]
    statuses = Counter(result["status"] for result in body["results"])
    assert [body[name] for name in ("accepted", "duplicates", "rejected")] == [
        statuses[name] for name in ("accepted", "duplicate", "rejected")
    ]
    assert body["success"] is (statuses["rejected"] == 0)
    return told


@pytest.fixture
def world(
    models: Models,
    engine: sa.Engine,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
    new_reader: Callable[..., Reader],
) -> Iterator[World]:
    api = new_api(APEX_API_READS_PER_WINDOW="1000000", APEX_SPOOL_SEGMENT_MAX_AGE_MS="30")
    with engine.begin() as connection:
        operator = issue_operator_key(connection, CREATED).plaintext
    made = World(api, new_loader(APEX_LOADER_POLL_MS="10"), models, engine, new_reader, operator)
    yield made
    made.connected.close()


# The short form plays the same histories each time, the long one others, by `make test-faults`.
LONG = pytest.param(20, 25, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])


@pytest.mark.parametrize(("histories", "length"), [(2, 8), LONG])
def test_every_answer_and_mart_is_what_a_plain_list_says_after_any_history(
    histories: int, length: int, world: World
) -> None:
    # Not made shorter when it fails, which would take an hour.
    @hypothesis_settings(
        max_examples=histories, deadline=None, database=None, derandomize=histories < 10,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(forget=st.booleans(), history=st.lists(steps, min_size=length // 2, max_size=length))
    def play(forget: bool, history: list[Step]) -> None:
        print(f"models are forgotten: {forget}; {history}")
        if forget:
            world.forget_models()
        History(world).play(history)

    play()
    print(dict(sorted(world.done.items())))
    for told in ("accepted", "duplicate", "too_late", "repeats that landed"):
        assert world.done[told] > 0


def test_the_first_accepted_wins_whichever_worker_took_it(
    models: Models,
    settings: Settings,
    account: Account,
    new_api: Callable[..., Api],
    new_loader: Callable[..., LoaderProcess],
) -> None:
    """Workers don't know of each other's events, and these wait for the warehouse side by side."""
    api = new_api(workers=2, APEX_CLOCK="system")
    ids = [f"evt-{number}" for number in range(30)]
    taken = 0
    for event_id, quantity in itertools.product(ids, (1, 1_000)):
        # Each on a connection of its own, so that either worker may get it.
        body = event(event_id=event_id, quantity=quantity)
        answer = httpx.post(f"{api.url}/api/usage/track", json=body, headers=account.bearer)
        assert answer.status_code == 200
        taken += "duplicate" not in answer.json()
    assert taken > len(ids), "no repeat came to another worker"
    # First is the first accepted of those that are loaded together, so both workers must have sealed theirs.
    until(lambda: not list_segments(settings.spool_dir, OPEN))
    new_loader()
    wait_until_landed(settings.spool_dir)
    token = issue_token(token_secret(settings), account.customer_id, datetime.now(UTC), timedelta(hours=1))
    reader = Reader(api.url, account, token)
    assert reader.read("analytics?days=2")["total_impressions"] == len(ids)
    models.build("int_usage_events")
    stored = "select count(), sum(quantity) from intermediate.int_usage_events"
    assert models.client.query(stored).result_rows == [(len(ids), len(ids))]
