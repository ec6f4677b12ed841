"""How long customers wait for their own figures, by how much is stored and how much no model has counted.

The long form, with 100 M events: ``pytest benchmarks/test_answers.py -m "bench and slow" -s``.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import sqlalchemy as sa

from apex_pipelines.billing.store import NewSubscription, subscribe_many, sync_plans
from apex_pipelines.customers.models import Customer
from apex_pipelines.customers.tokens import issue_token, token_secret
from apex_pipelines.settings import Settings
from benchmarks.usage_history import CUSTOMERS, END, YEAR, count_landed, customer_id, land
from tests.ingest.conftest import CREATED, Api
from tests.warehouse_models.conftest import Models

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1_800)]

STARTED = datetime(2026, 1, 10, 13, 45, tzinfo=UTC)  # cuts the first and the last day of each period
PERIOD = datetime(2026, 5, 10, 13, 45, tzinfo=UTC), datetime(2026, 6, 10, 13, 45, tzinfo=UTC)
PATHS = ("current", "limits", "analytics?days=30", "analytics?days=365")
UNCOUNTED = (0, 10_000, 1_000_000, 10_000_000)
REPEATED_SHARE = 20  # one of so many uncounted rows has an id that is stored
ROWS_PER_SECOND = 10_000
QUESTIONS = 60


@pytest.fixture
def tokens(engine: sa.Engine, settings: Settings) -> list[str]:
    """A token of each customer, the largest first; all have a subscription."""
    ids = [customer_id(number) for number in range(CUSTOMERS)]
    with engine.begin() as connection:
        sync_plans(connection)
        connection.execute(
            sa.insert(Customer),
            [
                {
                    "id": id_,
                    "name": id_,
                    "email": f"{id_}@example.com",
                    "source": "signup",
                    "created_at": CREATED,
                }
                for id_ in ids
            ],
        )
        subscribe_many(connection, [NewSubscription(id_, "indie", STARTED) for id_ in ids], END)
    secret = token_secret(settings)
    return [issue_token(secret, id_, END, timedelta(hours=12)) for id_ in ids]


def milliseconds(url: str, path: str, tokens: Sequence[str], seed: int, questions: int) -> list[float]:
    """How long each of so many questions takes, on one connection, asked by customers taken at random."""
    pick = random.Random(seed)
    took = []
    with httpx.Client(base_url=url, timeout=10) as client:
        for _ in range(questions):
            headers = {"authorization": f"Bearer {pick.choice(tokens)}"}
            began = time.perf_counter()
            answer = client.get(f"/api/usage/{path}", headers=headers)
            seconds = time.perf_counter() - began
            # Refused for want of time: that is a result too.
            assert answer.status_code in (200, 503), answer.text
            took.append(1000 * seconds if answer.status_code == 200 else math.inf)
    return took


def at_once(connections: int, url: str, path: str, tokens: Sequence[str]) -> list[float]:
    with ThreadPoolExecutor(connections) as pool:
        share = QUESTIONS // connections
        parts = [pool.submit(milliseconds, url, path, tokens, seed, share) for seed in range(connections)]
        return [took for part in parts for took in part.result()]


def quantiles(took: Sequence[float]) -> str:
    ordered = sorted(took)
    return f"{ordered[0]:6.0f} {ordered[len(ordered) // 2]:5.0f} {ordered[int(0.95 * len(ordered))]:5.0f}"


def counted_by_hand(models: Models, customer: str) -> int:
    """Impressions of the period, each id once, from the landing log alone."""
    start, end = (instant.isoformat(sep=" ", timespec="seconds")[:19] for instant in PERIOD)
    return int(
        models.client.query(
            f"""
            select sum(event.1)
            from (
                select argMin((quantity, event_time, metric_type), (loaded_at, batch_id, batch_row)) as event
                from raw.usage_events
                where customer_id = '{customer}'
                group by event_id
            )
            where event.2 >= '{start}' and event.2 < '{end}' and event.3 = 'impressions'
            """
        ).result_rows[0][0]
    )


@pytest.mark.parametrize("millions", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_answers_while_rows_wait_to_be_counted(
    millions: int, models: Models, tokens: list[str], new_api: Callable[..., Api]
) -> None:
    client, stored = models.client, millions * 1_000_000
    models.build("usage_daily")
    began = time.perf_counter()
    land(client, 0, stored, END - YEAR, YEAR)
    count_landed(client)
    models.run("run", "--select", "usage_daily")
    print(f"\n{millions} M events of {CUSTOMERS} customers, built in {time.perf_counter() - began:.0f} s")
    print(
        "least, p50 and p95 in ms of one question at a time, of four at a time, and of the largest customer's"
    )
    api = new_api(APEX_API_READS_PER_WINDOW="1000000")
    landed, until = stored, END
    for uncounted in UNCOUNTED:
        rows = uncounted - (landed - stored)
        repeats = rows // REPEATED_SHARE
        for start, count in ((landed, rows - repeats), (landed - stored, repeats)):
            span = timedelta(seconds=count / ROWS_PER_SECOND)
            land(client, start, count, until + timedelta(seconds=1), span)
            until += span
        landed += rows
        milliseconds(api.url, "current", tokens, 0, 5)  # a worker's first question makes its connections
        for path in PATHS:
            one, four = (at_once(connections, api.url, path, tokens) for connections in (1, 4))
            largest = milliseconds(api.url, path, tokens[:1], 0, 10)
            print(
                f"{uncounted:10,} {path:20} {quantiles(one)} {quantiles(four):>16} {quantiles(largest):>17}"
            )
    for number in (25, 250):
        headers = {"authorization": f"Bearer {tokens[number]}"}
        answer = httpx.get(f"{api.url}/api/usage/current", headers=headers).json()
        assert answer["usage"]["impressions"] == counted_by_hand(models, customer_id(number))
