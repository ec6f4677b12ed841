"""The queue: who gets a mail, when, once; and what is recorded of the rest."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa

from apex_pipelines.billing.store import NewSubscription, cancel, subscribe, sync_plans
from apex_pipelines.messaging.mail_types import MissingMailData, sample_data
from apex_pipelines.messaging.operations import (
    QueueState,
    UnknownEvent,
    list_queue,
    queue_counts,
    retry_event,
    retry_failed,
)
from apex_pipelines.messaging.outbox import MailRequest, enqueue, enqueue_many
from apex_pipelines.messaging.providers import Mail, SendResult
from apex_pipelines.messaging.queue import DrainReport, drain
from apex_pipelines.messaging.unsubscribe import InvalidUnsubscribeToken, Unsubscriber, unsubscribe
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings
from tests.messaging.conftest import MakeCustomer, QueueMail, RecordingProvider, event, reset_by_hand


@pytest.fixture
def run(engine: sa.Engine, provider: RecordingProvider, clock: ManualClock, settings: Settings) -> Runner:
    return Runner(engine, provider, clock, settings)


class Runner:
    """Drains the queue of one test."""

    def __init__(
        self, engine: sa.Engine, provider: RecordingProvider, clock: ManualClock, settings: Settings
    ) -> None:
        self.parts = (engine, provider, clock)
        self.settings = settings

    def __call__(self, batch_size: int | None = None) -> DrainReport:
        return drain(*self.parts, settings=self.settings, batch_size=batch_size)


def _log(engine: sa.Engine) -> list[tuple[str | None, str]]:
    with engine.connect() as connection:
        rows = connection.execute(sa.text("select customer_id, email_type from email_log order by id"))
        return [(row[0], row[1]) for row in rows]


def test_mail_is_sent_logged_and_done(
    engine: sa.Engine,
    make_customer: MakeCustomer,
    queue_mail: QueueMail,
    provider: RecordingProvider,
    run: Runner,
) -> None:
    customer = make_customer(name="Ada", email="ada@example.com")
    event_id = queue_mail("welcome", customer)

    report = run()

    assert report.sent == Counter(welcome=1)
    row = event(engine, event_id)
    assert (row.outcome, row.error_message, row.attempts) == ("sent", None, 1)
    assert row.processed_at is not None
    assert _log(engine) == [(customer, "welcome")]
    assert provider.mails[0].recipient == "ada@example.com"
    assert run().total == 0


def test_cause_is_queued_once_whatever_is_repeated(
    engine: sa.Engine, make_customer: MakeCustomer, clock: ManualClock
) -> None:
    customer = make_customer()
    request = MailRequest("welcome", customer, sample_data("welcome"), "welcome:1")
    with engine.begin() as connection:
        first = enqueue_many(connection, [request, request], now=clock.now())
        second = enqueue(
            connection, email_type="welcome", customer_id=customer, data=sample_data("welcome"),
            occurrence_key="welcome:1", now=clock.now(),
        )  # fmt: skip
    assert first == {"welcome:1"}
    assert second is False
    assert queue_counts(engine)[QueueState.PENDING] == 1


def test_queueing_is_part_of_the_callers_transaction(
    engine: sa.Engine, make_customer: MakeCustomer, clock: ManualClock
) -> None:
    request = MailRequest("welcome", make_customer(), sample_data("welcome"), "welcome:1")
    with engine.connect() as connection:
        enqueue_many(connection, [request], now=clock.now())
        connection.rollback()
    assert list_queue(engine) == []


def test_missing_data_is_refused_when_queueing(
    engine: sa.Engine, make_customer: MakeCustomer, clock: ManualClock
) -> None:
    with engine.begin() as connection, pytest.raises(MissingMailData, match="trial_days"):
        enqueue_many(
            connection,
            [MailRequest("welcome", make_customer(), {"plan_name": "Indie"}, "w")],
            now=clock.now(),
        )


def test_hundreds_are_queued_at_once_and_sent_in_order_of_priority(
    engine: sa.Engine,
    make_customer: MakeCustomer,
    clock: ManualClock,
    provider: RecordingProvider,
    run: Runner,
) -> None:
    customers = [make_customer() for _ in range(120)]
    requests = [
        MailRequest(kind, customer, sample_data(kind), f"{kind}:{customer}")
        for customer in customers
        for kind in ("power_user", "payment_failed")
    ]
    with engine.begin() as connection:
        assert len(enqueue_many(connection, requests, now=clock.now())) == 240
    assert run(batch_size=50).sent == Counter(power_user=120, payment_failed=120)
    assert {mail.email_type for mail in provider.mails[:120]} == {"payment_failed"}


# --- the 24-hour rule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 100])
def test_second_mail_of_a_type_within_24_hours_is_skipped_with_its_reason(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, run: Runner, batch_size: int
) -> None:
    customer = make_customer()
    queue_mail("usage_drop", customer)
    second = queue_mail("usage_drop", customer)
    other = queue_mail("usage_drop", make_customer())

    report = run(batch_size)

    assert report.sent == Counter(usage_drop=2)
    assert report.skipped == Counter(sent_within_24_hours=1)
    assert event(engine, second).outcome == "skipped"
    assert "less than 24 h ago" in event(engine, second).error_message
    assert event(engine, other).outcome == "sent"


def test_24_hours_later_the_same_type_goes_again(
    make_customer: MakeCustomer, queue_mail: QueueMail, clock: ManualClock, run: Runner
) -> None:
    customer = make_customer()
    queue_mail("usage_drop", customer)
    run()
    clock.advance(timedelta(hours=24))
    queue_mail("usage_drop", customer)
    assert run().sent == Counter(usage_drop=1)


def test_money_mail_waits_out_the_24_hours_instead_of_being_dropped(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, clock: ManualClock, run: Runner
) -> None:
    customer = make_customer()
    queue_mail("payment_retry", customer)
    clock.advance(timedelta(hours=1))
    second = queue_mail("payment_retry", customer)
    clock.advance(timedelta(hours=-1))
    run()
    clock.advance(timedelta(hours=23, minutes=59))

    assert run().waiting == Counter(sent_within_24_hours=1)
    assert event(engine, second).error_message.startswith("waiting:")
    assert event(engine, second).processed_at is None
    assert run().total == 0  # waiting costs nothing until it is due

    clock.advance(timedelta(minutes=1))
    assert run().sent == Counter(payment_retry=1)
    assert event(engine, second).error_message is None


@pytest.mark.parametrize("kind", ["sdk_guide", "sdk_update", "referral_success"])
def test_mail_about_another_platform_or_friend_waits_its_turn(
    make_customer: MakeCustomer, queue_mail: QueueMail, clock: ManualClock, run: Runner, kind: str
) -> None:
    customer = make_customer()
    queue_mail(kind, customer)
    assert run().sent == Counter({kind: 1})
    clock.advance(timedelta(hours=1))
    queue_mail(kind, customer)
    assert run().waiting == Counter(sent_within_24_hours=1)
    clock.advance(timedelta(hours=23))
    assert run().sent == Counter({kind: 1})


def test_failed_first_mail_does_not_cost_the_second_its_turn(
    engine: sa.Engine,
    make_customer: MakeCustomer,
    queue_mail: QueueMail,
    provider: RecordingProvider,
    run: Runner,
) -> None:
    customer = make_customer()
    broken = queue_mail("usage_drop", customer)
    fine = queue_mail("usage_drop", customer)
    with engine.begin() as connection:
        connection.execute(sa.text("update events set data = '{}' where id = :id"), {"id": broken})

    run()

    assert event(engine, broken).outcome == "failed"
    assert "reason" in event(engine, broken).error_message
    assert event(engine, fine).outcome == "sent"


def test_operator_digest_counts_by_recipient_and_alerts_repeat(
    queue_mail: QueueMail, provider: RecordingProvider, run: Runner, settings: Settings
) -> None:
    for kind in ("daily_digest", "daily_digest", "operator_alert", "operator_alert"):
        queue_mail(kind, None)
    report = run()
    assert report.sent == Counter(operator_alert=2, daily_digest=1)
    assert report.waiting == Counter(sent_within_24_hours=1)
    assert {mail.recipient for mail in provider.mails} == {settings.email_operator}


def test_operator_mail_never_reaches_a_customer(
    make_customer: MakeCustomer,
    queue_mail: QueueMail,
    provider: RecordingProvider,
    run: Runner,
    settings: Settings,
) -> None:
    queue_mail("churn_alert", make_customer(email="customer@example.com"))
    run()
    assert [mail.recipient for mail in provider.mails] == [settings.email_operator]


def test_customer_mail_without_a_customer_fails_with_its_reason(
    engine: sa.Engine, queue_mail: QueueMail, run: Runner
) -> None:
    event_id = queue_mail("welcome", None)
    run()
    assert event(engine, event_id).outcome == "failed"
    assert "names none" in event(engine, event_id).error_message


# --- suppression and consent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "email_type", "sent"),
    [
        ("hard_bounce", "payment_failed", False),
        ("complaint", "power_user", False),
        ("unsubscribed", "power_user", False),
        ("unsubscribed", "payment_failed", True),
    ],
)
def test_suppressed_addresses(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, run: Runner, clock: ManualClock,
    reason: str, email_type: str, sent: bool,
) -> None:  # fmt: skip
    event_id = queue_mail(email_type, make_customer(email="Mixed.Case@Example.com"))
    with engine.begin() as connection:
        connection.execute(
            sa.text("insert into suppressions (email, reason, created_at) values (:e, :r, :at)"),
            {"e": "mixed.case@example.com", "r": reason, "at": clock.now()},
        )
    run()
    row = event(engine, event_id)
    assert row.outcome == ("sent" if sent else "skipped")
    assert row.error_message == (None if sent else f"suppressed: {reason}")


def test_marketing_needs_consent_and_a_subscription_that_has_not_ended(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, clock: ManualClock, run: Runner
) -> None:
    without_consent = make_customer(marketing_consent=False)
    gone = make_customer()
    with engine.begin() as connection:
        sync_plans(connection)
        subscribe(connection, NewSubscription(gone, "indie", clock.now() - timedelta(days=90)), clock.now())
        cancel(connection, gone, clock.now())
    marketing = queue_mail("power_user", without_consent)
    money = queue_mail("payment_failed", without_consent)
    left = queue_mail("churn_risk", gone)

    run()

    assert event(engine, marketing).error_message == "no consent to marketing mail"
    assert event(engine, money).outcome == "sent"
    assert event(engine, left).error_message == "the customer's subscription has ended"


def test_one_click_unsubscribe(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, provider: RecordingProvider,
    clock: ManualClock, run: Runner, settings: Settings,
) -> None:  # fmt: skip
    customer = make_customer()
    queue_mail("power_user", customer)
    run()
    headers = dict(provider.mails[0].headers)
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    url = headers["List-Unsubscribe"].strip("<>")
    assert url.startswith(settings.site_url)
    assert url in provider.mails[0].html

    token = url.partition("token=")[2]
    unsubscriber = Unsubscriber(settings)
    assert unsubscriber.subject_of(token) == customer
    for forged in (
        token[:-1] + ("0" if token[-1] != "0" else "1"),
        "cus_1",
        "",
        token.replace("cus_", "cus"),
    ):
        with pytest.raises(InvalidUnsubscribeToken):
            unsubscriber.subject_of(forged)

    with engine.begin() as connection:
        assert unsubscribe(connection, customer, clock)
        assert unsubscribe(connection, customer, clock)
        assert not unsubscribe(connection, "cus_nobody", clock)
    clock.advance(timedelta(days=2))
    queue_mail("growing", customer)
    assert run().skipped == Counter(suppressed=1)


# --- failures and doing it again --------------------------------------------------------------------------


def test_failure_backs_off_keeps_its_error_and_rests_as_failed(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, provider: RecordingProvider,
    clock: ManualClock, run: Runner, settings: Settings,
) -> None:  # fmt: skip
    event_id = queue_mail("welcome", make_customer())
    provider.error = "421 try again later"
    waits = []
    for attempt in range(1, settings.email_max_attempts):
        assert run().retrying == Counter(welcome=1)
        row = event(engine, event_id)
        assert (row.attempts, row.error_message, row.processed_at) == (attempt, "421 try again later", None)
        waits.append(row.not_before - clock.now())
        assert run().total == 0
        clock.set(row.not_before)
    assert waits == sorted(waits)
    assert run().failed == Counter(welcome=1)
    row = event(engine, event_id)
    assert (row.outcome, row.attempts) == ("failed", settings.email_max_attempts)
    assert row.processed_at is not None
    clock.advance(timedelta(days=30))
    assert run().total == 0

    provider.error = None
    assert retry_failed(engine, clock) == 1
    assert run().sent == Counter(welcome=1)
    assert event(engine, event_id).error_message is None


def test_provider_that_is_down_costs_no_mail(
    make_customer: MakeCustomer,
    queue_mail: QueueMail,
    provider: RecordingProvider,
    clock: ManualClock,
    run: Runner,
) -> None:
    for _ in range(3):
        queue_mail("welcome", make_customer())
    provider.down = True
    assert run().retrying == Counter(welcome=3)
    provider.down = False
    clock.advance(timedelta(minutes=1))
    assert run().sent == Counter(welcome=3)


def test_permanent_refusal_and_unknown_type_fail_at_once(
    engine: sa.Engine,
    make_customer: MakeCustomer,
    queue_mail: QueueMail,
    provider: RecordingProvider,
    run: Runner,
) -> None:
    refused = queue_mail("welcome", make_customer())
    unknown = queue_mail("welcome", make_customer())
    with engine.begin() as connection:
        connection.execute(
            sa.text("update events set event_type = 'email.nope' where id = :id"), {"id": unknown}
        )
    provider.error, provider.permanent = "550 no such user", True
    assert run().failed == Counter(welcome=1, nope=1)
    assert event(engine, refused).error_message == "550 no such user"
    assert "no mail type 'nope'" in event(engine, unknown).error_message


@pytest.mark.parametrize("outcome", ["sent", "skipped", "failed", "backing off"])
def test_operator_sets_null_and_the_mail_is_sent_again(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, provider: RecordingProvider,
    clock: ManualClock, run: Runner, settings: Settings, outcome: str,
) -> None:  # fmt: skip
    customer = make_customer()
    first = queue_mail("usage_drop", customer)
    event_id = first
    if outcome == "skipped":
        event_id = queue_mail("usage_drop", customer)
    if outcome in ("failed", "backing off"):
        provider.error, provider.permanent = "550", outcome == "failed"
    run()
    assert event(engine, event_id).outcome == (None if outcome == "backing off" else outcome)
    provider.error = None
    before = len(provider.mails)

    reset_by_hand(engine, event_id)

    assert run().sent == Counter(usage_drop=1)
    assert len(provider.mails) == before + 1
    assert event(engine, event_id).outcome == "sent"
    if outcome == "sent":
        assert [mail.key for mail in provider.mails] == [f"{event_id}-1", f"{event_id}-2"]
    assert run().total == 0


def test_resend_survives_a_failure_in_between_and_starts_counting_anew(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, provider: RecordingProvider,
    clock: ManualClock, run: Runner, settings: Settings,
) -> None:  # fmt: skip
    event_id = queue_mail("usage_drop", make_customer())
    run()
    reset_by_hand(engine, event_id)
    provider.error = "421"
    run()
    assert event(engine, event_id).attempts == 1
    provider.error = None
    clock.advance(timedelta(minutes=1))
    assert run().sent == Counter(usage_drop=1)


def test_retry_by_id(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, clock: ManualClock, run: Runner
) -> None:
    event_id = queue_mail("welcome", make_customer())
    run()
    assert retry_event(engine, event_id, clock) is QueueState.SENT
    assert [item.id for item in list_queue(engine)] == [event_id]
    assert run().sent == Counter(welcome=1)
    with pytest.raises(UnknownEvent, match="4711"):
        retry_event(engine, 4711, clock)


# --- quota --------------------------------------------------------------------------------------------------


def test_short_quota_lets_money_mail_go_and_the_rest_wait(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, provider: RecordingProvider,
    clock: ManualClock, run: Runner, settings: Settings,
) -> None:  # fmt: skip
    settings.email_daily_quota = 3
    marketing = [queue_mail("power_user", make_customer()) for _ in range(3)]
    for kind in ("payment_failed", "suspended"):
        queue_mail(kind, make_customer())

    report = run(batch_size=2)

    assert report.sent == Counter(payment_failed=1, suspended=1, power_user=1)
    assert report.waiting == Counter(daily_quota=2)
    waiting = [event(engine, event_id) for event_id in marketing[1:]]
    assert all("quota of 3" in row.error_message and row.processed_at is None for row in waiting)

    queue_mail("payment_failed", make_customer())
    assert run().waiting == Counter(daily_quota=1)
    clock.advance(timedelta(days=1))
    assert run().sent == Counter(payment_failed=1, power_user=2)
    assert provider.mails[3].email_type == "payment_failed"


# --- several workers ----------------------------------------------------------------------------------------


def test_four_workers_send_each_mail_once_and_keep_the_24_hour_rule(
    engine: sa.Engine, make_customer: MakeCustomer, clock: ManualClock, settings: Settings
) -> None:
    customers = [make_customer() for _ in range(40)]
    requests = [
        MailRequest(kind, customer, sample_data(kind), f"{kind}:{customer}:{copy}")
        for copy in range(3)
        for customer in customers
        for kind in ("usage_drop", "welcome")
    ]
    with engine.begin() as connection:
        enqueue_many(connection, requests, now=clock.now())
    providers = [RecordingProvider() for _ in range(4)]
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def work(provider: RecordingProvider) -> None:
        try:
            start.wait()
            drain(engine, provider, clock, settings=settings, batch_size=7)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(provider,)) for provider in providers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    sent = Counter((mail.recipient, mail.email_type) for provider in providers for mail in provider.mails)
    assert len(sent) == 80
    assert set(sent.values()) == {1}
    assert Counter(_log(engine)) == {(c, kind): 1 for c in customers for kind in ("usage_drop", "welcome")}
    counts = queue_counts(engine)
    assert counts[QueueState.SENT] == 80
    assert counts[QueueState.SKIPPED] == 160
    assert counts[QueueState.PENDING] == 0


def test_two_workers_that_hold_the_same_type_for_a_customer_send_one(
    engine: sa.Engine,
    make_customer: MakeCustomer,
    queue_mail: QueueMail,
    clock: ManualClock,
    settings: Settings,
) -> None:
    customer = make_customer()
    for _ in range(2):
        queue_mail("usage_drop", customer)
    both_sending = threading.Barrier(2)

    class SlowProvider(RecordingProvider):
        """Waits a while for the other worker to be sending too, which must not happen."""

        def send(self, mails: Sequence[Mail]) -> list[SendResult]:
            with contextlib.suppress(threading.BrokenBarrierError):
                both_sending.wait(1)
            return super().send(mails)

    providers = [SlowProvider(), SlowProvider()]
    threads = [
        threading.Thread(
            target=drain, args=(engine, provider, clock), kwargs={"settings": settings, "batch_size": 1}
        )
        for provider in providers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sum(len(provider.mails) for provider in providers) == 1
    assert _log(engine) == [(customer, "usage_drop")]
    assert queue_counts(engine)[QueueState.SKIPPED] == 1
