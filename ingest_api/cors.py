"""Which pages may read people-facing answers in a browser (cross-origin resource sharing).

Belongs here: the headers that tell browsers. Does not belong here: which endpoints are people-facing
(`endpoints` says it of each).
"""

from __future__ import annotations

from collections.abc import Collection

from ingest_api.request_body import RequestHeaders
from ingest_api.responses import Headers

_VARY = ("vary", "Origin")
_ALLOWED_HEADERS = "authorization, content-type, x-request-id"
_EXPOSED_HEADERS = "x-request-id, retry-after, ratelimit-limit, ratelimit-remaining, ratelimit-reset"
_PREFLIGHT_SECONDS = "600"


class CorsPolicy:
    """Headers for the allowed origins; every other origin gets none, and is never repeated.

    No credentials are allowed: the API knows keys and tokens in a header, never cookies.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def answer_headers(self, request: RequestHeaders) -> Headers:
        """For any answer of a people-facing endpoint, errors included."""
        origin = request.get("origin")
        if origin is None or origin not in self._origins:
            return [_VARY]
        return [
            _VARY,
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", _EXPOSED_HEADERS),
        ]

    def preflight_headers(self, request: RequestHeaders, methods: str) -> Headers:
        """For the answer to OPTIONS, beside `answer_headers`."""
        if request.get("origin") not in self._origins:
            return []
        return [
            ("access-control-allow-methods", methods),
            ("access-control-allow-headers", _ALLOWED_HEADERS),
            ("access-control-max-age", _PREFLIGHT_SECONDS),
        ]
