"""Asking Stripe for objects: one, a page, a list from front to end. What comes is kept to the letter.

Belongs here: requests that read, and what Stripe's lists do while they are read. Does not belong here: which
objects are read when (`backfill.py`, `sweep.py`, `inbox.py`), and where they go (`landing.py`, `mirror.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import stripe
from stripe import StripeClient

from apex_pipelines.platform.clock import Clock
from apex_pipelines.stripe.landing import FetchedObject, UnreadableStripeObject, fetched_object
from apex_pipelines.stripe.object_types import ObjectType

PAGE = 100  # the most that Stripe gives at once
_MISSING = "resource_missing"
# What asking again may cure; the client has tried three times by then.
TRANSIENT = (stripe.APIConnectionError, stripe.RateLimitError, stripe.APIError)


class ObjectGone(LookupError):
    """Stripe does not know the object (any more)."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a list, newest first, has been read: the last object, and when Stripe created it."""

    object_id: str
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list; `start` and `end` are its first and last object, None for an empty one."""

    objects: tuple[FetchedObject, ...]
    start: Position | None
    end: Position | None
    has_more: bool


class _List(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool = False
    url: str = ""


class _Created(msgspec.Struct):
    created: int | None = None


def _position(fetched: FetchedObject) -> Position:
    seconds = msgspec.json.decode(fetched.payload, type=_Created).created
    return Position(fetched.id, None if seconds is None else datetime.fromtimestamp(seconds, UTC))


class Reader:
    """Reads from one account in one mode; may be used by many threads.

    Parameters
    ----------
    client : StripeClient
        As `client.connect` gives it.
    clock : Clock
        For the time at which something was asked for.
    livemode : bool
        Mode of the client's key.
    """

    def __init__(self, client: StripeClient, clock: Clock, *, livemode: bool) -> None:
        self._client = client
        self.clock = clock
        self.livemode = livemode

    def one(self, kind: ObjectType, object_id: str, *, parent: str | None = None) -> FetchedObject:
        """The object as it is now; of a deleted one what Stripe tells of it.

        Raises
        ------
        ObjectGone
            If Stripe does not know it.
        UnreadableStripeObject
            If what came is no object of the key's mode.
        stripe.StripeError
            If Stripe refuses, or can't be reached.
        """
        asked_at = self.clock.now()
        try:
            body = self._get(kind.path_of(object_id, parent), {})
        except stripe.InvalidRequestError as error:
            if error.code == _MISSING:
                raise ObjectGone(f"Stripe knows no {kind.name} {object_id!r}") from error
            raise
        return fetched_object(body, fetched_at=asked_at, livemode=self.livemode)

    def page(self, path: str, parameters: Mapping[str, Any]) -> Page:
        """One page of a list, of at most 100 objects."""
        asked_at = self.clock.now()
        body = self._get(path, {"limit": PAGE, **parameters})
        return self._page(msgspec.json.decode(body, type=_List), asked_at)

    def pages(
        self,
        path: str,
        parameters: Mapping[str, Any],
        *,
        after: Position | None = None,
        has_created_filter: bool = False,
    ) -> Iterator[Page]:
        """A list from its front, or from behind `after`, to its end.

        What is created meanwhile stands in front of what is read, and is not seen. When the object behind
        which to go on is deleted meanwhile, what was created no later than it comes next, which may repeat
        some; a list that can't be asked for that begins again.
        """
        asked: dict[str, Any] = dict(parameters)
        if after is not None:
            asked["starting_after"] = after.object_id
        while True:
            try:
                page = self.page(path, asked)
            except stripe.InvalidRequestError as error:
                if after is None or error.code != _MISSING or error.param != "starting_after":
                    raise
                del asked["starting_after"]
                if has_created_filter and after.created_at is not None:
                    asked["created"] = {**asked.get("created", {}), "lte": int(after.created_at.timestamp())}
                after = None
                continue
            yield page
            if not page.has_more or page.end is None:
                return
            after = page.end
            asked["starting_after"] = after.object_id

    def whole(self, kind: ObjectType, fetched: FetchedObject) -> list[FetchedObject]:
        """All of the nested list of an object in which Stripe cut it short; nothing when it did not."""
        if not kind.nested or fetched.deleted:
            return []
        fields = msgspec.json.decode(fetched.payload, type=dict[str, msgspec.Raw])
        try:
            nested = msgspec.json.decode(fields[kind.nested], type=_List)
        except (KeyError, msgspec.ValidationError) as error:
            raise UnreadableStripeObject(f"{kind.name} {fetched.id}: {kind.nested} is no list") from error
        if not nested.has_more:
            return []
        url = urlsplit(nested.url)
        shown = self._page(nested, fetched.fetched_at)
        pages = self.pages(url.path, dict(parse_qsl(url.query)), after=shown.end)
        return [*shown.objects, *(one for page in pages for one in page.objects)]

    def document(self, path: str) -> bytes:
        """What Stripe answers at `path`; of API v2 too."""
        return self._get(path, {})

    def _page(self, found: _List, asked_at: datetime) -> Page:
        objects = tuple(
            fetched_object(bytes(raw), fetched_at=asked_at, livemode=self.livemode) for raw in found.data
        )
        if not objects:
            return Page((), None, None, found.has_more)
        return Page(objects, _position(objects[0]), _position(objects[-1]), found.has_more)

    def _get(self, path: str, parameters: Mapping[str, Any]) -> bytes:
        # The typed methods would parse the JSON and lose how it was written.
        answer = self._client.raw_request("get", path, **parameters)
        body: str = answer.body
        return body.encode()
