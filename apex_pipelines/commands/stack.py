"""`apex up`, `apex status`, `apex doctor`, `apex ingest serve`, `apex ingest load`."""

from __future__ import annotations

import threading
import time

import click
from rich.markup import escape

from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.commands.dead_letters import dead_letters
from apex_pipelines.platform import doctor as checkup
from apex_pipelines.platform.dbt import ensure_manifest
from apex_pipelines.platform.supervisor import Supervisor, read_records
from apex_pipelines.settings import Settings
from apex_pipelines.stack import Part, components

WITHOUT_DAGSTER = {Part.STORES, Part.INGEST}


@click.command(
    epilog="""\b
Examples:
  apex up
  APEX_API_PORT=9080 APEX_DAGSTER_PORT=9300 APEX_WAREHOUSE_PORT=9123 APEX_HOME=/tmp/second apex up
"""
)
@click.option("--no-dagster", is_flag=True, help="Stores and ingest API only.")
@click.pass_obj
def up(settings: Settings, no_dagster: bool) -> None:
    """Start everything, keep it running, stop it in order on Ctrl-C."""
    parts = WITHOUT_DAGSTER if no_dagster else WITHOUT_DAGSTER | {Part.DAGSTER}
    ensure_manifest(settings)
    with Supervisor(components(settings, parts), settings.run_dir) as supervisor:
        out.print(f"[bold]Ingest API[/]  {settings.api_url}/health")
        if not no_dagster:
            out.print(f"[bold]Dagster UI[/]  {settings.dagster_url}")
        out.print(f"[bold]Mails[/]       {settings.outbox_dir / 'index.html'}")
        out.print("Running. Ctrl-C stops everything; `apex status` shows it from another terminal.")
        supervisor.wait()
        out.print("Stopping ...")
    out.print("Stopped; nothing is lost: what was acknowledged is on disk.")


@click.command(epilog="\b\nExamples:\n  apex status\n  apex status --json\n")
@json_option
@click.pass_obj
def status(settings: Settings, as_json: bool) -> None:
    """Show what runs, since when, and how often it was restarted. Exits with 1 when something is down."""
    rows = []
    for record in read_records(settings.run_dir):
        process = record.process()
        rows.append(
            {
                "name": record.name,
                "state": "running" if process else "DOWN",
                "pid": record.pid,
                "memory_mb": round(process.memory_info().rss / 1e6) if process else None,
                "up_minutes": round((time.time() - record.create_time) / 60, 1) if process else None,
                "restarts": record.restarts,
                "url": record.url if record.name != "postgres" else None,
                "log": record.log,
            }
        )
    if not rows:
        raise click.ClickException(f"nothing runs on {settings.home_path}. Start it with `apex up`.")
    columns = ["name", "state", "pid", "memory_mb", "up_minutes", "restarts", "url"]
    show(rows, columns, as_json=as_json, title="Processes")
    if any(row["state"] == "DOWN" for row in rows):
        raise SystemExit(1)


@click.command(epilog="\b\nExample:\n  apex doctor\n")
@json_option
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> None:
    """Say in plain words what is wrong and what to do. Exits with 1 when something is."""
    findings = checkup.examine(settings)
    if as_json:
        show([finding.as_row() for finding in findings], [], as_json=True)
    else:
        for finding in findings:
            mark = "[green]ok  [/]" if finding.ok else "[red]BAD [/]"
            out.print(f"{mark} {finding.subject}: {escape(finding.message)}", soft_wrap=True)
            if finding.remedy:
                out.print(f"     → {escape(finding.remedy)}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


@click.group()
def ingest() -> None:
    """The ingest API: serve, load, dead letters."""


ingest.add_command(dead_letters)


@ingest.command("serve", epilog="\b\nExample:\n  apex ingest serve --port 8080 --workers 2\n")
@click.option("--host", help="Address to listen on [APEX_API_HOST, 127.0.0.1].")
@click.option("--port", type=int, help="Port to listen on [APEX_API_PORT, 8080].")
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes [APEX_API_WORKERS, 1].")
@click.pass_obj
def ingest_serve(settings: Settings, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve the ingest API. The loader (`apex ingest load`) moves what it accepts to ClickHouse."""
    from ingest_api.server import serve

    serve(settings, host or settings.api_host, port or settings.api_port, workers or settings.api_workers)


@ingest.command("load", epilog="\b\nExample:\n  apex ingest load\n")
@click.pass_obj
def ingest_load(settings: Settings) -> None:
    """Move acknowledged events from the spool to ClickHouse until stopped."""
    from ingest_api.loader import run

    stop = threading.Event()
    try:
        run(settings, stop)
    except KeyboardInterrupt:
        stop.set()
