"""What the rows of each source from outside must be like: one suite a source, one expectation a rule.

Belongs here: rules of single rows, with their limits from the catalogue, the enums and the settings. Does not
belong here: how the rows are read (`sources.py`) and the rules applied (`validation.py`).

Great Expectations is imported by the functions, since it takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from apex_pipelines.billing.models import PaymentStatus
from apex_pipelines.billing.store import PAYMENT_ID, SUBSCRIPTION_ID
from apex_pipelines.customers.models import SubscriptionStatus
from apex_pipelines.customers.store import CUSTOMER_ID
from apex_pipelines.metering.events import EPOCH, MAX_EVENT_ID_CHARACTERS
from apex_pipelines.metering.quantity import MAX_STORED
from apex_pipelines.platform.catalogue import metrics, plans
from apex_pipelines.settings import Settings

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

Suite = dict[str, "Expectation"]

_EMAIL = r"^[^ ]+@[^@ ]+$"
_COUNTRY = r"^[A-Z]{2}$"


def telemetry(settings: Settings, now: datetime) -> Suite:
    """Events as the API lets them through; what it refuses has no business in the table."""
    from great_expectations.expectations.core import ExpectColumnValueLengthsToBeBetween

    return {
        "customer_id_has_its_form": _matches("customer_id", CUSTOMER_ID),
        "event_id_has_a_length": ExpectColumnValueLengthsToBeBetween(
            column="event_id", min_value=1, max_value=MAX_EVENT_ID_CHARACTERS
        ),
        "metric_is_in_the_catalogue": _in_set("metric_type", metrics()),
        "quantity_is_in_bounds": _between("quantity", -MAX_STORED, MAX_STORED),
        "correction_says_what_and_why": _is_true("is_correction_whole"),
        "metadata_is_an_object": _in_set("metadata_type", ["Object"]),
        "event_is_not_too_early_or_late": _between(
            "seconds_late", -settings.event_max_early_seconds, int(settings.event_max_late.total_seconds())
        ),
    }


def customers(settings: Settings, now: datetime) -> Suite:
    """Customers as signing up and imports make them."""
    return {
        "customer_id_has_its_form": _matches("customer_id", CUSTOMER_ID),
        "name_is_given": _matches("name", r"\S"),
        "email_has_the_form_of_one": _matches("email", _EMAIL),
        "source_is_given": _matches("source", r"\S"),
        "country_is_an_iso_code": _matches("country", _COUNTRY),
        "company_size_is_not_negative": _between("company_size", 0, None),
        "created_at_is_past": _is_past("created_at", settings, now),
    }


def subscriptions(settings: Settings, now: datetime) -> Suite:
    """Subscriptions; that each is on a plan of the catalogue is a test of the whole table."""
    return {
        "subscription_id_has_its_form": _matches("subscription_id", SUBSCRIPTION_ID),
        "customer_id_has_its_form": _matches("customer_id", CUSTOMER_ID),
        "status_is_known": _in_set("status", SubscriptionStatus),
        "base_price_is_in_bounds": _between("base_price_cents", 0, settings.quality_max_amount_cents),
        "currency_is_in_the_catalogue": _in_set("currency", _currencies()),
        "included_impressions_are_not_negative": _between("included_impressions", 0, None),
        "canceled_has_its_time": _is_true("is_end_known"),
        "started_at_is_past": _is_past("started_at", settings, now),
    }


def payments(settings: Settings, now: datetime) -> Suite:
    """Attempts to collect an invoice."""
    return {
        "payment_id_has_its_form": _matches("payment_id", PAYMENT_ID),
        "customer_id_has_its_form": _matches("customer_id", CUSTOMER_ID),
        "invoice_is_named": _matches("invoice_id", r"\S"),
        "attempts_count_from_1": _between("attempt_number", 1, None),
        "status_is_known": _in_set("status", PaymentStatus),
        "amount_is_in_bounds": _between("amount_cents", 0, settings.quality_max_amount_cents),
        "currency_is_in_the_catalogue": _in_set("currency", _currencies()),
        "failure_has_its_code": _is_true("is_failure_explained"),
        "occurred_at_is_past": _is_past("occurred_at", settings, now),
    }


def stripe_objects(settings: Settings, now: datetime) -> Suite:
    """Objects of any type, as Stripe sends them; its own currencies are more than the catalogue's."""
    from great_expectations.expectations.core import ExpectColumnValuesToBeBetween
    from great_expectations.expectations.row_conditions import Column

    return {
        "id_is_given": _matches("id", r"\S"),
        "object_is_what_it_says": _is_true("is_what_it_says"),
        "livemode_is_of_the_key": _is_true("is_of_its_mode"),
        "api_version_is_a_date": _matches("api_version", r"^\d{4}-\d{2}-\d{2}"),
        "currency_is_an_iso_code": _matches("currency", r"^[a-z]{3}$"),
        "amounts_are_in_bounds": ExpectColumnValuesToBeBetween(
            column="largest_amount_cents",
            max_value=settings.quality_max_amount_cents,
            # A large sum in another currency may be a small one.
            row_condition=Column("currency").is_in(sorted(_currencies())),
        ),
        "fetched_at_is_past": _is_past("fetched_at", settings, now),
    }


def _currencies() -> set[str]:
    return {plan.currency for plan in plans().values()}


def _matches(column: str, pattern: str) -> Expectation:
    """Each value that is there; where it must be, an empty text does not match."""
    from great_expectations.expectations.core import ExpectColumnValuesToMatchRegex

    return ExpectColumnValuesToMatchRegex(column=column, regex=pattern)


def _in_set(column: str, known: Iterable[str]) -> Expectation:
    from great_expectations.expectations.core import ExpectColumnValuesToBeInSet

    return ExpectColumnValuesToBeInSet(column=column, value_set=[str(value) for value in known])


def _is_true(column: str) -> Expectation:
    from great_expectations.expectations.core import ExpectColumnValuesToBeInSet

    return ExpectColumnValuesToBeInSet(column=column, value_set=[1])


def _between(column: str, least: float | None, most: float | None) -> Expectation:
    from great_expectations.expectations.core import ExpectColumnValuesToBeBetween

    return ExpectColumnValuesToBeBetween(column=column, min_value=least, max_value=most)


def _is_past(column: str, settings: Settings, now: datetime) -> Expectation:
    """After the epoch, and ahead of the clock by no more than a client's may be."""
    latest = now.timestamp() + settings.event_max_early_seconds
    return _between(f"{column}_unix", EPOCH.timestamp(), latest)
