"""One statement over HTTP: who asks, the answer as it comes, what goes wrong, in words for people.

Belongs here: talking to any ClickHouse. Does not belong here: where statements come from and results go.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import click
import httpx

from apex_pipelines.platform.clickhouse import clickhouse_url, reader_password
from apex_pipelines.settings import Settings

CONNECT_SECONDS = 10
READER = "reader"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def connection_options(command: Decorated) -> Decorated:
    """`--user` and `--read-only`."""
    reader = f"Ask as `{READER}`, who can't change anything."
    command = click.option("--read-only", "-r", is_flag=True, help=reader)(command)
    return click.option("--user", help="Ask as this user [the one in the URL].")(command)


def credentials(settings: Settings, *, user: str | None, read_only: bool) -> tuple[str, str]:
    """User and password to ask with; the one place that chooses them.

    The password of the URL is its own user's, and the embedded warehouse's reader has one that is kept. Any
    other is asked for without a password.
    """
    if user and read_only:
        raise click.UsageError(f"--read-only asks as {READER!r}; it can't be combined with --user")
    parts = urlsplit(clickhouse_url(settings))
    owner = unquote(parts.username or "default")
    wanted = READER if read_only else user or owner
    if wanted == owner:
        return wanted, unquote(parts.password or "")
    if wanted == READER and (settings.clickhouse_reader_password or not settings.clickhouse_url):
        return wanted, reader_password(settings)
    return wanted, ""


def server_address(settings: Settings) -> str:
    """URL of the server without credentials, path and parameters.

    Raises
    ------
    click.ClickException
        If APEX_CLICKHOUSE_URL is no URL.
    """
    parts = urlsplit(clickhouse_url(settings))
    secure = parts.scheme == "https"
    try:
        port = parts.port or (8443 if secure else 8123)
    except ValueError as error:
        raise click.ClickException(f"APEX_CLICKHOUSE_URL is wrong: {error}") from error
    if not parts.hostname:
        raise click.ClickException("APEX_CLICKHOUSE_URL is wrong: it names no host, as in http://host:8123")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{'https' if secure else 'http'}://{host}:{port}"


class QueryFailed(click.ClickException):
    """The server refused or broke off a statement, or can't be reached.

    Attributes
    ----------
    code : int
        ClickHouse's error code; 0 when the error is not ClickHouse's.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = re.match(r"Code: (\d+)\.", message)
        self.code = int(found.group(1)) if found else 0


SESSION_NOT_FOUND, SESSION_IS_LOCKED = 372, 373
# ClickHouse lists all that could have stood where a syntax error is, which may be its whole grammar.
SHOWN_WORDS = 12


class Answer:
    """The answer to one statement, as it comes.

    Attributes
    ----------
    format : str
        Format of the result; empty for a statement that has none.
    summary : mapping of str to int
        ClickHouse's counts (rows and bytes); empty for a result that was begun before they were known.
    ended : bool
        Whether it was read to its end.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.format = response.headers.get("X-ClickHouse-Format", "")
        told = json.loads(response.headers.get("X-ClickHouse-Summary", "{}"))
        self.summary = {name: int(value) for name, value in told.items()}
        self.ended = False

    def pieces(self) -> Iterator[bytes]:
        """The result, without an exception that may end it.

        Raises
        ------
        QueryFailed
            When the statement fails in the middle of its result.
        """
        tag = self._response.headers.get("X-ClickHouse-Exception-Tag")
        mark = b"\r\n__exception__\r\n%s\r\n" % tag.encode() if tag else b""
        held = b""
        raw = self._response.iter_bytes()
        for piece in raw:
            piece = held + piece
            at = piece.find(mark) if mark else -1
            if at >= 0:
                yield piece[:at]
                self.ended = True
                raise QueryFailed(_mid_stream_text(piece[at + len(mark) :] + b"".join(raw)))
            held = _beginning_at_end(piece, mark)
            yield piece[: len(piece) - len(held)]
        yield held
        self.ended = True


def _beginning_at_end(piece: bytes, mark: bytes) -> bytes:
    """The part of `mark` that `piece` ends with."""
    sizes = range(min(len(mark) - 1, len(piece)), 0, -1)
    return next((mark[:size] for size in sizes if piece.endswith(mark[:size])), b"")


def _mid_stream_text(frame: bytes) -> str:
    """The message in what follows an exception's tag: itself, its size and the tag, the closing mark."""
    body, closed, _ = frame.rpartition(b"\r\n__exception__")
    return _message(body.rpartition(b"\n")[0] if closed else frame)


