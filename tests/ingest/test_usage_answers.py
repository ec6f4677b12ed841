"""What customers read about their own use: right at every moment, fresh, and nobody else's.

The expected figures come from a plain dictionary that knows nothing of the warehouse.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.billing.store import change_plan
from apex_pipelines.platform import clickhouse
from apex_pipelines.settings import Settings
from ingest_api.request_limit import RequestLimit, Standing
from tests.ingest.conftest import NOW, STARTED, Api, Reader, event
from tests.warehouse_models.conftest import Models

PERIOD = datetime(2026, 5, 15, 13, 45, 10, tzinfo=UTC), datetime(2026, 6, 15, 13, 45, 10, tzinfo=UTC)
FIELDS = {
    "impressions": ("impressions", 0),
    "api_calls": ("api_calls", 0),
    "data_transfer": ("data_transfer_gb", 9),
    "mediated_revenue": ("mediated_revenue_usd", 6),
}


@pytest.fixture
def reading_api(models: Models, new_api: Callable[..., Api]) -> Api:
    """The API over an empty warehouse, with no limit that a test could run into."""
    return new_api(APEX_API_READS_PER_WINDOW="1000000")


@dataclass
class Landing:
    """Rows as they land in `raw.usage_events`, and what counts of them."""

    models: Models
    counted: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    waiting: list[dict[str, Any]] = field(default_factory=list)
    landed: list[dict[str, Any]] = field(default_factory=list)
    batches: int = 0

    def land(self, loaded_at: datetime, rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row |= {
                "accepted_at": loaded_at, "loaded_at": loaded_at,
                "batch_id": f"batch-{self.batches:05}", "batch_row": number,
            }  # fmt: skip
        self.batches += 1
        self.waiting += rows
        self.landed += rows
        self.models.insert_events(rows)

    def count(self) -> None:
        """What a run of the models does: the first of each pair is counted for good."""
        self.counted = self.as_counted_now()
        self.waiting = []

    def as_counted_now(self) -> dict[tuple[str, str], dict[str, Any]]:
        counted = dict(self.counted)
        for row in sorted(
            self.waiting, key=lambda row: (row["loaded_at"], row["batch_id"], row["batch_row"])
        ):
            counted.setdefault((row["customer_id"], row["event_id"]), row)
        return counted

    def totals(self, customer_id: str, start: datetime, end: datetime) -> dict[str, int]:
        totals = dict.fromkeys(FIELDS, 0)
        for row in self.as_counted_now().values():
            if row["customer_id"] == customer_id and start <= row["event_time"] < end:
                totals[row["metric_type"]] += row["quantity"]
        return totals

    def by_day(self, customer_id: str, metric: str) -> dict[date, int]:
        days: dict[date, int] = defaultdict(int)
        for row in self.as_counted_now().values():
            if row["customer_id"] == customer_id and row["metric_type"] == metric:
                days[row["event_time"].date()] += row["quantity"]
        return days


def row(customer_id: str, event_id: str, **changes: Any) -> dict[str, Any]:
    base = {"metric_type": "impressions", "quantity": 10, "event_time": NOW - timedelta(hours=1)}
    return {"customer_id": customer_id, "event_id": event_id, **base, **changes}


def assert_answers(reader: Reader, landing: Landing, days: int) -> None:
    """`current` and `analytics` tell what the dictionary does."""
    current = reader.read("current")["usage"]
    totals = landing.totals(reader.customer_id, *PERIOD)
    assert {name: current[name] for name, _ in FIELDS.values()} == {
        name: Decimal(totals[metric]).scaleb(-scale) for metric, (name, scale) in FIELDS.items()
    }
    answer = reader.read(f"analytics?days={days}")
    first = NOW.date() - timedelta(days=days - 1)
    wanted = [(first + timedelta(days=index)) for index in range(days)]
    assert [day["date"] for day in answer["daily_usage"]] == [day.isoformat() for day in wanted]
    for metric, (name, scale) in FIELDS.items():
        by_day = landing.by_day(reader.customer_id, metric)
        expected = [Decimal(by_day[day]).scaleb(-scale) for day in wanted]
        assert [day[name] for day in answer["daily_usage"]] == expected
        assert answer[f"total_{name}"] == sum(expected)
        unit = Decimal(1).scaleb(-scale - 2)
        assert answer[f"avg_daily_{name}"] == (sum(expected) / days).quantize(unit)


class Stream:
    """Seeded arrivals: new, late, repeated with another time and quantity, corrections, seen late."""

    def __init__(self, seed: int, customers: list[str]) -> None:
        self.random = random.Random(seed)
        self.customers = customers

    def row(self, landing: Landing) -> dict[str, Any]:
        pick = self.random
        late = timedelta(days=pick.randrange(60) if pick.random() < 0.3 else 0)
        made = row(
            pick.choice(self.customers),
            f"event-{pick.randrange(100_000)}",
            metric_type=pick.choice([*FIELDS]),
            quantity=pick.randrange(1, 10**9),
            event_time=NOW - late - timedelta(milliseconds=pick.randrange(3 * 86_400_000)),
        )
        if pick.random() < 0.15:
            made |= {"quantity": -pick.randrange(10**9), "corrects_event_id": "event-1"}
        if pick.random() < 0.3 and landing.landed:
            repeated = pick.choice(landing.landed)
            made |= {"customer_id": repeated["customer_id"], "event_id": repeated["event_id"]}
        return made


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_figures_are_right_whatever_arrives_before_between_and_after_runs_of_the_models(
    seed: int, reading_api: Api, models: Models, new_reader: Callable[..., Reader]
) -> None:
    readers = [new_reader(name) for name in ("ada", "bob", "cyd")]
    landing = Landing(models)
    stream = Stream(seed, [reader.customer_id for reader in readers])
    loaded_at = datetime(2026, 6, 1, tzinfo=UTC)
    for step in range(12):
        # Some turn up behind the mark of the run before, as when two loaders overlap.
        behind = timedelta(minutes=stream.random.choice([0, 0, 50]))
        rows = [stream.row(landing) for _ in range(stream.random.randrange(1, 120))]
        landing.land(loaded_at - behind, rows)
        loaded_at += timedelta(minutes=stream.random.randrange(1, 30))
        if behind:
            time.sleep(1.1)  # for how long marks may be believed
        for reader in readers:
            assert_answers(reader, landing, stream.random.choice([1, 7, 30, 365]))
        if step in (3, 4, 8):
            # Once only the events, so that the daily figures lag behind them.
            models.build(*(["int_usage_events"] if step == 4 else ["usage_daily"]))
            landing.count()
            for reader in readers:
                assert_answers(reader, landing, 90)


def test_a_repeat_never_counts_again_while_the_models_run_and_readers_ask(
    reading_api: Api, models: Models, new_reader: Callable[..., Reader]
) -> None:
    """The figure only grows, by whole events, whatever a reader's question falls between."""
    reader = new_reader("ada")
    landing = Landing(models)
    base = datetime(2026, 6, 1, tzinfo=UTC)
    history = [row(reader.customer_id, f"event-{n}", quantity=1_000_000) for n in range(300)]
    landing.land(base, history)
    models.build("usage_daily")
    stop, seen, failures = threading.Event(), list[int](), list[str]()

    def read() -> None:
        while not stop.is_set():
            answer = reader.get("current")
            if answer.status_code != 200:
                failures.append(answer.text)
            seen.append(answer.json()["usage"]["impressions"])

    thread = threading.Thread(target=read)
    thread.start()
    landed = 300
    for step in range(12):
        fresh = [row(reader.customer_id, f"event-{landed + n}", quantity=1_000_000) for n in range(50)]
        # Another quantity, so that a repeat that counted would show; on the days of the first or on others.
        again = [
            old | {"quantity": 1, "event_time": old["event_time"] - timedelta(days=step % 2)}
            for old in random.Random(step).sample(landing.landed, 100)
        ]
        landing.land(base + timedelta(seconds=step + 1), fresh + again)
        landed += 50
        if step % 3 == 2:
            models.run("run", "--select", "int_usage_events", "usage_daily")
    time.sleep(0.5)
    stop.set()
    thread.join()
    assert not failures
    assert all(figure % 1_000_000 == 0 for figure in seen), seen
    assert seen == sorted(seen)
    assert seen[-1] == landed * 1_000_000
    assert len(seen) > 50


