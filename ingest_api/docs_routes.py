"""`GET /openapi.json` and `/docs`: the documentation, made when it is first asked for.

Belongs here: serving and keeping it. Does not belong here: making it (`openapi`, `docs_page`).
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import msgspec

from ingest_api.endpoints import ENDPOINTS
from ingest_api.requests import Request
from ingest_api.responses import Headers, Response

_REVALIDATED = ("cache-control", "no-cache")


class DocsRoutes:
    """Handlers of the documentation; `server_url` is the address that its examples call."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._made: tuple[Response, Response] | None = None

    async def openapi(self, _request: Request) -> Response:
        """The document for programs."""
        return (await self._responses())[0]

    async def docs(self, _request: Request) -> Response:
        """The document for people."""
        return (await self._responses())[1]

    async def _responses(self) -> tuple[Response, Response]:
        if self._made is None:
            self._made = await asyncio.to_thread(self._make)
        return self._made

    def _make(self) -> tuple[Response, Response]:
        # Workers start without Jinja, which few of them ever need.
        from ingest_api import docs_page, openapi

        document = openapi.document(ENDPOINTS, version("apex-pipelines"), self._server_url)
        page_headers: Headers = [
            ("content-type", "text/html; charset=utf-8"),
            ("content-security-policy", docs_page.content_security_policy()),
            ("x-frame-options", "DENY"),
            _REVALIDATED,
        ]
        return (
            Response(
                200, msgspec.json.encode(document), [("content-type", "application/json"), _REVALIDATED]
            ),
            Response(200, docs_page.render(document).encode(), page_headers),
        )
