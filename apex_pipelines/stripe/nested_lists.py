"""Lists inside of objects, such as an invoice's lines, brought whole although Stripe cuts them short.

Belongs here: what has to be landed beside an object whose list was cut. Does not belong here: how models put
both together (`dbt_project/macros/stripe.sql`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from clickhouse_connect.driver.client import Client

from apex_pipelines.stripe.landing import FetchedObject, deleted_object
from apex_pipelines.stripe.object_types import ObjectType
from apex_pipelines.stripe.reading import Reader


def with_nested(
    client: Client, reader: Reader, kind: ObjectType, objects: Sequence[FetchedObject]
) -> list[FetchedObject]:
    """The objects of one type, and before them what is in those of their lists that were cut.

    An object of a cut list counts until it is known to be gone, so those that the warehouse has of such a
    list and Stripe has no more are there as deleted.
    """
    rests = {one.id: rest for one in objects if (rest := reader.whole(kind, one))}
    if not rests:
        return list(objects)
    nested = [one for rest in rests.values() for one in rest]
    nested_type = nested[0].object
    fetched_at = min(one.fetched_at for one in objects)
    gone = _landed(client, kind, nested_type, rests, livemode=reader.livemode) - {one.id for one in nested}
    return [*nested, *(deleted_object(nested_type, one, fetched_at) for one in sorted(gone)), *objects]


def _landed(
    client: Client, kind: ObjectType, nested_type: str, parents: Collection[str], *, livemode: bool
) -> set[str]:
    """Ids of what stands in the warehouse by itself and belongs to one of the parents."""
    rows = client.query(
        """
        select id from raw.stripe_objects final
        where object = {object:String} and livemode = {livemode:Bool}
            and JSONExtractString(payload, {parent:String}) in {parents:Array(String)}
        """,
        parameters={
            "object": nested_type, "livemode": livemode, "parent": kind.name, "parents": sorted(parents),
        },
    ).result_rows  # fmt: skip
    return {row[0] for row in rows}