def test_whole_days_are_read_from_the_daily_figures_and_reopened_days_from_the_events(
    reading_api: Api, models: Models, new_reader: Callable[..., Reader]
) -> None:
    reader = new_reader("ada")
    landing = Landing(models)
    base = datetime(2026, 6, 1, tzinfo=UTC)
    days = [NOW - timedelta(days=1 + n) for n in range(4)]
    landing.land(base, [row(reader.customer_id, f"e{n}", event_time=day) for n, day in enumerate(days)])
    models.build("usage_daily")
    # A figure spoilt by hand shows which source a day was read from.
    models.client.command(
        "alter table marts.usage_daily update quantity = 7 where 1 settings mutations_sync = 2"
    )
    late = row(reader.customer_id, "late", event_time=days[2], quantity=5)
    landing.land(base + timedelta(seconds=1), [late])
    models.build("int_usage_events")
    time.sleep(1.1)
    read = reader.read("analytics?days=5")["daily_usage"]
    assert [day["impressions"] for day in read] == [7, 15, 7, 7, 0]
    # A run that begins makes the daily figures doubtful until it has ended.
    models.client.command(
        "insert into intermediate.model_watermarks (model, state, watermark) "
        "select model, 'begun', watermark from intermediate.model_watermarks "
        "where model = 'usage_daily' and state = 'stored'"
    )
    read = reader.read("analytics?days=5")["daily_usage"]
    assert [day["impressions"] for day in read] == [10, 15, 10, 10, 0]


