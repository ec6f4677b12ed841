"""Structured logging: one line an event, to stderr, with secrets masked before anything is written."""

from __future__ import annotations

import contextlib
import logging
import re
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

# What must never be written: API keys of ours (url-safe base64) and of Stripe/Resend, signing secrets
# (base64), customers' tokens, bearer tokens, passwords in URLs.
_SECRET = re.compile(
    r"(apx_[a-z]+_[\w-]{4})[\w-]+|((?:sk|rk|whsec|re)_[\w+/-]{4})[\w+/=-]+"
    r"|(eyJ[\w-]{4})[\w.-]+|(Bearer\s+)[^\s\"']+|(://[^:/@\s]*:)[^@/\s]+@"
)
_SECRET_FIELDS = frozenset({"api_key", "authorization", "password", "secret", "token"})


def mask_secrets(text: str) -> str:
    """`text` with keys, tokens and URL passwords cut down to what identifies them."""

    def shorten(match: re.Match[str]) -> str:
        kept = next(part for part in match.groups() if part is not None)
        return f"{kept}***" + ("@" if match.group(5) else "")

    return _SECRET.sub(shorten, text)


def _mask_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        event[name] = "***" if name in _SECRET_FIELDS else _masked(value)
    return event


class _BestEffort:
    """stderr, for lines that may be lost: a log on a full disk must not stop what it tells of."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def _masked(value: object) -> object:
    if isinstance(value, str):
        return mask_secrets(value)
    if isinstance(value, dict):
        return {key: "***" if key in _SECRET_FIELDS else _masked(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each) for each in value]
    return value


def _name_module(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["module"] = event["_record"].name
    return event


_PREPARED: list[structlog.typing.Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    _mask_event,
]


def _renderer(fmt: str) -> structlog.typing.Processor:
    if fmt == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())


def configure_logging(level: str = "INFO", fmt: str = "console") -> None:
    """Set up logging of this process. `fmt` is `console` for people or `json` for machines."""
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *_PREPARED, _renderer(fmt)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=_BestEffort()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


def capture_library_logs(fmt: str = "console") -> None:
    """Write what libraries say at WARNING and above as our own lines are written, masked likewise."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                _name_module,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_PREPARED,
                _renderer(fmt),
            ]
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger that carries `name` as its `module` field."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger
