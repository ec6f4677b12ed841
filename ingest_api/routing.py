"""From a request's path and method to its endpoint and handler.

Belongs here: the table, and the answers 404 and 405. Does not belong here: what there is (`endpoints`).
"""

from __future__ import annotations

from collections.abc import Mapping

from ingest_api.endpoints import ENDPOINTS, Endpoint
from ingest_api.requests import Handler
from ingest_api.responses import HttpError

# What stands for any path where nothing is, so that a scan of the address space makes no series.
_NOWHERE = "none"
# Names of routes in metrics, logs and traces; an alias counts as its endpoint's first path.
ROUTES = (*dict.fromkeys(endpoint.path for endpoint in ENDPOINTS), _NOWHERE)


class Router:
    """All endpoints, each with its handler.

    Raises
    ------
    RuntimeError
        If an endpoint has no handler, a handler no endpoint, or a path and method belong to two.
    """

    def __init__(self, handlers: Mapping[Endpoint, Handler]) -> None:
        unmatched = {endpoint.name for endpoint in set(handlers) ^ set(ENDPOINTS)}
        if unmatched:
            raise RuntimeError(f"endpoints without a handler, or not listed: {', '.join(sorted(unmatched))}")
        self._table: dict[str, dict[str, tuple[Endpoint, Handler]]] = {}
        for endpoint, handler in handlers.items():
            for path in endpoint.paths:
                methods = self._table.setdefault(path, {})
                if endpoint.method in methods:
                    raise RuntimeError(f"{endpoint.method} {path} is listed twice")
                methods[endpoint.method] = (endpoint, handler)
                if endpoint.method == "GET":
                    methods["HEAD"] = (endpoint, handler)  # the server leaves the body out
        self._routes = {path: endpoint.path for endpoint in ENDPOINTS for path in endpoint.paths}
        self._people_facing = frozenset(
            path for endpoint in ENDPOINTS if endpoint.people_facing for path in endpoint.paths
        )

    def find(self, method: str, path: str) -> tuple[Endpoint, Handler]:
        """The endpoint and its handler.

        Raises
        ------
        HttpError
            404 for an unknown path, 405 with the methods that are possible.
        """
        methods = self._table.get(path)
        if methods is None:
            raise HttpError(404, "not_found", f"there is nothing at {path[:100]}")
        found = methods.get(method)
        if found is None:
            message = f"{method[:20]} is not possible here, {' or '.join(methods)} is"
            raise HttpError(405, "method_not_allowed", message, [("allow", self.methods(path))])
        return found

    def route(self, path: str) -> str:
        """Which of `ROUTES` a path belongs to."""
        return self._routes.get(path, _NOWHERE)

    def methods(self, path: str) -> str:
        """What is possible at a known path, as the header Allow wants it."""
        names = [*self._table[path], *(("OPTIONS",) if path in self._people_facing else ())]
        return ", ".join(names)

    def is_people_facing(self, path: str) -> bool:
        """Whether a browser may be told that a page of an allowed origin may read it."""
        return path in self._people_facing
