"""Customers: creating and finding them.

Belongs here: rows of `customers`. Does not belong here: keys (`keys.py`), plans, subscriptions and payments
(`billing/store.py`), any mail (the caller queues it in the same transaction).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.customers.models import Customer

# Fixed for ever: another namespace would give every imported and simulated customer a new id.
CUSTOMER_ID = r"^cus_[0-9a-f]{32}$"
_CUSTOMER_NAMESPACE = uuid.UUID("6f1f6a3e-8f0b-5d0c-9a57-0c1f5a1d7c11")
_ROWS_PER_STATEMENT = 1_000


class CustomerError(ValueError):
    """A customer can't be created or found; the message says what was given and what to do."""


class CustomerNotFound(CustomerError):
    """No customer has this id."""


@dataclass(frozen=True, slots=True)
class NewCustomer:
    """A customer to create.

    Attributes
    ----------
    source : str
        `signup`, `simulator`, or `import:<mapping>`.
    external_ref : str or None
        The customer's name in its source; with it, creating twice finds the first. None: always a new one.
    created_at : datetime or None
        Aware instant of signing up; None means the `now` of the call.
    """

    name: str
    email: str
    source: str = "signup"
    external_ref: str | None = None
    created_at: datetime | None = None
    company_size: int | None = None
    country: str | None = None
    time_zone: str = "UTC"
    marketing_consent: bool = True


def customer_id_for(source: str, external_ref: str | None) -> str:
    """`cus_` + 32 hex: always the same for one customer of a source; random without a reference."""
    if external_ref is None:
        return f"cus_{uuid.uuid4().hex}"
    # The length keeps ("a", "b:c") and ("a:b", "c") apart.
    return f"cus_{uuid.uuid5(_CUSTOMER_NAMESPACE, f'{len(source)}:{source}:{external_ref}').hex}"


def is_email(text: str) -> bool:
    """Whether a text can be an e-mail address at all; only a mail tells whether it is one."""
    local, _, domain = text.rpartition("@")
    return bool(local and domain) and len(text) <= 254 and text.isprintable() and " " not in text


def create_customer(connection: sa.Connection, customer: NewCustomer, now: datetime) -> str:
    """Create one customer, or find it by (source, external_ref); its id.

    Raises
    ------
    CustomerError
        If a field can't be right; the message names it.
    """
    return create_customers(connection, [customer], now)[0]


def create_customers(connection: sa.Connection, customers: Iterable[NewCustomer], now: datetime) -> list[str]:
    """Create many customers, in the order given; those whose (source, external_ref) exist stay as they are.

    Parameters
    ----------
    now : datetime
        Aware instant taken for customers without `created_at`.

    Returns
    -------
    list of str
        One id for each customer given, new or found.

    Raises
    ------
    CustomerError
        If a field can't be right. Nothing is written by this call then.
    """
    rows: list[dict[str, object]] = []
    for customer in customers:
        _check(customer)
        rows.append(
            {
                "id": customer_id_for(customer.source, customer.external_ref),
                "name": customer.name.strip(),
                "email": customer.email.strip(),
                "company_size": customer.company_size,
                "country": customer.country,
                "time_zone": customer.time_zone,
                "marketing_consent": customer.marketing_consent,
                "source": customer.source,
                "external_ref": customer.external_ref,
                "created_at": customer.created_at or now,
            }
        )
    for chunk in _chunks(rows):
        connection.execute(insert(Customer).on_conflict_do_nothing(), chunk)
    return [str(row["id"]) for row in rows]


def get_customer(connection: sa.Connection, customer_id: str) -> sa.RowMapping:
    """The row of `customers`.

    Raises
    ------
    CustomerNotFound
        If there is none with this id.
    """
    row = (
        connection.execute(sa.select(Customer.__table__).where(Customer.id == customer_id))
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise CustomerNotFound(f"there is no customer {customer_id!r}; `apex customer list` shows the ids")
    return row


def list_customers(
    connection: sa.Connection, *, source: str | None = None, limit: int | None = None
) -> Sequence[sa.RowMapping]:
    """Rows of `customers`, newest first."""
    query = sa.select(Customer.__table__).order_by(Customer.created_at.desc(), Customer.id).limit(limit)
    if source is not None:
        query = query.where(Customer.source == source)
    return connection.execute(query).mappings().all()


def _check(customer: NewCustomer) -> None:
    if not customer.name.strip():
        raise CustomerError(f"a customer needs a name, got {customer.name!r}")
    if not is_email(customer.email.strip()):
        raise CustomerError(f"{customer.email!r} is no e-mail address; give one such as name@example.com")
    if not customer.source:
        raise CustomerError("a customer needs a source: signup, simulator or the name of an import")
    if customer.company_size is not None and customer.company_size < 0:
        raise CustomerError(f"company_size is a number of people, got {customer.company_size}")
    if customer.created_at is not None and customer.created_at.tzinfo is None:
        raise CustomerError(
            f"created_at needs a time zone, got {customer.created_at.isoformat()!r}; give UTC"
        )


def _chunks(rows: Sequence[dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _ROWS_PER_STATEMENT)):
        yield chunk
