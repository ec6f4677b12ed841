"""`apex stripe`: the exchange with Stripe, and a stand-in for it that needs no network."""

from __future__ import annotations

import click

from apex_pipelines.commands.stripe.sandbox import sandbox


@click.group()
def stripe() -> None:
    """Stripe, both ways."""


stripe.add_command(sandbox)
