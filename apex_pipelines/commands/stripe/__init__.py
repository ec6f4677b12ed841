"""`apex stripe`: the exchange with Stripe, and a stand-in for it that needs no network."""

from __future__ import annotations

import click

from apex_pipelines.commands.stripe.backfill import backfill
from apex_pipelines.commands.stripe.bootstrap import bootstrap
from apex_pipelines.commands.stripe.inbox import inbox
from apex_pipelines.commands.stripe.invoice import invoice
from apex_pipelines.commands.stripe.push import push
from apex_pipelines.commands.stripe.reconcile import reconcile
from apex_pipelines.commands.stripe.sandbox import sandbox
from apex_pipelines.commands.stripe.sweep import sweep
from apex_pipelines.commands.stripe.sync import sync


@click.group()
def stripe() -> None:
    """Stripe, both ways."""


stripe.add_command(sandbox)
stripe.add_command(bootstrap)
stripe.add_command(push)
stripe.add_command(backfill)
stripe.add_command(sweep)
stripe.add_command(inbox)
stripe.add_command(sync)
stripe.add_command(invoice)
stripe.add_command(reconcile)
