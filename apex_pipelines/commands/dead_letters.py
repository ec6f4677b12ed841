"""`apex ingest dead-letters ...`: acknowledged events that could not be loaded, and loading them again."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from apex_pipelines.commands.console import err, json_option, out, show
from apex_pipelines.platform import clickhouse
from apex_pipelines.settings import Settings

if TYPE_CHECKING:
    from ingest_api.dead_letters import DeadLetters, WholeLetter

_SHOWN_BYTES = 2_000
_SHOWN_FAILURES = 20

reason_option = click.option("--reason", default="", help="Only those whose reason contains this text.")


@contextmanager
def _letters(settings: Settings) -> Iterator[DeadLetters]:
    from ingest_api.dead_letters import DeadLetters

    client = clickhouse.connect(settings, query_origin="apex ingest dead-letters")
    try:
        yield DeadLetters(lambda: client)
    finally:
        client.close()


@click.group("dead-letters")
def dead_letters() -> None:
    """Events that were acknowledged and can't be loaded: list, show, load again."""


@dead_letters.command(
    "list",
    epilog="\b\nExamples:\n  apex ingest dead-letters list\n  apex ingest dead-letters list --reason int64\n",
)
@reason_option
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Letters to list.")
@json_option
@click.pass_obj
def list_letters(settings: Settings, reason: str, limit: int, as_json: bool) -> None:
    """Count them by reason, with the first and the last time, then list them, the oldest first."""
    with _letters(settings) as letters:
        counts = [asdict(count) for count in letters.reasons(reason)]
        found = letters.open(reason, limit)
    rows = [
        {
            "id": str(letter.name),
            "seen_at": letter.seen_at,
            "rows": letter.row_count,
            "tries": letter.tries,
            "reason": letter.reason,
        }
        for letter in found
    ]
    if as_json:
        click.echo(json.dumps({"reasons": counts, "letters": rows}, default=str, indent=2))
        return
    columns = ["reason", "letters", "rows", "first_seen", "last_seen"]
    show([_on_one_line(row) for row in counts], columns, as_json=False, title="Dead letters by reason")
    if rows:
        names = ["id", "seen_at", "rows", "tries", "reason"]
        show([_on_one_line(row) for row in rows], names, as_json=False, title="Dead letters")
    total = sum(count["letters"] for count in counts)
    if total > len(rows):
        out.print(f"{total - len(rows):,} more; --limit shows more of them")


@dead_letters.command("show", epilog="\b\nExample:\n  apex ingest dead-letters show w0-0199f3a2-...:15\n")
@click.argument("letter_id")
@click.option("--all-bytes", is_flag=True, help=f"All bytes, not only the first {_SHOWN_BYTES:,}.")
@json_option
@click.pass_obj
def show_letter(settings: Settings, letter_id: str, all_bytes: bool, as_json: bool) -> None:
    """Show one: why it could not be loaded, what it says, and its bytes as they were in the spool."""
    from ingest_api.dead_letters import LetterName, NoSuchLetter

    name = LetterName.parse(letter_id)
    with _letters(settings) as letters:
        found = letters.whole([name])
    if not found:
        raise NoSuchLetter(f"there is no open dead letter {name}; `apex ingest dead-letters list` shows them")
    letter = found[0]
    raw = letter.letter.raw
    events = _events(letter)
    row = {
        "id": str(name),
        "seen_at": letter.seen_at,
        "rows": letter.letter.row_count,
        "tries": letter.tries,
        "reason": letter.letter.reason,
        "bytes": len(raw),
    }
    if as_json:
        exact = {"raw_base64": base64.b64encode(raw).decode(), "raw_escaped": _escaped(raw)}
        click.echo(json.dumps({**row, "events": events, **exact}, default=str, indent=2))
        return
    for label, value in row.items():
        out.print(f"[bold]{label.replace('_', ' ')}[/]  {escape(str(value))}", soft_wrap=True)
    out.print("[bold]events[/]  can't be decoded" if events is None else "[bold]events[/]")
    for event in events or []:
        out.print(f"  {escape(json.dumps(event, ensure_ascii=False))}", soft_wrap=True, highlight=False)
    shown = raw if all_bytes else raw[:_SHOWN_BYTES]
    out.print("[bold]raw[/]")
    click.echo(f"  {_escaped(shown)}")
    if len(shown) < len(raw):
        out.print(f"  ... {len(raw) - len(shown):,} more bytes; --all-bytes shows them")


@dead_letters.command(
    "replay",
    epilog="""\b
Examples:
  apex ingest dead-letters replay --all
  apex ingest dead-letters replay --reason "can't be decoded"
  apex ingest dead-letters replay w0-0199f3a2-...:15
""",
)
@click.argument("letter_ids", nargs=-1)
@reason_option
@click.option("--all", "everything", is_flag=True, help="Every letter that is open.")
@json_option
@click.pass_obj
def replay_letters(
    settings: Settings, letter_ids: tuple[str, ...], reason: str, everything: bool, as_json: bool
) -> None:
    """Load them again, each row once, however often this is repeated or killed.

    One that fails again stays, with the new reason. Exits with 1 when any stays.
    """
    from ingest_api.dead_letters import LetterName
    from ingest_api.replay import replay

    if (bool(letter_ids), bool(reason), everything).count(True) != 1:
        raise click.UsageError("give ids (`apex ingest dead-letters list`), --reason or --all")
    names = [LetterName.parse(text) for text in letter_ids] if letter_ids else None
    with _progress_bar() as progress:
        report = replay(settings, names=names, reason=reason, on_progress=progress)
    if as_json:
        found = {
            "landed": [str(name) for name in report.landed],
            "failed": [{"id": str(failed.name), "reason": failed.reason} for failed in report.failed],
            "waiting": [str(name) for name in report.waiting],
        }
        click.echo(json.dumps(found, indent=2))
    else:
        out.print(f"{len(report.landed):,} loaded, {len(report.failed):,} failed again")
        for failed in report.failed[:_SHOWN_FAILURES]:
            out.print(escape(f"  {failed.name}  {failed.reason}".splitlines()[0]), soft_wrap=True)
        if len(report.failed) > _SHOWN_FAILURES:
            out.print(f"  ... and {len(report.failed) - _SHOWN_FAILURES:,} more")
        if report.waiting:
            out.print(
                f"{len(report.waiting):,} wait for the loader, which still has their segment; try later"
            )
    if report.failed or report.waiting:
        raise SystemExit(1)


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("Loading again"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _on_one_line(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "reason": " ".join(row["reason"].split())[:160]}


def _events(letter: WholeLetter) -> list[dict[str, Any]] | None:
    import msgspec

    try:
        return [msgspec.structs.asdict(event) for event in letter.events()]
    except ValueError:
        return None  # shown as such; the bytes tell the rest


def _escaped(raw: bytes) -> str:
    """Bytes as printable ASCII, with everything else as in a Python literal."""
    return repr(raw)[2:-1]
