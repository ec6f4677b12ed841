"""Customers and their keys."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from apex_pipelines.customers.keys import (
    ApiKeyError,
    KeyNotFound,
    hash_key,
    issue_key,
    issue_keys,
    list_keys,
    revoke_key,
    revoke_keys_labelled,
    rotate_key,
)
from apex_pipelines.customers.models import KeyScope
from apex_pipelines.customers.store import (
    CustomerError,
    CustomerNotFound,
    NewCustomer,
    create_customer,
    create_customers,
    customer_id_for,
    get_customer,
    list_customers,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ADA = NewCustomer(name="Ada", email="ada@example.com")


def test_a_customer_of_a_source_is_created_once_and_keeps_the_first_data(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        imported = NewCustomer(
            name="Buyer 1", email="b1@x.invalid", source="import:cdnow", external_ref="00001"
        )
        first = create_customer(connection, imported, NOW)
        renamed = NewCustomer(name="Other", email="o@x.invalid", source="import:cdnow", external_ref="00001")
        assert create_customer(connection, renamed, NOW + timedelta(days=1)) == first
        row = get_customer(connection, first)
    assert re.fullmatch(r"cus_[0-9a-f]{32}", first)
    assert first == customer_id_for("import:cdnow", "00001")
    assert (row["name"], row["created_at"]) == ("Buyer 1", NOW)


def test_ids_of_different_sources_and_references_never_meet() -> None:
    pairs = [("a", "b:c"), ("a:b", "c"), ("a", "c"), ("b", "c"), ("1:a", "x"), ("a", ":x")]
    assert len({customer_id_for(*pair) for pair in pairs}) == len(pairs)


def test_sign_ups_without_reference_are_always_new(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        ids = create_customers(connection, [ADA, ADA], NOW)
        assert len(set(ids)) == 2
        assert {row["id"] for row in list_customers(connection, source="signup")} == set(ids)


def test_thousands_are_created_in_order_and_again_without_change(engine: sa.Engine) -> None:
    many = [NewCustomer(f"C{n}", f"c{n}@x.invalid", "import:x", str(n)) for n in range(2_500)]
    with engine.begin() as connection:
        ids = create_customers(connection, many, NOW)
        assert create_customers(connection, many, NOW) == ids
        assert connection.scalar(sa.text("select count(*) from customers")) == 2_500
    assert ids[1_700] == customer_id_for("import:x", "1700")


@pytest.mark.parametrize(
    ("customer", "message"),
    [
        (NewCustomer(" ", "a@example.com"), "needs a name"),
        (NewCustomer("A", "nobody"), "'nobody' is no e-mail address"),
        (NewCustomer("A", "a b@example.com"), "is no e-mail address"),
        (NewCustomer("A", "a@example.com", source=""), "needs a source"),
        (NewCustomer("A", "a@example.com", company_size=-1), "company_size.*-1"),
        (NewCustomer("A", "a@example.com", created_at=datetime(2026, 1, 1)), "time zone"),  # noqa: DTZ001
    ],
)
def test_what_can_not_be_right_is_refused_and_nothing_is_written(
    engine: sa.Engine, customer: NewCustomer, message: str
) -> None:
    with engine.begin() as connection:
        with pytest.raises(CustomerError, match=message):
            create_customers(connection, [ADA, customer], NOW)
        assert list_customers(connection) == []


def test_an_unknown_customer_says_where_to_look(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        with pytest.raises(CustomerNotFound, match=r"no customer 'cus_x'.*apex customer list"):
            get_customer(connection, "cus_x")
        with pytest.raises(CustomerNotFound, match="cus_x"):
            issue_key(connection, "cus_x", NOW)


def test_a_key_is_shown_once_and_stored_only_as_a_hash(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        customer = create_customer(connection, ADA, NOW)
        key = issue_key(connection, customer, NOW)
        row = connection.execute(sa.text("select * from api_keys")).mappings().one()
    assert re.fullmatch(r"apx_live_[A-Za-z0-9_-]{43}", key.plaintext)
    assert (row["prefix"], bytes(row["key_hash"])) == (key.plaintext[:12], hash_key(key.plaintext))
    assert key.plaintext not in str(dict(row))
    assert key.plaintext not in repr(key)


def test_revoking_is_kept_at_its_first_time(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        key = issue_key(connection, create_customer(connection, ADA, NOW), NOW)
        revoke_key(connection, key.id, NOW)
        revoke_key(connection, key.id, NOW + timedelta(days=1))
        assert list_keys(connection, key.customer_id)[0]["revoked_at"] == NOW
        with pytest.raises(KeyNotFound, match="key_x"):
            revoke_key(connection, "key_x", NOW)


def test_rotating_keeps_scopes_and_can_leave_the_old_key_some_time(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        customer = create_customer(connection, ADA, NOW)
        old = issue_key(connection, customer, NOW, label="app", scopes=(KeyScope.HISTORICAL,))
        new = rotate_key(connection, old.id, NOW, overlap=timedelta(days=7))
        rows = {row["id"]: row for row in list_keys(connection, customer)}
        assert new.plaintext != old.plaintext
        assert (rows[new.id]["label"], rows[new.id]["scopes"]) == ("app", ["historical"])
        assert (rows[old.id]["expires_at"], rows[old.id]["revoked_at"]) == (NOW + timedelta(days=7), None)
        newest = rotate_key(connection, new.id, NOW)
        assert {row["id"]: row for row in list_keys(connection)}[new.id]["revoked_at"] == NOW
        with pytest.raises(ApiKeyError, match="no longer works"):
            rotate_key(connection, new.id, NOW)
        assert rotate_key(connection, newest.id, NOW).customer_id == customer


def test_keys_of_a_run_are_ended_together(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        customers = create_customers(connection, [ADA, ADA], NOW)
        own = issue_key(connection, customers[0], NOW)
        assert len(issue_keys(connection, customers, NOW, label="import 1")) == 2
        assert revoke_keys_labelled(connection, "import 1", NOW) == 2
        assert revoke_keys_labelled(connection, "import 1", NOW) == 0
        assert [row["id"] for row in list_keys(connection) if row["revoked_at"] is None] == [own.id]


def test_a_key_without_scope_or_already_expired_is_refused(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        customer = create_customer(connection, ADA, NOW)
        with pytest.raises(ApiKeyError, match="at least one scope of ingest, historical"):
            issue_key(connection, customer, NOW, scopes=())
        with pytest.raises(ApiKeyError, match="not after now"):
            issue_key(connection, customer, NOW, expires_at=NOW)
