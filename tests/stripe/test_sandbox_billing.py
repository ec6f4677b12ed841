"""The offline Stripe: customers through months of time, by Stripe's own client."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from tests.stripe.sandbox import Sandbox

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass
class Shop:
    """A catalogue at the stand-in: a flat price of $99, a metered one of 0.5 cents, and who buys them."""

    sandbox: Sandbox
    client: stripe.StripeClient
    flat: str
    metered: str
    meter: str

    def customer(self, card: str | None = "pm_card_visa") -> str:
        made = self.client.v1.customers.create({"email": "ada@example.com"}).id
        if card is not None:
            self.give_card(made, card)
        return made

    def give_card(self, customer: str, card: str) -> str:
        stored = self.client.v1.payment_methods.attach(card, {"customer": customer}).id
        settings: Any = {"invoice_settings": {"default_payment_method": stored}}
        self.client.v1.customers.update(customer, settings)
        return stored

    def subscribe(self, customer: str, **more: Any) -> stripe.Subscription:
        params: Any = {"customer": customer, "items": [{"price": self.flat}, {"price": self.metered}], **more}
        return self.client.v1.subscriptions.create(params)

    def use(self, customer: str, value: int, at: datetime, identifier: str) -> None:
        self.client.v1.billing.meter_events.create(
            {
                "event_name": "apex_impressions",
                "identifier": identifier,
                "payload": {"stripe_customer_id": customer, "value": str(value)},
                "timestamp": int(at.timestamp()),
            }
        )

    def invoices(self, customer: str) -> list[Any]:
        """Oldest first."""
        return self.client.v1.invoices.list({"customer": customer, "limit": 100}).data[::-1]

    def subscription(self, subscription: str) -> Any:
        return self.client.v1.subscriptions.retrieve(subscription)

    def events(self, *types: str) -> list[tuple[str, datetime]]:
        """Oldest first."""
        found = self.client.v1.events.list({"limit": 100}).auto_paging_iter()
        return [
            (event.type, datetime.fromtimestamp(event.created, UTC))
            for event in found
            if not types or event.type in types
        ][::-1]


@pytest.fixture
def shop(stripe_sandbox: Sandbox) -> Shop:
    stripe_sandbox.clock(START)
    client = stripe_sandbox.client()
    meter = client.v1.billing.meters.create(
        {
            "default_aggregation": {"formula": "sum"},
            "display_name": "Impressions",
            "event_name": "apex_impressions",
        }
    )
    product = client.v1.products.create({"name": "Indie"})
    flat = client.v1.prices.create(
        {
            "currency": "usd",
            "product": product.id,
            "recurring": {"interval": "month"},
            "unit_amount": 9900,
        }
    )
    metered = client.v1.prices.create(
        {
            "currency": "usd",
            "product": product.id,
            "recurring": {"interval": "month", "meter": meter.id, "usage_type": "metered"},
            "unit_amount_decimal": "0.5",
        }
    )
    return Shop(stripe_sandbox, client, flat.id, metered.id, meter.id)


def seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def test_a_month_closes_with_its_use_and_the_next_month_in_advance(shop: Shop) -> None:
    customer = shop.customer()
    subscription = shop.subscribe(customer)
    assert subscription.status == "active"
    first = shop.invoices(customer)
    assert [(invoice.status, invoice.total, invoice.billing_reason) for invoice in first] == [
        ("paid", 9900, "subscription_create")
    ]

    shop.use(customer, 101, START, "at-its-start")
    shop.use(customer, 1_000, START + timedelta(minutes=5), "in-it")
    end = datetime(2026, 2, 28, 12, tzinfo=UTC)  # the 31st of a short month
    shop.sandbox.clock(end)
    shop.use(customer, 7, end, "in-the-next")
    draft = shop.invoices(customer)[-1]
    assert (draft.status, draft.auto_advance) == ("draft", True)
    assert draft.automatically_finalizes_at == seconds(end + HOUR)

    shop.use(customer, 1_000, end - timedelta(seconds=1), "late-for-it")
    shop.sandbox.clock(end + HOUR)
    paid = shop.client.v1.invoices.retrieve(draft.id)
    used, month = sorted(paid.lines.data, key=lambda line: line.period.start)
    assert (used.quantity, used.amount) == (2_101, 1_051)  # 1050.5 cents, half up
    assert (used.period.start, used.period.end) == (seconds(START), seconds(end))
    assert (month.quantity, month.amount) == (1, 9900)
    assert month.period.end == seconds(datetime(2026, 3, 31, 12, tzinfo=UTC))
    assert (paid.status, paid.total, paid.amount_paid) == ("paid", 10_951, 10_951)
    assert paid.parent.subscription_details.subscription == subscription.id
    assert used.parent.subscription_item_details.subscription_item in {
        item.id for item in subscription["items"].data
    }
    item = shop.subscription(subscription.id)["items"].data[0]
    assert (item.current_period_start, item.current_period_end) == (month.period.start, month.period.end)


def test_a_trial_is_warned_of_and_then_paid_for(shop: Shop) -> None:
    customer = shop.customer()
    subscription = shop.subscribe(customer, trial_period_days=14)
    assert (subscription.status, shop.invoices(customer)[0].total) == ("trialing", 0)
    end = START + timedelta(days=14)
    assert subscription["items"].data[0].current_period_end == seconds(end)
    shop.sandbox.clock(end + 2 * HOUR)
    assert shop.subscription(subscription.id).status == "active"
    assert [(invoice.status, invoice.total) for invoice in shop.invoices(customer)] == [
        ("paid", 0),
        ("paid", 9900),
    ]
    assert shop.events("customer.subscription.trial_will_end", "invoice.finalized", "charge.succeeded") == [
        ("invoice.finalized", START),
        ("customer.subscription.trial_will_end", end - timedelta(days=3)),
        ("invoice.finalized", end + HOUR),
        ("charge.succeeded", end + HOUR),
    ]


def test_a_declined_renewal_is_tried_again_until_a_new_card_heals_it(shop: Shop) -> None:
    customer = shop.customer("pm_card_chargeCustomerFail")
    subscription = shop.subscribe(customer, trial_period_days=1)
    failed_at = START + timedelta(days=1) + HOUR
    shop.sandbox.clock(failed_at)
    invoice = shop.invoices(customer)[-1]
    assert (invoice.status, invoice.attempt_count) == ("open", 1)
    assert invoice.next_payment_attempt == seconds(failed_at + timedelta(days=3))
    assert shop.subscription(subscription.id).status == "past_due"
    assert shop.client.v1.customers.retrieve(customer).delinquent

    with pytest.raises(stripe.CardError) as declined:
        shop.client.v1.invoices.pay(invoice.id)
    assert (declined.value.code, declined.value.error.decline_code) == ("card_declined", "generic_decline")
    assert shop.invoices(customer)[-1].attempt_count == 1  # tries by hand don't count

    shop.give_card(customer, "pm_card_visa")
    shop.sandbox.clock(failed_at + timedelta(days=3))
    healed = shop.invoices(customer)[-1]
    assert (healed.status, healed.attempt_count, healed.next_payment_attempt) == ("paid", 2, None)
    assert shop.subscription(subscription.id).status == "active"
    assert not shop.client.v1.customers.retrieve(customer).delinquent


@pytest.mark.parametrize(
    ("after", "status"), [("cancel", "canceled"), ("unpaid", "unpaid"), ("past_due", "past_due")]
)
def test_the_last_failed_try_decides_as_the_account_is_set_up(shop: Shop, after: str, status: str) -> None:
    shop.sandbox.behave(after_retries=after, retry_days=[3, 1, 3])
    customer = shop.customer("pm_card_chargeDeclinedInsufficientFunds")
    subscription = shop.subscribe(customer, trial_period_days=1)
    shop.sandbox.clock(START + timedelta(days=10))
    failures = [at for _, at in shop.events("invoice.payment_failed")]
    first = START + timedelta(days=1) + HOUR
    assert failures == [first + timedelta(days=day) for day in (0, 3, 4, 7)]
    assert shop.subscription(subscription.id).status == status
    assert shop.invoices(customer)[-1].next_payment_attempt is None


def test_a_lost_card_is_not_charged_again_but_its_successor_is(shop: Shop) -> None:
    customer = shop.customer("pm_card_visa_chargeDeclinedLostCard")
    shop.subscribe(customer, trial_period_days=1)
    first = START + timedelta(days=1) + HOUR
    shop.sandbox.clock(first + timedelta(days=4))
    assert len(shop.client.v1.charges.list({"customer": customer}).data) == 1
    assert shop.invoices(customer)[-1].attempt_count == 2
    shop.give_card(customer, "pm_card_visa")
    shop.sandbox.clock(first + timedelta(days=8))
    assert shop.invoices(customer)[-1].status == "paid"


def test_an_item_goes_onto_a_draft_or_waits_for_the_next_invoice(shop: Shop) -> None:
    customer = shop.customer()
    shop.subscribe(customer)
    waiting = shop.client.v1.invoice_items.create(
        {"amount": 1_250, "currency": "usd", "customer": customer, "description": "Platform fee"}
    )
    assert waiting.invoice is None
    end = datetime(2026, 2, 28, 12, tzinfo=UTC)
    shop.sandbox.clock(end)
    draft = shop.invoices(customer)[-1]
    assert shop.client.v1.invoice_items.retrieve(waiting.id).invoice == draft.id
    added: Any = {"amount": -50, "currency": "usd", "customer": customer, "invoice": draft.id}
    shop.client.v1.invoice_items.create(added)
    assert shop.client.v1.invoices.retrieve(draft.id).total == 9_900 + 1_250 - 50
    shop.sandbox.clock(end + HOUR)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.client.v1.invoice_items.create(added)
    assert refused.value.code == "invoice_not_editable"
    assert shop.client.v1.invoices.retrieve(draft.id).amount_paid == 11_100


def test_a_plan_changed_half_way_gives_back_and_charges_by_the_second(shop: Shop) -> None:
    customer = shop.customer()
    subscription = shop.subscribe(customer)
    studio = shop.client.v1.prices.create(
        {
            "currency": "usd",
            "product_data": {"name": "Studio"},
            "recurring": {"interval": "month"},
            "unit_amount": 49_900,
        }
    )
    shop.sandbox.clock(START + timedelta(days=14))
    item = next(item for item in subscription["items"].data if item.price.id == shop.flat)
    shop.client.v1.subscription_items.update(item.id, {"price": studio.id})
    end = datetime(2026, 2, 28, 12, tzinfo=UTC)
    shop.sandbox.clock(end + HOUR)
    lines = shop.invoices(customer)[-1].lines.data
    prorations = sorted(line.amount for line in lines if line.parent.subscription_item_details.proration)
    assert prorations == [-4_950, 24_950]
    assert shop.invoices(customer)[-1].total == 49_900 - 4_950 + 24_950


def test_a_subscription_ends_at_its_period_with_a_last_invoice_for_its_use(shop: Shop) -> None:
    customer = shop.customer()
    subscription = shop.subscribe(customer)
    shop.client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    shop.use(customer, 1_000, START, "used")
    end = datetime(2026, 2, 28, 12, tzinfo=UTC)
    shop.sandbox.clock(end + HOUR)
    ended = shop.subscription(subscription.id)
    assert (ended.status, ended.ended_at) == ("canceled", seconds(end))
    assert [invoice.total for invoice in shop.invoices(customer)] == [9_900, 500]
    shop.sandbox.clock(end + timedelta(days=60))
    assert len(shop.invoices(customer)) == 2


def test_a_backdated_subscription_pays_for_its_first_part_and_keeps_its_day(shop: Shop) -> None:
    customer = shop.customer()
    start = datetime(2026, 1, 20, 8, 30, tzinfo=UTC)
    config = {"day_of_month": 20, "hour": 8, "minute": 30, "second": 0}
    subscription = shop.subscribe(
        customer, backdate_start_date=seconds(start), billing_cycle_anchor_config=config
    )
    end = datetime(2026, 2, 20, 8, 30, tzinfo=UTC)
    item = subscription["items"].data[0]
    assert (item.current_period_start, item.current_period_end) == (seconds(start), seconds(end))
    assert shop.invoices(customer)[0].total == 9_900
    shop.sandbox.clock(end + HOUR)
    assert shop.subscription(subscription.id)["items"].data[0].current_period_end == seconds(
        datetime(2026, 3, 20, 8, 30, tzinfo=UTC)
    )
    free = shop.subscribe(
        customer,
        backdate_start_date=seconds(start),
        billing_cycle_anchor_config=config,
        proration_behavior="none",
    )
    assert shop.client.v1.invoices.retrieve(free.latest_invoice).total == 0


def test_without_a_card_a_paid_subscription_is_refused_and_an_incomplete_one_expires(shop: Shop) -> None:
    customer = shop.customer(card=None)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.subscribe(customer)
    assert refused.value.code == "resource_missing"
    assert shop.client.v1.subscriptions.list({"customer": customer, "status": "all"}).data == []
    waiting = shop.subscribe(customer, payment_behavior="default_incomplete")
    assert waiting.status == "incomplete"
    paid = shop.subscribe(customer, payment_behavior="default_incomplete")
    shop.client.v1.invoices.pay(paid.latest_invoice, {"payment_method": "pm_card_visa"})
    assert shop.subscription(paid.id).status == "active"
    shop.sandbox.clock(START + timedelta(days=1))
    assert shop.subscription(waiting.id).status == "incomplete_expired"


def test_graduated_use_has_a_line_for_each_tier_and_volume_one(shop: Shop) -> None:
    tiers: Any = [
        {"up_to": 1_000, "unit_amount_decimal": "0"},
        {"up_to": 5_000, "unit_amount_decimal": "0.3"},
        {"up_to": "inf", "unit_amount_decimal": "0.1", "flat_amount": 5},
    ]
    totals = []
    for mode in ("graduated", "volume"):
        product: Any = {"name": mode}
        price = shop.client.v1.prices.create(
            {
                "billing_scheme": "tiered",
                "currency": "usd",
                "product_data": product,
                "recurring": {"interval": "month", "meter": shop.meter, "usage_type": "metered"},
                "tiers": tiers,
                "tiers_mode": mode,  # type: ignore[typeddict-item]
                "expand": ["tiers"],
            }
        )
        assert price.tiers is not None
        customer = shop.customer()
        shop.client.v1.subscriptions.create({"customer": customer, "items": [{"price": price.id}]})
        shop.use(customer, 7_333, START, f"used-{mode}")
        totals.append(customer)
    shop.sandbox.clock(datetime(2026, 2, 28, 13, tzinfo=UTC))
    graduated, volume = (shop.invoices(customer)[-1] for customer in totals)
    assert [(line.quantity, line.amount) for line in graduated.lines.data] == [
        (1_000, 0),
        (4_000, 1_200),
        (2_333, 238),  # 233.3 + 5
    ]
    assert [(line.quantity, line.amount) for line in volume.lines.data] == [(7_333, 738)]


def test_coupons_and_balance_come_off_before_a_card_is_charged(shop: Shop) -> None:
    customer = shop.customer()
    coupon = shop.client.v1.coupons.create({"duration": "once", "percent_off": 25.5})
    shop.client.v1.customers.balance_transactions.create(customer, {"amount": -5_000, "currency": "usd"})
    subscription = shop.subscribe(customer, discounts=[{"coupon": coupon.id}])
    first = shop.invoices(customer)[0]
    assert (first.subtotal, first.total, first.amount_due) == (9_900, 7_375, 2_375)  # 2524.5 off, half up
    assert (first.starting_balance, first.ending_balance) == (-5_000, 0)
    shop.sandbox.clock(datetime(2026, 2, 28, 13, tzinfo=UTC))
    assert shop.invoices(customer)[-1].amount_paid == 9_900
    assert shop.subscription(subscription.id).discounts == []


def test_refunds_and_disputes_are_told_of(shop: Shop) -> None:
    customer = shop.customer()
    shop.subscribe(customer)
    charge = shop.client.v1.charges.list({"customer": customer}).data[0]
    shop.client.v1.refunds.create({"charge": charge.id, "amount": 900})
    shop.sandbox.control("POST", "disputes", {"charge": charge.id})
    after = shop.client.v1.charges.retrieve(charge.id, {"expand": ["refunds"]})
    assert (after.amount_refunded, after.refunded, after.disputed) == (900, False, True)
    assert after.refunds is not None
    assert [refund.amount for refund in after.refunds.data] == [900]
    names = [name for name, _ in shop.events("charge.refunded", "charge.dispute.created")]
    assert names == ["charge.refunded", "charge.dispute.created"]
    with pytest.raises(stripe.InvalidRequestError):
        shop.client.v1.refunds.create({"charge": charge.id, "amount": 9_001})


def test_customers_on_a_test_clock_live_by_it_and_nobody_else(shop: Shop) -> None:
    beginning = datetime(2025, 6, 1, tzinfo=UTC)
    clock = shop.client.v1.test_helpers.test_clocks.create({"frozen_time": seconds(beginning)})
    theirs = shop.client.v1.customers.create({"test_clock": clock.id, "payment_method": "pm_card_visa"})
    cards = shop.client.v1.customers.payment_methods.list(theirs.id).data
    subscription = shop.subscribe(theirs.id, default_payment_method=cards[0].id)
    ours = shop.customer()
    shop.subscribe(ours)
    assert subscription.created == seconds(beginning)
    shop.client.v1.test_helpers.test_clocks.advance(
        clock.id, {"frozen_time": seconds(beginning + timedelta(days=40))}
    )
    assert len(shop.invoices(theirs.id)) == 2
    assert len(shop.invoices(ours)) == 1
    with pytest.raises(stripe.InvalidRequestError, match="only forward"):
        shop.client.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": seconds(beginning)})


def test_a_canceled_customer_is_not_charged_again_by_itself(shop: Shop) -> None:
    customer = shop.customer("pm_card_chargeCustomerFail")
    subscription = shop.subscribe(customer, trial_period_days=1)
    shop.sandbox.clock(START + timedelta(days=1) + HOUR)
    shop.client.v1.subscriptions.cancel(subscription.id)
    shop.give_card(customer, "pm_card_visa")
    shop.sandbox.clock(START + timedelta(days=30))
    left = shop.invoices(customer)[-1]
    assert (left.status, left.auto_advance, left.next_payment_attempt) == ("open", False, None)
    assert shop.client.v1.invoices.pay(left.id).status == "paid"


def test_a_deleted_customer_takes_their_subscriptions_along(shop: Shop) -> None:
    customer = shop.customer()
    subscription = shop.subscribe(customer)
    shop.client.v1.customers.delete(customer)
    assert shop.subscription(subscription.id).status == "canceled"
    assert customer not in [found.id for found in shop.client.v1.customers.list().data]
    names = [name for name, _ in shop.events("customer.subscription.deleted", "customer.deleted")]
    assert names == ["customer.subscription.deleted", "customer.deleted"]


def test_drafts_of_a_paused_collection_wait(shop: Shop) -> None:
    customer = shop.customer()
    subscription = shop.subscribe(customer)
    pause: Any = {"pause_collection": {"behavior": "keep_as_draft"}}
    shop.client.v1.subscriptions.update(subscription.id, pause)
    shop.sandbox.clock(datetime(2026, 3, 1, tzinfo=UTC))
    assert [invoice.status for invoice in shop.invoices(customer)] == ["paid", "draft"]
    resume: Any = {"pause_collection": ""}
    shop.client.v1.subscriptions.update(subscription.id, resume)
    shop.sandbox.clock(datetime(2026, 4, 1, tzinfo=UTC))
    assert [invoice.status for invoice in shop.invoices(customer)] == ["paid", "draft", "paid"]


def test_a_card_that_goes_bad_fails_at_the_next_renewal(shop: Shop) -> None:
    customer = shop.client.v1.customers.create().id
    card = shop.give_card(customer, "pm_card_visa")
    subscription = shop.subscribe(customer)
    shop.sandbox.spoil_card(card, "insufficient_funds")
    shop.sandbox.clock(datetime(2026, 2, 28, 13, tzinfo=UTC))
    assert shop.subscription(subscription.id).status == "past_due"
    shop.sandbox.spoil_card(card, None)
    shop.sandbox.clock(datetime(2026, 3, 3, 13, tzinfo=UTC))
    assert shop.subscription(subscription.id).status == "active"


def test_time_moves_only_forward(shop: Shop) -> None:
    with pytest.raises(AssertionError, match="only forward"):
        shop.sandbox.clock(START - HOUR)


def test_the_use_of_a_trial_is_shown_and_costs_nothing(shop: Shop) -> None:
    for ends in (False, True):
        customer = shop.customer()
        now = shop.sandbox.control("GET", "clock")["now"]
        subscription = shop.subscribe(customer, trial_period_days=7)
        shop.client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": ends})
        shop.use(customer, 1_000, datetime.fromtimestamp(now, UTC), f"in-trial-{ends}")
        shop.sandbox.clock(datetime.fromtimestamp(now, UTC) + timedelta(days=7) + HOUR)
        last = shop.invoices(customer)[-1]
        assert (1_000, 0) in [(line.quantity, line.amount) for line in last.lines.data]
        assert last.total == (0 if ends else 9_900)