def test_marks_whose_events_are_gone_hide_nothing(
    reading_api: Api, models: Models, new_reader: Callable[..., Reader]
) -> None:
    """As while the model is dropped to be built anew: what it had counted is counted from the landing log."""
    reader = new_reader("ada")
    landing = Landing(models)
    base = datetime(2026, 6, 1, tzinfo=UTC)
    landing.land(base, [row(reader.customer_id, "counted")])
    models.build("usage_daily")
    landing.land(base + timedelta(hours=2), [row(reader.customer_id, "new")])
    assert_answers(reader, landing, 5)
    models.client.command("drop table intermediate.int_usage_events sync")
    assert_answers(reader, landing, 5)


def test_the_engine_reads_the_marks_after_it_has_chosen_the_rows_that_they_vouch_for(
    warehouse: Client, settings: Settings
) -> None:
    """What the query of the daily figures stands on: a scalar is no older than the tables beside it."""
    for table in ("figures", "marks"):
        warehouse.command(f"create or replace table default.{table} (x Int64) engine = MergeTree order by x")
        warehouse.command(f"insert into default.{table} values (1)")
    asker = clickhouse.connect(settings, query_origin="reads-marks-slowly")
    question = "select sum(x), (select (sleep(3), max(x)) from default.marks).2 from default.figures"
    running = "select count() from system.processes where Settings['log_comment'] = 'reads-marks-slowly'"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asker.raw_query, question, fmt="CSV")
        while not answer.done() and not warehouse.query(running).result_rows[0][0]:
            time.sleep(0.01)
        time.sleep(0.5)
        warehouse.command("insert into default.figures values (10)")
        assert not answer.done()
        assert answer.result() == b"1,1\n"
    asker.close()
    for table in ("figures", "marks"):
        warehouse.command(f"drop table default.{table} sync")


