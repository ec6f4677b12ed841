"""`apex customer ...` and `apex keys ...`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
import sqlalchemy as sa

from apex_pipelines.billing.store import NewSubscription, subscribe
from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.customers import keys as api_keys
from apex_pipelines.customers import store
from apex_pipelines.customers.models import KeyScope
from apex_pipelines.customers.tokens import issue_token, token_secret
from apex_pipelines.platform import postgres
from apex_pipelines.platform.catalogue import plans
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings

KEY_COLUMNS = ["id", "customer_id", "label", "prefix", "scopes", "created_at", "expires_at", "revoked_at"]


def _engine(settings: Settings) -> sa.Engine:
    return postgres.create_engine(settings, poolclass=sa.NullPool)


def _shown(row: sa.RowMapping) -> dict[str, Any]:
    return {
        key: value.isoformat(" ", "seconds") if hasattr(value, "isoformat") else value
        for key, value in row.items()
    }


def _push(settings: Settings, customer_id: str) -> str:
    """What became of the customer at Stripe; the customer is ours already, whatever Stripe says."""
    import stripe  # takes a second, and only this command wants it

    from apex_pipelines.stripe.accounts import NotBootstrapped, push
    from apex_pipelines.stripe.client import StripeSettingsError, connect, is_live

    engine = _engine(settings)
    try:
        [pushed] = push(
            connect(settings), engine, clock_from_setting(settings.clock).now(),
            livemode=is_live(settings), customer_id=customer_id,
        )  # fmt: skip
    except (stripe.StripeError, NotBootstrapped, StripeSettingsError) as error:
        return f"not yet: {error}; `apex stripe push` tries again"
    if pushed.error:
        return f"not yet: {pushed.error}; `apex stripe push` tries again"
    return f"customer {pushed.stripe_customer_id}, subscription {pushed.stripe_subscription_id}"


@click.group()
def customer() -> None:
    """Customers: create, list, show."""


@customer.command(
    "create", epilog="\b\nExample:\n  apex customer create 'Pixel Games' dev@pixel.example --plan indie\n"
)
@click.argument("name")
@click.argument("email")
@click.option("--plan", default="starter", show_default=True, help="Plan of the trial that starts now.")
@click.pass_obj
def create(settings: Settings, name: str, email: str, plan: str) -> None:
    """Create a customer with a trial subscription and an API key, which is shown this once.

    With STRIPE_SECRET_KEY set they are made known to Stripe at once; if that fails, the next push does it.
    """
    if plan not in plans():
        raise click.BadParameter(f"{plan!r} is none of {', '.join(plans())}", param_hint="--plan")
    now = clock_from_setting(settings.clock).now()
    with _engine(settings).begin() as connection:
        customer_id = store.create_customer(connection, store.NewCustomer(name=name, email=email), now)
        subscribe(connection, NewSubscription(customer_id, plan, now, trial=True), now)
        key = api_keys.issue_key(connection, customer_id, now)
    out.print(f"customer {customer_id}")
    out.print(f"API key  {key.plaintext}  (shown once; only its hash is kept)", soft_wrap=True)
    if settings.stripe_secret_key is not None:
        out.print(f"Stripe   {_push(settings, customer_id)}", soft_wrap=True)


@customer.command("list", epilog="\b\nExample:\n  apex customer list --limit 20\n")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@json_option
@click.pass_obj
def list_customers(settings: Settings, limit: int, as_json: bool) -> None:
    """List customers, newest first."""
    with _engine(settings).connect() as connection:
        rows = [_shown(row) for row in store.list_customers(connection, limit=limit)]
    show(rows, ["id", "name", "email", "source", "created_at"], as_json=as_json, title="Customers")


@customer.command("show", epilog="\b\nExample:\n  apex customer show cus_0123456789abcdef0123456789abcdef\n")
@click.argument("customer_id")
@json_option
@click.pass_obj
def show_customer(settings: Settings, customer_id: str, as_json: bool) -> None:
    """Show one customer with subscriptions and keys."""
    with _engine(settings).connect() as connection:
        rows = [_shown(store.get_customer(connection, customer_id))]
        subscriptions = connection.execute(
            sa.text("select * from subscriptions where customer_id = :id order by started_at"),
            {"id": customer_id},
        ).mappings()
        held = [_shown(row) for row in subscriptions]
        keys_held = [_shown(row) for row in api_keys.list_keys(connection, customer_id)]
    if as_json:
        show([rows[0] | {"subscriptions": held, "keys": keys_held}], [], as_json=True)
        return
    show(
        [{"field": key, "value": value} for key, value in rows[0].items()], ["field", "value"], as_json=False
    )
    columns = ["plan_type", "status", "current_period_start", "current_period_end", "cancelled_at"]
    show(held, columns, as_json=False, title="Subscriptions")
    show(keys_held, [name for name in KEY_COLUMNS if name != "customer_id"], as_json=False, title="API keys")


@customer.command(
    "token", epilog="\b\nExample:\n  apex customer token cus_0123456789abcdef0123456789abcdef --minutes 60\n"
)
@click.argument("customer_id")
@click.option("--minutes", type=click.IntRange(1, 1_440), default=60, show_default=True,
              help="How long it is valid.")  # fmt: skip
@click.pass_obj
def token(settings: Settings, customer_id: str, minutes: int) -> None:
    """Print a token that reads this customer's usage through the API."""
    with _engine(settings).connect() as connection:
        store.get_customer(connection, customer_id)
    now = clock_from_setting(settings.clock).now()
    out.print(
        issue_token(token_secret(settings), customer_id, now, timedelta(minutes=minutes)), soft_wrap=True
    )


