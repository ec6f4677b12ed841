"""What Stripe says of our customers, brought to the operational tables that decisions are made on.

Whatever the order, doubles and delays of what comes in: a row shows the state that was asked for last, so it
ends equal to Stripe's. The time of asking is kept beside the link (`stripe_links.mirrored_at`).

Plan, price and end may be changed here or there. So what Stripe said the last time is kept too: what it still
says was not changed there, and a change of ours that is on its way to Stripe is not taken back.

Belongs here: which of our rows follow from which object. Does not belong here: what the words mean
(`standing.py`), and the rows themselves (`apex_pipelines/billing/mirroring.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

import msgspec
import sqlalchemy as sa

from apex_pipelines.billing import mirroring
from apex_pipelines.billing.store import BillingError, open_subscription_id
from apex_pipelines.customers.models import Customer, Subscription, SubscriptionStatus
from apex_pipelines.platform.logging import get_logger
from apex_pipelines.stripe import standing
from apex_pipelines.stripe.landing import FetchedObject
from apex_pipelines.stripe.links import LinkConflict, link, local_id, stripe_ids
from apex_pipelines.stripe.models import StripeLink
from apex_pipelines.stripe.object_types import OBJECT_TYPES
from apex_pipelines.stripe.reading import ObjectGone, Reader
from apex_pipelines.stripe.standing import UnclearState

log = get_logger(__name__)
CUSTOMER, INVOICE, SUBSCRIPTION = "customer", "invoice", "subscription"
# Who a thing belongs to, then what was paid, then what depends on both.
_ORDER = (CUSTOMER, INVOICE, SUBSCRIPTION)
_EXPECTED = (BillingError, LinkConflict, UnclearState, ObjectGone, msgspec.ValidationError)

Key = tuple[str, str]


class Mirror:
    """Writes to the operational tables what objects of one account say; safe to run several times at once."""

    def __init__(self, engine: sa.Engine, reader: Reader) -> None:
        self._engine = engine
        self._reader = reader
        self._livemode = reader.livemode

    def apply(
        self, fetched: Iterable[FetchedObject], changed_at: Mapping[Key, datetime] | None = None
    ) -> dict[Key, str]:
        """Mirror those of the objects that are of our customers.

        Parameters
        ----------
        changed_at : mapping of (type, id) to datetime
            When an object changed, where events tell; of others it is taken to be when it was asked for.

        Returns
        -------
        dict of (type, id) to str
            What could not be mirrored, and why. Everything else is.

        Raises
        ------
        stripe.StripeError
            If Stripe can't be asked for what belongs to an object.
        """
        problems = {}
        mirrored = [one for one in fetched if one.object in _ORDER and not one.deleted]
        for one in sorted(mirrored, key=lambda each: _ORDER.index(each.object)):
            key = (one.object, one.id)
            try:
                self._apply_one(one, (changed_at or {}).get(key))
            except _EXPECTED as error:
                log.warning("stripe object not mirrored", object=one.object, id=one.id, reason=str(error))
                problems[key] = f"{one.object} {one.id}: {error}"
        return problems

    def _apply_one(self, fetched: FetchedObject, changed_at: datetime | None) -> None:
        if fetched.object == CUSTOMER:
            self._link_customer(fetched)
        elif fetched.object == INVOICE:
            self._mirror_invoice(fetched)
        else:
            self._mirror_subscription(fetched, changed_at)

    def _link_customer(self, fetched: FetchedObject) -> str | None:
        """Our id of the customer; None when it is none of ours."""
        local = standing.customer_id(fetched.payload)
        with self._engine.begin() as connection:
            known = local_id(connection, CUSTOMER, fetched.id, livemode=self._livemode)
            if known is not None or local is None:
                return known
            if connection.scalar(sa.select(sa.exists().where(Customer.id == local))):
                now = self._reader.clock.now()
                link(connection, CUSTOMER, local, fetched.id, now, livemode=self._livemode)
                return local
        return None

    def _customer(self, stripe_id: str, *, ask: bool) -> str | None:
        with self._engine.connect() as connection:
            known = local_id(connection, CUSTOMER, stripe_id, livemode=self._livemode)
        if known is not None or not ask:
            return known
        return self._link_customer(self._reader.one(OBJECT_TYPES[CUSTOMER], stripe_id))

    def _mirror_invoice(self, fetched: FetchedObject) -> None:
        invoice = standing.read_invoice(fetched.payload)
        customer_id = self._customer(invoice.customer, ask=False)
        if customer_id is None or not invoice.was_attempted:
            return
        payments = self._all("/v1/invoice_payments", invoice=invoice.id)
        charges = [
            charge
            for intent in standing.payment_intents(payments)
            for charge in self._all("/v1/charges", payment_intent=intent)
        ]
        attempts = standing.payment_attempts(customer_id, invoice, charges)
        with self._engine.begin() as connection:
            mirroring.mirror_payments(connection, attempts)
            suspended = connection.scalar(
                sa.select(Subscription.id).where(
                    Subscription.customer_id == customer_id,
                    Subscription.status == SubscriptionStatus.SUSPENDED,
                )
            )
        if suspended is not None:
            # It waits for a payment, which may come to us after what Stripe says of the subscription.
            for stripe_id in self._linked_subscriptions(suspended):
                self._mirror_subscription(self._reader.one(OBJECT_TYPES[SUBSCRIPTION], stripe_id), None)

    def _all(self, path: str, **parameters: str) -> list[str]:
        return [one.payload for page in self._reader.pages(path, parameters) for one in page.objects]

    def _mirror_subscription(self, fetched: FetchedObject, changed_at: datetime | None) -> None:
        try:
            self._write_subscription(fetched, changed_at)
        except mirroring.TwoOpenSubscriptions as error:
            # The other may have ended at Stripe without our knowing it yet.
            for stripe_id in self._linked_subscriptions(error.subscription_id):
                self._write_subscription(self._reader.one(OBJECT_TYPES[SUBSCRIPTION], stripe_id), None)
            self._write_subscription(fetched, changed_at)

    def _linked_subscriptions(self, local: str) -> Collection[str]:
        with self._engine.connect() as connection:
            return stripe_ids(connection, SUBSCRIPTION, livemode=self._livemode, local_ids=[local]).values()

    def _write_subscription(self, fetched: FetchedObject, changed_at: datetime | None) -> None:
        told = standing.read_subscription(fetched.payload)
        customer_id = self._customer(told.customer, ask=False)
        if customer_id is None or told.status is None:
            return
        with self._engine.begin() as connection:
            local = self._local_subscription(connection, customer_id, told)
            # Held until the transaction ends: of two that mirror it at once, one waits.
            linked = self._linked(connection, fetched)
            if linked.mirrored_at is not None and linked.mirrored_at > fetched.fetched_at:
                return
            plan_type = self._plan(connection, told)
            terms = standing.terms(plan_type, told)
            held = mirroring.held_since(connection, local)
            ours = None if held is None else held.status
            status = standing.decide_status(
                ours,
                told.status,
                paid_since=held is not None and mirroring.has_paid_since(connection, customer_id, held.since),
            )
            mirroring.mirror_subscription(
                connection,
                mirroring.SubscriptionState(
                    id=local,
                    customer_id=customer_id,
                    plan_type=plan_type,
                    status=status,
                    base_price_cents=told.base_price_cents,
                    currency=told.currency,
                    started_at=told.started_at,
                    trial_end=told.trial_end,
                    current_period_start=told.period_start,
                    current_period_end=told.period_end,
                    cancelled_at=told.ended_at if status is SubscriptionStatus.CANCELED else None,
                    changed_at=standing.change_date(ours, told, changed_at, fetched.fetched_at),
                ),
                keep_terms=terms == linked.mirrored_terms,
            )
            connection.execute(
                sa.update(StripeLink)
                .where(self._is_link(fetched))
                .values(mirrored_at=fetched.fetched_at, mirrored_terms=terms)
            )

    def _local_subscription(
        self, connection: sa.Connection, customer_id: str, told: standing.StripeSubscription
    ) -> str:
        """Our id of the subscription, linked; one of ours that knows no other is taken to be this one."""
        known = local_id(connection, SUBSCRIPTION, told.id, livemode=self._livemode)
        if known is not None:
            return known
        local = told.subscription_id
        if local is None:
            local = open_subscription_id(connection, customer_id)
            if local and stripe_ids(connection, SUBSCRIPTION, livemode=self._livemode, local_ids=[local]):
                local = None
        local = local or mirroring.subscription_id_for(told.id)
        link(connection, SUBSCRIPTION, local, told.id, self._reader.clock.now(), livemode=self._livemode)
        return local

    def _linked(
        self, connection: sa.Connection, fetched: FetchedObject
    ) -> sa.Row[datetime | None, str | None]:
        select = sa.select(StripeLink.mirrored_at, StripeLink.mirrored_terms).where(self._is_link(fetched))
        return connection.execute(select.with_for_update()).one()

    def _is_link(self, fetched: FetchedObject) -> sa.ColumnElement[bool]:
        return sa.and_(
            StripeLink.object == fetched.object,
            StripeLink.stripe_id == fetched.id,
            StripeLink.livemode == self._livemode,
        )

    def _plan(self, connection: sa.Connection, told: standing.StripeSubscription) -> str:
        """Plan of the subscription's flat price, by its name, else by what is linked to it."""
        for name in (
            told.price_name,
            local_id(connection, "price", told.price_id, livemode=self._livemode),
            local_id(connection, "product", told.product_id, livemode=self._livemode),
        ):
            plan = standing.plan_of(name)
            if plan is not None:
                return plan
        raise UnclearState(
            f"its price {told.price_id!r} names no plan; give it the lookup key `price:<plan>`, "
            "or run `apex stripe bootstrap`"
        )
