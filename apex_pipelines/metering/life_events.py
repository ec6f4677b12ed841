"""Life events of a customer (downloads, logins, scores ...): their shapes, and the metric each counts as.

Belongs here: what the site and the console may report, and how that becomes an event of the landing log.
Does not belong here: which events count (`rules.py` judges them like telemetry), HTTP (`ingest_api`).

Each type is one struct below and counts as one row of the metric catalogue. Metrics of kind `life` can be
reported here only; the signals `console_logins`, `doc_views` and `support_tickets` come from SDKs as well.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

import msgspec

from apex_pipelines.metering.events import EventId, Metadata, UsageEvent

CustomerId = Annotated[
    str, msgspec.Meta(min_length=1, max_length=64, description="The customer it happened to; must exist.")
]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class LifeEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event_type"):
    """What all life events have.

    Attributes
    ----------
    event_id : str, optional
        Idempotency key, unique among all events of the customer, telemetry included: use a UUID.
    timestamp : datetime, optional
        When it happened; without a zone it is UTC. Arrival time when absent.
    """

    metric_type: ClassVar[str]
    # Fields that travel in the metadata of the landed event; the others are its columns.
    detail_fields: ClassVar[tuple[str, ...]] = ()

    customer_id: CustomerId
    event_id: EventId | None = None
    timestamp: datetime | None = None
    metadata: Metadata | None = None

    @property
    def quantity(self) -> int:
        """What is counted: one, or the score."""
        return 1


class SdkDownloaded(LifeEvent, tag="sdk_downloaded", frozen=True, kw_only=True):
    """Somebody of the customer downloaded the SDK."""

    metric_type: ClassVar[str] = "sdk_downloads"
    detail_fields: ClassVar[tuple[str, ...]] = ("platform", "sdk_version")

    platform: Literal["ios", "android", "unity", "flutter"]
    sdk_version: _Name | None = None


class ConsoleLogin(LifeEvent, tag="console_login", frozen=True, kw_only=True):
    """Somebody of the customer logged in to the console."""

    metric_type: ClassVar[str] = "console_logins"


class DocViewed(LifeEvent, tag="doc_viewed", frozen=True, kw_only=True):
    """Somebody of the customer read a page of the documentation."""

    metric_type: ClassVar[str] = "doc_views"
    detail_fields: ClassVar[tuple[str, ...]] = ("page",)

    page: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None


class SupportTicketOpened(LifeEvent, tag="support_ticket_opened", frozen=True, kw_only=True):
    """The customer asked for help."""

    metric_type: ClassVar[str] = "support_tickets"
    detail_fields: ClassVar[tuple[str, ...]] = ("ticket_id",)

    ticket_id: _Name | None = None


class SupportTicketClosed(LifeEvent, tag="support_ticket_closed", frozen=True, kw_only=True):
    """A ticket of the customer was closed."""

    metric_type: ClassVar[str] = "support_tickets_closed"
    detail_fields: ClassVar[tuple[str, ...]] = ("ticket_id",)

    ticket_id: _Name | None = None


class NpsScore(LifeEvent, tag="nps_score", frozen=True, kw_only=True):
    """An answer to how likely the customer would recommend us, 0 to 10."""

    metric_type: ClassVar[str] = "nps_scores"

    score: Annotated[int, msgspec.Meta(ge=0, le=10)]

    @property
    def quantity(self) -> int:
        return self.score


class Rating(LifeEvent, tag="rating", frozen=True, kw_only=True):
    """The customer rated us, 1 to 5."""

    metric_type: ClassVar[str] = "ratings"

    score: Annotated[int, msgspec.Meta(ge=1, le=5)]

    @property
    def quantity(self) -> int:
        return self.score


class TeammateInvited(LifeEvent, tag="teammate_invited", frozen=True, kw_only=True):
    """The customer invited a colleague."""

    metric_type: ClassVar[str] = "teammates_invited"


class ReferralUsed(LifeEvent, tag="referral_used", frozen=True, kw_only=True):
    """This new customer came with somebody's referral code."""

    metric_type: ClassVar[str] = "referrals_used"
    detail_fields: ClassVar[tuple[str, ...]] = ("referral_code",)

    referral_code: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]


class Signup(LifeEvent, tag="signup", frozen=True, kw_only=True):
    """The customer signed up; `company_size` is the number of people."""

    metric_type: ClassVar[str] = "signups"
    detail_fields: ClassVar[tuple[str, ...]] = ("company_size",)

    company_size: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None


AnyLifeEvent = (
    SdkDownloaded | ConsoleLogin | DocViewed | SupportTicketOpened | SupportTicketClosed | NpsScore
    | Rating | TeammateInvited | ReferralUsed | Signup
)  # fmt: skip
LIFE_EVENTS: tuple[type[LifeEvent], ...] = AnyLifeEvent.__args__


def as_usage_event(event: LifeEvent) -> UsageEvent:
    """`event` as the metering rules judge it; what its type is and says goes into the metadata."""
    details = {name: getattr(event, name) for name in event.detail_fields}
    return UsageEvent(
        metric_type=event.metric_type,
        quantity=event.quantity,
        event_id=event.event_id,
        timestamp=event.timestamp,
        metadata={
            **(event.metadata or {}),
            **{name: value for name, value in details.items() if value is not None},
        },
    )
