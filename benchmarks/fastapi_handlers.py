"""What most would write first: the same endpoint in FastAPI, keeping nothing or inserting each event.

`keeps_nothing` checks the body and answers. `inserts` also commits a row to PostgreSQL before it answers, by
a pool of asynchronous connections, with a unique key on customer and event id as an exact meter needs it.
The connection string comes in the variable BENCH_DATABASE_URL.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated

from fastapi import FastAPI, Header
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

_CONNECTIONS = 10


class Event(BaseModel):
    """One event, as `POST /api/usage/track` takes it."""

    event_id: str
    metric_type: str
    quantity: int
    timestamp: datetime
    metadata: dict[str, str] = {}


class Recorded(BaseModel):
    """What was recorded."""

    customer_id: str
    metric_type: str
    quantity: int
    event_id: str


class Answer(BaseModel):
    """Answer of `track`."""

    success: bool
    recorded: Recorded


def _answer(event: Event, authorization: str) -> Answer:
    recorded = Recorded(
        customer_id=authorization[-8:],
        metric_type=event.metric_type,
        quantity=event.quantity,
        event_id=event.event_id,
    )
    return Answer(success=True, recorded=recorded)


keeps_nothing = FastAPI()


@keeps_nothing.get("/health")
async def _alive() -> dict[str, str]:
    return {"status": "ok"}


@keeps_nothing.post("/api/usage/track")
async def _track(event: Event, authorization: Annotated[str, Header()]) -> Answer:
    return _answer(event, authorization)


@asynccontextmanager
async def _with_pool(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ["BENCH_DATABASE_URL"]
    async with AsyncConnectionPool(url, min_size=_CONNECTIONS, max_size=_CONNECTIONS) as pool:
        async with pool.connection() as connection:
            await connection.execute(
                "create table if not exists bench_events (customer_id text, event_id text, "
                "metric_type text, quantity bigint, event_time timestamptz, metadata jsonb, "
                "primary key (customer_id, event_id))"
            )
        app.state.pool = pool
        yield


inserts = FastAPI(lifespan=_with_pool)
inserts.get("/health")(_alive)


@inserts.post("/api/usage/track")
async def _insert(event: Event, authorization: Annotated[str, Header()]) -> Answer:
    async with inserts.state.pool.connection() as connection:
        await connection.execute(
            "insert into bench_events values (%s, %s, %s, %s, %s, %s) on conflict do nothing",
            (
                authorization[-8:], event.event_id, event.metric_type, event.quantity, event.timestamp,
                Jsonb(event.metadata),
            ),
        )  # fmt: skip
    return _answer(event, authorization)
