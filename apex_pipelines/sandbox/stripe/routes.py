"""Addresses and what answers them.

Belongs here: matching a method and a path. Does not belong here: any answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from apex_pipelines.sandbox.stripe.account import Account
from apex_pipelines.sandbox.stripe.listing import Page
from apex_pipelines.sandbox.stripe.parameters import LIST, Array, Given, Group, Kind, Text
from apex_pipelines.sandbox.stripe.store import Object

Handler = Callable[..., Object | Page]
_Answering = TypeVar("_Answering", bound=Handler)


class Registered(Protocol):
    """A decorator that leaves a function as it is."""

    def __call__(self, handler: _Answering, /) -> _Answering: ...


_EXPAND = Array(Text())


@dataclass(frozen=True)
class Route:
    """`method` and `path` (with names in braces), the parameters taken, and who answers."""

    method: str
    path: str
    parameters: Group
    handler: Handler

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    def call(self, account: Account, named: dict[str, str], raw: Given) -> tuple[Object | Page, list[str]]:
        """The answer, and what of it is to be expanded."""
        given = self.parameters.plus(expand=_EXPAND).read(raw)
        expand = given.pop("expand", [])
        return self.handler(account, given, **named), expand


class Routes:
    """The routes of one domain; its functions are registered by decorators."""

    def __init__(self) -> None:
        self.all: list[Route] = []

    def get(self, path: str, **parameters: Kind) -> Registered:
        return self._register("GET", path, Group(**parameters))

    def list(self, path: str, **parameters: Kind) -> Registered:
        return self._register("GET", path, LIST.plus(**parameters))

    def post(self, path: str, parameters: Group | None = None, **more: Kind) -> Registered:
        return self._register("POST", path, (parameters or Group()).plus(**more))

    def delete(self, path: str, **parameters: Kind) -> Registered:
        return self._register("DELETE", path, Group(**parameters))

    def _register(self, method: str, path: str, parameters: Group) -> Registered:
        def register(handler: _Answering, /) -> _Answering:
            self.all.append(Route(method, path, parameters, handler))
            return handler

        return register


class Directory:
    """Finds the route of a request among those of all domains."""

    def __init__(self, domains: Iterable[Routes]) -> None:
        self.all = [route for domain in domains for route in domain.all]
        self._by_size: dict[tuple[str, int], list[tuple[re.Pattern[str], Route]]] = {}
        # Fixed segments win over named ones: /v1/invoices/create_preview is no invoice.
        for route in sorted(self.all, key=lambda route: route.path.count("{")):
            pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path))
            self._by_size.setdefault((route.method, route.path.count("/")), []).append((pattern, route))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        for pattern, route in self._by_size.get((method, path.count("/")), []):
            found = pattern.fullmatch(path)
            if found is not None:
                return route, found.groupdict()
        return None


def filters(given: Given) -> dict[str, Any]:
    """Parameters of a list that are none of its cursors: filters."""
    return {key: value for key, value in given.items() if key not in {*LIST.fields, "created"}}
