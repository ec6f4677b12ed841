"""Who may ask, and for what: users, their credentials, their limits, what the read-only user must not name.

Belongs here: deciding before anything runs. Does not belong here: reading requests, running queries.

The embedded engine has one user and can make no others, so a read-only user is made of two walls. Its
connection is put under the engine's own `readonly = 1`, which refuses every write, every table function
with a source outside, every temporary table and every change of a setting in a statement. What the engine
leaves open is closed here, before the statement runs: functions that read files or call a language model;
functions that take a list of columns or an aggregate function as text, and evaluate what is in it;
`DESCRIBE` of a table function, which opens its source; names of tables that are paths; settings of the
request whose text is a path, an address or SQL. Where the engine has a list of what there is (table
functions, settings), only what is known to be harmless is let through; single functions are closed by name.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from apex_pipelines.platform.warehouse import sql
from apex_pipelines.platform.warehouse.errors import QueryError
from apex_pipelines.platform.warehouse.lexer import Token, tokens
from apex_pipelines.platform.warehouse.request import Request, is_small_number

# Table functions that read nothing but their arguments and this server's tables. Every other one that the
# engine has, and will have, is closed to the read-only user.
_HARMLESS_TABLE_FUNCTIONS = frozenset(
    {
        "numbers", "numbers_mt", "zeros", "zeros_mt", "generateseries", "generate_series", "primes", "values",
        "sqlstandardvalues", "view", "viewifpermitted", "merge", "fuzzjson",
    }
)  # fmt: skip

# They take a list of columns as text, whose defaults the engine evaluates.
_STRUCTURE_FUNCTIONS = frozenset({"structureToProtobufSchema", "structureToCapnProtoSchema"})
# Says of a path that is a table's name whether there is such a file.
_PROBING_FUNCTIONS = frozenset({"hasColumnInTable"})
# They take an aggregate function as text, whose parameters the engine evaluates: a name and literals only.
_AGGREGATING_BY_NAME = frozenset({"arrayReduce", "arrayReduceInRanges", "initializeAggregation"})
_PLAIN_AGGREGATE = re.compile(rb"""'\w+(\([^()'"`\[\]\\]*\))?'""")
_DEFAULT_IN_STRUCTURE = re.compile(rb"(?i)\b(default|materialized|alias|ephemeral)\b")
_PATH = re.compile(rb"[/.~]|[A-Za-z][A-Za-z0-9+]*://")

# Settings that are free text name files, addresses, and SQL that runs with the query; these don't.
_HARMLESS_TEXT_SETTINGS = frozenset(
    {
        "log_comment", "format", "output_format", "default_format", "compression", "query_cache_tag",
        "workload", "bool_true_representation", "bool_false_representation",
        "format_csv_null_representation", "format_tsv_null_representation",
        "format_custom_field_delimiter", "format_custom_row_after_delimiter",
        "format_custom_row_before_delimiter", "format_custom_row_between_delimiter",
        "format_custom_result_after_delimiter", "format_custom_result_before_delimiter",
        "format_template_rows_between_delimiter", "format_regexp", "format_schema_message_name",
        "format_json_object_each_row_column_for_object_name", "output_format_sql_insert_table_name",
        "output_format_pretty_grid_charset", "output_format_avro_codec",
        "output_format_avro_string_column_pattern", "output_format_orc_writer_time_zone_name",
        "network_compression_method", "force_data_skipping_indices", "ignore_data_skipping_indices",
        "preferred_optimize_projection_name", "framing_output_format", "chdb_client_name",
        "column_names_for_schema_inference", "input_format",
    }
)  # fmt: skip
# Not text, but they change how a statement is read or what it shows of the process.
_CLOSED_SETTINGS = frozenset({"profile", "implicit_select", "allow_introspection_functions"})


