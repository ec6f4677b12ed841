"""All marts of money against a simulation from day to day, for every customer, in two runs.

Customers begin and end trials, change plans several times a day, are suspended, come back, leave and
subscribe again, at odd instants; their use is corrected, and some of it comes late.
"""

from __future__ import annotations

import random
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from apex_pipelines.billing.allowances import Terms as HeldTerms
from apex_pipelines.billing.allowances import allowances
from apex_pipelines.platform import catalogue
from tests.warehouse_models.conftest import Models
from tests.warehouse_models.money_by_hand import (
    STORAGE,
    TICK,
    Books,
    Event,
    Payment,
    Subscription,
    Terms,
    midnight,
)

CUSTOMERS = 250
BEGIN = datetime(2025, 11, 1, tzinfo=UTC)
FIRST_RUN = datetime(2026, 5, 20, 14, 30, 0, 123456, tzinfo=UTC)
SECOND_RUN = datetime(2026, 6, 10, 9, 0, 0, 1, tzinfo=UTC)
PLANS, METRICS = catalogue.plans(), catalogue.metrics()
OFFERS = {"starter": (0, 1_000_000), "indie": (9_900, 1_000_000), "studio": (49_900, 10_000_000)}


class Company:
    """Seeded stories of customers up to the second run."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.number = 0
        self.subscriptions: list[Subscription] = []
        self.events: list[Event] = []
        self.payments: list[Payment] = []
        for index in range(CUSTOMERS):
            self._live(f"cus_{index:03}")

    def _instant(self, after: datetime, before: datetime) -> datetime:
        if self.pick.random() < 0.15:
            days = max((before.date() - after.date()).days, 1)
            day = midnight(after.date() + timedelta(days=self.pick.randrange(days)))
            if after < day < before:
                return day
        return after + (before - after) // 10**6 * self.pick.randrange(1, 10**6)

    def _terms(self, at: datetime, status: str) -> Terms:
        self.number += 1
        contract: dict[str, Any] = {"api_calls": None, "gigabytes": None, "fee_rate": None, "least_fee": 0}
        if self.pick.random() < 0.6:
            plan, (price, impressions) = self.pick.choice(list(OFFERS.items()))
        else:
            plan, price = "enterprise", self.pick.randrange(90_000, 200_000)
            impressions = self.pick.choice([0, 1, 999, 150_000, 50_000_000])
            contract = {
                "api_calls": self.pick.choice([None, 0, 77_777]),
                "gigabytes": self.pick.choice([None, 3, 500]),
                "fee_rate": self.pick.choice([None, 100, 117, 150]),
                "least_fee": self.pick.choice([0, 0, 50_001, 5_000_000]),
            }
        return Terms(at, self.number, plan, status, price, impressions, **contract)

    def _subscribe(self, customer: str, started: datetime) -> Subscription:
        trial = started + timedelta(days=14) if self.pick.random() < 0.5 else None
        made = Subscription(f"sub_{customer}_{started:%Y%m%d%H%M%S%f}", customer, started, trial)
        if self.pick.random() < 0.35:
            made.cancelled = self._instant(
                started + TICK, started + timedelta(days=self.pick.choice([1, 10, 200]))
            )
            if made.cancelled >= SECOND_RUN:
                made.cancelled = None
        end = made.cancelled or SECOND_RUN
        changes = [self._terms(started, "trialing" if trial else "active")]
        for _ in range(self.pick.choice([0, 0, 1, 2, 3, 6])):
            at = self._instant(started + TICK, end)
            for _ in range(self.pick.choice([1, 1, 1, 3])):
                status = self.pick.choice(["active", "active", "past_due", "suspended"])
                changes.append(self._terms(at, status))
                at = min(at + timedelta(hours=self.pick.choice([0, 3])), end - TICK)
        made.changes = changes
        self.subscriptions.append(made)
        return made

    def _live(self, customer: str) -> None:
        started = self._instant(BEGIN, SECOND_RUN - timedelta(hours=1))
        if self.pick.random() < 0.2:
            started = started.replace(month=self.pick.choice([1, 3]), day=31, year=2026)
        first = self._subscribe(customer, started)
        if first.cancelled and self.pick.random() < 0.5:
            again = self._instant(first.cancelled, SECOND_RUN)
            self._subscribe(customer, min(again, first.cancelled + timedelta(days=self.pick.choice([0, 40]))))
        for _ in range(self.pick.choice([0, 20, 60])):
            metric = self.pick.choice([*STORAGE, "mediated_revenue"])
            quantity = self.pick.randrange(1, 400_000) * (400_000 if metric == "data_transfer" else 1)
            if metric == "mediated_revenue":
                quantity = int(10 ** self.pick.uniform(7, 11.7))
            if self.pick.random() < 0.1:
                quantity = -quantity
            # To the millisecond, as events are stored.
            at = self._instant(started, SECOND_RUN)
            at = at.replace(microsecond=at.microsecond // 1000 * 1000)
            self.events.append(Event(customer, at, metric, quantity))
        for number in range(self.pick.choice([0, 0, 2])):
            at, attempts = self._instant(started, SECOND_RUN), self.pick.choice([1, 1, 2, 4])
            paid = self.pick.random() < 0.7
            for attempt in range(1, attempts + 1):
                day = at + timedelta(days=2 * attempt)
                done = paid and attempt == attempts
                self.payments.append(Payment(customer, f"in_{customer}_{number}", attempt, done, 9_900, day))

    def books(self, now: datetime) -> Books:
        """What has come to be known by `now`; 1 of 5 says ahead that it leaves."""
        subscriptions = deepcopy(self.subscriptions)
        for each in subscriptions:
            if each.cancelled and each.cancelled >= now and hash_of(each.id) % 5:
                each.cancelled = None
        return Books(
            now,
            subscriptions,
            [each for each in self.events if each.at < now and not (now == FIRST_RUN and is_late(each))],
            [each for each in self.payments if each.at < now],
        )


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def is_late(event: Event) -> bool:
    """Whether it happened before the first run and arrives after it."""
    return event.quantity % 7 == 0


def store(models: Models, books: Books, copy: int, already: set[Event]) -> None:
    """The operational tables as they stand, and the events that are new."""

    def insert(table: str, rows: list[dict[str, Any]]) -> None:
        columns = [*rows[0], "copy_number", "snapshot_at"]
        values = [[*row.values(), copy, books.now] for row in rows]
        models.client.insert(f"raw.{table}", values, column_names=columns)

    insert(
        "subscriptions",
        [
            {
                "id": each.id, "customer_id": each.customer, "plan_type": newest.plan,
                "status": "canceled" if each.cancelled and each.cancelled < books.now else newest.status,
                "base_price_cents": newest.price, "currency": "usd",
                "included_impressions": newest.impressions, "started_at": each.started,
                "trial_end": each.trial_end, "current_period_start": each.started,
                "current_period_end": each.started, "cancelled_at": each.cancelled,
            }
            for each in books.subscriptions
            for newest in [each.terms(books.last)]
        ],
    )  # fmt: skip
    insert(
        "subscription_changes",
        [
            {
                "id": terms.number, "subscription_id": each.id, "customer_id": each.customer,
                "effective_at": terms.at, "plan_type": terms.plan, "status": terms.status,
                "base_price_cents": terms.price, "currency": "usd", "included_impressions": terms.impressions,
                "included_api_calls": terms.api_calls, "included_data_transfer_gb": terms.gigabytes,
                "platform_fee_basis_points": terms.fee_rate, "platform_fee_minimum_cents": terms.least_fee,
            }
            for each in books.subscriptions
            for terms in each.changes
        ],
    )  # fmt: skip
    insert(
        "payments",
        [
            {
                "id": f"{each.invoice}:{each.attempt}", "customer_id": each.customer,
                "invoice_id": each.invoice, "attempt_number": each.attempt,
                "status": "succeeded" if each.succeeded else "failed",
                "amount_cents": each.cents, "currency": "usd",
                "failure_code": None if each.succeeded else "card_declined", "occurred_at": each.at,
            }
            for each in books.payments
        ],
    )  # fmt: skip
    fresh = [event for event in books.events if event not in already]
    models.insert_events([
        {
            "customer_id": event.customer, "event_id": f"{copy}-{number}", "metric_type": event.metric,
            "quantity": event.quantity, "event_time": event.at, "accepted_at": books.now,
            "batch_id": f"batch-{copy}", "batch_row": number, "loaded_at": books.now,
            "corrects_event_id": "" if event.quantity > 0 else "another",
        }
        for number, event in enumerate(fresh)
    ])  # fmt: skip
    already.update(fresh)


def rows(models: Models, query: str) -> list[tuple[Any, ...]]:
    def aware(value: Any) -> Any:
        return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value

    return [tuple(map(aware, row)) for row in models.client.query(query).result_rows]


def assert_same(mart: str, found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    """Differences come with the rows, and so with the customers, that they are in."""
    assert len(found) == len(set(found)), mart
    differing = {
        "wrong": sorted(map(str, set(found) - set(expected))),
        "missing": sorted(map(str, set(expected) - set(found))),
    }
    assert differing == {"wrong": [], "missing": []}, mart
    assert found, mart


def assert_marts(models: Models, books: Books) -> None:
    assert_same(
        "invoice_lines",
        rows(
            models,
            "select customer_id, subscription_id, line_type, metric_type, period_start, period_end, "
            "is_final, revenue_month, quantity, amount_cents from marts.invoice_lines",
        ),
        books.lines,
    )
    assert_same(
        "mrr_movements",
        rows(
            models,
            "select customer_id, movement_date, movement_type, mrr_before_cents, mrr_after_cents "
            "from marts.mrr_movements",
        ),
        books.moves,
    )
    assert_same(
        "mrr_monthly",
        rows(
            models,
            "select month, opening_cents, new_cents, expansion_cents, contraction_cents, churn_cents, "
            "reactivation_cents, closing_cents, customers from marts.mrr_monthly",
        ),
        books.mrr_by_month(),
    )
    assert_same(
        "cohort_retention",
        rows(
            models,
            "select cohort_month, months_since, customers, retained_customers, starting_mrr_cents, mrr_cents "
            "from marts.cohort_retention",
        ),
        books.cohorts(),
    )
    assert_same(
        "trial_conversion",
        rows(models, "select month, trials, running, converted, ended from marts.trial_conversion"),
        [(month, *counts) for month, counts in books.trials().items()],
    )
    assert_same(
        "revenue_by_month",
        rows(
            models,
            "select month, subscription_cents, overage_cents, platform_fee_cents, collected_cents "
            "from marts.revenue_by_month",
        ),
        [(month, *cents) for month, cents in books.revenue().items()],
    )
    assert_same(
        "revenue_forecast",
        rows(
            models,
            "select customer_id, line_type, fixed_cents, added_cents from marts.revenue_forecast",
        ),
        [(*key, *cents) for key, cents in books.forecast().items()],
    )
    assert_same(
        "invoices",
        rows(models, "select invoice_id, status, attempts, paid_cents, days_to_pay from marts.invoices"),
        books.invoices(),
    )
    assert_same(
        "payments",
        rows(models, "select payment_id, amount_cents, occurred_at from marts.payments"),
        [(f"{each.invoice}:{each.attempt}", each.cents, each.at) for each in books.payments],
    )


def assert_the_api_agrees(models: Models, books: Books) -> None:
    """What `/api/usage/current` would answer in each period is what the lines say, to the cent."""
    charged = {
        (subscription, metric, start): cents
        for _, subscription, kind, metric, start, *_, cents in books.lines
        if kind == "overage"
    }
    stored = {
        (subscription, start, metric): included
        for subscription, start, metric, included in rows(
            models,
            "select subscription_id, period_start, metric_type, included_quantity "
            "from intermediate.int_period_allowances",
        )
        if included
    }
    found, costs = {}, {}
    for period in books.periods():
        history = [
            HeldTerms(
                terms.at,
                terms.plan,
                terms.price,
                {
                    name: units
                    for name, units in [
                        ("impressions", terms.impressions),
                        ("api_calls", terms.api_calls),
                        ("data_transfer", terms.gigabytes),
                    ]
                    if units is not None
                },
            )
            for terms in sorted(period.subscription.changes, key=Terms.order)
        ]
        limits = allowances(
            history,
            period.start,
            period.scheduled,
            catalogue.plans(),
            catalogue.metrics(),
            trial=period.is_trial,
        )
        for metric, allowance in limits.items():
            found[period.subscription.id, period.start, metric] = allowance.included
            used = books.use(period, metric)
            if allowance.overage(used):
                costs[period.subscription.id, metric, period.start] = allowance.overage_cost_cents(used)
    assert found == stored
    assert costs == charged


def test_every_mart_of_money_is_what_a_simulation_from_day_to_day_says(models: Models) -> None:
    company = Company(20_260_520)
    models.insert_customers(sorted({each.customer for each in company.subscriptions}), BEGIN)
    already: set[Event] = set()
    for copy, now in enumerate((FIRST_RUN, SECOND_RUN), start=1):
        books = company.books(now)
        store(models, books, copy, already)
        models.run(
            "build", "--select", "+marts.billing", "--exclude-resource-type", "unit_test",
            "--indirect-selection", "buildable", as_of=now,
        )  # fmt: skip
        assert_marts(models, books)
        assert_the_api_agrees(models, books)
    assert len({(line[2], line[-1] > 0) for line in books.lines}) == 6  # of each type some that cost nothing
    assert {move[2] for move in books.moves} == {"new", "expansion", "contraction", "churn", "reactivation"}
