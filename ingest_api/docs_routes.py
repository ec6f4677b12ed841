"""`GET /openapi.json` and `/docs`: the documentation, made when it is first asked for.

Belongs here: serving and keeping it. Does not belong here: making it (`openapi`, `docs_page`).
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import msgspec

from apex_pipelines.settings import Settings
from ingest_api.endpoints import ENDPOINTS
from ingest_api.requests import Request
from ingest_api.responses import Headers, Response

_REVALIDATED = ("cache-control", "no-cache")


class DocsRoutes:
    """Handlers of the documentation of an API with these settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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

        url = self._settings.api_public_url or self._settings.api_url
        document = openapi.document(ENDPOINTS, version("apex-pipelines"), url, limits(self._settings))
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


def limits(settings: Settings) -> dict[str, str]:
    """What stands for the names of limits in the texts of `endpoints`."""
    return {
        "batch_events": f"{settings.api_max_batch_events:,}",
        "body_bytes": f"{settings.api_max_body_bytes:,}",
        "body_seconds": f"{settings.api_body_seconds:g}",
        "reads": f"{settings.api_reads_per_window:,}",
        "reads_seconds": f"{settings.api_reads_window_seconds:g}",
        "late_days": str(settings.event_max_late_days),
        "early_seconds": str(settings.event_max_early_seconds),
    }
