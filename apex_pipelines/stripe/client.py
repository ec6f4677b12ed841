"""The one way to Stripe: its own client, with our key, version of the API, pace and patience.

Belongs here: how requests are made. Does not belong here: which ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stripe import RequestsClient, StripeClient

from apex_pipelines.platform.limiter import Limiter
from apex_pipelines.settings import Settings

# The version that the client was generated for; webhooks and staging models expect its shapes.
API_VERSION = "2026-10-28.endive"
_NETWORK_RETRIES = 3
_KEY = re.compile(r"(?P<kind>sk|rk)_(?P<mode>test|live)_\w+")


class StripeSettingsError(ValueError):
    """Stripe can't be called with these settings; the message says which, never the key."""


class _PacedClient(RequestsClient):
    """Waits its turn before each request, retries too."""

    def __init__(self, limiter: Limiter, timeout: float) -> None:
        super().__init__(timeout=timeout)
        self._limiter = limiter

    # Stripe's own class differs from its base in the same way.
    def request(  # type: ignore[override]
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        self._limiter.wait()
        return super().request(method, url, headers, post_data)


def is_live(settings: Settings) -> bool:
    """Whether the key is one of Stripe's live mode.

    Raises
    ------
    StripeSettingsError
        If there is no key, it is none of Stripe's secret ones, or it is live and live keys are not allowed.
    """
    key = settings.stripe_secret_key
    if key is None:
        raise StripeSettingsError(
            "STRIPE_SECRET_KEY is not set; take a key of Stripe's test mode (sk_test_...), "
            "or start `apex stripe sandbox` and use the one that it prints"
        )
    found = _KEY.fullmatch(key)
    if found is None:
        raise StripeSettingsError(
            "STRIPE_SECRET_KEY is no secret key of Stripe; those begin with sk_test_ or rk_test_, "
            "and with sk_live_ or rk_live_ in the live mode"
        )
    live = found["mode"] == "live"
    if live and not settings.stripe_allow_live:
        raise StripeSettingsError(
            "STRIPE_SECRET_KEY is a live key, with which real cards are charged; "
            "set APEX_STRIPE_ALLOW_LIVE=true if that is meant, or take a key of the test mode"
        )
    return live


def connect(settings: Settings) -> StripeClient:
    """A client for the settings' account; it may be used by many threads, which share one pace.

    A request that got no answer, a 409 or a 5xx is made again up to three times, with the same idempotency
    key, as Stripe's client does by itself.

    Raises
    ------
    StripeSettingsError
        As `is_live`.
    """
    is_live(settings)
    limiter = Limiter(settings.stripe_requests_per_second)
    return StripeClient(
        settings.stripe_secret_key or "",
        stripe_version=API_VERSION,
        base_addresses={"api": settings.stripe_api_base, "meter_events": settings.stripe_api_base},
        max_network_retries=_NETWORK_RETRIES,
        http_client=_PacedClient(limiter, settings.stripe_timeout_seconds),
    )
