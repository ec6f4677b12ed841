"""A whole account through the commands and through Dagster, and what of it may stand nowhere."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from clickhouse_connect.driver.client import Client

from apex_pipelines.cli import apex, main
from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.stripe.assets import KINDS, stripe_objects, stripe_objects_read, webhooks_taken_in
from apex_pipelines.defs.stripe.keys import NO_KEY
from apex_pipelines.defs.stripe.schedules import stripe_sweep_hourly
from apex_pipelines.defs.stripe.sensors import stripe_webhook_sensor
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.object_types import OBJECT_TYPES
from tests.stripe.reading import START, StripeWorld

MONTH_AND_MORE = timedelta(days=46)
# What a card or a key looks like: 13 to 19 digits that are no time, and secrets of Stripe.
FORBIDDEN = re.compile(r"\b[3-6]\d{12,18}\b|\b(?:sk_|rk_|whsec_)\w{12,}|\"cvc\"\s*:\s*\"\d")


def a_customers_life(world: StripeWorld) -> None:
    """A trial, two invoices, a refund, a dispute, a credit, a coupon and a detached card."""
    who = world.subscribed()
    stripe = world.stripe.v1
    world.pay_by(who, "pm_card_visa")
    stripe.coupons.create({"percent_off": 10, "duration": "once"})
    stripe.customers.balance_transactions.create(who.stripe_customer_id, {"amount": -500, "currency": "usd"})
    stripe.billing.credit_grants.create(
        {
            "customer": who.stripe_customer_id,
            "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 700}},
            "applicability_config": {"scope": {"price_type": "metered"}},
        }
    )
    world.until(START + timedelta(days=15))
    [charge] = stripe.charges.list({"customer": who.stripe_customer_id}).data
    stripe.refunds.create({"charge": charge.id, "amount": 100})
    old = stripe.customers.payment_methods.list(who.stripe_customer_id).data[0].id
    world.pay_by(who, "pm_card_mastercard")
    stripe.payment_methods.detach(old)
    world.until(START + MONTH_AND_MORE)


def everything_texts(world: StripeWorld) -> str:
    """All text columns of both stores."""
    texts = []
    with world.engine.connect() as connection:
        tables = connection.scalars(
            sa.text("select table_name from information_schema.tables where table_schema = 'public'")
        ).all()
        for table in tables:
            texts += [str(row) for row in connection.execute(sa.text(f'select t::text from "{table}" t'))]
    texts += [
        row[0] for row in world.account.client.query("select payload from raw.stripe_objects").result_rows
    ]
    return "\n".join(texts)


def test_a_whole_account_by_the_commands(
    world: StripeWorld, settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    a_customers_life(world)
    settings.clock = world.clock.now().isoformat()
    for name in settings.model_fields_set:
        if getattr(settings, name) is not None:
            monkeypatch.setenv(f"APEX_{name.upper()}", str(getattr(settings, name)))

    def run(*arguments: str) -> list[dict[str, object]]:
        done = CliRunner().invoke(apex, ["stripe", *arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        rows: list[dict[str, object]] = json.loads(done.stdout)
        return rows

    counts = {row["type"]: row["objects"] for row in run("backfill")}
    assert set(counts) == set(OBJECT_TYPES)
    empty = {name for name, count in counts.items() if not count}
    assert empty <= {"dispute"}
    assert run("backfill") == []
    [swept] = run("sweep")
    assert swept["failed"] == swept["retrying"] == 0
    assert run("inbox") == []
    for name, kind in OBJECT_TYPES.items():
        if not kind.is_per_customer:
            assert {key: body for key, body in world.landed(name).items() if body} == world.at_stripe(name)
    assert len(world.rows("select 1 from payments where status = 'succeeded'")) == 2
    out, err = capfd.readouterr()
    for place in (everything_texts(world), out, err):
        found = FORBIDDEN.search(place)
        assert found is None, f"{place[max(found.start() - 60, 0) : found.end()]!r}"


def materialize(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    """The assets of Stripe in one run; metadata by asset."""
    for name in settings.model_fields_set:
        if getattr(settings, name) is not None:
            monkeypatch.setenv(f"APEX_{name.upper()}", str(getattr(settings, name)))
    done = dg.materialize(
        [stripe_objects_read, webhooks_taken_in, stripe_objects], resources={"stores": Stores()}
    )
    assert done.success
    return {
        event.asset_key.to_user_string(): {
            key: value.value for key, value in event.materialization.metadata.items()
        }
        for event in done.get_asset_materialization_events()
    }


def test_without_a_key_every_asset_says_so_and_nothing_fails(
    settings: Settings, engine: sa.Engine, warehouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = materialize(settings, monkeypatch)
    for key in [*KINDS, webhooks_taken_in.key]:
        assert told[key.to_user_string()] == NO_KEY
    assert told["raw/stripe_objects"]["dagster/row_count"] == 0
    context = dg.build_schedule_context(resources={"stores": Stores()})
    assert isinstance(stripe_sweep_hourly(context), dg.SkipReason)


def test_assets_read_whole_once_then_what_changed_and_the_sensor_sees_what_waits(
    world: StripeWorld, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.stripe.v1.customers.create({"name": "Ada"})
    first = materialize(settings, monkeypatch)["stripe/customers"]
    assert first["read"] == "whole"
    world.stripe.v1.customers.create({"name": "Grace"})
    second = materialize(settings, monkeypatch)["stripe/customers"]
    assert (second["read"], second["events_that_no_webhook_brought"]) == ("what changed", 1)
    assert len(world.landed("customer")) == 2

    def look() -> dg.RunRequest | dg.SkipReason:
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance=instance, resources={"stores": Stores()})
            found = stripe_webhook_sensor(context)
        assert isinstance(found, dg.RunRequest | dg.SkipReason)
        return found

    assert isinstance(look(), dg.SkipReason)
    with world.engine.begin() as connection:
        connection.execute(
            sa.text("update webhook_inbox set processed_at = null, outcome = null where provider = 'stripe'")
        )
    assert isinstance(look(), dg.RunRequest)


def test_what_stripe_refuses_is_one_line_for_people_and_holds_no_key(
    world: StripeWorld, settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings.stripe_secret_key = "sk_test_" + "another0account0"
    for name in settings.model_fields_set:
        if getattr(settings, name) is not None:
            monkeypatch.setenv(f"APEX_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setattr("sys.argv", ["apex", "stripe", "backfill"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capfd.readouterr()
    assert "Error: " in err
    assert "Traceback" not in err
    assert settings.stripe_secret_key not in out + err
