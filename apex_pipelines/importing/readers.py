"""Readers: from a file to records, one at a time. A reader knows formats, not what the columns mean.

Belongs here: opening, decoding and splitting. What can't be split becomes a `BadLine` and the next line is
read; only a file that can't be read at all raises.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, cast

from apex_pipelines.importing.errors import MappingProblem, UnreadableFile
from apex_pipelines.importing.mapping import WEB_LOG_COLUMNS, Mapping

MAX_LINE_BYTES = 1_048_576
_SAMPLE_BYTES = 65_536
# Lines that a quoted CSV field may span before its opening quote is taken for a stray one.
_MAX_FIELD_LINES = 50
_SEPARATOR = "\x1f"  # between the values of a record's content; ASCII has it for this
_DELIMITERS = (",", ";", "\t", "|")

_WEB_LOG = re.compile(
    r'(?P<client>\S+) \S+ \S+ \[(?P<time>[^\]]+)\] "(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) '
    r"(?P<bytes>\d+|-)(?: .*)?"
)


class Record(NamedTuple):
    """One record of a file; `content` tells it from any other record, wherever it stands."""

    line: int
    fields: dict[str, str]
    content: str


class BadLine(NamedTuple):
    """A line that is no record, with the reason."""

    line: int
    reason: str
    text: str


class Source:
    """A file opened for reading: its lines, how many came (`line_count`), how far that is (`position`)."""

    def __init__(self, path: Path, file: IO[bytes], plain: IO[bytes]) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._file = file
        self._plain = plain
        self.line_count = 0

    def position(self) -> int:
        """Bytes of the file on disk that have been read."""
        return self._plain.tell()

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Line numbers from 1 with their bytes, line end removed; None for a line longer than 1 MiB.

        Raises
        ------
        UnreadableFile
            If the disk or the compression fails on the way.
        """
        try:
            while line := self._file.readline(MAX_LINE_BYTES):
                number = self.line_count = self.line_count + 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := self._file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield number, None
                else:
                    yield number, line.rstrip(b"\r\n")
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableFile(
                f"{self.path} can't be read beyond line {self.line_count:,} ({error}); is it whole?"
            ) from error


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a text file, gzipped or plain.

    Raises
    ------
    UnreadableFile
        If it is missing, no file, empty, not text, or may not be read.
    """
    if not path.exists():
        raise UnreadableFile(f"there is no file {path}; check the path (it is relative to {Path.cwd()})")
    if not path.is_file():
        raise UnreadableFile(f"{path} is no file; name one file to import")
    try:
        with path.open("rb") as plain:
            magic = plain.read(2)
            plain.seek(0)
            compressed = magic == b"\x1f\x8b"
            opened = gzip.GzipFile(fileobj=plain) if compressed else path.open("rb")
            with cast(IO[bytes], opened) as file:
                start = file.read(_SAMPLE_BYTES)
                if not start.strip():
                    raise UnreadableFile(f"{path} is empty; there is nothing to import")
                if b"\0" in start:
                    raise UnreadableFile(
                        f"{path} is no text in UTF-8 (it holds zero bytes); export it as CSV, NDJSON or a log"
                    )
                file.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)
                yield Source(path, file, plain if compressed else file)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{path} can't be read: {error}") from error


def records(source: Source, mapping: Mapping) -> Iterator[Record | BadLine | None]:
    """Everything the file holds, in order; None stands for a line that is no data (blank, or the header).

    Raises
    ------
    MappingProblem
        If a CSV header lacks columns that the mapping reads.
    UnreadableFile
        If the file breaks off.
    """
    if mapping.format == "web-log":
        return _web_log(source)
    if mapping.format == "ndjson":
        return _ndjson(source, mapping)
    return _csv(source, mapping)


def _text(number: int, raw: bytes | None) -> str | BadLine:
    if raw is None:
        return BadLine(number, f"longer than {MAX_LINE_BYTES:,} bytes", "")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadLine(number, f"not UTF-8 at byte {error.start}", raw.decode("utf-8", "backslashreplace"))


def parse_web_log_line(line: str) -> dict[str, str] | None:
    """Columns of one line in common or combined log format; None when it is none.

    What follows the bytes (referrer, agent, anything a server appends) is not looked at, because clients
    write there what they like, unbalanced quotes included.
    """
    match = _WEB_LOG.fullmatch(line)
    if match is None:
        return None
    method, _, rest = match["request"].partition(" ")
    values = (match["client"], match["time"], method, rest.partition(" ")[0], match["status"], match["bytes"])
    return dict(zip(WEB_LOG_COLUMNS, values, strict=True))


def _web_log(source: Source) -> Iterator[Record | BadLine | None]:
    for number, raw in source.lines():
        # Agents send any bytes; only the columns before them matter, and those are ASCII.
        line = _text(number, None) if raw is None else raw.decode("utf-8", "backslashreplace")
        if isinstance(line, BadLine):
            yield line
        elif not line.strip():
            yield None
        elif (fields := parse_web_log_line(line)) is not None:
            yield Record(number, fields, line)
        else:
            yield BadLine(number, "not in combined log format", line)


def _ndjson(source: Source, mapping: Mapping) -> Iterator[Record | BadLine | None]:
    for number, raw in source.lines():
        line = _text(number, raw)
        if isinstance(line, BadLine):
            yield line
        elif not line.strip():
            yield None
        else:
            yield _json_record(number, line, mapping)


def _json_record(number: int, line: str, mapping: Mapping) -> Record | BadLine:
    try:
        # Numbers stay the text they are, so that no decimal passes through a float.
        value = json.loads(line, parse_float=str, parse_int=str, parse_constant=_no_constant)
        content = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        content.encode()  # JSON can spell half a character, which nothing after us can store
    except (ValueError, RecursionError) as error:
        return BadLine(number, f"no JSON: {error}", line)
    if not isinstance(value, dict):
        return BadLine(number, "no JSON object", line)
    fields = {}
    for column in mapping.columns:
        found = _at(value, column)
        if isinstance(found, dict | list):
            return BadLine(number, f"field {column!r} is no single value", line)
        if found is not None:
            fields[column] = found if isinstance(found, str) else json.dumps(found)
    return Record(number, fields, content)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _at(value: dict[str, Any], column: str) -> Any:
    """Value of a field, or of `outer.inner` when there is no field of that whole name."""
    if column in value:
        return value[column]
    outer, dot, inner = column.partition(".")
    nested = value.get(outer) if dot else None
    return _at(nested, inner) if isinstance(nested, dict) else None


def csv_header(line: str, delimiter: str | None) -> tuple[list[str], str]:
    """Column names of a CSV header, and the delimiter: the one given, else the one seen most often in it."""
    if delimiter is None:
        counts = {candidate: line.count(candidate) for candidate in _DELIMITERS}
        best = max(counts, key=lambda candidate: counts[candidate])
        delimiter = best if counts[best] else "whitespace"
    return [name.strip() for name in _split(line, delimiter)], delimiter


def _split(line: str, delimiter: str) -> list[str]:
    """Values of one CSV record.

    Raises
    ------
    csv.Error
        If quotes don't match.
    """
    if delimiter == "whitespace":
        return line.split()
    # Not splitlines(): that also cuts at line breaks which only Unicode knows and which are part of a value.
    parts = re.split(r"(?<=\n)", line)
    return next(csv.reader(parts, delimiter=delimiter, strict=True), [])


def _csv(source: Source, mapping: Mapping) -> Iterator[Record | BadLine | None]:
    header: list[str] | None = None
    delimiter = ""
    lines = _Lookahead(source.lines())
    for number, raw in lines:
        line = _text(number, raw)
        if isinstance(line, BadLine):
            yield line
        elif not line.strip():
            yield None
        elif header is None:
            try:
                header, delimiter = csv_header(line, mapping.delimiter)
            except csv.Error as error:
                raise MappingProblem(
                    f"{source.path}, line {number}: the header is no CSV ({error})"
                ) from error
            _check_header(source, mapping, header)
            yield None
        else:
            yield _csv_record(number, line, header, delimiter, lines)


def _check_header(source: Source, mapping: Mapping, header: list[str]) -> None:
    if missing := [column for column in mapping.columns if column not in header]:
        raise MappingProblem(
            f"{source.path}: mapping {mapping.name!r} reads {', '.join(missing)}, which the header lacks; "
            f"it has {', '.join(header[:40])}"
        )
    if twice := sorted({column for column in mapping.columns if header.count(column) > 1}):
        raise MappingProblem(f"{source.path}: the header has {', '.join(twice)} more than once; rename one")


class _Lookahead:
    """Lines with the possibility to look at the next ones before deciding that they belong to this one."""

    def __init__(self, lines: Iterator[tuple[int, bytes | None]]) -> None:
        self._lines = lines
        self._waiting: deque[tuple[int, bytes | None]] = deque()

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        return self

    def __next__(self) -> tuple[int, bytes | None]:
        return self._waiting.popleft() if self._waiting else next(self._lines)

    def put_back(self, lines: Iterable[tuple[int, bytes | None]]) -> None:
        self._waiting.extendleft(reversed(list(lines)))


def _csv_record(
    number: int, line: str, header: list[str], delimiter: str, lines: _Lookahead
) -> Record | BadLine:
    text = line
    taken: list[tuple[int, bytes | None]] = []
    if delimiter != "whitespace" and line.count('"') % 2:
        # An open quote: the field may go on over the next lines, unless the quote is a stray one.
        for following in lines:
            taken.append(following)
            more = _text(*following)
            if isinstance(more, BadLine) or len(taken) > _MAX_FIELD_LINES:
                break
            text += "\n" + more
            if text.count('"') % 2 == 0:
                break
    try:
        values = _split(text, delimiter)
        if len(values) != len(header):
            raise csv.Error(f"{len(values)} values where the header has {len(header)}")
    except csv.Error as error:
        lines.put_back(taken)  # they may be good records of their own
        return BadLine(number, str(error), line)
    values = [value.strip() for value in values]
    return Record(number, dict(zip(header, values, strict=True)), _SEPARATOR.join(values))
