"""Meter events on their way to Stripe: many at once, but one at a time for each customer and meter.

Belongs here: calls, their retries and what an answer means. Does not belong here: any table.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import stripe

from apex_pipelines.platform.logging import mask_secrets
from apex_pipelines.stripe.bootstrap import METER_CUSTOMER_KEY, METER_VALUE_KEY, event_name
from apex_pipelines.stripe.meter_ledger import LedgerEntry, Outcome
from apex_pipelines.stripe.models import SentState

# Full jitter: each wait is a random part of these seconds, so that many don't come back at once.
_WAITS = (1.0, 2.0, 4.0, 8.0)
# So many entries in a row without an answer mean that Stripe is down, and not that one of them is odd.
_DOWN_AFTER = 20
_DUPLICATE = ("duplicate_meter_event", "resource_already_exists")


class StripeRefusesUs(RuntimeError):
    """Stripe takes nothing with this key; what was not sent is still pending."""


@dataclass
class Sending:
    """One run's way to Stripe.

    Attributes
    ----------
    concurrency : int
        Calls under way at once.
    wait : callable
        Waits so many seconds; tests give their own.
    """

    client: stripe.StripeClient
    concurrency: int
    wait: Callable[[float], object] | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _unanswered: int = 0
    _refused: StripeRefusesUs | None = None

    @property
    def is_over(self) -> bool:
        """Whether Stripe seems to be down or refuses the key: nothing more is tried."""
        return self._stop.is_set()

    def send(self, entries: Sequence[LedgerEntry], outcomes: list[Outcome]) -> None:
        """Send entries, and append to `outcomes` what became of each; before an interrupt too.

        Raises
        ------
        StripeRefusesUs
            If the key is not accepted.
        """
        lanes: dict[tuple[str, str], list[LedgerEntry]] = {}
        for entry in entries:
            lanes.setdefault((entry.stripe_customer_id, entry.metric_type), []).append(entry)
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="meter-events") as pool:
            try:
                for lane in [pool.submit(self._send_lane, lane, outcomes) for lane in lanes.values()]:
                    lane.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        if self._refused is not None:
            raise self._refused

    def _send_lane(self, lane: Sequence[LedgerEntry], outcomes: list[Outcome]) -> None:
        for entry in lane:
            if self._stop.is_set():
                return
            outcomes.append(self._send_one(entry))

    def _send_one(self, entry: LedgerEntry) -> Outcome:
        # A call without an answer may have arrived, in this run or in one before.
        may_have_arrived = entry.first_sent_at is not None
        for seconds in (*_WAITS, None):
            try:
                self._call(entry)
            except stripe.StripeError as error:
                self._refuse_if_key_is_wrong(error)
                if is_duplicate(error):
                    break
                problem = describe(error)
                if not is_transient(error):
                    # To reject it would send it anew under another identifier, and count it twice.
                    is_known_not_to_be_there = not may_have_arrived and self._refused is None
                    state = SentState.REJECTED if is_known_not_to_be_there else SentState.PENDING
                    return Outcome(entry.id, state, problem)
                may_have_arrived = may_have_arrived or not isinstance(error, stripe.RateLimitError)
            else:
                break
            if seconds is None or self._stop.is_set():
                self._count_unanswered()
                return Outcome(entry.id, SentState.PENDING, problem)
            (self.wait or self._stop.wait)(random.uniform(0, seconds))  # noqa: S311
        self._unanswered = 0
        return Outcome(entry.id, SentState.SENT)

    def _call(self, entry: LedgerEntry) -> None:
        self.client.v1.billing.meter_events.create(
            {
                "event_name": event_name(entry.metric_type),
                "identifier": entry.identifier,
                "timestamp": int(entry.slot_start.timestamp()),
                "payload": {
                    METER_CUSTOMER_KEY: entry.stripe_customer_id,
                    METER_VALUE_KEY: str(entry.quantity),
                },
            },
            # Another key for each attempt: for the same one Stripe repeats its first answer, also a failure.
            # The identifier stands in it, because that is how error reports name an event.
            {"idempotency_key": f"{entry.identifier}.{uuid.uuid4().hex[:12]}", "max_network_retries": 0},
        )

    def _count_unanswered(self) -> None:
        self._unanswered += 1
        if self._unanswered >= _DOWN_AFTER:
            self._stop.set()

    def _refuse_if_key_is_wrong(self, error: stripe.StripeError) -> None:
        if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
            self._refused = StripeRefusesUs(
                f"Stripe does not accept STRIPE_SECRET_KEY for meter events (HTTP {error.http_status}); "
                "what was not sent stays pending and goes with the next run"
            )
            self._stop.set()


def is_duplicate(error: stripe.StripeError) -> bool:
    """Whether Stripe says that it has an event of this identifier, which is as good as an acceptance.

    Its answer has been seen with a code of its own, and with none but this text.
    """
    text = (error.user_message or "").lower()
    return isinstance(error, stripe.InvalidRequestError) and (
        error.code in _DUPLICATE or "event already exists with identifier" in text
    )


def is_transient(error: stripe.StripeError) -> bool:
    """Whether the same call may succeed later: no answer, too many calls, a lock, or Stripe's own failure."""
    status = error.http_status
    return (
        isinstance(error, stripe.APIConnectionError | stripe.RateLimitError)
        or status is None
        or status in (409, 429)
        or status >= 500
        or status < 400
    )


def describe(error: stripe.StripeError) -> str:
    """One line for the ledger, without anything secret."""
    text = error.user_message or error.code or type(error).__name__
    return mask_secrets(" ".join(f"{error.http_status or 'no answer'}: {text}".split()))[:500]
