"""Stripe's objects on their way into the warehouse.

Belongs here: writing what Stripe sent to `raw.stripe_objects`. Does not belong here: fetching it, or what its
fields mean (`dbt_project/models/staging/stripe`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clickhouse import DURABLE_INSERT

_COLUMNS = ["object", "id", "livemode", "is_deleted", "payload", "api_version", "fetched_at"]


class UnreadableStripeObject(ValueError):
    """One of the objects can't be landed; the message says which and why, and nothing of its content."""


class _Envelope(msgspec.Struct):
    object: str
    id: str
    deleted: bool = False
    livemode: bool | None = None


def land_objects(
    client: Client,
    objects: Iterable[bytes | str | Mapping[str, object]],
    *,
    fetched_at: datetime,
    api_version: str,
    livemode: bool,
) -> int:
    """Write objects to `raw.stripe_objects` in one durable insert; safe to repeat.

    Land the lines of an invoice before the invoice itself: one whose list was cut short counts as broken
    until the rest of its lines are there.

    Parameters
    ----------
    objects : iterable of bytes, str or mapping
        JSON text is stored as it is; a mapping is encoded, its `Decimal` values as strings, as Stripe does.
    fetched_at : datetime
        Aware instant, by the platform's clock, before Stripe was asked: an object may change while it is on
        its way, and a fetch that began later must win.
    api_version : str
        Version of Stripe's API that gave the objects their form.
    livemode : bool
        Mode of the key that fetched them.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    UnreadableStripeObject
        If one of them is no JSON object with `object` and `id`, or is of the other mode; none is written.
    """
    rows = []
    for position, given in enumerate(objects):
        try:
            payload = _text(given)
            envelope = msgspec.json.decode(payload, type=_Envelope)
        except (msgspec.MsgspecError, OverflowError, TypeError, UnicodeError) as error:
            raise UnreadableStripeObject(f"object {position} of the batch: {error}") from error
        if not envelope.id or not envelope.object:
            raise UnreadableStripeObject(f"object {position} of the batch: its id or type is empty")
        if envelope.livemode not in (None, livemode):
            raise UnreadableStripeObject(
                f"{envelope.object} {envelope.id}: livemode is {envelope.livemode}, "
                f"fetched with a key whose livemode is {livemode}; use the key of one mode only"
            )
        rows.append(
            [envelope.object, envelope.id, livemode, envelope.deleted, payload, api_version, fetched_at]
        )
    if rows:
        client.insert("raw.stripe_objects", rows, column_names=_COLUMNS, settings=DURABLE_INSERT)
    return len(rows)


def _text(given: bytes | str | Mapping[str, object]) -> str:
    if isinstance(given, Mapping):
        given = msgspec.json.encode(given)
    return given.decode() if isinstance(given, bytes) else given
