"""Which object at Stripe is which thing of ours.

Belongs here: rows of `stripe_links`. Does not belong here: creating anything at Stripe.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from apex_pipelines.stripe.models import StripeLink


class LinkConflict(ValueError):
    """One of the two is linked to another already; the message names all three."""


def stripe_ids(
    connection: sa.Connection, object_type: str, *, livemode: bool, local_ids: Collection[str] | None = None
) -> dict[str, str]:
    """Stripe's id by ours, of one type; of all that are linked when `local_ids` is None."""
    query = sa.select(StripeLink.local_id, StripeLink.stripe_id).where(
        StripeLink.object == object_type, StripeLink.livemode == livemode
    )
    if local_ids is not None:
        query = query.where(StripeLink.local_id.in_(local_ids))
    return {row.local_id: row.stripe_id for row in connection.execute(query)}


@dataclass(frozen=True, slots=True)
class CustomerLink:
    """A customer's object at Stripe, and since when we know of it."""

    stripe_id: str
    linked_at: datetime


def customer_links(connection: sa.Connection, *, livemode: bool) -> dict[str, CustomerLink]:
    """By our customer."""
    query = sa.select(StripeLink.local_id, StripeLink.stripe_id, StripeLink.created_at).where(
        StripeLink.object == "customer", StripeLink.livemode == livemode
    )
    return {row.local_id: CustomerLink(row.stripe_id, row.created_at) for row in connection.execute(query)}


def local_id(connection: sa.Connection, object_type: str, stripe_id: str, *, livemode: bool) -> str | None:
    """Our id of an object at Stripe; None when it is none of ours."""
    return connection.scalar(
        sa.select(StripeLink.local_id).where(
            StripeLink.object == object_type,
            StripeLink.stripe_id == stripe_id,
            StripeLink.livemode == livemode,
        )
    )


def link(
    connection: sa.Connection, object_type: str, local: str, stripe_id: str, now: datetime, *, livemode: bool
) -> None:
    """Remember that both are the same; safe to repeat.

    Raises
    ------
    LinkConflict
        If either is linked to something else.
    """
    row = {
        "object": object_type,
        "local_id": local,
        "livemode": livemode,
        "stripe_id": stripe_id,
        "created_at": now,
    }
    connection.execute(insert(StripeLink).values(row).on_conflict_do_nothing())
    found = stripe_ids(connection, object_type, livemode=livemode, local_ids=[local]).get(local)
    if found != stripe_id:
        other = local_id(connection, object_type, stripe_id, livemode=livemode)
        raise LinkConflict(
            f"{object_type} {local!r} can't be linked to {stripe_id!r}: "
            f"it is linked to {found!r}, and that one to {other!r}"
        )


def relink(
    connection: sa.Connection, object_type: str, local: str, stripe_id: str, now: datetime, *, livemode: bool
) -> None:
    """Remember that both are the same from now on, whatever ours was linked to before."""
    row = {
        "object": object_type,
        "local_id": local,
        "livemode": livemode,
        "stripe_id": stripe_id,
        "created_at": now,
    }
    connection.execute(
        insert(StripeLink)
        .values(row)
        .on_conflict_do_update(
            index_elements=["object", "local_id", "livemode"],
            set_={"stripe_id": stripe_id, "created_at": now},
            where=StripeLink.stripe_id != stripe_id,
        )
    )


def mirrored_terms(connection: sa.Connection, *, livemode: bool) -> dict[str, str]:
    """By Stripe's id of a subscription, its terms there when they were read or set last."""
    query = sa.select(StripeLink.stripe_id, StripeLink.mirrored_terms).where(
        StripeLink.object == "subscription",
        StripeLink.livemode == livemode,
        StripeLink.mirrored_terms.is_not(None),
    )
    return {row.stripe_id: row.mirrored_terms for row in connection.execute(query)}


def remember_terms(connection: sa.Connection, stripe_id: str, terms: str, *, livemode: bool) -> None:
    """Write down a subscription's terms as they were just set at Stripe."""
    connection.execute(
        sa.update(StripeLink)
        .where(
            StripeLink.object == "subscription",
            StripeLink.stripe_id == stripe_id,
            StripeLink.livemode == livemode,
        )
        .values(mirrored_terms=terms)
    )
