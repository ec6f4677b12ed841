"""Objects that changed, fetched again, landed and mirrored: the state that Stripe gives now counts.

Belongs here: the three steps for a batch of objects. Does not belong here: how it is known that they changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import msgspec
import sqlalchemy as sa
import stripe
from clickhouse_connect.driver.client import Client

from apex_pipelines.stripe.client import API_VERSION
from apex_pipelines.stripe.landing import FetchedObject, UnreadableStripeObject, deleted_object, land
from apex_pipelines.stripe.mirror import Key, Mirror
from apex_pipelines.stripe.nested_lists import with_nested
from apex_pipelines.stripe.object_types import OBJECT_TYPES
from apex_pipelines.stripe.reading import TRANSIENT, ObjectGone, Reader


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an object could not be taken in; asking again later may help when it `is_transient`."""

    message: str
    is_transient: bool


class Changes:
    """Takes in what changed at one account; may be used by several processes at once.

    Parameters
    ----------
    concurrency : int
        Requests to Stripe under way at once.
    """

    def __init__(self, engine: sa.Engine, client: Client, reader: Reader, *, concurrency: int) -> None:
        self._client = client
        self._reader = reader
        self._mirror = Mirror(engine, reader)
        self._concurrency = concurrency

    def take_in(self, changed: Mapping[Key, datetime | None]) -> dict[Key, Failure]:
        """Bring these objects, each fetched once; failures by object, all others are in both stores.

        Parameters
        ----------
        changed : mapping of (type, id) to datetime or None
            When what holds of the object changed, where that is known.

        Raises
        ------
        stripe.AuthenticationError
            If the key is not valid (any more).
        """
        failures: dict[Key, Failure] = {}
        fetched: list[FetchedObject] = []
        with ThreadPoolExecutor(self._concurrency) as pool:
            for key, found in zip(changed, pool.map(self._fetched, changed), strict=True):
                if isinstance(found, Failure):
                    failures[key] = found
                else:
                    fetched += found
        land(self._client, fetched, api_version=API_VERSION, livemode=self._reader.livemode)
        dates = {key: at for key, at in changed.items() if at is not None}
        try:
            problems = self._mirror.apply(fetched, dates)
        except TRANSIENT as error:
            # All that is mirrored already may be mirrored again.
            return {key: Failure(f"Stripe: {error}", is_transient=True) for key in changed} | failures
        return failures | {key: Failure(problem, is_transient=False) for key, problem in problems.items()}

    def _fetched(self, key: Key) -> list[FetchedObject] | Failure:
        """The object and what belongs to it, or why not."""
        kind = OBJECT_TYPES[key[0]]
        asked_at = self._reader.clock.now()
        try:
            found = self._reader.one(kind, key[1])
            if found.deleted:
                return [found]
            return [*with_nested(self._client, self._reader, kind, [found]), *self._belonging(found)]
        except ObjectGone as error:
            if kind.can_vanish:
                return [deleted_object(kind.name, key[1], asked_at)]
            return Failure(f"{error}; is the key of another account?", is_transient=False)
        except stripe.AuthenticationError:
            raise
        except TRANSIENT as error:
            return Failure(f"Stripe: {error}", is_transient=True)
        except (stripe.StripeError, UnreadableStripeObject, msgspec.MsgspecError) as error:
            return Failure(f"Stripe: {error}", is_transient=False)

    def _belonging(self, found: FetchedObject) -> list[FetchedObject]:
        """What changes with the object and has no event of its own, or one that nobody may have asked for."""
        told = msgspec.json.decode(found.payload, type=_Money)
        if found.object == "customer" and told.balance is not None:
            path, asked = OBJECT_TYPES["customer_balance_transaction"].path.format(parent=found.id), {}
        elif found.object == "charge" and told.amount_refunded:
            path, asked = OBJECT_TYPES["refund"].path, {"charge": found.id}
        else:
            return []
        return [one for page in self._reader.pages(path, asked) for one in page.objects]


class _Money(msgspec.Struct):
    balance: int | None = None  # of a customer
    amount_refunded: int | None = None  # of a charge
