"""The client of the ingest API: nothing lost, nothing counted twice, patient but not for ever."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.platform.ingest_client import (
    ClientEvent,
    EventResult,
    IngestClient,
    IngestUnavailable,
    KeyRefused,
    RequestRefused,
    RetryPolicy,
    batches,
    retry_after_seconds,
)
from tests.importing.fault_server import Fault, FaultServer

QUICK = RetryPolicy(first_pause=0.01, longest_pause=0.05, give_up_after=10, answer_within=5)
KEY = "apx_live_" + "k" * 43


def events(count: int, start: int = 0, padding: int = 0) -> list[ClientEvent]:
    return [
        ClientEvent(
            event_id=f"e{start + number}",
            metric_type="impressions",
            quantity=1,
            timestamp="2026-01-01T00:00:00Z",
            metadata={"pad": "x" * padding} if padding else None,
        )
        for number in range(count)
    ]


def send(server: FaultServer, batch: list[ClientEvent], retry: RetryPolicy = QUICK) -> list[EventResult]:
    async def go() -> list[EventResult]:
        async with IngestClient(server.url, retry=retry, seed=1) as client:
            return await client.send(KEY, batch)

    return asyncio.run(go())


def once(fault: Fault) -> FaultServer:
    return FaultServer(fault=lambda number: fault if number == 1 else Fault.NONE)


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(1, 20), st.integers(150, 2_000))
def test_batches_keep_order_and_both_limits(paddings: list[int], most: int, size: int) -> None:
    given_events = [events(1, number, padding)[0] for number, padding in enumerate(paddings)]
    made = list(batches(given_events, most, size))
    ids = [event["event_id"] for _, body in made for event in json.loads(body)]
    assert ids == [event.event_id for event in given_events]
    for count, body in made:
        assert count == len(json.loads(body)) <= most
        assert len(body) <= size + 2 or count == 1


def test_each_event_gets_its_result_in_order_over_several_batches() -> None:
    with FaultServer(reject=lambda event: "too late" if event["event_id"] == "e1500" else None) as server:
        results = send(server, [*events(2_300), *events(1)])
    assert [result.event_id for result in results] == [*(f"e{n}" for n in range(2_300)), "e0"]
    assert results[1_500] == EventResult("e1500", "rejected", "too late")
    assert results[-1].status == "duplicate"
    assert server.requests == 3


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.HALF_ANSWER, Fault.ERROR])
def test_a_broken_request_is_repeated_with_the_same_ids(fault: Fault) -> None:
    with once(fault) as server:
        results = send(server, events(50))
    assert [result.event_id for result in results] == [f"e{n}" for n in range(50)]
    assert set(server.events) == {f"e{n}" for n in range(50)}
    assert server.requests == 2


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.TOO_MANY])
def test_retry_after_is_honoured(fault: Fault) -> None:
    server = once(fault)
    server.retry_after = "0.4"
    with server:
        send(server, events(3))
    first, second = server.request_times
    assert second - first >= 0.4
    assert len(server.arrivals) == 3


def test_retry_after_may_be_a_date_and_is_held_against_the_servers_own_clock() -> None:
    headers = {"date": "Mon, 01 Jun 2026 10:00:00 GMT", "retry-after": "Mon, 01 Jun 2026 10:00:07 GMT"}
    assert retry_after_seconds(headers) == 7
    for unreadable in ("soon", "nan", "inf"):
        assert retry_after_seconds({"retry-after": unreadable}) is None
    assert retry_after_seconds({"retry-after": "-3"}) == 0


def test_pauses_grow_while_the_server_fails() -> None:
    with FaultServer(fault=lambda number: Fault.ERROR if number < 6 else Fault.NONE) as server:
        send(server, events(1), RetryPolicy(first_pause=0.02, longest_pause=1, give_up_after=20))
    pauses = [later - earlier for earlier, later in itertools.pairwise(server.request_times)]
    # Lower bounds only: a busy machine makes any pause longer.
    assert len(pauses) == 5
    assert all(pause >= 0.01 * 2**number for number, pause in enumerate(pauses))


def test_a_restarted_server_is_found_again() -> None:
    async def go(port: int) -> list[EventResult]:
        async with IngestClient(f"http://127.0.0.1:{port}", retry=QUICK) as client:
            await client.send(KEY, events(5))
            await asyncio.to_thread(stopped.wait)
            return await client.send(KEY, events(5, start=5))

    stopped = threading.Event()
    first = FaultServer()
    with first:
        thread_result: list[list[EventResult]] = []
        runner = threading.Thread(target=lambda: thread_result.append(asyncio.run(go(first.port))))
        runner.start()
        while len(first.arrivals) < 5:
            time.sleep(0.01)
    stopped.set()
    time.sleep(0.3)  # the client meets a closed port meanwhile
    with FaultServer(port=first.port) as second:
        runner.join(10)
    assert [result.status for result in thread_result[0]] == ["accepted"] * 5
    assert set(second.events) == {f"e{n}" for n in range(5, 10)}


@pytest.mark.measures
def test_it_gives_up_after_the_set_time_and_says_what_to_do() -> None:
    with FaultServer() as server:
        pass  # gone: nobody listens on its port any more
    began = time.monotonic()
    with pytest.raises(
        IngestUnavailable, match=r"did not take a batch of 2 events within 0\.5 s .*apex status"
    ):
        send(server, events(2), RetryPolicy(first_pause=0.01, longest_pause=0.1, give_up_after=0.5))
    assert time.monotonic() - began < 3


def test_a_server_that_asks_for_more_patience_than_there_is_ends_at_once() -> None:
    server = FaultServer(fault=lambda _number: Fault.BUSY, retry_after="3600")
    with server, pytest.raises(IngestUnavailable, match="HTTP 503: busy: no"):
        send(server, events(2))
    assert server.requests == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.REFUSE_KEY, KeyRefused),
        (Fault.REFUSE_REQUEST, RequestRefused),
        (Fault.GARBAGE, RequestRefused),
        (Fault.SHORT, RequestRefused),
    ],
)
def test_what_would_not_get_better_is_not_repeated(fault: Fault, error: type[Exception]) -> None:
    with once(fault) as server, pytest.raises(error) as caught:
        send(server, events(2))
    assert server.requests == 1
    assert KEY not in str(caught.value)


def test_many_customers_share_few_connections_and_all_arrive_through_faults() -> None:
    cycle = [Fault.NONE, Fault.DROP_AFTER, Fault.NONE, Fault.BUSY, Fault.NONE, Fault.DROP_BEFORE]

    async def go() -> int:
        async with IngestClient(server.url, concurrency=8, retry=QUICK) as client:
            await asyncio.gather(*(client.send(f"{KEY}{n}", events(3, start=3 * n)) for n in range(200)))
            return client.counts.retries

    with FaultServer(fault=lambda number: cycle[number % 6], retry_after="0.01") as server:
        retries = asyncio.run(go())
    assert len(server.events) == 600
    assert len(server.keys) == 200
    assert server.requests == 200 + retries
