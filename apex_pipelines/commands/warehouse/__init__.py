"""`apex warehouse`: serve the embedded ClickHouse, ask any ClickHouse.

| module | what is in it |
|---|---|
| `script` | cutting SQL into statements |
| `client` | one statement over HTTP |
| `running`, `query` | the command for scripts |
| `results`, `names`, `shell` | the command for people: drawing, completion, the prompt |
"""

from __future__ import annotations

import click

from apex_pipelines.commands.warehouse.query import query
from apex_pipelines.commands.warehouse.shell import shell
from apex_pipelines.settings import Settings


@click.group()
def warehouse() -> None:
    """The embedded ClickHouse."""


@click.command("serve", epilog="\b\nExample:\n  apex warehouse serve --port 8123\n")
@click.option("--host", help="Address to listen on [APEX_WAREHOUSE_HOST, 127.0.0.1].")
@click.option("--port", type=int, help="Port to listen on [APEX_WAREHOUSE_PORT, 8123].")
@click.pass_obj
def serve(settings: Settings, host: str | None, port: int | None) -> None:
    """Serve the data under APEX_HOME with ClickHouse's HTTP interface."""
    from apex_pipelines.platform import warehouse

    warehouse.serve(settings, host or settings.warehouse_host, port or settings.warehouse_port)


warehouse.add_command(serve)
warehouse.add_command(query)
warehouse.add_command(shell)
