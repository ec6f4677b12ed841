"""The outbox folder: files, index pages, and that a killed process never makes a mail twice."""

from __future__ import annotations

import email
import email.policy
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from apex_pipelines.messaging.mail_types import UnknownMailType, mail_types, sample_data
from apex_pipelines.messaging.operations import TestMailFailed, preview, send_test
from apex_pipelines.messaging.outbox import MailRequest, enqueue_many
from apex_pipelines.messaging.providers import Mail
from apex_pipelines.messaging.providers.outbox import OutboxProvider, build_message
from apex_pipelines.messaging.providers.outbox_index import NEWEST_PER_TYPE, entries_of_day
from apex_pipelines.messaging.queue import drain
from apex_pipelines.platform.clock import ManualClock
from apex_pipelines.settings import Settings, child_environment
from tests.conftest import PROJECT_ROOT
from tests.messaging.conftest import MakeCustomer, QueueMail, event, reset_by_hand

DAY = "2026-06-01"


@pytest.fixture
def deliver(engine: sa.Engine, clock: ManualClock, settings: Settings) -> Callable[[], int]:
    """Drains into the outbox folder; how many mails were sent."""
    return lambda: drain(engine, OutboxProvider(settings.outbox_dir), clock, settings=settings).sent.total()


def _mail(**changes: object) -> Mail:
    fields = {
        "event_id": 7,
        "send_number": 1,
        "email_type": "welcome",
        "sender": "ApexMediation <noreply@apexmediation.com>",
        "recipient": "ada@example.com",
        "recipient_name": 'Ada Łovelace, "Countess"',
        "subject": "Grüße",
        "html": "<p>x</p>",
        "text": "x\n",
        "queued_at": datetime(2026, 6, 1, tzinfo=UTC),
        "sent_at": datetime(2026, 6, 2, tzinfo=UTC),
    }
    return Mail(**(fields | changes))  # type: ignore[arg-type]


def test_mail_is_a_readable_message_with_both_parts(
    make_customer: MakeCustomer, queue_mail: QueueMail, deliver: Callable[[], int], settings: Settings
) -> None:
    event_id = queue_mail("power_user", make_customer(name="Zoë & Søn", email="zoe@example.com"))
    assert deliver() == 1

    file = settings.outbox_dir / DAY / f"power_user-{event_id}-1.eml"
    message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert message["To"].addresses[0].addr_spec == "zoe@example.com"
    assert message["To"].addresses[0].display_name == "Zoë & Søn"
    assert message["From"] == settings.email_sender
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["Message-ID"].endswith("@apexmediation.com>")
    text, html = message.get_body(("plain",)), message.get_body(("html",))
    assert text is not None
    assert html is not None
    assert text.get_content().startswith("Hello Zoë & Søn,")
    assert "Zoë &amp; Søn" in html.get_content()
    assert "Zoë &amp; Søn" in file.with_suffix(".html").read_text()


def test_index_lists_every_mail_newest_first_by_type_with_counts(
    make_customer: MakeCustomer, queue_mail: QueueMail, deliver: Callable[[], int], clock: ManualClock,
    settings: Settings,
) -> None:  # fmt: skip
    deliver()
    assert "0 mails" in (settings.outbox_dir / "index.html").read_text()
    for _ in range(NEWEST_PER_TYPE + 3):
        queue_mail("welcome", make_customer())
    deliver()
    clock.advance(timedelta(days=1))
    queue_mail("welcome", make_customer(name="<b>Last</b>", email="last@example.com"))
    queue_mail("daily_digest", None)
    deliver()

    index = (settings.outbox_dir / "index.html").read_text()
    assert f"{NEWEST_PER_TYPE + 5} mails" in index
    assert index.index("last@example.com") < index.index("studio23@example.com")
    links = re.findall(r'href="([^"#]+\.(?:html|eml))"', index)
    assert len([link for link in links if "/welcome-" in link and link.endswith(".eml")]) == NEWEST_PER_TYPE
    assert all((settings.outbox_dir / link).is_file() for link in links)
    day = (settings.outbox_dir / DAY / "index.html").read_text()
    assert day.count(".eml") == NEWEST_PER_TYPE + 3
    assert all(
        (settings.outbox_dir / DAY / link).is_file() for link in re.findall(r'href="([^"#]+\.eml)"', day)
    )


def test_days_that_did_not_change_are_not_built_again(
    make_customer: MakeCustomer, queue_mail: QueueMail, deliver: Callable[[], int], clock: ManualClock,
    settings: Settings,
) -> None:  # fmt: skip
    queue_mail("welcome", make_customer())
    deliver()
    page = settings.outbox_dir / DAY / "index.html"
    page.write_text("untouched")
    deliver()
    clock.advance(timedelta(days=1))
    queue_mail("welcome", make_customer())
    deliver()
    assert page.read_text() == "untouched"


def test_torn_line_of_a_killed_process_hides_no_other_mail(
    make_customer: MakeCustomer, queue_mail: QueueMail, deliver: Callable[[], int], settings: Settings
) -> None:
    queue_mail("welcome", make_customer())
    deliver()
    with (settings.outbox_dir / DAY / "mails.ndjson").open("a") as file:
        file.write('{"day": "2026-06-01", "key": "99-')
    queue_mail("welcome", make_customer())
    deliver()
    assert len(entries_of_day(settings.outbox_dir, DAY)) == 2


