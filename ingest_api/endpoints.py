"""Every endpoint of the API: the one list from which requests are routed and the documentation is made.

Belongs here: what an endpoint takes and what it can answer. Does not belong here: doing it (the `*_routes`
modules), the form of the document (`openapi`).

In summaries, descriptions and meanings ``$name`` stands for a limit that settings can change
(`docs_routes.limits`).

To add an endpoint: describe it here, add it to `ENDPOINTS`, and give its handler in `app.IngestApp`; a worker
does not start when one of the two is missing, and tests compare the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from apex_pipelines.customers.tokens import TokenProblem
from apex_pipelines.metering.events import UsageEvent
from apex_pipelines.metering.life_events import AnyLifeEvent
from apex_pipelines.metering.rejections import RejectionReason
from ingest_api.decoding import BatchRequest, TrackRequest
from ingest_api.health_routes import Health, Readiness
from ingest_api.keys import KeyProblem
from ingest_api.life_event_routes import LifeEventAnswer
from ingest_api.usage_answers import AnalyticsQuery, CurrentAnswer, LimitsAnswer
from ingest_api.usage_routes import BatchAnswer, TrackAnswer
from ingest_api.webhook_routes import ResendEvent, StripeEvent, WebhookAnswer

JSON = "application/json"


class Security(StrEnum):
    """What opens an endpoint; the names of the document's security schemes."""

    NONE = "none"
    CUSTOMER_KEY = "customerKey"
    OPERATOR_KEY = "operatorKey"
    CUSTOMER_TOKEN = "customerToken"  # noqa: S105 - a name


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyForm:
    """One form in which a request's body may come.

    Attributes
    ----------
    shape : type
        What the decoder makes of it; `str` for text that is no single JSON value.
    example : object
        JSON value, or text. ``$CUSTOMER`` in it stands for a shell variable in the curl example.
    """

    content_type: str = JSON
    shape: Any
    example: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that is no error envelope; `shape` is `str` for text."""

    status: int = 200
    meaning: str
    content_type: str = JSON
    shape: Any
    example: Any = None


@dataclass(frozen=True, slots=True)
class Problems:
    """Errors of one status: the codes that the envelope may carry, and when."""

    status: int
    codes: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class HeaderParameter:
    """A header that the endpoint reads, beside those that all read."""

    name: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Endpoint:
    """One endpoint.

    Attributes
    ----------
    aliases : tuple of str
        Further paths of the same endpoint.
    query : type or None
        Struct of the query's parameters, if there are any.
    people_facing : bool
        Whether pages of the allowed origins may read it in a browser.
    curl : str or None
        Shell lines that call it, where the generated ones can't do; ``{url}`` stands for the API's address.
    """

    method: str
    path: str
    aliases: tuple[str, ...] = ()
    name: str
    group: str
    summary: str
    description: str = ""
    security: Security = Security.NONE
    headers: tuple[HeaderParameter, ...] = ()
    query: Any = None
    bodies: tuple[BodyForm, ...] = ()
    answers: tuple[Answer, ...]
    problems: tuple[Problems, ...] = ()
    people_facing: bool = False
    curl: str | None = None
    content_types: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "content_types", frozenset(form.content_type for form in self.bodies))

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.aliases)


def _versioned(path: str) -> tuple[str, ...]:
    return (path.replace("/api/", "/api/v1/", 1),)


# Of any endpoint that takes a body (`http_connection`, `request_body`).
_BODY_PROBLEMS = (
    Problems(
        400,
        ("invalid_json", "invalid_encoding", "broken_gzip", "body_cut_off"),
        "The body is not what it says it is.",
    ),
    Problems(408, ("body_too_slow",), "The body did not arrive within $body_seconds s."),
    Problems(413, ("body_too_large",), "The body is larger than $body_bytes bytes, compressed or not."),
    Problems(503, ("too_many_uploads",), "Too many large bodies are under way; send it again."),
    Problems(
        415,
        ("unsupported_encoding", "unsupported_media_type", "unsupported_charset"),
        "The body's type, character set or compression is not understood.",
    ),
)
_KEY_PROBLEMS = (
    Problems(401, tuple(KeyProblem), "The API key is missing or no good."),
    Problems(403, ("scope_missing",), "The API key may not do this."),
    Problems(503, ("keys_unavailable",), "Keys can't be checked at the moment; send it again."),
)
_RATE_PROBLEMS = (
    Problems(429, ("rate_limited",), "The key has sent more events than it may; wait and send it again."),
)
_SPOOL_PROBLEMS = (
    Problems(429, ("spool_busy",), "The backlog is large; wait and send it again."),
    Problems(503, ("spool_full", "storage_unavailable"), "Nothing was recorded; send it again."),
)
_LIFE_ONLY = frozenset({RejectionReason.UNKNOWN_EVENT_TYPE, RejectionReason.UNKNOWN_CUSTOMER})

_EVENT_EXAMPLE = {
    "metric_type": "impressions",
    "quantity": 1200,
    "event_id": "0197d5b6-6d70-7c3e-9d3a-2f1b8c4e5a60",
    "metadata": {"platform": "ios", "sdk_version": "5.2.0", "country": "DE"},
}
_REVENUE_EXAMPLE = {
    "metric_type": "mediated_revenue",
    "quantity": "12.345678",
    "event_id": "0197d5b6-6d71-7a10-8b2e-6f0d3c9b1e22",
}

TRACK = Endpoint(
    method="POST",
    path="/api/usage/track",
    aliases=_versioned("/api/usage/track"),
    name="track",
    group="Usage",
    summary="Record one event",
    description=(
        "200 means that the event is on disk. An event_id counts once per customer, for ever: what is sent "
        "again changes nothing, so send again whenever no answer came. Fields that we don't know are ignored."
    ),
    security=Security.CUSTOMER_KEY,
    bodies=(BodyForm(shape=TrackRequest, example=_EVENT_EXAMPLE),),
    answers=(
        Answer(
            meaning="The event is recorded.",
            shape=TrackAnswer,
            example={
                "success": True,
                "recorded": {
                    "customer_id": "cus_7f9c24e8d1b34c0b9a1f5a1d7c11e2ab",
                    "metric_type": "impressions",
                    "quantity": 1200,
                    "event_id": "0197d5b6-6d70-7c3e-9d3a-2f1b8c4e5a60",
                },
            },
        ),
    ),
    problems=(
        *_BODY_PROBLEMS,
        *_KEY_PROBLEMS,
        Problems(
            422,
            tuple(reason for reason in RejectionReason if reason not in _LIFE_ONLY),
            "The event can't count, and never will as it is.",
        ),
        *_RATE_PROBLEMS,
        *_SPOOL_PROBLEMS,
    ),
)

BATCH = Endpoint(
    method="POST",
    path="/api/usage/batch",
    aliases=_versioned("/api/usage/batch"),
    name="batch",
    group="Usage",
    summary="Record up to $batch_events events",
    description=(
        "An object with `events`, an array, or one event a line (NDJSON); $body_bytes bytes at most, also as "
        "gzip (`Content-Encoding: gzip`). Each event gets its own result; one bad event never sinks the "
        "others."
    ),
    security=Security.CUSTOMER_KEY,
    bodies=(
        BodyForm(
            shape=BatchRequest | list[UsageEvent], example={"events": [_EVENT_EXAMPLE, _REVENUE_EXAMPLE]}
        ),
        BodyForm(
            content_type="application/x-ndjson",
            shape=str,
            example=(
                '{"metric_type": "impressions", "quantity": 3}\n{"metric_type": "api_calls", "quantity": 7}\n'
            ),
        ),
        BodyForm(
            content_type="application/ndjson",
            shape=str,
            example='{"metric_type": "impressions", "quantity": 3}\n',
        ),
    ),
    answers=(
        Answer(
            meaning="Each event has its result, in the order sent; `success` when none was rejected.",
            shape=BatchAnswer,
            example={
                "success": True,
                "accepted": 1,
                "duplicates": 1,
                "rejected": 0,
                "results": [
                    {"event_id": _EVENT_EXAMPLE["event_id"], "status": "duplicate"},
                    {"event_id": _REVENUE_EXAMPLE["event_id"], "status": "accepted"},
                ],
            },
        ),
    ),
    problems=(
        *_BODY_PROBLEMS,
        Problems(400, ("invalid_batch",), "The body is no array and no object with the array `events`."),
        Problems(413, ("too_many_events",), "More than $batch_events events."),
        *_KEY_PROBLEMS,
        *_RATE_PROBLEMS,
        *_SPOOL_PROBLEMS,
    ),
)

_READ_PROBLEMS = (
    Problems(401, (*TokenProblem, "unknown_customer"), "The token is missing or no good."),
    Problems(429, ("rate_limited",), "More requests than a customer may make: $reads in $reads_seconds s."),
    Problems(
        503, ("subscriptions_unavailable", "usage_unavailable"), "Can't be told at the moment; ask again."
    ),
)
_NO_SUBSCRIPTION = Problems(404, ("no_subscription",), "There is no open subscription, so no period.")

CURRENT = Endpoint(
    method="GET",
    path="/api/usage/current",
    aliases=_versioned("/api/usage/current"),
    name="currentUsage",
    group="Usage",
    summary="Use in the current billing period, overage and its price",
    description="Of the customer that the token names. An event shows as soon as it is loaded.",
    security=Security.CUSTOMER_TOKEN,
    answers=(
        Answer(
            meaning="The figures, in each metric's unit.",
            shape=CurrentAnswer,
            example={
                "usage": {
                    "customer_id": "cus_7f9c24e8d1b34c0b9a1f5a1d7c11e2ab",
                    "impressions": 1200345,
                    "api_calls": 5210,
                    "data_transfer_gb": 3.25,
                    "mediated_revenue_usd": 812.5,
                    "period_start": "2026-11-15T13:45:10Z",
                    "period_end": "2026-12-15T13:45:10Z",
                },
                "overages": {
                    "impressions_overage": 200345,
                    "impressions_overage_cost_cents": 1983,
                    "total_overage_cost_cents": 1983,
                    "currency": "usd",
                },
            },
        ),
    ),
    problems=(*_READ_PROBLEMS, _NO_SUBSCRIPTION),
    people_facing=True,
)

ANALYTICS = Endpoint(
    method="GET",
    path="/api/usage/analytics",
    aliases=_versioned("/api/usage/analytics"),
    name="usageAnalytics",
    group="Usage",
    summary="Use by UTC day, totals and averages",
    description="Of each metric there is its name, `total_` and `avg_daily_`, in the metric's unit.",
    security=Security.CUSTOMER_TOKEN,
    query=AnalyticsQuery,
    answers=(
        Answer(
            meaning="The last days, oldest first, those without use included.",
            shape=dict[str, Any],
            example={
                "daily_usage": [{"date": "2026-11-21", "impressions": 1200, "data_transfer_gb": 0.5}],
                "total_impressions": 1200,
                "total_data_transfer_gb": 0.5,
                "avg_daily_impressions": 1200.0,
                "avg_daily_data_transfer_gb": 0.5,
            },
        ),
    ),
    problems=(*_READ_PROBLEMS, Problems(422, ("invalid_days",), "`days` is not from 1 to 365.")),
    people_facing=True,
)

LIMITS = Endpoint(
    method="GET",
    path="/api/usage/limits",
    aliases=_versioned("/api/usage/limits"),
    name="usageLimits",
    group="Usage",
    summary="What the plan includes, how much of it is used, and when it will be used up",
    security=Security.CUSTOMER_TOKEN,
    answers=(
        Answer(
            meaning="The limits, in each metric's unit.",
            shape=LimitsAnswer,
            example={
                "plan_type": "indie",
                "limits": {"impressions": 1000000},
                "current_usage": {"impressions": 420000},
                "percent_used": 42.0,
                "remaining": {"impressions": 580000},
                "will_exceed": True,
                "projected_limit_date": "2026-12-09",
                "by_metric": {
                    "impressions": {
                        "percent_used": 42.0,
                        "will_exceed": True,
                        "projected_limit_date": "2026-12-09",
                    }
                },
            },
        ),
    ),
    problems=(*_READ_PROBLEMS, _NO_SUBSCRIPTION),
    people_facing=True,
)

LIFE_EVENT = Endpoint(
    method="POST",
    path="/api/events",
    aliases=_versioned("/api/events"),
    name="recordLifeEvent",
    group="Life events",
    summary="Report what happened to a customer",
    description=(
        "For the site and the console, with the operator's key; the customer is named in the body. As "
        "durable as telemetry, and an event_id counts once per customer here too. Event ids of a customer "
        "are one space: use UUIDs. At most $late_days days late, $early_seconds s early."
    ),
    security=Security.OPERATOR_KEY,
    bodies=(
        BodyForm(
            shape=AnyLifeEvent,
            example={
                "event_type": "sdk_downloaded",
                "customer_id": "$CUSTOMER",
                "platform": "ios",
                "event_id": "0197d5b6-6d72-7b44-a1c0-5d2e9f7a3b18",
            },
        ),
    ),
    answers=(
        Answer(
            meaning="The event is recorded.",
            shape=LifeEventAnswer,
            example={
                "success": True,
                "recorded": {
                    "customer_id": "cus_7f9c24e8d1b34c0b9a1f5a1d7c11e2ab",
                    "event_type": "sdk_downloaded",
                    "event_id": "0197d5b6-6d72-7b44-a1c0-5d2e9f7a3b18",
                },
            },
        ),
    ),
    problems=(
        *_BODY_PROBLEMS,
        *_KEY_PROBLEMS,
        Problems(
            422,
            (
                RejectionReason.MALFORMED_EVENT,
                RejectionReason.UNKNOWN_EVENT_TYPE,
                RejectionReason.UNKNOWN_CUSTOMER,
                RejectionReason.INVALID_EVENT_ID,
                RejectionReason.INVALID_TIMESTAMP,
                RejectionReason.TOO_EARLY,
                RejectionReason.TOO_LATE,
                RejectionReason.INVALID_METADATA,
                RejectionReason.METADATA_TOO_LARGE,
            ),
            "The event can't count as it is.",
        ),
        Problems(503, ("customers_unavailable",), "Customers can't be looked up now; send it again."),
        *_SPOOL_PROBLEMS,
    ),
)

_WEBHOOK_PROBLEMS = (
    *_BODY_PROBLEMS[1:],
    Problems(
        400,
        ("broken_gzip", "body_cut_off", "bad_signature", "invalid_webhook"),
        "Not signed by the provider within 5 minutes, or no event.",
    ),
    Problems(
        503,
        ("inbox_unavailable", "webhook_not_configured"),
        "Not stored, because PostgreSQL is away or our secret is not set; send it again.",
    ),
)
_WEBHOOK_ANSWER = Answer(
    meaning="The event is stored, now or before.",
    shape=WebhookAnswer,
    example={"received": True, "duplicate": False},
)

STRIPE_WEBHOOK = Endpoint(
    method="POST",
    path="/webhooks/stripe",
    name="stripeWebhook",
    group="Webhooks",
    summary="Take an event of Stripe in",
    description="Stored once by its id; processed afterwards, so the order of arrival never matters.",
    headers=(
        HeaderParameter("Stripe-Signature", "`t=<seconds>,v1=<hex>`, HMAC-SHA256 of `<seconds>.<body>`."),
    ),
    bodies=(BodyForm(shape=StripeEvent, example={"id": "evt_1", "type": "invoice.paid"}),),
    answers=(_WEBHOOK_ANSWER,),
    problems=_WEBHOOK_PROBLEMS,
    curl="""\
