"""Index pages of the outbox folder: one a day, and one over all days.

Each day's folder has `mails.ndjson`, to which every batch appends a line a mail; the day's page and a summary
(`summary.json`) are made from it, and only for days whose list has grown. The page over all days adds the
summaries up. So a drain costs as much as the days it touched, however many mails are kept.

Belongs here: lists and pages of what was written. Does not belong here: mails themselves.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from apex_pipelines.messaging.rendering import TEMPLATES

NEWEST_PER_TYPE = 20


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One mail in the index. `file` is its name without ending; `sent_at` an ISO instant in UTC."""

    day: str
    key: str
    email_type: str
    subject: str
    recipient: str
    sent_at: str
    file: str


def append_entries(folder: Path, entries: Sequence[IndexEntry]) -> None:
    """Note mails that were written; a mail noted twice counts once."""
    for day, group in groupby(sorted(entries, key=lambda entry: entry.day), key=lambda entry: entry.day):
        # A leading line break ends a line that a killed process may have left half-written.
        lines = "\n" + "".join(json.dumps(asdict(entry)) + "\n" for entry in group)
        file = os.open(folder / day / "mails.ndjson", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, lines.encode())  # one call, so that lines of two workers don't mix
        finally:
            os.close(file)


def entries_of_day(folder: Path, day: str) -> list[IndexEntry]:
    """The mails of one day's folder, newest first, each once."""
    found: dict[str, IndexEntry] = {}
    for line in (folder / day / "mails.ndjson").read_text(encoding="utf-8").splitlines():
        try:
            entry = IndexEntry(**json.loads(line))
        except (ValueError, TypeError):
            continue  # the torn line of a killed process; its mail is handed over and noted again
        found[entry.key] = entry
    return sorted(
        found.values(), key=lambda entry: (entry.sent_at, int(entry.key.split("-")[0])), reverse=True
    )


def refresh_index(folder: Path) -> None:
    """Rebuild the pages of days whose list has grown, and the page over all days."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".index.lock"):
        days = sorted((path.parent.name for path in folder.glob("*/mails.ndjson")), reverse=True)
        summaries = {day: _summary(folder, day) for day in days}
        grown = [day for day, summary in summaries.items() if summary["size"] != _list_size(folder, day)]
        if not grown and (folder / "index.html").exists():
            return
        templates = _templates()
        for day in grown:
            size = _list_size(folder, day)  # before reading: what comes later makes the day stale again
            entries = entries_of_day(folder, day)
            page = templates.get_template("outbox_day.html.j2").render(day=day, types=_by_type(entries))
            _replace(folder / day / "index.html", page)
            summaries[day] = {
                "size": size,
                "types": {
                    name: {"count": len(mails), "newest": [asdict(mail) for mail in mails[:NEWEST_PER_TYPE]]}
                    for name, mails in _by_type(entries)
                },
            }
            _replace(folder / day / "summary.json", json.dumps(summaries[day]))
        page = templates.get_template("outbox_index.html.j2").render(
            days=[(day, sum(kind["count"] for kind in summaries[day]["types"].values())) for day in days],
            types=_totals(summaries),
            newest_per_type=NEWEST_PER_TYPE,
        )
        _replace(folder / "index.html", page)


def _by_type(entries: Sequence[IndexEntry]) -> list[tuple[str, list[IndexEntry]]]:
    types: dict[str, list[IndexEntry]] = {}
    for entry in entries:
        types.setdefault(entry.email_type, []).append(entry)
    return sorted(types.items())


def _totals(summaries: dict[str, Any]) -> list[dict[str, Any]]:
    """Count and newest mails of each type over all days; `summaries` are newest day first."""
    totals: dict[str, dict[str, Any]] = {}
    for summary in summaries.values():
        for name, kind in summary["types"].items():
            total = totals.setdefault(name, {"name": name, "count": 0, "newest": []})
            total["count"] += kind["count"]
            total["newest"].extend(kind["newest"])
    for total in totals.values():
        total["newest"] = sorted(total["newest"], key=lambda mail: mail["sent_at"], reverse=True)[
            :NEWEST_PER_TYPE
        ]
    return sorted(totals.values(), key=lambda total: total["name"])


def _summary(folder: Path, day: str) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((folder / day / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"size": -1, "types": {}}
    return summary


def _list_size(folder: Path, day: str) -> int:
    return (folder / day / "mails.ndjson").stat().st_size


def _replace(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process builds pages at a time, so that the last one to build has seen every list."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
