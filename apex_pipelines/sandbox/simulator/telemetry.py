"""What a simulated customer sends: daily sums for each platform, as an SDK flushes them, with realistic mess.

Belongs here: events from a story, as a function of (seed, customer, day). Does not belong here: sending.

The mess: some events come late, some are repeated (a part of those with another timestamp), and some are
corrected later. A repeat never comes before its original, so the first that is accepted is the true one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

import numpy as np

from apex_pipelines.metering import quantity as units
from apex_pipelines.platform import catalogue
from apex_pipelines.platform.ingest_client import ClientEvent
from apex_pipelines.sandbox.simulator.life import Life

# Fixed for ever: another namespace would make every repeated simulation count again.
_EVENT_NAMESPACE = uuid.UUID("0d9f8e54-6a57-5c83-8a1e-5b7a0e9c2d31")
MAX_DELAY_DAYS = 20
# Furthest that a timestamp may lie behind the day of sending: late, repeated later, dated earlier.
MAX_BEHIND_DAYS = MAX_DELAY_DAYS + 2 + 2
_SDK_VERSIONS = ("4.0.2", "4.1.0", "4.2.1", "4.3.0")
_LATE_SHARE = 0.01
_REPEATED_SHARE = 0.0035
_REPEATED_ELSEWHEN_SHARE = 0.0015
_CORRECTED_SHARE = 0.0008
_REASONS = ("test traffic counted", "invalid traffic removed", "double flush of the SDK")


class Kind(StrEnum):
    """What an event is to the totals. The two kinds of repeat count for nothing."""

    ORIGINAL = "original"
    LATE = "late"
    CORRECTION = "correction"
    REPEAT = "repeat"
    REPEAT_OTHER_TIMESTAMP = "repeat_other_timestamp"

    @property
    def counts(self) -> bool:
        """Whether it adds to the totals."""
        return self not in (Kind.REPEAT, Kind.REPEAT_OTHER_TIMESTAMP)


@dataclass(frozen=True, slots=True)
class SentEvent:
    """An event as sent, the day (UTC) on which it is sent, and its quantity in storage units."""

    delivered_on: date
    kind: Kind
    stored: int
    event: ClientEvent


def deliveries(seed: int, story: Life, first: date, last: date) -> Iterator[tuple[date, list[SentEvent]]]:
    """Everything the customer sends on each day from `first` to the day before `last`, in order of sending.

    Nothing stays under way when the simulation ends: what would come after its last day comes on it.
    """
    final = story.first_day + timedelta(days=len(story.impressions)) - timedelta(days=1)
    waiting: dict[date, list[SentEvent]] = {}
    day = max(first - timedelta(days=MAX_DELAY_DAYS), story.first_day)
    while day < min(last, final + timedelta(days=1)):
        for sent in _events_of(seed, story, day, final):
            if sent.delivered_on >= first:
                waiting.setdefault(sent.delivered_on, []).append(sent)
        if due := waiting.pop(day, None):
            yield day, due
        day += timedelta(days=1)


def _events_of(seed: int, story: Life, day: date, final: date) -> list[SentEvent]:
    """Everything that happens on one day, with the repeats and corrections that follow from it."""
    rng = np.random.default_rng([seed, 3, story.customer.index, day.toordinal()])
    amounts = list(_amounts(story, (day - story.first_day).days, rng))
    if not amounts:
        return []
    seconds = rng.integers(0, 86_400, len(amounts)).tolist()
    mess = rng.random((len(amounts), 4)).tolist()
    delays = rng.integers(1, MAX_DELAY_DAYS + 1, (len(amounts), 2)).tolist()
    backwards = rng.integers(1, 37, len(amounts)).tolist()
    midnight = datetime.combine(day, time(), UTC)
    found = []
    for number, (metric, part, stored, metadata) in enumerate(amounts):
        at = midnight + timedelta(seconds=seconds[number])
        if at < story.customer.created_at:
            at = story.customer.created_at + timedelta(seconds=1)
        name = f"{story.customer.external_ref}:{day.isoformat()}:{metric}:{part}"
        event = ClientEvent(
            event_id=str(uuid.uuid5(_EVENT_NAMESPACE, name)),
            metric_type=metric,
            quantity=_in_units(stored, metric),
            timestamp=_text(at),
            metadata=metadata,
        )
        late, repeated, corrected, share = mess[number]
        delivered = day
        kind = Kind.ORIGINAL
        if late < _LATE_SHARE:
            delivered, kind = min(day + timedelta(days=delays[number][0]), final), Kind.LATE
        found.append(SentEvent(delivered, kind, stored, event))
        again = min(delivered + timedelta(days=delays[number][1] % 3), final)
        if repeated < _REPEATED_SHARE:
            found.append(SentEvent(again, Kind.REPEAT, stored, event))
        elif repeated < _REPEATED_SHARE + _REPEATED_ELSEWHEN_SHARE:
            earlier = at - timedelta(hours=backwards[number])
            moved = ClientEvent(
                event_id=event.event_id,
                metric_type=metric,
                quantity=event.quantity,
                timestamp=_text(earlier),
                metadata=metadata,
            )
            found.append(SentEvent(again, Kind.REPEAT_OTHER_TIMESTAMP, stored, moved))
        taken = int(stored * (0.05 + 0.4 * share))
        if corrected < _CORRECTED_SHARE and taken and catalogue.metrics()[metric].kind == "usage":
            correction = ClientEvent(
                event_id=str(uuid.uuid5(_EVENT_NAMESPACE, f"{name}:correction")),
                metric_type=metric,
                quantity=_in_units(-taken, metric),
                timestamp=event.timestamp,  # it corrects the day on which it happened
                metadata=metadata,
                corrects_event_id=event.event_id,
                reason=_REASONS[taken % len(_REASONS)],
            )
            found.append(SentEvent(again, Kind.CORRECTION, -taken, correction))
    return found


def _amounts(
    story: Life, index: int, rng: np.random.Generator
) -> Iterator[tuple[str, str, int, dict[str, str]]]:
    """Metric, part of the day's sum, quantity in storage units, and metadata."""
    customer = story.customer
    engaged, impressions = float(story.engagement[index]), float(story.impressions[index])
    age = (story.first_day - customer.created_at.date()).days + index
    version = _SDK_VERSIONS[min(int(rng.integers(len(_SDK_VERSIONS))), len(_SDK_VERSIONS) - 1)]
    if impressions >= 1:
        for platform, share in zip(customer.platforms, customer.platform_shares, strict=True):
            shown = int(rng.poisson(impressions * share))
            calls = int(shown * customer.api_calls_per_impression * rng.uniform(0.97, 1.03)) + 1
            carried = {
                "platform": platform,
                "sdk_version": version,
                "app_id": f"app-{customer.index}-{platform}",
                "country": customer.country,
            }
            yield "impressions", platform, shown, carried
            yield "api_calls", platform, calls, carried
            yield (
                "data_transfer",
                platform,
                int(calls * customer.bytes_per_call * rng.uniform(0.9, 1.1)),
                carried,
            )
            # USD per thousand impressions is thousand micro-dollars per impression.
            earned = int(shown * customer.revenue_per_thousand * 1_000 * rng.uniform(0.85, 1.15))
            yield "mediated_revenue", platform, earned, carried
            if errors := int(rng.poisson(calls * customer.error_rate * float(story.errors[index]))):
                yield "sdk_errors", platform, errors, carried
            if crashes := int(rng.poisson(calls * customer.error_rate * float(story.errors[index]) * 0.002)):
                yield "sdk_crashes", platform, crashes, carried
        for feature in customer.features:
            if rng.random() < 0.22 * engaged:
                uses = 1 + int(rng.poisson(2))
                yield "feature_used", feature, uses, {"feature": feature, "sdk_version": version}
    console = {"via": "console"}
    newcomer = 3.0 if 0 <= age < 14 else 1.0
    if logins := int(rng.poisson(customer.logins * engaged**1.5 * newcomer)):
        yield "console_logins", "console", logins, console
    if views := int(rng.poisson(customer.doc_views * (0.4 + 0.6 * engaged) * newcomer)):
        yield "doc_views", "console", views, console
    trouble = float(story.errors[index]) - 1
    if tickets := int(rng.poisson(0.008 + 0.014 * (1 - engaged) + 0.012 * trouble)):
        yield "support_tickets", "console", tickets, console


def _in_units(stored: int, metric: str) -> int | str:
    scale = catalogue.metrics()[metric].scale
    return f"{units.from_storage(stored, scale):f}" if scale else stored


def _text(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")
