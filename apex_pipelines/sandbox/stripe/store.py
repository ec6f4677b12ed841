"""Where the stand-in keeps what it was told: one SQLite file, which a killed process leaves whole.

Belongs here: tables, and reading and writing of objects in them. Does not belong here: what objects mean.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

Object = dict[str, Any]

# Fields by which lists are asked for, by type; each gets an index in the order of lists.
FILTERS: Mapping[str, Mapping[str, str]] = {
    "billing.credit_grant": {"customer": "$.customer"},
    "billing.meter": {"event_name": "$.event_name", "status": "$.status"},
    "charge": {"customer": "$.customer", "payment_intent": "$.payment_intent"},
    "customer": {"email": "$.email", "test_clock": "$.test_clock"},
    "customer_balance_transaction": {"customer": "$.customer"},
    "dispute": {"charge": "$.charge", "payment_intent": "$.payment_intent"},
    "event": {"type": "$.type"},
    "invoice": {
        "collection_method": "$.collection_method",
        "customer": "$.customer",
        "status": "$.status",
        "subscription": "$.parent.subscription_details.subscription",
    },
    "invoice_payment": {
        "invoice": "$.invoice",
        "payment": "$.payment.payment_intent",
        "status": "$.status",
    },
    "invoiceitem": {"customer": "$.customer", "invoice": "$.invoice"},
    "line_item": {"invoice": "$.invoice"},
    "payment_intent": {"customer": "$.customer"},
    "payment_method": {"customer": "$.customer"},
    "price": {
        "active": "$.active",
        "currency": "$.currency",
        "lookup_key": "$.lookup_key",
        "product": "$.product",
        "recurring_interval": "$.recurring.interval",
        "recurring_meter": "$.recurring.meter",
        "recurring_usage_type": "$.recurring.usage_type",
        "type": "$.type",
    },
    "product": {"active": "$.active"},
    "refund": {"charge": "$.charge", "payment_intent": "$.payment_intent"},
    "subscription": {
        "customer": "$.customer",
        "id": "$.id",
        "status": "$.status",
        "test_clock": "$.test_clock",
    },
    "subscription_item": {"subscription": "$.subscription", "price": "$.price"},
}

_TABLES = """
create table if not exists objects (
    seq integer primary key autoincrement,
    type text not null,
    id text not null,
    created integer not null,
    deleted integer not null default 0,
    body text not null,
    hidden text,
    unique (type, id)
);
create index if not exists objects_newest on objects (type, created, seq) where deleted = 0;
create table if not exists meter_events (
    seq integer primary key autoincrement,
    identifier text not null,
    event_name text not null,
    customer text,
    value integer,
    timestamp integer not null,
    created integer not null,
    idempotency_key text,
    state text not null
);
create index if not exists meter_events_identifier on meter_events (identifier, created);
create index if not exists meter_events_counted on meter_events (event_name, customer, timestamp)
    where state = 'counted';