def test_resent_mail_is_a_second_file(
    engine: sa.Engine, make_customer: MakeCustomer, queue_mail: QueueMail, deliver: Callable[[], int],
    settings: Settings,
) -> None:  # fmt: skip
    event_id = queue_mail("welcome", make_customer())
    deliver()
    reset_by_hand(engine, event_id)
    assert deliver() == 1
    names = sorted(path.name for path in (settings.outbox_dir / DAY).glob("*.eml"))
    assert names == [f"welcome-{event_id}-1.eml", f"welcome-{event_id}-2.eml"]


@pytest.mark.parametrize(
    "address", ["", "nobody", "a@b@c", "ä@example.com", "a b@example.com", "x@\r\nBcc: y@z"]
)
def test_address_that_cannot_be_written_to_is_refused_for_good(tmp_path: Path, address: str) -> None:
    good, bad = OutboxProvider(tmp_path).send([_mail(), _mail(event_id=8, recipient=address)])
    assert good.error is None
    assert bad.permanent
    assert "not a sendable mail" in (bad.error or "")


def test_headers_cannot_be_smuggled_in() -> None:
    message = build_message(_mail(recipient_name="Eve\r\nBcc: victim@example.com"))
    assert message["Bcc"] is None
    with pytest.raises(ValueError, match=r"linefeed|newline"):
        build_message(_mail(subject="x\r\nBcc: victim@example.com"))


def test_folder_that_cannot_be_written_leaves_the_mail_queued_with_the_reason(
    engine: sa.Engine,
    make_customer: MakeCustomer,
    queue_mail: QueueMail,
    clock: ManualClock,
    settings: Settings,
) -> None:
    settings.home_path.mkdir(parents=True, exist_ok=True)
    settings.outbox_dir.write_text("a file where the folder should be")
    event_id = queue_mail("welcome", make_customer())
    report = drain(engine, OutboxProvider(settings.outbox_dir), clock, settings=settings)
    assert report.retrying == Counter(welcome=1)
    assert "outbox folder" in event(engine, event_id).error_message


def test_preview_of_all_types(settings: Settings, tmp_path: Path) -> None:
    files = preview(settings, None, tmp_path / "preview")
    assert {path.stem for path in files} == set(mail_types())
    assert all(path.with_suffix(".txt").read_text().startswith("Subject: ") for path in files)
    with pytest.raises(UnknownMailType):
        preview(settings, "nope", tmp_path)


def test_test_mail_goes_to_the_address_and_does_not_hold_the_real_one_back(
    engine: sa.Engine,
    queue_mail: QueueMail,
    deliver: Callable[[], int],
    clock: ManualClock,
    settings: Settings,
) -> None:
    provider = OutboxProvider(settings.outbox_dir)
    for _ in range(2):  # a test may be repeated at once
        send_test(engine, provider, clock, settings, email_type="daily_digest", to=settings.email_operator)
    queue_mail("daily_digest", None)
    assert deliver() == 1
    entries = entries_of_day(settings.outbox_dir, DAY)
    assert [entry.subject.startswith("[test] ") for entry in entries] == [False, True, True]
    with engine.connect() as connection:
        types = connection.scalars(sa.text("select email_type from email_log order by id")).all()
    assert types == ["test.daily_digest", "test.daily_digest", "daily_digest"]

    with pytest.raises(TestMailFailed, match="not a sendable"):
        send_test(engine, provider, clock, settings, email_type="welcome", to="nobody")


# --- killed -------------------------------------------------------------------------------------------------


def test_sigkill_at_any_point_makes_no_mail_twice_and_loses_none(
    engine: sa.Engine, make_customer: MakeCustomer, clock: ManualClock, settings: Settings
) -> None:
    """Eight rounds: 60 mails queued, the draining process killed at a random or at the worst moment."""
    moments = random.Random(20260601)
    environment = child_environment(
        settings, APEX_DATABASE_URL=str(settings.database_url), PYTHONPATH=str(PROJECT_ROOT)
    )
    killed_between = 0
    for number in range(8):
        customers = [make_customer() for _ in range(60)]
        with engine.begin() as connection:
            enqueue_many(
                connection,
                [MailRequest("welcome", c, sample_data("welcome"), f"welcome:{c}") for c in customers],
                now=clock.now(),
            )
        hand_overs = moments.randrange(5) if number % 2 else -1
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.messaging.drain_process", str(hand_overs)],
            cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if hand_overs < 0:
            time.sleep(moments.uniform(0, 0.4))
            process.kill()
        process.stdout.close()
        process.wait(30)
        killed_between += process.returncode == -signal.SIGKILL and hand_overs >= 0
    assert killed_between == 4

    report = drain(engine, OutboxProvider(settings.outbox_dir), clock, settings=settings)

    assert report.sent.total() > 0
    with engine.connect() as connection:
        logged = connection.scalars(sa.text("select event_id from email_log order by event_id")).all()
        events = connection.scalars(sa.text("select id from events order by id")).all()
        pending = connection.scalar(
            sa.text("select count(*) from events where outcome is distinct from 'sent'")
        )
    assert logged == events
    assert len(events) == 480
    assert pending == 0
    expected = sorted(f"welcome-{event_id}-1" for event_id in events)
    for suffix in (".eml", ".html"):
        files = [path for path in settings.outbox_dir.glob(f"*/*{suffix}") if path.name != "index.html"]
        assert sorted(path.stem for path in files if not path.name.startswith(".")) == expected
    assert len(entries_of_day(settings.outbox_dir, DAY)) == 480
    assert "480 mails" in (settings.outbox_dir / "index.html").read_text()
