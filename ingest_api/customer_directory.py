"""Whether a customer exists, for events in which the operator names one.

Belongs here: the question and its memory. Does not belong here: the connection (`database`).
"""

from __future__ import annotations

import time
from collections import OrderedDict

from ingest_api.database import Connection, DatabaseThread

_FRESH_SECONDS = 60.0
_MAX_KNOWN = 100_000


class CustomerDirectory:
    """Customers that exist are remembered for a minute; that one is missing never is, as it may sign up."""

    def __init__(self, database: DatabaseThread) -> None:
        self._database = database
        self._known: OrderedDict[str, float] = OrderedDict()

    async def has(self, customer_id: str) -> bool:
        """Whether there is such a customer.

        Raises
        ------
        DatabaseAway
            If only PostgreSQL could tell, and it does not answer.
        """
        if not customer_id.isprintable():
            return False  # PostgreSQL would refuse the question itself because of a NUL
        seen = self._known.get(customer_id)
        if seen is not None and time.monotonic() - seen < _FRESH_SECONDS:
            return True

        def ask(connection: Connection) -> bool:
            found = connection.execute("select 1 from customers where id = %s", (customer_id,))
            return found.fetchone() is not None

        if not await self._database.run(ask):
            return False
        self._known[customer_id] = time.monotonic()
        self._known.move_to_end(customer_id)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return True
