"""Parameters of a request: how they are encoded, and what of them is accepted.

Belongs here: decoding of forms and kinds of values. Does not belong here: which parameters a request has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol
from urllib.parse import parse_qsl

from apex_pipelines.sandbox.stripe.errors import invalid

Given = dict[str, Any]
_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PART = re.compile(r"\[([^\[\]]*)\]")


def decode_form(encoded: str) -> Given:
    """Nested text from a form or query string, such as ``items[0][price]=price_1``.

    Raises
    ------
    Refusal
        If a key can't be read.
    """
    decoded: Given = {}
    for key, value in parse_qsl(encoded, keep_blank_values=True):
        found = _KEY.fullmatch(key)
        if found is None:
            raise invalid(f"Invalid parameter name: {key}")
        parts = [found[1], *_PART.findall(found[2])]
        place = decoded
        for part, following in itertools.pairwise(parts):
            below = place.setdefault(part or str(len(place)), {})
            if not isinstance(below, dict):
                raise invalid(f"Invalid object: {key} (near {following})", param=found[1])
            place = below
        place[parts[-1] or str(len(place))] = value
    return decoded


class Kind(Protocol):
    """Reads one value, and says what is wrong with it."""

    def read(self, raw: Any, name: str) -> Any: ...


def _text(raw: Any, name: str) -> str:
    if not isinstance(raw, str):
        raise invalid(f"Invalid string: {name}", param=name)
    return raw


@dataclass(frozen=True)
class Text:
    """Text; with `choices` one of them, with `unset` an empty one stands for nothing."""

    max_length: int = 5000
    choices: tuple[str, ...] = ()
    unset: bool = False

    def read(self, raw: Any, name: str) -> str | None:
        text = _text(raw, name)
        if not text:
            if self.unset:
                return None
            raise invalid(
                f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a "
                f"parameter; however '{name}' cannot be unset.",
                name,
                "parameter_invalid_empty",
            )
        if len(text) > self.max_length:
            raise invalid(f"Invalid string: {name} must be at most {self.max_length} characters", name)
        if self.choices and text not in self.choices:
            raise invalid(f"Invalid {name}: must be one of {', '.join(self.choices)}", name)
        return text


@dataclass(frozen=True)
class Integer:
    """A whole number; `words` are taken as they are (`now`, `inf`)."""

    minimum: int | None = None
    words: tuple[str, ...] = ()
    unset: bool = False

    def read(self, raw: Any, name: str) -> int | str | None:
        text = _text(raw, name)
        if text in self.words:
            return text
        if self.unset and not text:
            return None
        if re.fullmatch(r"[+-]?\d{1,18}", text) is None:
            raise invalid(f"Invalid integer: {text}", name, "parameter_invalid_integer")
        if self.minimum is not None and int(text) < self.minimum:
            raise invalid(f"This value must be greater than or equal to {self.minimum}.", name)
        return int(text)


@dataclass(frozen=True)
class Number:
    """A decimal number, kept as the text that it came in, which is exact."""

    minimum: int | None = None

    def read(self, raw: Any, name: str) -> str:
        text = _text(raw, name)
        try:
            value = Decimal(text)
        except InvalidOperation:
            raise invalid(f"Invalid decimal: {text}", name) from None
        if not value.is_finite() or (self.minimum is not None and value < self.minimum):
            raise invalid(f"Invalid decimal: {text}", name)
        return text


@dataclass(frozen=True)
class Flag:
    """`true` or `false`."""

    def read(self, raw: Any, name: str) -> bool:
        if raw not in ("true", "false"):
            raise invalid(f"Invalid boolean: {raw}", name)
        return bool(raw == "true")


@dataclass(frozen=True)
class TextMap:
    """Keys with texts, such as metadata; an empty text removes its key, an empty map all of them (None)."""

    def read(self, raw: Any, name: str) -> dict[str, str] | None:
        if raw == "":
            return None
        if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
            raise invalid(f"Invalid hash: {name}", param=name)
        return dict(raw)


@dataclass(frozen=True)
class Array:
    """Several of a kind, in their order; with `unset` an empty text stands for none."""

    of: Kind
    unset: bool = False

    def read(self, raw: Any, name: str) -> list[Any]:
        if raw == "" and self.unset:
            return []
        if not isinstance(raw, dict) or not all(re.fullmatch(r"\d+", key) for key in raw):
            raise invalid(f"Invalid array: {name}", param=name)
        return [self.of.read(raw[key], f"{name}[{key}]") for key in sorted(raw, key=int)]


@dataclass(frozen=True)
class Range:
    """An instant, or bounds `gt`, `gte`, `lt`, `lte` of it, in seconds since 1970."""

    def read(self, raw: Any, name: str) -> dict[str, int]:
        bound = Integer()
        if isinstance(raw, dict):
            read: dict[str, int] = Group(gt=bound, gte=bound, lt=bound, lte=bound).read(raw, name)
            return read
        instant = int(bound.read(raw, name) or 0)
        return {"gte": instant, "lte": instant}


@dataclass(frozen=True)
class Required:
    """A parameter that can't be left out."""

    kind: Kind

    def read(self, raw: Any, name: str) -> Any:
        return self.kind.read(raw, name)


@dataclass(frozen=True)
class Unset:
    """A group that an empty text stands for, which unsets it (None)."""

    kind: Group

    def read(self, raw: Any, name: str) -> Any:
        return None if raw == "" else self.kind.read(raw, name)


class Group:
    """Named parameters; any other is refused, as Stripe does."""

    def __init__(self, **fields: Kind) -> None:
        self.fields: Mapping[str, Kind] = fields

    def plus(self, **fields: Kind) -> Group:
        """The same with more fields."""
        return Group(**{**self.fields, **fields})

    def read(self, raw: Any, name: str = "") -> Any:
        if not isinstance(raw, dict):
            raise invalid(f"Invalid object: {name}", param=name)
        for key in raw:
            if key not in self.fields:
                path = _below(name, key)
                raise invalid(f"Received unknown parameter: {path}", path, "parameter_unknown")
        for key, kind in self.fields.items():
            if isinstance(kind, Required) and key not in raw:
                path = _below(name, key)
                raise invalid(f"Missing required param: {path}.", path, "parameter_missing")
        return {key: self.fields[key].read(value, _below(name, key)) for key, value in raw.items()}


def _below(name: str, key: str) -> str:
    return f"{name}[{key}]" if name else key


CURRENCY = Text(choices=("usd", "eur", "gbp"))
LIST = Group(limit=Integer(), starting_after=Text(), ending_before=Text())


def merged_metadata(before: Mapping[str, str], given: Given) -> dict[str, str]:
    """Metadata after a request: keys are added, those with an empty text removed, an empty map clears."""
    if "metadata" not in given:
        return dict(before)
    change = given["metadata"]
    if change is None:
        return {}
    return {key: value for key, value in {**before, **change}.items() if value}