def test_an_acknowledged_event_shows_within_two_seconds(
    reading_api: Api, models: Models, new_reader: Callable[..., Reader], new_loader: Callable[..., Any]
) -> None:
    reader = new_reader("ada")
    new_loader()
    waits = []
    with httpx.Client(base_url=reading_api.url, headers=reader.account.bearer) as sender:
        for number in range(1, 13):
            body = event(quantity=1, event_id=f"evt-{number}")
            assert sender.post("/api/usage/track", json=body).status_code == 200
            acknowledged = time.monotonic()
            while reader.read("current")["usage"]["impressions"] < number:
                assert time.monotonic() < acknowledged + 20
            waits.append(time.monotonic() - acknowledged)
            if number == 6:
                models.build("usage_daily")
    waits = sorted(waits[1:])  # the loader was still starting at the first
    print("seconds from acknowledged to shown:", [round(wait, 2) for wait in waits])
    assert waits[-1] < 2


def test_a_token_shows_its_own_customer_whatever_is_asked_for(
    reading_api: Api, models: Models, new_reader: Callable[..., Reader]
) -> None:
    ada, bob = new_reader("ada"), new_reader("bob")
    landing = Landing(models)
    same_ids = [row(bob.customer_id, "e1", quantity=100), row(ada.customer_id, "e1", quantity=1)]
    landing.land(datetime(2026, 6, 1, tzinfo=UTC), same_ids)
    for build in (False, True):
        if build:
            models.build("usage_daily")
            time.sleep(1.1)
        for path in ("current", f"current?customer_id={bob.customer_id}&sub={bob.customer_id}"):
            usage = ada.read(path)["usage"]
            assert (usage["customer_id"], usage["impressions"]) == (ada.customer_id, 1)
        headers = {"authorization": f"Bearer {ada.token}", "x-customer-id": bob.customer_id}
        answer = httpx.get(
            f"{reading_api.url}/api/v1/usage/analytics?customer={bob.customer_id}", headers=headers
        )
        assert answer.json()["total_impressions"] == 1
        assert ada.read("limits")["current_usage"]["impressions"] == 1
        assert bob.read("current")["usage"]["impressions"] == 100


def test_overage_is_priced_by_the_plan_and_limits_say_when_they_are_reached(
    reading_api: Api, models: Models, new_reader: Callable[..., Reader]
) -> None:
    ada = new_reader("ada")
    landing = Landing(models)
    half = NOW - timedelta(days=5)
    rows = [
        row(ada.customer_id, "a", quantity=1_200_000, event_time=half),
        row(ada.customer_id, "b", quantity=-77_777, event_time=half, corrects_event_id="a"),
        row(ada.customer_id, "c", metric_type="data_transfer", quantity=60_500_000_000, event_time=half),
        row(ada.customer_id, "d", metric_type="mediated_revenue", quantity=1_234_567, event_time=half),
        row(ada.customer_id, "e", quantity=5, event_time=PERIOD[0] - timedelta(milliseconds=1)),
        row(ada.customer_id, "f", quantity=5, event_time=PERIOD[0].replace(microsecond=0)),
    ]
    landing.land(datetime(2026, 6, 1, tzinfo=UTC), rows)
    for build in (False, True):
        if build:
            models.build("usage_daily")
            time.sleep(1.1)
        current = ada.read("current")
        assert current == {
            "usage": {
                "customer_id": ada.customer_id,
                "impressions": 1_122_228,
                "api_calls": 0,
                "data_transfer_gb": Decimal("60.5"),
                "mediated_revenue_usd": Decimal("1.234567"),
                "period_start": "2026-05-15T13:45:10Z",
                "period_end": "2026-06-15T13:45:10Z",
            },
            "overages": {
                "impressions_overage": 122_228,
                "impressions_overage_cost_cents": 1_210,  # 9,900 cents for a million: 1,210.0572
                "api_calls_overage": 0,
                "api_calls_overage_cost_cents": 0,
                "data_transfer_overage_gb": 0,
                "data_transfer_overage_cost_cents": 0,
                "total_overage_cost_cents": 1_210,
                "currency": "usd",
            },
        }
        assert ada.read("limits") == {
            "plan_type": "indie",
            "limits": {"impressions": 1_000_000, "api_calls": 2_000_000, "data_transfer_gb": 100},
            "current_usage": {"impressions": 1_122_228, "api_calls": 0, "data_transfer_gb": Decimal("60.5")},
            "percent_used": Decimal("112.22"),
            "remaining": {"impressions": 0, "api_calls": 2_000_000, "data_transfer_gb": Decimal("39.5")},
            "will_exceed": True,
            "projected_limit_date": "2026-05-27",
            "by_metric": {
                "impressions": {
                    "percent_used": Decimal("112.22"),
                    "will_exceed": True,
                    "projected_limit_date": "2026-05-27",
                },
                "api_calls": {"percent_used": 0, "will_exceed": False, "projected_limit_date": None},
                # 60.5 GB in 16.4 days are 100 GB after 27.1 days.
                "data_transfer_gb": {
                    "percent_used": Decimal("60.5"),
                    "will_exceed": True,
                    "projected_limit_date": "2026-06-11",
                },
            },
        }