@click.group()
def keys() -> None:
    """API keys: issue, list, rotate, revoke."""


@keys.command(
    "issue",
    epilog="\b\nExamples:\n  apex keys issue cus_0123456789abcdef0123456789abcdef --label ios"
    "\n  apex keys issue --operator --label console\n",
)
@click.argument("customer_id", required=False)
@click.option("--operator", is_flag=True, help="A key of yours, for life events of any customer.")
@click.option("--label", help="Name to tell keys apart.  [default: default, or operator]")
@click.option("--historical", is_flag=True, help="Also accept events older than 35 days (for imports).")
@click.pass_obj
def issue(
    settings: Settings, customer_id: str | None, operator: bool, label: str | None, historical: bool
) -> None:
    """Issue a key to a customer, or to the operator; it is shown this once."""
    if operator == (customer_id is not None):
        raise click.UsageError("give either a CUSTOMER_ID or --operator")
    scopes = [KeyScope.INGEST, *([KeyScope.HISTORICAL] if historical else [])]
    with _engine(settings).begin() as connection:
        now = clock_from_setting(settings.clock).now()
        if customer_id is None:
            key = api_keys.issue_operator_key(
                connection, now, label=label or "operator", historical=historical
            )
        else:
            key = api_keys.issue_key(connection, customer_id, now, label=label or "default", scopes=scopes)
    out.print(f"{key.id}  {key.plaintext}  (shown once; only its hash is kept)", soft_wrap=True)


@keys.command(
    "list", epilog="\b\nExample:\n  apex keys list --customer cus_0123456789abcdef0123456789abcdef\n"
)
@click.option("--customer", "customer_id", help="Only this customer's keys.")
@json_option
@click.pass_obj
def list_keys(settings: Settings, customer_id: str | None, as_json: bool) -> None:
    """List keys by what people may see of them."""
    with _engine(settings).connect() as connection:
        rows = [_shown(row) for row in api_keys.list_keys(connection, customer_id)]
    show(rows, KEY_COLUMNS, as_json=as_json, title="API keys")


@keys.command("rotate", epilog="\b\nExample:\n  apex keys rotate key_0123 --overlap-hours 72\n")
@click.argument("key_id")
@click.option("--overlap-hours", type=click.FloatRange(0), default=0.0, show_default=True,
              help="How long the old key still works.")  # fmt: skip
@click.pass_obj
def rotate(settings: Settings, key_id: str, overlap_hours: float) -> None:
    """Issue a twin of a key and end the old one."""
    with _engine(settings).begin() as connection:
        now = clock_from_setting(settings.clock).now()
        key = api_keys.rotate_key(connection, key_id, now, overlap=timedelta(hours=overlap_hours))
    out.print(f"{key.id}  {key.plaintext}  (shown once; only its hash is kept)", soft_wrap=True)


@keys.command("revoke", epilog="\b\nExample:\n  apex keys revoke key_0123\n")
@click.argument("key_id")
@click.pass_obj
def revoke(settings: Settings, key_id: str) -> None:
    """Make a key useless; the API forgets it within seconds."""
    with _engine(settings).begin() as connection:
        api_keys.revoke_key(connection, key_id, clock_from_setting(settings.clock).now())
    out.print(f"{key_id} is revoked")
