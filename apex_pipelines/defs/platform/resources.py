"""The one resource that assets need: connections to both stores, the settings and the clock."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from functools import cached_property

import dagster as dg
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform import clickhouse, postgres
from apex_pipelines.platform.clock import Clock, clock_from_setting
from apex_pipelines.settings import Settings


class Stores(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Connections and clock for one run; everything is taken from the `APEX_*` settings."""

    @cached_property
    def settings(self) -> Settings:
        return Settings()

    @cached_property
    def clock(self) -> Clock:
        return clock_from_setting(self.settings.clock)

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def as_of_date(self) -> date:
        """Today's date in UTC; every daily window ends before it."""
        return self.clock.now().date()

    @contextmanager
    def postgres(self) -> Iterator[sa.Engine]:
        engine = postgres.create_engine(self.settings)
        try:
            yield engine
        finally:
            engine.dispose()

    @contextmanager
    def clickhouse(
        self, context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext
    ) -> Iterator[Client]:
        client = clickhouse.connect(self.settings, query_origin=f"dagster:{context.run.run_id}")
        try:
            yield client
        finally:
            client.close()


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(resources={"stores": Stores()})
