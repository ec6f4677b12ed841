"""Failures on demand, so that a client can be shown to survive them.

Belongs here: which requests fail, and how. Does not belong here: how requests are answered.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class When(StrEnum):
    """Whether the request was done when it fails."""

    BEFORE = "before"
    AFTER = "after"


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """One planned kind of failure.

    Attributes
    ----------
    path : str
        Regular expression that the path begins with.
    method : str
        HTTP method, or empty for any.
    when : When
        Before the request is done, or after it was, so that only its answer is lost.
    status : int
        Answered with an error of this status; 0: the connection is dropped, unless `seconds` says to wait.
    seconds : float
        Waited first.
    times : int
        How many requests fail; -1: no end.
    skip : int
        How many matching requests go well first.
    share : float
        Of the requests that match, decided by a generator with `seed`.
    """

    path: str = "/v[12]/"
    method: str = ""
    when: When = When.BEFORE
    status: int = 0
    seconds: float = 0.0
    times: int = -1
    skip: int = 0
    share: float = 1.0
    seed: int = 0

    @property
    def drops(self) -> bool:
        """Whether the connection ends without an answer."""
        return self.status == 0 and self.seconds == 0


class Plan:
    """A fault and how much of it has come about."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0
        self.happened = 0
        self._path = re.compile(fault.path)
        self._random = random.Random(fault.seed)

    def hits(self, when: When, method: str, path: str) -> bool:
        """Whether this request fails by it; counts that it does."""
        fault = self.fault
        if fault.when is not when or fault.method not in ("", method) or self._path.match(path) is None:
            return False
        if fault.times in range(self.happened + 1):
            return False
        self.seen += 1
        if self.seen <= fault.skip or self._random.random() >= fault.share:
            return False
        self.happened += 1
        return True


class Faults:
    """All that is planned; it lives as long as the process."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def plan(self, fault: Fault) -> None:
        """Add one.

        Raises
        ------
        re.error
            If its path is no regular expression.
        """
        self.plans.append(Plan(fault))

    def next(self, when: When, method: str, path: str) -> Fault | None:
        """The first planned one that this request fails by."""
        return next((plan.fault for plan in self.plans if plan.hits(when, method, path)), None)


class BreakableProtocol(HttpToolsProtocol):
    """HTTP whose connection the application may cut, by ``scope["extensions"]["sandbox.cut"]``."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {"sandbox.cut": {"now": self._cut}}
        self.scope["extensions"] = extensions

    def _cut(self) -> None:
        self.transport.abort()


async def cut(scope: Any) -> None:
    """End the connection of a request without an answer."""
    ending: Callable[[], None] = scope["extensions"]["sandbox.cut"]["now"]
    ending()
    await asyncio.sleep(0)
