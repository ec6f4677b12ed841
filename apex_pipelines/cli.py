"""The `apex` command. Thin: groups are registered here, their commands live in `commands/`."""

from __future__ import annotations

import sys
from importlib import import_module

import click
from pydantic import ValidationError

from apex_pipelines import __version__
from apex_pipelines.platform.logging import configure_logging
from apex_pipelines.settings import Settings, settings_problems

# Command to (the module attribute that holds it, its line in `apex --help`). A module is imported only when
# its command is called, since some bring libraries that take seconds to import.
COMMANDS = {
    "up": ("stack:up", "Start everything, keep it running, stop it in order on Ctrl-C."),
    "status": ("stack:status", "Show what runs, since when, and how often it was restarted."),
    "doctor": ("stack:doctor", "Say in plain words what is wrong and what to do."),
    "demo": ("demo:demo", "Run the whole chain on simulated customers (and your files)."),
    "import": ("importing:import_file", "Bring a log, CSV or NDJSON file in through the public API."),
    "customer": ("customers:customer", "Customers: create, list, show."),
    "keys": ("customers:keys", "API keys: issue, list, rotate, revoke."),
    "email": ("messaging:email", "Mails: preview, queue, test, retry."),
    "churn": ("churn:churn", "Churn prediction: train, score, report."),
    "stripe": ("stripe:stripe", "Stripe: backfill, sweep, inbox, sync, reconcile, an offline stand-in."),
    "ingest": ("stack:ingest", "The ingest API and its loader."),
    "warehouse": ("warehouse:warehouse", "The embedded ClickHouse: serve, query, shell."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(f"apex_pipelines.commands.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings come from APEX_* variables and .env; `docs/operations.md` lists them.",
)
@click.version_option(__version__, prog_name="apex")
@click.pass_context
def apex(context: click.Context) -> None:
    """Runs the customer life cycle: telemetry in, usage, health, churn and mails out."""
    try:
        context.obj = Settings()
    except ValidationError as error:
        raise click.ClickException(f"settings are wrong: {settings_problems(error)}") from error
    configure_logging(context.obj.log_level, context.obj.log_format)


def main() -> None:
    """Entry point: an expected error is one line and exit code 1, Ctrl-C is 130."""
    try:
        apex.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if not _is_expected(error):
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _is_expected(error: Exception) -> bool:
    """Errors of ours, of stores, files and Stripe are meant for the user; anything else is a defect."""
    ours = ("apex_pipelines", "ingest_api", "ml.", "clickhouse_connect", "sqlalchemy", "stripe.")
    return isinstance(error, OSError) or type(error).__module__.startswith(ours)
