"""ClickHouse's exceptions as they cross HTTP: code, name, text, and the HTTP status they map to.

Belongs here: building and reading exception texts, the status table, the framing of an exception that comes
after a part of the result was sent. Does not belong here: deciding when something is an error.
"""

from __future__ import annotations

import re
import secrets

_CODE = re.compile(r"Code: (\d+)\. ")
_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)(?: \(version [^)]*\)?\))?\s*$")

# What the engine adds about the pipe through which it is given an insert's data.
_OWN_WORDS = re.compile(r": data for INSERT was parsed from file|:? ?\(in file/uri /dev/fd/\d+\)")

# Codes that the front raises itself; the engine's own come with their text.
CODES = {
    "BAD_ARGUMENTS": 36,
    "NOT_IMPLEMENTED": 48,
    "SYNTAX_ERROR": 62,
    "UNKNOWN_FORMAT": 73,
    "UNKNOWN_TYPE_OF_QUERY": 78,
    "UNKNOWN_SETTING": 115,
    "INCORRECT_DATA": 117,
    "INTO_OUTFILE_NOT_ALLOWED": 148,
    "READONLY": 164,
    "ABORTED": 236,
    "TOO_MANY_ROWS_OR_BYTES": 396,
    "UNKNOWN_QUERY_PARAMETER": 456,
    "REQUIRED_PASSWORD": 194,
    "TOO_MANY_SIMULTANEOUS_QUERIES": 202,
    "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING": 216,
    "QUERY_IS_TOO_LARGE": 229,
    "NOT_ENOUGH_SPACE": 243,
    "CANNOT_DECOMPRESS": 271,
    "ZLIB_INFLATE_FAILED": 354,
    "SESSION_NOT_FOUND": 372,
    "SESSION_IS_LOCKED": 373,
    "INVALID_SESSION_TIMEOUT": 374,
    "QUERY_WAS_CANCELLED": 394,
    "BROTLI_READ_FAILED": 448,
    "ACCESS_DENIED": 497,
    "UNKNOWN_ROLE": 511,
    "AUTHENTICATION_FAILED": 516,
    "LZMA_STREAM_DECODER_FAILED": 554,
    "ZSTD_DECODER_FAILED": 561,
    "BZIP2_STREAM_DECODER_FAILED": 594,
    "LZ4_DECODER_FAILED": 618,
    "UNKNOWN_CODEC": 432,
    "SNAPPY_UNCOMPRESS_FAILED": 638,
    "UNKNOWN_EXCEPTION": 1002,
}

# HTTP statuses as a ClickHouse server maps them; everything else is 500.
_BAD_REQUEST = """
    BAD_ARGUMENTS CANNOT_COMPILE_REGEXP CANNOT_PARSE_TEXT CANNOT_PARSE_ESCAPE_SEQUENCE
    CANNOT_PARSE_QUOTED_STRING CANNOT_PARSE_DATE CANNOT_PARSE_DATETIME CANNOT_PARSE_NUMBER
    CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING CANNOT_PARSE_IPV4 CANNOT_PARSE_IPV6 CANNOT_PARSE_UUID
    CANNOT_PARSE_INPUT_ASSERTION_FAILED DUPLICATE_COLUMN ILLEGAL_COLUMN THERE_IS_NO_COLUMN
    UNKNOWN_ELEMENT_IN_AST UNKNOWN_TYPE_OF_AST_NODE TOO_DEEP_AST TOO_BIG_AST UNEXPECTED_AST_STRUCTURE
    VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE SYNTAX_ERROR INCORRECT_DATA TYPE_MISMATCH
"""
_FORBIDDEN = "UNKNOWN_USER WRONG_PASSWORD AUTHENTICATION_FAILED SET_NON_GRANTED_ROLE ACCESS_DENIED"
_NOT_FOUND = """
    UNKNOWN_TABLE UNKNOWN_FUNCTION UNKNOWN_IDENTIFIER UNKNOWN_TYPE UNKNOWN_STORAGE UNKNOWN_DATABASE
    UNKNOWN_SETTING UNKNOWN_DIRECTION_OF_SORTING UNKNOWN_AGGREGATE_FUNCTION UNKNOWN_FORMAT
    UNKNOWN_DATABASE_ENGINE UNKNOWN_TYPE_OF_QUERY UNKNOWN_ROLE
"""
_STATUS = {
    **dict.fromkeys(_BAD_REQUEST.split(), 400),
    "REQUIRED_PASSWORD": 401,
    **dict.fromkeys(_FORBIDDEN.split(), 403),
    **dict.fromkeys(_NOT_FOUND.split(), 404),
    "TIMEOUT_EXCEEDED": 408,
    "HTTP_LENGTH_REQUIRED": 411,
    "QUERY_IS_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "NOT_IMPLEMENTED": 501,
    "SOCKET_TIMEOUT": 503,
    "ABORTED": 503,
    "CANNOT_OPEN_FILE": 503,
    "CANNOT_SCHEDULE_TASK": 503,
}


class QueryError(Exception):
    """An exception as ClickHouse would report it.

    Attributes
    ----------
    code : int
        ClickHouse's error code.
    name : str
        Its name, such as `UNKNOWN_TABLE`.
    message : str
        The whole text, beginning with `Code: N.`.
    """

    def __init__(self, name: str, text: str, *, code: int | None = None, message: str | None = None) -> None:
        self.name = name
        self.code = CODES[name] if code is None else code
        self.message = message or f"Code: {self.code}. DB::Exception: {text} ({name})"
        super().__init__(self.message)

    @property
    def status(self) -> int:
        """HTTP status that a ClickHouse server answers with for this exception."""
        return _STATUS.get(self.name, 500)

    @classmethod
    def from_engine(cls, error: BaseException) -> QueryError:
        """The engine's exception, with code and name read back from its text, which is all there is."""
        undecoded = error if isinstance(error, UnicodeDecodeError) else error.__cause__
        if isinstance(undecoded, UnicodeDecodeError):
            # The text quotes what a client sent, which need not be UTF-8.
            text = bytes(undecoded.object).decode("utf-8", "replace").strip()
        else:
            text = str(error).strip()
        found = _CODE.search(text)
        if found is None:
            return cls("UNKNOWN_EXCEPTION", text or type(error).__name__)
        message = _OWN_WORDS.sub("", text[found.start() :])
        # An exception that passes through a file's reader is wrapped in another of the same words.
        message = re.sub(rf"^(Code: {found.group(1)}\. DB::Exception: )\1", r"\1", message)
        name = _NAME.search(message)
        return cls(
            name.group(1) if name else "UNKNOWN_EXCEPTION", "", code=int(found.group(1)), message=message
        )


def exception_tag() -> str:
    """A fresh random tag by which a client tells an exception inside a result from data."""
    return secrets.token_hex(8)


def mid_stream_exception(error: QueryError, tag: str) -> bytes:
    """What ends a result whose query fails after a part of it was sent, framed as since 25.11."""
    message = error.message.encode()
    return b"\r\n__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n" % (
        tag.encode(), message, len(message) + 1, tag.encode(),
    )  # fmt: skip
