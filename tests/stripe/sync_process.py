"""One usage sync in a process of its own, for tests that kill it."""

from __future__ import annotations

import multiprocessing
from datetime import datetime
from multiprocessing.process import BaseProcess

from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.client import connect
from apex_pipelines.stripe.usage_sync import UsageSync


def sync_at(settings: Settings, now: datetime) -> None:
    """Sync by these settings at an instant, without waiting between attempts."""
    UsageSync(
        postgres.create_engine(settings),
        clickhouse.connect(settings, query_origin="tests"),
        connect(settings),
        ManualClock(now),
        livemode=False,
        wait=lambda _seconds: None,
    ).run()


def start_sync(settings: Settings, now: datetime) -> BaseProcess:
    """A process that has imported everything already, so that a kill meets the sync and not its start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=sync_at, args=(settings, now))
    process.start()
    return process
