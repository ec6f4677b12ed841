"""Mappings: how a record of a file becomes usage events. They are TOML files; `mappings/` has the built-in.

Belongs here: the format of a mapping, loading it, telling which built-in one fits a file. Does not belong
here: reading files (`readers.py`) and applying a mapping (`events.py`).
"""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from apex_pipelines.importing.errors import MappingProblem
from apex_pipelines.platform import catalogue

BUILT_IN = Path(__file__).resolve().parent / "mappings"
WEB_LOG_COLUMNS = ("client", "time", "method", "path", "status", "bytes")

Column = Annotated[str, msgspec.Meta(min_length=1)]


class Time(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the event's time stands.

    Attributes
    ----------
    format : str
        `iso`, `unix` (seconds), `unix_ms`, or a pattern of `strptime`. A time without zone is UTC.
    """

    column: Column
    format: str = "iso"


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a metric applies; every bound that is given must hold."""

    column: Column
    equals: str | None = None
    one_of: tuple[str, ...] | None = None
    at_least: int | float | None = None
    below: int | float | None = None


class MappedMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event made of each record.

    Attributes
    ----------
    column, constant : str, int
        Where the quantity comes from; exactly one of the two.
    exponent : int
        The column's number times ``10**exponent`` is the quantity in the metric's unit: -9 makes GB of bytes.
    absent : tuple of str
        Texts of the column that mean "nothing measured": no event then. A zero is an event of quantity 0.
    """

    metric_type: str
    column: Column | None = None
    constant: Annotated[int, msgspec.Meta(ge=0)] | None = None
    exponent: Annotated[int, msgspec.Meta(ge=-18, le=18)] = 0
    absent: tuple[str, ...] = ("",)
    when: Condition | None = None
    metadata: dict[str, str] = {}


class NewCustomers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How customers that the file names are created.

    Attributes
    ----------
    email_column : str or None
        Without it they get an address under `.invalid`, to which nothing can ever be delivered.
    plan : str or None
        Plan of the subscription that starts at the first event; None opens no subscription.
    """

    name: str = "{customer}"
    email_column: Column | None = None
    plan: str | None = "starter"
    marketing_consent: bool = False


class Mapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How records of one kind of file become events; see `mappings/` for two examples.

    Attributes
    ----------
    name : str
        Part of every event's id: importing the same file under another name counts it again.
    delimiter : str or None
        Of CSV: one character, or `whitespace`; None looks at the header.
    metadata : dict
        Metadata key to the column whose value every event carries.
    """

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,39}$")]
    format: Literal["web-log", "csv", "ndjson"]
    customer: Column
    time: Time
    metrics: Annotated[tuple[MappedMetric, ...], msgspec.Meta(min_length=1)]
    description: str = ""
    delimiter: str | None = None
    metadata: dict[str, Column] = {}
    customers: NewCustomers = NewCustomers()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that the mapping reads, each once, in the order of the mapping."""
        named = [self.customer, self.time.column]
        for metric in self.metrics:
            named += [metric.column or "", metric.when.column if metric.when else ""]
        named += [*self.metadata.values(), self.customers.email_column or ""]
        return tuple(dict.fromkeys(name for name in named if name))

    @property
    def source(self) -> str:
        """`source` of the customers that this mapping creates."""
        return f"import:{self.name}"


def built_in_names() -> list[str]:
    """Names of the mappings that come with the project."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def load_mapping(name_or_path: str | Path) -> Mapping:
    """A built-in mapping by name, or one of the user's own by the path of its TOML file.

    Raises
    ------
    MappingProblem
        If there is none, or it is malformed; the message names the place.
    """
    path = BUILT_IN / f"{name_or_path}.toml" if str(name_or_path) in built_in_names() else Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MappingProblem(
            f"{str(name_or_path)!r} is neither a built-in mapping ({', '.join(built_in_names())}) "
            f"nor a readable TOML file ({error})"
        ) from error
    try:
        mapping = msgspec.convert(tomllib.loads(text), Mapping)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise MappingProblem(f"mapping {path}: {error}; {BUILT_IN / 'cdnow.toml'} is an example") from error
    _check(mapping, path)
    return mapping


def _check(mapping: Mapping, path: Path) -> None:
    known = catalogue.telemetry_metrics()
    seen: set[str] = set()
    for metric in mapping.metrics:
        where = f"mapping {path}, metric {metric.metric_type!r}"
        if metric.metric_type not in known:
            raise MappingProblem(f"{where}: no such metric; the catalogue has {', '.join(known)}")
        if metric.metric_type in seen:
            raise MappingProblem(f"{where}: listed twice; one event a record and metric")
        seen.add(metric.metric_type)
        if (metric.column is None) == (metric.constant is None):
            raise MappingProblem(f"{where}: give either `column` or `constant`")
        needed = known[metric.metric_type].metadata_key
        if needed and needed not in mapping.metadata and needed not in metric.metadata:
            raise MappingProblem(
                f"{where}: its events must carry metadata {needed!r}; add it under [metadata]"
            )
        condition = metric.when
        if condition and all(
            bound is None
            for bound in (condition.equals, condition.one_of, condition.at_least, condition.below)
        ):
            raise MappingProblem(f"{where}: `when` needs equals, one_of, at_least or below")
    if mapping.delimiter not in (None, "whitespace") and len(mapping.delimiter or "") != 1:
        raise MappingProblem(f"mapping {path}: delimiter {mapping.delimiter!r} is not one character")
    if mapping.format == "web-log" and (missing := set(mapping.columns) - set(WEB_LOG_COLUMNS)):
        raise MappingProblem(
            f"mapping {path}: a web log has no {', '.join(sorted(missing))}; "
            f"it has {', '.join(WEB_LOG_COLUMNS)}"
        )
    plan = mapping.customers.plan
    if plan is not None and plan not in catalogue.plans():
        raise MappingProblem(f"mapping {path}: no plan {plan!r}; plans are {', '.join(catalogue.plans())}")
    try:
        mapping.customers.name.format(customer="x")
    except (KeyError, IndexError, ValueError) as error:
        raise MappingProblem(
            f"mapping {path}: customers.name {mapping.customers.name!r} may hold {{customer}} only"
        ) from error


def holds(condition: Condition, text: str) -> bool:
    """Whether the column's text meets the condition.

    Raises
    ------
    decimal.InvalidOperation
        If a bound needs a number and the text is none.
    """
    if condition.equals is not None and text != condition.equals:
        return False
    if condition.one_of is not None and text not in condition.one_of:
        return False
    if condition.at_least is None and condition.below is None:
        return True
    number = Decimal(text)
    if condition.at_least is not None and number < Decimal(str(condition.at_least)):
        return False
    return condition.below is None or number < Decimal(str(condition.below))
