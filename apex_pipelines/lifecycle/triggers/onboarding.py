"""Onboarding: steps taken for the first time, the welcome, check-ins by age, and the end of the trial."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date

import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.lifecycle import marts, rules, store
from apex_pipelines.lifecycle.figures import platform_name, recent_use
from apex_pipelines.lifecycle.report import TriggerReport
from apex_pipelines.lifecycle.triggers.queueing import queue, reachable
from apex_pipelines.messaging.outbox import MailRequest
from apex_pipelines.platform.clock import Clock

_OLDEST_CHECK_IN = max(rules.CHECK_IN_DAYS) + rules.FRESH_DAYS


def onboarding_triggers(client: Client, engine: sa.Engine, as_of_date: date, clock: Clock) -> TriggerReport:
    """Record steps and queue the mails of a customer's first weeks.

    Each step is recorded once for ever. Mails go out for what is at most two days old; what was missed longer
    ago, or what a customer is already past, is recorded and not mailed.
    """
    report = TriggerReport()
    steps = marts.onboarding_steps(client, as_of_date)
    with engine.begin() as connection:
        store.lock_trigger(connection, "onboarding")
        taken = store.steps_taken(connection)
        new = [step for step in steps if step.step not in taken.get(step.customer_id, ())]
        written = store.record_steps(connection, [(s.customer_id, s.step, s.occurred_at) for s in new])
        report.recorded["onboarding_progress"] = written
        for step in new:
            taken.setdefault(step.customer_id, set()).add(step.step)
        requests = _step_mails(connection, steps, taken, as_of_date, report)
        young = store.new_or_on_trial(connection, as_of_date, _OLDEST_CHECK_IN)
        notes = {
            customer.id for customer in young if rules.due_check_in(_age(customer, as_of_date)) in (7, 12)
        }
        use = marts.use_around(client, notes, as_of_date)
        for customer in young:
            if customer.canceled or customer.created_at.date() > as_of_date:
                continue
            requests.extend(_age_mails(customer, taken.get(customer.id, ()), use, as_of_date, report))
        queue(connection, requests, clock.now(), report)
    return report


def _step_mails(
    connection: sa.Connection,
    steps: Collection[marts.OnboardingStep],
    taken: Mapping[str, Collection[str]],
    as_of_date: date,
    report: TriggerReport,
) -> list[MailRequest]:
    fresh = [
        (step, email_type)
        for step in steps
        if rules.is_fresh(step.occurred_at.date(), as_of_date)
        and (email_type := rules.step_mail(step.step, taken[step.customer_id]))
    ]
    customers = store.customers_by_id(connection, {step.customer_id for step, _ in fresh})
    return [
        MailRequest(
            email_type=email_type,
            customer_id=step.customer_id,
            data=_step_data(step),
            occurrence_key=f"onboarding:{step.step}:{step.customer_id}",
        )
        for step, email_type in fresh
        if reachable(customers, step.customer_id, report)
    ]


def _step_data(step: marts.OnboardingStep) -> dict[str, object]:
    platform = rules.downloaded_platform(step.step)
    return {"platform": platform_name(platform)} if platform else {"occurred_at": step.occurred_at}


def _age_mails(
    customer: store.CustomerFacts,
    taken: Collection[str],
    use: Mapping[str, Mapping[str, marts.Use]],
    as_of_date: date,
    report: TriggerReport,
) -> list[MailRequest]:
    """Mails that follow from a customer's age and trial alone."""
    requests = []
    age = _age(customer, as_of_date)
    days_left = (customer.trial_end.date() - as_of_date).days if customer.trial_end else 0
    if age <= rules.FRESH_DAYS and customer.plan is not None:
        trial_days = customer.plan.trial_days if customer.trial_end is not None else 0
        welcome = {"plan_name": customer.plan_name, "trial_days": trial_days}
        if customer.trial_end is not None:
            welcome["trial_end"] = customer.trial_end.date().isoformat()
        if customer.key_prefix is not None:
            welcome["key_prefix"] = customer.key_prefix
        requests.append(MailRequest("welcome", customer.id, welcome, f"welcome:{customer.id}"))
    day = rules.due_check_in(age)
    if day is not None:
        if rules.check_in_fits(day, taken, trialing=customer.trialing):
            data = (
                {"figures": recent_use(use.get(customer.id, {})), "days_left": max(days_left, 0)}
                if day in (7, 12)
                else {}
            )
            key = f"onboarding:day_{day}:{customer.id}"
            requests.append(MailRequest(f"onboarding_day_{day}", customer.id, data, key))
        else:
            report.skipped[f"day {day} check-in does not fit"] += 1
    reminder = rules.trial_reminder(days_left) if customer.trialing and customer.trial_end else None
    if reminder is not None and customer.trial_end is not None:
        requests.append(
            MailRequest(
                email_type=f"trial_ending_{reminder}",
                customer_id=customer.id,
                data={
                    "days_left": days_left,
                    "trial_end": customer.trial_end.date(),
                    "plan_name": customer.plan_name,
                    "base_price_cents": customer.base_price_cents,
                    "currency": customer.currency,
                },
                occurrence_key=(
                    f"trial_ending:{reminder}:{customer.subscription_id}:{customer.trial_end:%Y-%m-%d}"
                ),
            )
        )
    return requests


def _age(customer: store.CustomerFacts, as_of_date: date) -> int:
    """Days since signing up, by UTC dates."""
    return (as_of_date - customer.created_at.date()).days
