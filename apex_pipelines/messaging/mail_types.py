"""The mail types of the platform, read from `mail_types.toml`, and sample data for each.

Belongs here: reading, typing and checking these files. Does not belong here: rendering or sending.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
EVENT_PREFIX = "email."


class UnknownMailType(ValueError):
    """No such mail type in `mail_types.toml`."""


class MissingMailData(ValueError):
    """The event's data lacks keys that its mail type declares as required."""


class Audience(StrEnum):
    CUSTOMER = "customer"
    OPERATOR = "operator"


class Stream(StrEnum):
    """`marketing` needs consent and carries one-click unsubscribe; `transactional` does not."""

    TRANSACTIONAL = "transactional"
    MARKETING = "marketing"


class OnRepeat(StrEnum):
    """What becomes of a second mail of one type to one recipient within 24 h."""

    SKIP = "skip"
    WAIT = "wait"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class MailType:
    """One mail type; the fields are explained at the head of `mail_types.toml`."""

    name: str
    audience: Audience
    stream: Stream
    priority: int
    on_repeat: OnRepeat
    subject: str
    template: str
    required: tuple[str, ...]

    @property
    def event_type(self) -> str:
        """The type under which such a mail stands in `events`, such as `email.welcome`."""
        return EVENT_PREFIX + self.name

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Raise `MissingMailData` when a required key is absent."""
        missing = [key for key in self.required if key not in data]
        if missing:
            raise MissingMailData(
                f"mail type {self.name!r} needs {', '.join(missing)}; its data has "
                f"{', '.join(sorted(data)) or 'nothing'}"
            )


def _read(name: str) -> dict[str, dict[str, Any]]:
    with (FOLDER / name).open("rb") as file:
        return tomllib.load(file)


@cache
def mail_types() -> dict[str, MailType]:
    """All mail types by name, in the file's order.

    Raises
    ------
    ValueError
        If the file allows repeats for customers, who must not get a type twice within 24 h.
    """
    types = {}
    for name, row in _read("mail_types.toml").items():
        mail_type = MailType(
            name=name,
            audience=Audience(row["audience"]),
            stream=Stream(row["stream"]),
            priority=int(row["priority"]),
            on_repeat=OnRepeat(row["on_repeat"]),
            subject=row["subject"],
            template=row["template"],
            required=tuple(row["required"]),
        )
        if mail_type.on_repeat is OnRepeat.ALLOW and mail_type.audience is Audience.CUSTOMER:
            raise ValueError(f"mail_types.toml: {name!r} goes to customers and can't allow repeats")
        types[name] = mail_type
    return types


def mail_type(name: str) -> MailType:
    """The mail type called `name`.

    Raises
    ------
    UnknownMailType
        If there is none; the message lists what there is.
    """
    try:
        return mail_types()[name]
    except KeyError:
        raise UnknownMailType(
            f"no mail type {name!r}; mail_types.toml has {', '.join(sorted(mail_types()))}"
        ) from None


@cache
def _samples() -> dict[str, dict[str, Any]]:
    return _read("mail_samples.toml")


def sample_data(name: str) -> dict[str, Any]:
    """Made-up data of one mail type, for previews and tests.

    Raises
    ------
    UnknownMailType
        If there is no such type.
    """
    return dict(_samples()[mail_type(name).name])
