"""`apex churn ...`."""

from __future__ import annotations

import json

import click

from apex_pipelines.churn import service
from apex_pipelines.churn.reports import TrainingReport
from apex_pipelines.commands.console import json_option, out, show
from apex_pipelines.platform import clickhouse
from apex_pipelines.platform.clock import clock_from_setting
from apex_pipelines.settings import Settings
from ml import registry


@click.group()
def churn() -> None:
    """Churn prediction: train, score, report."""


@churn.command("train", epilog="\b\nExample:\n  apex churn train\n")
@json_option
@click.pass_obj
def train(settings: Settings, as_json: bool) -> None:
    """Train on the marts as they are, and promote the model when the gate holds."""
    clock = clock_from_setting(settings.clock)
    client = clickhouse.connect(settings, query_origin="apex churn train")
    report = service.train(client, settings.model_dir, clock.now().date(), settings=settings, clock=clock)
    client.close()
    if as_json:
        click.echo(json.dumps(report.as_dict(), default=str, indent=2))
        return
    out.print(f"[bold]{report.outcome.value}[/] after {report.seconds:.1f} s on {report.rows:,} rows")
    for reason in report.reasons:
        out.print(f"  {reason}")
    _show_quality(report)


def _show_quality(report: TrainingReport) -> None:
    rows = [
        {"figure": name, "value": f"{m.value:.3f}", "95 % interval": f"{m.low:.3f} – {m.high:.3f}"}
        for name, m in (report.metrics or {}).items()
    ]
    if rows:
        show(
            rows,
            ["figure", "value", "95 % interval"],
            as_json=False,
            title=f"Quality from {report.test_start}",
        )
    if report.model_card:
        out.print(f"Model card: {report.model_card}", soft_wrap=True)


@churn.command("score", epilog="\b\nExample:\n  apex churn score --top 10\n")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Customers to list.")
@json_option
@click.pass_obj
def score(settings: Settings, top: int, as_json: bool) -> None:
    """Score the customers who are active today with the champion."""
    clock = clock_from_setting(settings.clock)
    client = clickhouse.connect(settings, query_origin="apex churn score")
    report = service.score(
        client, settings.model_dir, clock.now().date(), settings=settings, clock=clock, top=top
    )
    client.close()
    if as_json:
        click.echo(json.dumps(report.as_dict(), default=str, indent=2))
        return
    out.print(report.message)
    rows = [
        {
            "customer": c.customer_id,
            "probability": round(c.probability, 3),
            "expected_profit_usd": round(c.expected_profit, 2),
            "hold_out": c.holdout,
        }
        for c in report.top
    ]
    show(rows, ["customer", "probability", "expected_profit_usd", "hold_out"], as_json=False)


@churn.command("report", epilog="\b\nExample:\n  apex churn report\n")
@click.pass_obj
def report(settings: Settings) -> None:
    """Print the champion's model card."""
    try:
        champion = registry.load_champion(settings.model_dir)
    except registry.ChampionMissing as error:
        raise click.ClickException(f"{error}. Train one with `apex churn train`.") from error
    card = settings.model_dir / registry.VERSIONS / champion.metadata.version / service.CARD
    click.echo(card.read_text())
