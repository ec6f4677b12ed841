"""`apex stripe sandbox`."""

from __future__ import annotations

import click

from apex_pipelines.commands.console import out
from apex_pipelines.settings import Settings


@click.command(epilog="\b\nExample:\n  apex stripe sandbox --port 8090\n")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on [APEX_STRIPE_SANDBOX_PORT, 8090].")
@click.pass_obj
def sandbox(settings: Settings, host: str, port: int | None) -> None:
    """Serve an offline Stripe, kept under APEX_HOME/stripe-sandbox, until Ctrl-C."""
    from apex_pipelines.sandbox.stripe.serving import secrets_of, serve

    folder = settings.home_path / "stripe-sandbox"
    port = port or settings.stripe_sandbox_port
    secrets = secrets_of(folder)
    out.print("An offline Stripe; point the platform at it with these settings:")
    shown = f"[{host}]" if ":" in host else host
    out.print(f"APEX_STRIPE_API_BASE=http://{shown}:{port}", markup=False)
    out.print(f"STRIPE_SECRET_KEY={secrets.key}", markup=False)
    out.print(f"STRIPE_WEBHOOK_SECRET={secrets.webhook_secret}", markup=False)
    serve(folder, host, port)