@dataclass(frozen=True, slots=True)
class User:
    """Someone who may ask.

    Attributes
    ----------
    ceilings : mapping of str to int
        Settings with their default for this user, which is also the most a read-only user may ask for.
    """

    name: str
    password: str = field(repr=False)
    read_only: bool = False
    ceilings: Mapping[str, int] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, str]:
        """Settings that a connection of this user begins with."""
        return {name: str(value) for name, value in self.ceilings.items()}

    def allowed(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """What a query of this user gets, of the settings that the request wants.

        The operator may change everything, as a server's default user may. For the read-only user, ceilings
        hold and `readonly` is not to be discussed.
        """
        settings = {}
        for name, value in wanted.items():
            if self.read_only and name == "readonly":
                continue
            if self.read_only and name in self.ceilings:
                # 0 would mean without limit, and a number can be written in ways that are none of ours.
                allowed = is_small_number(value) and 0 < int(value) <= self.ceilings[name]
                if not allowed:
                    continue
            settings[name] = value
        return settings


def authenticate(request: Request, users: Iterable[User]) -> User:
    """The user that the request's credentials belong to, compared in constant time.

    Raises
    ------
    QueryError
        REQUIRED_PASSWORD without credentials, AUTHENTICATION_FAILED with wrong ones or two kinds at once.
    """
    name, password, given = _credentials(request)
    # Every user is compared, so that the time tells neither who exists nor how much was right.
    found = None
    for user in users:
        same_name = hmac.compare_digest(_bytes(user.name), _bytes(name))
        same_password = hmac.compare_digest(_bytes(user.password), _bytes(password))
        if same_name and same_password:
            found = user
    if found is not None:
        return found
    if not given:
        raise QueryError("REQUIRED_PASSWORD", f"{name}: Authentication failed: password is required")
    raise QueryError(
        "AUTHENTICATION_FAILED",
        f"{name}: Authentication failed: password is incorrect, or there is no user with such name.",
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _credentials(request: Request) -> tuple[str, str, bool]:
    """User, password, and whether any were given."""
    headers, params = request.headers, request.params
    authorization = headers.get("authorization", "")
    by_header = "x-clickhouse-user" in headers or "x-clickhouse-key" in headers
    by_param = "user" in params or "password" in params
    if by_header:
        if authorization or by_param:
            raise QueryError(
                "AUTHENTICATION_FAILED",
                "Invalid authentication: X-ClickHouse headers and another kind are both given",
            )
        name, password = headers.get("x-clickhouse-user", ""), headers.get("x-clickhouse-key", "")
    elif authorization:
        if by_param:
            raise QueryError(
                "AUTHENTICATION_FAILED",
                "Invalid authentication: Authorization header and parameters are both given",
            )
        name, password = _basic(authorization)
    else:
        name, password = params.get("user", ""), params.get("password", "")
    return name or "default", password, bool(by_header or authorization or by_param)


def _basic(authorization: str) -> tuple[str, str]:
    scheme, _, encoded = authorization.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError(scheme)
        text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        raise QueryError(
            "AUTHENTICATION_FAILED", "Invalid authentication: the Authorization header is not HTTP Basic"
        ) from None
    name, _, password = text.partition(":")
    return name, password


class ReadOnlyGuard:
    """What the read-only user's statements must not contain.

    Parameters
    ----------
    table_functions : iterable of str
        All that the engine has.
    functions : iterable of str
        Scalar functions that reach a file or another host. They may be named without being called, as in
        `arrayMap(file, names)`, so the names alone are refused.
    """

    def __init__(
        self, table_functions: Iterable[str], functions: Iterable[str], text_settings: Iterable[str]
    ) -> None:
        self._called = {name.lower() for name in table_functions} - _HARMLESS_TABLE_FUNCTIONS
        self._named = frozenset(functions) | _STRUCTURE_FUNCTIONS | _PROBING_FUNCTIONS
        self._closed = (frozenset(text_settings) - _HARMLESS_TEXT_SETTINGS) | _CLOSED_SETTINGS

    def check_settings(self, names: Iterable[str]) -> None:
        """Refuse settings that hold a path, an address or SQL.

        Raises
        ------
        QueryError
            READONLY with the first of them.
        """
        for name in names:
            if name in self._closed:
                raise QueryError("READONLY", f"Cannot modify '{name}' setting in readonly mode.")

    def check(self, statement: sql.Statement, canonical: bytes, parameters: Mapping[str, str]) -> None:
        """Let a statement pass, or not.

        Parameters
        ----------
        canonical : bytes
            The statement as the engine itself writes it down: what is read here is what the engine has read,
            whatever quotes, escapes, comments and blanks the client chose.
        parameters : mapping of str to str
            Values of `{name:Type}`, of which those of type Identifier become names.

        Raises
        ------
        QueryError
            READONLY when it is no query; ACCESS_DENIED when it names what reaches outside.
        """
        if statement.kind is not sql.Kind.ROWS:
            raise QueryError("READONLY", "Cannot execute query in readonly mode: this user may only read.")
        found = self.check_names(canonical)
        if statement.keyword in (b"DESCRIBE", b"DESC", b"EXISTS", b"SHOW"):
            # What would be shown of a path is a file's.
            for token in found:
                if token.kind in ("quoted", "string") and b"/" in token.text:
                    raise _denied(token.text.decode("utf-8", "replace"))
        substitutes = any(one.text == b":" and two.text == b"IDENTIFIER" for one, two in pairwise(found))
        if substitutes:
            for value in map(_bytes, parameters.values()):
                self.check_names(value)
                if _PATH.match(value):
                    raise _denied(value.decode("utf-8", "replace"))

    def check_names(self, text: bytes) -> list[Token]:
        """The tokens of a text, none of which names what reaches outside.

        Raises
        ------
        QueryError
            ACCESS_DENIED with the first that does.
        """
        found = list(tokens(text))
        nothing = Token("end", b"", len(text), len(text))
        around = zip(
            [nothing, *found], found, [*found[1:], nothing], [*found[2:], nothing, nothing], strict=False
        )
        for before, token, after, argument in around:
            if token.kind not in ("word", "quoted"):
                continue
            raw = text[token.start : token.end].strip(b'`"')
            name = raw.decode("utf-8", "replace")
            called = after.text == b"("
            if name in self._named or (called and name.lower() in self._called):
                raise _denied(name)
            if name in _AGGREGATING_BY_NAME and not (called and _PLAIN_AGGREGATE.fullmatch(argument.text)):
                raise _denied(f"{name} of anything but an aggregate function's plain name")
            if called and name.lower() == "values" and _DEFAULT_IN_STRUCTURE.search(argument.text):
                raise _denied(f"{name} with defaults")
            # A path is the name of a table, whose file need not be readable to be seen to exist.
            if token.kind == "quoted" and before.text != b"AS" and _PATH.match(raw):
                raise _denied(name)
        return found


def _denied(name: str) -> QueryError:
    return QueryError(
        "ACCESS_DENIED",
        f"Not enough privileges: {name} could reach beyond this server's tables, which this user may not",
    )
