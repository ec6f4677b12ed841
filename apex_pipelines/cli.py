"""The `apex` command. Thin: groups are registered here, their commands live in `commands/`."""

from __future__ import annotations

import sys
from importlib import import_module

import click
from pydantic import ValidationError

from apex_pipelines import __version__
from apex_pipelines.platform.logging import configure_logging
from apex_pipelines.settings import Settings

# Command to the module attribute that holds it; imported only when called, so that `--help` is instant.
COMMANDS = {
    "up": "stack:up",
    "status": "stack:status",
    "doctor": "stack:doctor",
    "demo": "demo:demo",
    "import": "importing:import_file",
    "warehouse": "stack:warehouse",
    "ingest": "stack:ingest",
    "customer": "customers:customer",
    "keys": "customers:keys",
    "email": "messaging:email",
    "churn": "churn:churn",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, attribute = target.split(":")
        command: click.Command = getattr(import_module(f"apex_pipelines.commands.{module}"), attribute)
        return command


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
        problems = "; ".join(
            f"{'APEX_' + str(e['loc'][0]).upper().removeprefix('APEX_')}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        )
        raise click.ClickException(f"settings are wrong: {problems}") from error
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
    """Errors of ours, and those of stores and files, are meant for the user; anything else is a defect."""
    ours = ("apex_pipelines", "ingest_api", "ml.", "clickhouse_connect", "sqlalchemy")
    return isinstance(error, OSError) or type(error).__module__.startswith(ours)
