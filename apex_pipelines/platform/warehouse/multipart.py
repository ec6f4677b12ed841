"""multipart/form-data bodies: fields that are parameters, files that are external tables.

Belongs here: taking the body apart. Does not belong here: what the parts mean to a query.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.request import Body, Request

MAX_HEADER_BYTES = 16_384
MAX_FIELDS_BYTES = 16 << 20  # of all fields together
MAX_FILES = 100
# A file larger than this goes to disk until the query takes it in.
SPOOL_BYTES = 1 << 20

_DISPOSITION = re.compile(rb"content-disposition\s*:\s*form-data\b(.*)", re.IGNORECASE)
_PARAMETER = re.compile(rb';\s*([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))')
_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^;\s]+))', re.IGNORECASE)


@dataclass(slots=True)
class Form:
    """What a body held: fields by name, files by name."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, IO[bytes]] = field(default_factory=dict)

    def close(self) -> None:
        """Drop the files."""
        for file in self.files.values():
            file.close()

    def __enter__(self) -> Form:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reader:
    """Takes the body in pieces of any size and never holds more of a file than a piece."""

    def __init__(self, boundary: bytes, folder: Path) -> None:
        self.form = Form()
        self.ended = False
        self._delimiter = b"\r\n--" + boundary
        self._folder = folder
        # The first delimiter may stand at the very beginning, without a line break before it.
        self._buffer = bytearray(b"\r\n")
        self._in_headers = False
        self._fields_bytes = 0
        self._name = ""
        self._field: bytearray | None = None
        self._file: IO[bytes] | None = None

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while not self.ended and (self._read_headers() if self._in_headers else self._read_data()):
            pass

    def _read_data(self) -> bool:
        position = self._buffer.find(self._delimiter)
        found = position >= 0
        if not found:
            position = max(len(self._buffer) - len(self._delimiter) + 1, 0)
        self._write(bytes(self._buffer[:position]))
        del self._buffer[: position + (len(self._delimiter) if found else 0)]
        if found:
            self._close_part()
            self._in_headers = True
        return found

    def _write(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
        elif self._field is not None:
            self._field += data
            self._fields_bytes += len(data)
            if self._fields_bytes > MAX_FIELDS_BYTES:
                raise _malformed(f"its fields are larger than {MAX_FIELDS_BYTES} bytes")

    def _close_part(self) -> None:
        if self._field is not None:
            self.form.fields[self._name] = self._field.decode("utf-8", "surrogateescape")
        if self._file is not None:
            self._file.seek(0)
        self._field = self._file = None

    def _read_headers(self) -> bool:
        if self._buffer.startswith(b"--"):
            self.ended = True
            return False
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEADER_BYTES:
                raise _malformed("the headers of a part do not end")
            return False
        headers = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        # An empty part's delimiter follows its headers at once, and shares their last line break.
        self._buffer[:0] = b"\r\n" if self._buffer.startswith(self._delimiter[2:]) else b""
        self._open_part(headers)
        self._in_headers = False
        return True

    def _open_part(self, headers: bytes) -> None:
        disposition = _DISPOSITION.search(headers)
        parameters = {
            name.lower(): quoted or bare
            for name, quoted, bare in _PARAMETER.findall(disposition.group(1) if disposition else b"")
        }
        if b"name" not in parameters:
            raise _malformed("a part has no name")
        self._name = parameters[b"name"].decode("utf-8", "surrogateescape")
        if self._name in self.form.files or self._name in self.form.fields:
            raise _malformed(f"two parts are called {self._name}")
        if b"filename" in parameters:
            if len(self.form.files) >= MAX_FILES:
                raise _malformed(f"it has more than {MAX_FILES} files")
            self._file = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(self._folder))  # noqa: SIM115
            self.form.files[self._name] = self._file
        else:
            self._field = bytearray()


def _malformed(reason: str) -> QueryError:
    return QueryError("INCORRECT_DATA", f"Malformed multipart/form-data body: {reason}")


def is_multipart(request: Request) -> bool:
    """Whether the body is a form with parts."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def read_form(request: Request, body: Body, folder: Path) -> Form:
    """The whole form of a request; files are spooled below `folder`.

    Raises
    ------
    QueryError
        INCORRECT_DATA when the body is not a complete form.
    """
    boundary = _BOUNDARY.search(request.headers["content-type"])
    if boundary is None:
        raise _malformed("the Content-Type names no boundary")
    reader = _Reader((boundary.group(1) or boundary.group(2)).encode("latin-1"), folder)
    try:
        while (piece := body.next()) is not None:
            reader.feed(piece)
        if not reader.ended:
            raise _malformed("it was cut short")
    except BaseException:
        reader.form.close()
        raise
    return reader.form
