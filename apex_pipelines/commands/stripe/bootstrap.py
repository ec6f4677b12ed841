"""`apex stripe bootstrap`: the catalogue at Stripe."""

from __future__ import annotations

from dataclasses import asdict

import click
import sqlalchemy as sa

from apex_pipelines.commands.console import json_option, show
from apex_pipelines.platform import postgres
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from apex_pipelines.stripe import bootstrap as catalogue
from apex_pipelines.stripe.client import connect, is_live


@click.command(epilog="\b\nExample:\n  apex stripe bootstrap\n")
@json_option
@click.pass_obj
def bootstrap(settings: Settings, as_json: bool) -> None:
    """Create the plans' products and prices and the metrics' meters at Stripe; safe to repeat."""
    client, livemode = connect(settings), is_live(settings)
    now = clock_from_setting(settings.clock).now()
    with postgres.create_engine(settings, poolclass=sa.NullPool).begin() as connection:
        done = catalogue.bootstrap(client, connection, now, livemode=livemode)
    rows = [asdict(step) for step in done]
    show(rows, ["object", "name", "stripe_id", "outcome"], as_json=as_json, title="Stripe's catalogue")
