"""Stripe's objects on their way into the warehouse.

Belongs here: writing what Stripe sent to `raw.stripe_objects`. Does not belong here: fetching it, or what its
fields mean (`dbt_project/models/staging/stripe`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec
from clickhouse_connect.driver.client import Client

from apex_pipelines.platform.clickhouse import DURABLE_INSERT

_COLUMNS = ["object", "id", "livemode", "is_deleted", "payload", "api_version", "fetched_at"]


class UnreadableStripeObject(ValueError):
    """One of the objects can't be landed; the message says which and why, and nothing of its content."""


@dataclass(frozen=True, slots=True)
class FetchedObject:
    """One object as Stripe sent it.

    Attributes
    ----------
    object, id : str
        Type and id, as Stripe names them.
    deleted : bool
        Whether Stripe says that it is gone; the payload says no more than that then.
    payload : str
        The JSON, to the letter.
    fetched_at : datetime
        Aware instant, by the platform's clock, before Stripe was asked.
    """

    object: str
    id: str
    deleted: bool
    payload: str
    fetched_at: datetime


class _Envelope(msgspec.Struct):
    object: str
    id: str
    deleted: bool = False
    livemode: bool | None = None


def fetched_object(
    given: bytes | str | Mapping[str, object], *, fetched_at: datetime, livemode: bool
) -> FetchedObject:
    """What Stripe sent, once it is known to be an object of the key's mode.

    Raises
    ------
    UnreadableStripeObject
        If it is no JSON object with `object` and `id`, or is of the other mode.
    """
    try:
        payload = _text(given)
        envelope = msgspec.json.decode(payload, type=_Envelope)
    except (msgspec.MsgspecError, OverflowError, TypeError, UnicodeError) as error:
        raise UnreadableStripeObject(str(error)) from error
    if not envelope.id or not envelope.object:
        raise UnreadableStripeObject("its id or type is empty")
    if envelope.livemode not in (None, livemode):
        raise UnreadableStripeObject(
            f"{envelope.object} {envelope.id}: livemode is {envelope.livemode}, "
            f"fetched with a key whose livemode is {livemode}; use the key of one mode only"
        )
    return FetchedObject(envelope.object, envelope.id, envelope.deleted, payload, fetched_at)


def deleted_object(object_type: str, object_id: str, fetched_at: datetime) -> FetchedObject:
    """What Stripe says of a deleted object where it says anything; for those that it only forgets."""
    payload = {"id": object_id, "object": object_type, "deleted": True}
    return FetchedObject(object_type, object_id, True, _text(payload), fetched_at)


def land(client: Client, fetched: Iterable[FetchedObject], *, api_version: str, livemode: bool) -> int:
    """Write objects to `raw.stripe_objects` in one durable insert; safe to repeat. How many there were."""
    rows = [
        [one.object, one.id, livemode, one.deleted, one.payload, api_version, one.fetched_at]
        for one in fetched
    ]
    if rows:
        client.insert("raw.stripe_objects", rows, column_names=_COLUMNS, settings=DURABLE_INSERT)
    return len(rows)


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
    fetched = []
    for position, given in enumerate(objects):
        try:
            fetched.append(fetched_object(given, fetched_at=fetched_at, livemode=livemode))
        except UnreadableStripeObject as error:
            raise UnreadableStripeObject(f"object {position} of the batch: {error}") from error
    return land(client, fetched, api_version=api_version, livemode=livemode)


def count_objects(client: Client) -> dict[str, int]:
    """Objects of each type that the table has, in both modes, without those that are deleted."""
    rows = client.query(
        """
        select object, count() from (
            select object from raw.stripe_objects final
            group by object, id, livemode
            having argMax(is_deleted, (fetched_at, is_deleted)) = 0
        )
        group by object
        """
    ).result_rows
    return {name: int(count) for name, count in rows}


def _text(given: bytes | str | Mapping[str, object]) -> str:
    if isinstance(given, Mapping):
        given = msgspec.json.encode(given)
    return given.decode() if isinstance(given, bytes) else given