def test_a_change_of_plan_counts_by_day_and_the_last_plan_prices_the_overage(
    reading_api: Api, models: Models, new_reader: Callable[..., Reader], engine: sa.Engine
) -> None:
    """Of the 31 days from 15 May, 10 are Indie's 1 M and 21 the contract's 4 M: 3,032,258.06."""
    ada, trying = new_reader("ada"), new_reader("trying", trial=True)
    changed_at = datetime(2026, 5, 25, 23, 0, tzinfo=UTC)
    with engine.begin() as connection:
        for at, impressions in ((changed_at, 1), (changed_at, 4_000_000)):
            change_plan(
                connection, ada.customer_id, "enterprise", at,
                base_price_cents=100_000, included_impressions=impressions,
            )  # fmt: skip
        connection.execute(
            sa.text(
                "update subscriptions set included_api_calls = 0, updated_at = :at where customer_id = :id"
            ),
            {"at": changed_at, "id": ada.customer_id},
        )
        connection.execute(
            sa.text("update subscriptions set started_at = :start, trial_end = :end where customer_id = :id"),
            {"start": PERIOD[0], "end": PERIOD[1], "id": trying.customer_id},
        )
    landing = Landing(models)
    rows = [
        row(ada.customer_id, "a", quantity=3_132_258),
        row(ada.customer_id, "b", metric_type="api_calls", quantity=1_000_000),
        row(trying.customer_id, "c", quantity=1_500_000),
    ]
    landing.land(datetime(2026, 6, 1, tzinfo=UTC), rows)
    overages = ada.read("current")["overages"]
    assert (overages["impressions_overage"], overages["impressions_overage_cost_cents"]) == (100_000, 2_500)
    # 10 of 31 days of Indie's 2 M; what follows has no limit, and so no rate.
    assert (overages["api_calls_overage"], overages["api_calls_overage_cost_cents"]) == (354_839, 0)
    assert ada.read("limits")["limits"] == {
        "impressions": 3_032_258, "api_calls": 645_161, "data_transfer_gb": Decimal("6806.451612903"),
    }  # fmt: skip
    overages = trying.read("current")["overages"]
    assert (overages["impressions_overage"], overages["total_overage_cost_cents"]) == (500_000, 0)


def test_a_period_that_nobody_rolled_yet_is_the_one_that_holds_now(
    reading_api: Api, models: Models, new_reader: Callable[..., Reader], engine: sa.Engine
) -> None:
    ada = new_reader("ada", plan="studio", included_impressions=500)
    with engine.begin() as connection:
        connection.execute(
            sa.text("update subscriptions set current_period_start = :start, current_period_end = :end"),
            {"start": STARTED, "end": PERIOD[0]},
        )
    usage = ada.read("current")["usage"]
    assert (usage["period_start"], usage["period_end"]) == ("2026-05-15T13:45:10Z", "2026-06-15T13:45:10Z")
    limits = ada.read("limits")
    assert limits["limits"]["impressions"] == 500  # the customer's own terms
    assert (limits["percent_used"], limits["will_exceed"], limits["projected_limit_date"]) == (0, False, None)