create index if not exists meter_events_waiting on meter_events (seq) where state = 'accepted';
create table if not exists due (
    kind text not null,
    object_id text not null,
    at integer not null,
    test_clock text,
    primary key (kind, object_id)
);
create index if not exists due_next on due (test_clock, at, kind, object_id);
create table if not exists idempotency (
    key text primary key,
    request text not null,
    status integer not null,
    body blob not null,
    created integer not null
);
create table if not exists handled (route text primary key, times integer not null);
create table if not exists deliveries (
    seq integer primary key autoincrement,
    event_id text not null,
    endpoint_id text not null,
    attempts integer not null default 0,
    next_attempt real not null,
    state text not null default 'waiting',
    status integer
);
create index if not exists deliveries_waiting on deliveries (next_attempt, seq) where state = 'waiting';
create table if not exists settings (name text primary key, value text not null);
"""


class Store:
    """Objects and the stand-in's own books.

    Not for several threads: the server does one thing after the other.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(folder / "stripe.sqlite", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        # A write that was committed outlives the process; only power failure could take the last ones.
        self.connection.execute("pragma journal_mode = wal")
        self.connection.execute("pragma synchronous = off")
        self.connection.executescript(_TABLES)
        for object_type, fields in FILTERS.items():
            for name, path in fields.items():
                self.connection.execute(
                    f'create index if not exists "objects_{object_type}_{name}" on objects '
                    f"(json_extract(body, '{path}'), created, seq) "
                    f"where type = '{object_type}' and deleted = 0"
                )

    def close(self) -> None:
        self.connection.close()

    def clear(self) -> None:
        """Forget everything."""
        for table in ("objects", "meter_events", "due", "idempotency", "handled", "deliveries", "settings"):
            self.connection.execute(f"delete from {table}")  # noqa: S608

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        self.connection.execute("begin immediate")
        try:
            yield
        except BaseException:
            self.connection.execute("rollback")
            raise
        self.connection.execute("commit")

    def put(self, body: Object, hidden: Object | None = None) -> None:
        """Write an object, new or changed; `hidden` is what the stand-in knows of it and does not show."""
        self.connection.execute(
            "insert into objects (type, id, created, deleted, body, hidden) values (?, ?, ?, ?, ?, ?) "
            "on conflict (type, id) do update set body = excluded.body, deleted = excluded.deleted, "
            "hidden = coalesce(excluded.hidden, hidden)",
            (
                body["object"],
                body["id"],
                _created(body),
                bool(body.get("deleted")),
                msgspec.json.encode(body).decode(),
                None if hidden is None else msgspec.json.encode(hidden).decode(),
            ),
        )

    def put_many(self, bodies: Iterable[Object]) -> int:
        """Write many objects; returns how many."""
        number = 0
        for number, body in enumerate(bodies, 1):  # noqa: B007
            self.put(body)
        return number

    def get(self, object_type: str, object_id: str) -> Object | None:
        """An object, deleted ones too; None when there never was one."""
        row = self.connection.execute(
            "select body from objects where type = ? and id = ?", (object_type, object_id)
        ).fetchone()
        return None if row is None else msgspec.json.decode(row["body"])

    def hidden(self, object_type: str, object_id: str) -> Object:
        row = self.connection.execute(
            "select hidden from objects where type = ? and id = ?", (object_type, object_id)
        ).fetchone()
        return {} if row is None or row["hidden"] is None else msgspec.json.decode(row["hidden"])

    def remove(self, object_type: str, object_id: str) -> None:
        """Forget an object without a trace, as Stripe does with a draft's lines."""
        self.connection.execute("delete from objects where type = ? and id = ?", (object_type, object_id))

    def bodies(
        self,
        object_type: str,
        where: Mapping[str, Any],
        *,
        limit: int,
        conditions: Iterable[tuple[str, Any]] = (),
        after: str | None = None,
        newest_first: bool = True,
    ) -> list[str]:
        """JSON of objects in the order of lists, which an index gives, whatever page it is.

        Parameters
        ----------
        where : mapping
            Fields of `FILTERS` and their values; a collection matches any of its values.
        conditions : iterable of (str, object)
            Comparisons of columns, such as ``("created >=", 5)``.
        after : str
            Id of the object that the first one follows; nothing follows an unknown one.
        """
        clauses = [f"type = '{object_type}'", "deleted = 0"]
        values: list[Any] = []
        for name, value in where.items():
            path = f"json_extract(body, '{FILTERS[object_type][name]}')"
            if isinstance(value, (list, tuple, set)):
                clauses.append(f"{path} in ({', '.join('?' * len(value))})")
                values.extend(value)
            else:
                clauses.append(f"{path} is ?" if value is None else f"{path} = ?")
                values.append(value)
        for comparison, value in conditions:
            clauses.append(f"{comparison} ?")
            values.append(value)
        direction = "desc" if newest_first else "asc"
        if after is not None:
            place = f"select created, seq from objects where type = '{object_type}' and id = ?"  # noqa: S608
            clauses.append(f"(created, seq) {'<' if newest_first else '>'} ({place})")
            values.append(after)
        # Only names and paths of this module are put into the text.
        rows = self.connection.execute(
            f"select body from objects where {' and '.join(clauses)} "  # noqa: S608
            f"order by created {direction}, seq {direction} limit {limit:d}",
            values,
        )
        return [row["body"] for row in rows]

    def every(self, object_type: str, **where: Any) -> list[Object]:
        """All objects with these fields, oldest first."""
        return [
            msgspec.json.decode(body)
            for body in self.bodies(object_type, where, limit=1_000_000, newest_first=False)
        ]

    def setting(self, name: str) -> Any:
        row = self.connection.execute("select value from settings where name = ?", (name,)).fetchone()
        return None if row is None else msgspec.json.decode(row["value"])

    def set_setting(self, name: str, value: Any) -> None:
        self.connection.execute(
            "insert into settings values (?, ?) on conflict (name) do update set value = excluded.value",
            (name, msgspec.json.encode(value).decode()),
        )


def _created(body: Object) -> int:
    """When an object was made; lines of invoices don't say it, and events of /v2 say it as text."""
    created = body.get("created", body.get("date", 0))
    return created if isinstance(created, int) else 0
