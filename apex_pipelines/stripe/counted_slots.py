"""What was counted, slot by slot, as the warehouse has it (`marts.metered_usage`).

Belongs here: reading it by what changed. Does not belong here: what Stripe was told (`meter_ledger.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from clickhouse_connect.driver.client import Client

from apex_pipelines.stripe.meter_rules import Slot


class UsageBeingCounted(RuntimeError):
    """The warehouse is in the middle of counting, so that a slot may be missing for a moment."""


def newest_change(client: Client) -> datetime:
    """When the newest change of a slot was counted; a slot that turns up later has this or a later one."""
    [[found]] = client.query("select max(processed_at) from marts.metered_usage").result_rows
    return _utc(found)


def read_slots(
    client: Client,
    *,
    changed_since: datetime | None = None,
    ended_since: datetime | None = None,
    customers: Collection[str] = (),
) -> list[Slot]:
    """Slots that changed at or after one instant, that ended after another, or of these customers.

    A slot is whole, whatever of it changed. Sorted by time.
    """
    # Of several periods that share a slot's first second, the newest with use names it.
    query = """
        select
            customer_id,
            toString(metric_type),
            slot_start,
            max(slot_end),
            argMax(subscription_id, (quantity != 0, period_start)),
            argMax(period_start, (quantity != 0, period_start)),
            argMax(period_end, (quantity != 0, period_start)),
            sum(quantity) as counted
        from marts.metered_usage
        where (customer_id, metric_type, slot_start) in (
            select customer_id, metric_type, slot_start
            from marts.metered_usage
            where processed_at >= {changed_since:DateTime64(6, 'UTC')}
                or slot_end > {ended_since:DateTime64(6, 'UTC')}
                or customer_id in {customers:Array(String)}
        )
        group by customer_id, metric_type, slot_start
        order by slot_start, customer_id, metric_type
    """
    never = "2299-12-31 00:00:00"
    parameters = {
        "changed_since": f"{changed_since:%Y-%m-%d %H:%M:%S.%f}" if changed_since else never,
        "ended_since": f"{ended_since:%Y-%m-%d %H:%M:%S.%f}" if ended_since else never,
        "customers": list(customers),
    }
    return [
        Slot(
            customer, metric, _utc(start), _utc(end), subscription, _utc(period_start), _utc(period_end), use
        )
        for customer, metric, start, end, subscription, period_start, period_end, use in client.query(
            query, parameters=parameters
        ).result_rows
    ]


def refuse_while_counting(client: Client) -> None:
    """Make sure that a slot which is not there does not exist.

    Raises
    ------
    UsageBeingCounted
        If a run of the model has begun and not finished.
    """
    query = (
        "select argMax(state, recorded_at) from intermediate.model_watermarks where model = 'metered_usage'"
    )
    if client.query(query).result_rows[0][0] == "begun":
        raise UsageBeingCounted(
            "marts.metered_usage is being counted, or its last run broke off; try again after the next run"
        )


def _utc(instant: datetime) -> datetime:
    """Aware: the driver leaves the zone out where it is UTC."""
    return instant.replace(tzinfo=UTC)
