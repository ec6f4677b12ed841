"""Customers at risk (use fell by half, no telemetry, near the limit): one mail an episode."""

from __future__ import annotations

from datetime import date
from typing import Any

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.lifecycle import marts, rules, store
from apex_pipelines.lifecycle.report import TriggerReport
from apex_pipelines.lifecycle.triggers.queueing import queue, reachable
from apex_pipelines.messaging.outbox import MailRequest
from apex_pipelines.platform.catalogue import Plan, plans
from apex_pipelines.platform.clock import Clock


def at_risk_triggers(client: Client, engine: sa.Engine, as_of_date: date, clock: Clock) -> TriggerReport:
    """Mail customers who are at risk on `as_of_date`.

    A customer who stays at risk for the same reason is in one episode, which begins with the mail and lasts
    30 days: no second mail for that reason within them. The keys `at_risk:<reason>:<customer>:<first day>` in
    the outbox are the memory of it.
    """
    report = TriggerReport()
    found = marts.at_risk(client, as_of_date)
    with engine.begin() as connection:
        store.lock_trigger(connection, "at_risk")
        customers = store.customers_by_id(connection, {row.customer_id for row in found})
        starts = {
            reason: store.episode_starts(
                connection, f"at_risk:{reason}", {row.customer_id for row in found if row.reason == reason}
            )
            for reason in {row.reason for row in found}
        }
        requests = []
        for row in found:
            email_type = rules.AT_RISK_MAILS.get(row.reason)
            if email_type is None:
                report.skipped[f"no mail for reason {row.reason}"] += 1
                continue
            customer = reachable(customers, row.customer_id, report)
            if customer is None:
                continue
            if not rules.starts_episode(starts[row.reason].get(customer.id, ()), as_of_date):
                report.skipped["mailed in this episode"] += 1
                continue
            next_plan = _roomier_plan(customer) if email_type == "upgrade_offer" else None
            if email_type == "upgrade_offer" and next_plan is None:
                report.skipped["no roomier plan to offer"] += 1
                continue
            requests.append(
                MailRequest(
                    email_type=email_type,
                    customer_id=customer.id,
                    data=_data(email_type, row, customer, next_plan),
                    occurrence_key=f"at_risk:{row.reason}:{customer.id}:{as_of_date.isoformat()}",
                )
            )
        queue(connection, requests, clock.now(), report)
    return report


def _roomier_plan(customer: store.CustomerFacts) -> Plan | None:
    """The next plan up that includes more impressions than the customer's own terms, if there is one."""
    included = customer.included_impressions
    if included is None:
        return None
    rank = customer.plan.rank if customer.plan else -1
    roomier = [
        plan for plan in plans().values() if plan.rank > rank and plan.included("impressions") > included
    ]
    return min(roomier, key=lambda plan: plan.rank, default=None)


def _data(
    email_type: str, row: marts.AtRisk, customer: store.CustomerFacts, next_plan: Plan | None
) -> dict[str, Any]:
    if email_type == "integration_help":
        return {"signed_up_on": customer.created_at.date()}
    data: dict[str, Any] = {"reason": row.detail.rstrip(".")}
    # Enterprise has its own price for each customer, so there is none to offer.
    if next_plan is not None and next_plan.plan_type != "enterprise":
        data |= {
            "next_plan_name": next_plan.name,
            "next_price_cents": next_plan.base_price_cents,
            "currency": next_plan.currency,
            "next_included_impressions": next_plan.included("impressions"),
        }
    return data