def test_without_a_subscription_there_are_figures_but_no_period(
    reading_api: Api, new_reader: Callable[..., Reader]
) -> None:
    ada = new_reader("ada", plan=None)
    for path in ("current", "limits"):
        answer = ada.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_subscription")
    assert ada.read("analytics?days=1")["total_impressions"] == 0


def test_days_are_1_to_365_and_30_when_not_said(reading_api: Api, new_reader: Callable[..., Reader]) -> None:
    ada = new_reader("ada")
    for query, count in (("", 30), ("?days=1", 1), ("?days=365", 365), ("?other=1", 30)):
        assert len(ada.read(f"analytics{query}")["daily_usage"]) == count
    for bad in ("0", "366", "-1", "1.5", "x", "", "1e2", "%D9%A3", "1&days=2", "9" * 5_000):
        answer = ada.get(f"analytics?days={bad}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_days")
    assert httpx.post(f"{ada.url}/api/usage/current").status_code == 405


def test_a_customer_may_ask_100_times_in_15_minutes(
    models: Models, new_api: Callable[..., Api], new_reader: Callable[..., Reader]
) -> None:
    new_api()
    ada, bob = new_reader("ada"), new_reader("bob")
    with httpx.Client(headers={"authorization": f"Bearer {ada.token}"}) as client:
        for asked in range(100):
            answer = client.get(f"{ada.url}/api/usage/analytics?days={'x' if asked % 2 else '1'}")
            assert answer.status_code == (422 if asked % 2 else 200)
            assert answer.headers["ratelimit-limit"] == "100"
            assert answer.headers["ratelimit-remaining"] == str(99 - asked)
        refused = client.get(f"{ada.url}/api/v1/usage/limits")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert 800 < int(refused.headers["retry-after"]) <= 900
    assert refused.headers["ratelimit-remaining"] == "0"
    assert "at most 100 requests in 900 s" in refused.json()["error"]["message"]
    counted = httpx.get(f"{ada.url}/metrics").text
    assert 'apex_ingest_throttled_total{cause="read_rate"} 1\n' in counted
    assert bob.get("current").status_code == 200


def test_the_limit_slides_and_refused_requests_do_not_count() -> None:
    now = 0.0
    limit = RequestLimit(2, 900, lambda: now)
    assert limit.take("a").remaining == 1
    now = 600
    assert limit.take("a").remaining == 0
    assert limit.take("a") == Standing(False, 2, 0, 300)
    assert limit.take("b").allowed
    now = 900
    assert limit.take("a") == Standing(True, 2, 0, 600)
    assert not limit.take("a").allowed


@pytest.mark.measures
def test_a_store_that_is_away_is_a_503_and_sending_goes_on(
    models: Models, new_api: Callable[..., Api], new_reader: Callable[..., Reader], settings: Settings
) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    port = silent.getsockname()[1]
    url = f"http://default:secret@127.0.0.1:{port}"
    new_api(APEX_CLICKHOUSE_URL=url)
    ada = new_reader("ada")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ada.get("current")))
    asking.start()
    while asking.is_alive():
        began = time.monotonic()
        assert httpx.get(f"{ada.url}/health").status_code == 200
        assert time.monotonic() - began < 1  # nobody else waits for it
        time.sleep(0.1)
    silent.close()
    answers.append(ada.get("current"))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "usage_unavailable")
        assert answer.headers["retry-after"] == "2"
        assert "secret" not in answer.text


def test_without_postgres_nobody_is_told_anything(
    models: Models, new_api: Callable[..., Api], new_reader: Callable[..., Reader]
) -> None:
    ada = new_reader("ada")
    new_api(APEX_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    answer = ada.get("current")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "subscriptions_unavailable")
    assert answer.headers["retry-after"] == "2"
