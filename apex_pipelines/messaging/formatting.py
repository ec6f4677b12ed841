"""How figures, money and dates are written in mails; also the Jinja filters of those names.

Belongs here: turning one value into words. Does not belong here: anything that knows a mail type.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

_SYMBOLS = {"usd": "$", "eur": "€", "gbp": "£"}
_WITHOUT_MINOR_UNIT = frozenset({"jpy", "krw", "clp", "vnd"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")
TEXT_WIDTH = 72


def number(value: int | str | Decimal) -> str:
    """A number with thousands separated: ``"1234567.50"`` becomes ``1,234,567.5``.

    Raises
    ------
    ValueError
        If `value` is no finite decimal number.
    """
    parsed = _decimal(value)
    text = f"{parsed:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def grouped(text: str) -> str:
    """`text` with thousands separated in its whole numbers of five digits or more; dates stay as they are."""
    return re.sub(r"(?<![\d.])\d{5,}", lambda match: f"{int(match.group()):,}", text)


def money(minor_units: int, currency: str = "usd") -> str:
    """An amount in minor units (cents) with its currency: ``(123456, "usd")`` becomes ``$1,234.56``."""
    code = currency.lower()
    amount = _decimal(minor_units)
    text = f"{amount:,.0f}" if code in _WITHOUT_MINOR_UNIT else f"{amount / 100:,.2f}"
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    return f"{sign}{_SYMBOLS[code]}{digits}" if code in _SYMBOLS else f"{text} {code.upper()}"


def money_units(amount: str | Decimal | int, currency: str = "usd") -> str:
    """An amount in whole units, such as dollars, with its currency; rounded half-even to cents."""
    return money(int((_decimal(amount) * 100).to_integral_value()), currency)


def day(value: str | date) -> str:
    """A date, or the UTC date of an instant, in words: ``"2026-06-03"`` becomes ``3 June 2026``."""
    parsed = datetime.fromisoformat(value) if isinstance(value, str) else value
    if isinstance(parsed, datetime) and parsed.tzinfo is not None:
        parsed = parsed.astimezone(UTC)
    return f"{parsed.day} {parsed:%B %Y}"


def dates_in_words(text: str) -> str:
    """`text` with its ISO dates written as by `day`: ``from 2026-06-01`` becomes ``from 1 June 2026``."""
    return re.sub(r"(?<![\d-])\d{4}-\d{2}-\d{2}(?![\d-])", lambda match: day(match.group()), text)


def in_days(days: int) -> str:
    """``0``, ``1`` and ``7`` as ``today``, ``tomorrow`` and ``in 7 days``."""
    return {0: "today", 1: "tomorrow"}.get(days, f"in {days} days")


def one_line(text: str) -> str:
    """`text` without control characters or line breaks, so that it can stand in a header."""
    return re.sub(r"\s+", " ", _CONTROL.sub(" ", text)).strip()


def paragraph(text: str) -> str:
    """`text` as one plain-text paragraph, wrapped; addresses are left whole."""
    return textwrap.fill(" ".join(text.split()), TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)


def web_address(url: str) -> str:
    """`url` itself, when it is one that a mail may link to.

    Raises
    ------
    ValueError
        If it is not http(s), such as `javascript:`.
    """
    if not re.match(r"https?://[^\s\"'<>]+$", url):
        raise ValueError(f"a mail may link to http(s) addresses only, got {url!r}")
    return url


def _decimal(value: Any) -> Decimal:
    try:
        parsed = Decimal(str(value))
    except ArithmeticError as error:
        raise ValueError(f"not a number: {value!r}") from error
    if not parsed.is_finite():
        raise ValueError(f"not a finite number: {value!r}")
    return parsed


FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "grouped": grouped,
    "money": money,
    "money_units": money_units,
    "day": day,
    "dates_in_words": dates_in_words,
    "in_days": in_days,
    "paragraph": paragraph,
    "web_address": web_address,
}