BODY='{"id": "evt_1", "type": "invoice.paid"}'; NOW=$(date +%s)
SIGNATURE=$(printf '%s' "$NOW.$BODY" | openssl dgst -sha256 -hmac "$STRIPE_WEBHOOK_SECRET" | sed 's/.* //')
curl -sS '{url}/webhooks/stripe' -H 'Content-Type: application/json' \\
  -H "Stripe-Signature: t=$NOW,v1=$SIGNATURE" --data-binary "$BODY\"""",
)

RESEND_WEBHOOK = Endpoint(
    method="POST",
    path="/webhooks/resend",
    name="resendWebhook",
    group="Webhooks",
    summary="Take an event of Resend in",
    description="Stored once by its svix-id; processed afterwards.",
    headers=(
        HeaderParameter("svix-id", "The message's id, the same when it is sent again."),
        HeaderParameter("svix-timestamp", "Seconds since 1970."),
        HeaderParameter("svix-signature", "`v1,<base64>`, HMAC-SHA256 of `<id>.<timestamp>.<body>`."),
    ),
    bodies=(BodyForm(shape=ResendEvent, example={"type": "email.delivered"}),),
    answers=(_WEBHOOK_ANSWER,),
    problems=_WEBHOOK_PROBLEMS,
    curl="""\
BODY='{"type": "email.delivered"}'; NOW=$(date +%s); ID=msg_1
SECRET=$(printf '%s' "${RESEND_WEBHOOK_SECRET#whsec_}" | base64 -d | od -An -tx1 | tr -d ' \\n')
SIGNATURE=$(printf '%s' "$ID.$NOW.$BODY" \\
  | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$SECRET" -binary | base64)
curl -sS '{url}/webhooks/resend' -H 'Content-Type: application/json' -H "svix-id: $ID" \\
  -H "svix-timestamp: $NOW" -H "svix-signature: v1,$SIGNATURE" --data-binary "$BODY\"""",
)

