"""Pages of lists.

Belongs here: cursors, limits, newest first. Does not belong here: which lists there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.errors import invalid, missing
from apex_pipelines.sandbox.stripe.parameters import Given
from apex_pipelines.sandbox.stripe.store import Object

MOST = 100
_DEFAULT = 10
_COMPARISONS = {"gt": "created >", "gte": "created >=", "lt": "created <", "lte": "created <="}


@dataclass(frozen=True)
class Page:
    """Part of a list; `bodies` are JSON texts, so that what needs no rendering isn't even decoded."""

    object_type: str
    url: str
    bodies: list[str]
    has_more: bool

    @classmethod
    def of(cls, object_type: str, url: str, objects: list[Object], has_more: bool = False) -> Page:
        return cls(object_type, url, [msgspec.json.encode(found).decode() for found in objects], has_more)

    def objects(self) -> list[Object]:
        return [msgspec.json.decode(body) for body in self.bodies]


def page(
    account: Account,
    object_type: str,
    url: str,
    given: Given,
    where: Mapping[str, Any] | None = None,
    *,
    since: int | None = None,
    conditions: Iterable[tuple[str, Any]] = (),
    newest_first: bool = True,
) -> Page:
    """The page of a list that was asked for.

    Parameters
    ----------
    where : mapping
        Fields and the values they must have; None values are not asked for.
    since : int
        Seconds since 1970; what is older is not listed.
    conditions : iterable of (str, object)
        As `Store.bodies`.

    Raises
    ------
    Refusal
        If the limit or a cursor is wrong.
    """
    limit = given.get("limit", _DEFAULT)
    if not 1 <= limit <= MOST:
        raise invalid(f"This value must be between 1 and {MOST} (inclusive).", "limit")
    after, before = given.get("starting_after"), given.get("ending_before")
    if after is not None and before is not None:
        raise invalid("You cannot specify both ending_before and starting_after.", "ending_before")
    for name in ("starting_after", "ending_before"):
        if name in given and account.store.get(object_type, given[name]) is None:
            raise missing(object_type, given[name], name)
    conditions = [*conditions, *((_COMPARISONS[by], value) for by, value in given.get("created", {}).items())]
    if since is not None:
        conditions.append(("created >=", since))
    asked = {name: value for name, value in (where or {}).items() if value is not None}
    backwards = before is not None
    bodies = account.store.bodies(
        object_type,
        asked,
        limit=limit + 1,
        conditions=conditions,
        after=before if backwards else after,
        newest_first=newest_first != backwards,
    )
    kept = bodies[:limit]
    return Page(object_type, url, kept[::-1] if backwards else kept, len(bodies) > limit)