def _message(raw: bytes) -> str:
    """ClickHouse's text of an exception, without its stack and the server's version."""
    text = raw.decode("utf-8", "replace").strip()
    text = re.split(r",? Stack trace \(when copying", text)[0].strip()
    words = rf"(Expected one of: (?:[^,]*, ){{{SHOWN_WORDS}}}).*(?=\. \(SYNTAX_ERROR\))"
    text = re.sub(words, r"\1...", text)
    return re.sub(r" \(version [\w.]+(?: \([^()]*\))?\)$", "", text)


@dataclass(frozen=True)
class Warehouse:
    """A ClickHouse server and how it is asked.

    Attributes
    ----------
    options : mapping
        Settings that go with every statement.
    parameters : mapping
        Values for `{name:Type}`. For a String the value is taken as it is; for other types it is written as
        ClickHouse reads it, with backslash escapes.
    """

    http: httpx.Client
    user: str
    embedded: bool
    options: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def run(
        self,
        text: bytes,
        *,
        data: Iterable[bytes] = (),
        format_name: str = "TabSeparated",
        session: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Iterator[Answer]:
        """Run one statement; leaving before its answer has ended cancels it.

        Raises
        ------
        QueryFailed
            When the server refuses it, nothing answers, or the connection breaks.
        """
        query_id = str(uuid.uuid4())
        params = {"query_id": query_id, "default_format": format_name, **self.options, **(session or {})}
        params |= {f"param_{name}": _bound(text, name, value) for name, value in self.parameters.items()}
        timeout = httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS)
        content = chain((text,), data)
        leave_running = False
        try:
            with self.http.stream("POST", "/", params=params, content=content, timeout=timeout) as response:
                if response.status_code != 200:
                    raise QueryFailed(self._refusal(response))
                answer = Answer(response)
                yield answer
            leave_running = answer.ended
        except httpx.HTTPError as error:
            leave_running = isinstance(error, httpx.ConnectError)
            raise QueryFailed(self._broken(error)) from error
        except QueryFailed:
            leave_running = True
            raise
        finally:
            if not leave_running:
                self._kill(query_id)

    def value(self, text: bytes, **how: Any) -> str:
        """The whole, small result of a query, without its last line break."""
        with self.run(text, **how) as answer:
            return b"".join(answer.pieces()).decode("utf-8", "replace").removesuffix("\n")

    def _kill(self, query_id: str) -> None:
        """Cancel a query whose connection is closed already, which not every server takes as a wish.

        Says nothing when that fails: a reader may not, and the query may have ended.
        """
        with suppress(httpx.HTTPError):
            text = f"KILL QUERY WHERE query_id = '{query_id}' ASYNC"
            self.http.post("/", content=text, timeout=2)

    def _refusal(self, response: httpx.Response) -> str:
        text = _message(response.read())
        if "DB::Exception" in text:
            return text
        return f"{self.http.base_url} answered with {response.status_code}, not as ClickHouse: {text[:300]}"

    def _broken(self, error: httpx.HTTPError) -> str:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            remedy = (
                "Start it with `apex up` or `apex warehouse serve`."
                if self.embedded
                else "Is APEX_CLICKHOUSE_URL right?"
            )
            return f"no warehouse answers at {self.http.base_url} ({error}). {remedy}"
        return f"the connection to {self.http.base_url} broke: {error or type(error).__name__}"


def _bound(text: bytes, name: str, value: str) -> str:
    """`value` for the parameter `name` of a statement, as the interface wants it."""
    texts = rb"\{\s*%s\s*:\s*(?:LowCardinality\(\s*)?(?:Fixed)?String\b" % re.escape(name.encode())
    if re.search(texts, text) is None:
        return value
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


@contextmanager
def connected(
    settings: Settings,
    *,
    user: str | None,
    read_only: bool,
    origin: str,
    options: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
) -> Iterator[Warehouse]:
    """The configured server. Nothing is sent yet.

    `origin` is who asks; it is sent as `log_comment`, except for the reader, who may not change settings.
    """
    name, password = credentials(settings, user=user, read_only=read_only)
    tags = {} if read_only else {"log_comment": origin}
    with httpx.Client(base_url=server_address(settings), auth=(name, password)) as http:
        yield Warehouse(
            http, name, settings.clickhouse_url is None, {**tags, **(options or {})}, parameters or {}
        )