HEALTH = Endpoint(
    method="GET",
    path="/health",
    name="health",
    group="Running it",
    summary="Whether the API is alive",
    answers=(
        Answer(
            meaning="Alive.",
            shape=Health,
            example={"status": "ok", "version": "0.1.0", "timestamp": "2026-11-21T09:00:00+00:00"},
        ),
    ),
)

_READY_EXAMPLE = {
    "status": "ready",
    "checks": {
        "postgres": {"ok": True},
        "keys": {"ok": True},
        "spool": {"ok": True, "bytes": 4096, "segments": 1, "backlog_seconds": 0.2, "lagging": False},
    },
}
READY = Endpoint(
    method="GET",
    path="/ready",
    name="ready",
    group="Running it",
    summary="Whether the API can take events: each dependency, and the backlog",
    answers=(
        Answer(
            meaning="Ready; or `degraded`: PostgreSQL is away, and known keys still work.",
            shape=Readiness,
            example=_READY_EXAMPLE,
        ),
        Answer(status=503, meaning="Not ready; the checks say why.", shape=Readiness),
    ),
)

METRICS = Endpoint(
    method="GET",
    path="/metrics",
    name="metrics",
    group="Running it",
    summary="Counters for Prometheus, of all workers",
    answers=(
        Answer(
            meaning="Prometheus text.",
            content_type="text/plain; version=0.0.4; charset=utf-8",
            shape=str,
            example="apex_ingest_events_accepted_total 431833\n",
        ),
    ),
)

OPENAPI = Endpoint(
    method="GET",
    path="/openapi.json",
    name="openapi",
    group="Running it",
    summary="This document",
    answers=(Answer(meaning="OpenAPI 3.1.", shape=dict[str, Any]),),
    people_facing=True,
)

DOCS = Endpoint(
    method="GET",
    path="/docs",
    name="docs",
    group="Running it",
    summary="This document as a page to read",
    answers=(Answer(meaning="A page.", content_type="text/html; charset=utf-8", shape=str),),
    people_facing=True,
)

# In the order in which the documentation shows them.
ENDPOINTS = (
    TRACK, BATCH, CURRENT, ANALYTICS, LIMITS, LIFE_EVENT, STRIPE_WEBHOOK, RESEND_WEBHOOK, HEALTH, READY,
    METRICS, OPENAPI, DOCS,
)  # fmt: skip
