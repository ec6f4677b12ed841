"""Stripe is told exactly what was counted, whatever is late, corrected, lost or answered wrongly."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner, Result

from apex_pipelines.commands.stripe import stripe
from apex_pipelines.stripe.counted_slots import UsageBeingCounted
from apex_pipelines.stripe.meter_errors import MeterError, record_meter_error
from apex_pipelines.stripe.meter_ledger import AnotherSyncRuns, alone
from apex_pipelines.stripe.meter_sending import StripeRefusesUs
from tests.stripe.usage_world import METRICS, UsageWorld, new_customer_id

DAY = timedelta(days=1)


def test_a_day_is_sent_once_and_a_late_event_sends_the_rest(usage: UsageWorld) -> None:
    anna, ben = usage.prepare(customers=2)
    usage.count({(anna, metric, usage.yesterday): 1_000 + index for index, metric in enumerate(METRICS)})
    usage.count(
        {(ben, "impressions", usage.yesterday): 5, (ben, "impressions", usage.yesterday - 9 * DAY): -3}
    )
    assert usage.sync().sent == 6
    assert usage.at_stripe() == usage.ledger("sent") == usage.used()
    assert usage.sync().sent == 0

    usage.count({(anna, "impressions", usage.yesterday): 1_250, (ben, "impressions", usage.yesterday): 1})
    report = usage.sync()
    assert sorted(entry.quantity for entry in report.planned) == [-4, 250]
    assert usage.at_stripe() == usage.used()
    assert usage.summary(anna, "impressions") == 1_250


def test_what_runs_waits_and_what_has_ended_goes(usage: UsageWorld) -> None:
    """Today waits for tomorrow, but for the part of it in a period that ended this morning."""
    [anna] = usage.prepare(customers=1)
    today = usage.yesterday + DAY
    usage.count({(anna, "impressions", today): 7}, slot_length=timedelta(hours=1, minutes=59))
    usage.count(
        {(anna, "impressions", today + timedelta(hours=1, minutes=59)): 9}, slot_length=timedelta(hours=22)
    )
    usage.sync()
    assert list(usage.at_stripe().values()) == [7]
    # Nothing of it is counted anew, and it goes as soon as it has ended.
    usage.move(DAY)
    usage.sync()
    assert usage.at_stripe() == usage.used()


def test_use_that_went_elsewhere_is_taken_back(usage: UsageWorld) -> None:
    [anna] = usage.prepare(customers=1)
    usage.count({(anna, "impressions", usage.yesterday): 40})
    usage.sync()
    usage.count({(anna, "impressions", usage.yesterday): 0})
    [entry] = usage.sync().planned
    assert entry.quantity == -40
    assert usage.at_stripe() == {}
    assert usage.summary(anna, "impressions") == 0


def test_one_customer_is_compared_as_a_whole(usage: UsageWorld) -> None:
    """Also with slots that the warehouse lost sight of, which a run of all would not look at."""
    anna, ben = usage.prepare(customers=2)
    usage.count({(anna, "impressions", usage.yesterday): 40, (anna, "impressions", usage.yesterday - DAY): 2})
    usage.sync()
    usage.warehouse.command("delete from marts.metered_usage where quantity = 40")
    usage.count({(ben, "impressions", usage.yesterday): 5})
    assert [entry.quantity for entry in usage.sync(anna).planned] == [-40]
    assert usage.at_stripe() == {(anna, "impressions", usage.yesterday - DAY): 2}
    usage.warehouse.command(
        "insert into intermediate.model_watermarks (model, state) values ('metered_usage', 'begun')"
    )
    with pytest.raises(UsageBeingCounted):
        usage.sync(anna)


def test_a_customer_unknown_to_stripe_is_reported_and_sent_once_known(usage: UsageWorld) -> None:
    usage.prepare(customers=0)
    stranger = new_customer_id()
    usage.count({(stranger, "impressions", usage.yesterday): 8})
    assert usage.sync().unlinked == {stranger: 1}
    usage.move(3 * DAY)
    usage.link(stranger)
    usage.sync()
    assert usage.at_stripe() == usage.used()


def test_use_of_periods_before_stripe_is_left_alone(usage: UsageWorld) -> None:
    [anna] = usage.prepare(customers=1)
    long_ago = usage.yesterday - 20 * DAY
    usage.count({(anna, "impressions", long_ago): 8}, period=(long_ago - DAY, long_ago + 2 * DAY))
    assert usage.sync().planned == []


@pytest.mark.parametrize("arrived", [True, False])
def test_an_answer_lost_for_over_a_day_is_looked_up(usage: UsageWorld, arrived: bool) -> None:
    """Stripe has forgotten the identifier by then, and would count it twice."""
    anna, ben = usage.prepare(customers=2)
    day = usage.yesterday
    usage.count({(anna, "api_calls", day): 30, (ben, "api_calls", day): 4})
    usage.sandbox.fault("/v1/billing/meter_events$", when="after" if arrived else "before")
    assert len(usage.sync().left) == 2
    usage.sandbox.no_faults()
    usage.move(timedelta(hours=25))
    usage.count({(anna, "api_calls", day): 35})
    report = usage.sync()
    assert report.left == []
    assert usage.at_stripe() == usage.ledger("sent") == usage.used()
    again = [event["identifier"] for event in usage.events_at_stripe()]
    assert len(again) == len(set(again)) == (3 if arrived else 2)


def test_what_comes_too_late_stands_in_the_ledger_as_such(usage: UsageWorld) -> None:
    """New use of an old day, and an entry that no run could send in time."""
    anna, ben = usage.prepare(customers=2)
    usage.count(
        {
            (anna, "impressions", usage.yesterday - 33 * DAY): 10,
            (ben, "impressions", usage.yesterday - 32 * DAY): 6,
        }
    )
    usage.sandbox.fault("/v1/billing/meter_events$", when="before", status=500)
    assert len(usage.sync().left) == 2
    usage.sandbox.no_faults()
    usage.move(2 * DAY)
    usage.count({(ben, "impressions", usage.yesterday - 40 * DAY): 5})
    report = usage.sync()
    assert report.left == []
    assert usage.at_stripe() == {}
    assert usage.ledger("invoiced") == usage.used()
    assert report.too_late == 3


def test_stripe_being_down_leaves_everything_pending_and_a_refused_key_says_so(usage: UsageWorld) -> None:
    customers = usage.prepare(customers=30)
    usage.count({(customer, "impressions", usage.yesterday): 3 for customer in customers})
    usage.sandbox.fault("/v1/billing/meter_events$", when="before", status=503)
    report = usage.sync()
    assert len(report.left) == 30
    assert any(entry.error for entry in report.left)
    # After twenty entries without an answer it does not knock at each door.
    calls = usage.sandbox.faults()[0]["happened"]
    assert 20 * 5 <= calls < 30 * 5

    usage.sandbox.no_faults()
    usage.settings.stripe_secret_key = "sk_test_wrong"
    with pytest.raises(StripeRefusesUs, match="stays pending") as refusal:
        usage.sync()
    assert "sk_test" not in str(refusal.value)
    usage.settings.stripe_secret_key = usage.sandbox.key
    assert usage.sync().sent == 30
    assert usage.at_stripe() == usage.used()


def test_only_one_sync_at_a_time(usage: UsageWorld) -> None:
    usage.prepare(customers=1)
    with alone(usage.engine, livemode=False, wait_seconds=1):
        second = usage.usage_sync()
        second.lock_seconds = 1
        with pytest.raises(AnotherSyncRuns):
            second.run()
    assert usage.sync().left == []


def test_a_dry_run_says_what_would_be_sent_and_writes_nothing(usage: UsageWorld) -> None:
    [anna] = usage.prepare(customers=1)
    usage.count({(anna, "impressions", usage.yesterday): 12})
    plan = usage.usage_sync().plan()
    assert [(entry.quantity, entry.is_too_late) for entry in plan.planned] == [(12, False)]
    assert usage.ledger() == usage.at_stripe() == {}
    assert usage.sync().planned == plan.planned


def test_the_command_prints_what_it_sent_and_fails_when_something_is_left(usage: UsageWorld) -> None:
    [anna] = usage.prepare(customers=1)
    usage.count({(anna, "impressions", usage.yesterday): 12})

    def apex(*arguments: str) -> Result:
        usage.settings.clock = usage.clock.now().isoformat()
        return CliRunner().invoke(stripe, arguments, obj=usage.settings)

    planned = json.loads(apex("sync", "--dry-run", "--json").stdout)
    assert [row["quantity"] for row in planned["differences"]] == [12]
    usage.sandbox.fault("/v1/billing/meter_events$", when="before", status=400, times=1)
    refused = apex("sync")
    assert "1 rejected" in refused.stdout
    done = json.loads(apex("sync", "--customer", anna, "--json").stdout)
    assert (done["sent"], done["quantities"], done["left"]) == (1, {"impressions": 12}, [])
    unknown = apex("sync", "--customer", "cus_nobody")
    assert unknown.exit_code == 1


def test_what_stripe_rejects_is_sent_anew_by_the_next_sync(usage: UsageWorld) -> None:
    [anna] = usage.prepare(customers=1)
    usage.count({(anna, "impressions", usage.yesterday): 12})
    usage.sandbox.fault("/v1/billing/meter_events$", when="before", status=400)
    for _ in range(2):
        assert usage.sync().rejected == 1
        usage.move(DAY)
    usage.sandbox.no_faults()
    usage.sync()
    assert usage.at_stripe() == usage.used()
    assert usage.sync().planned == []


@pytest.mark.parametrize("named_by", ["identifier", "idempotency key"])
def test_what_stripe_drops_later_is_sent_anew_once_the_cause_is_gone(
    usage: UsageWorld, named_by: str
) -> None:
    """Stripe accepted it, and told afterwards that the customer was not there."""
    anna, ben = usage.prepare(customers=2)
    usage.count({(anna, "impressions", usage.yesterday): 12, (ben, "impressions", usage.yesterday): 3})
    usage.sync()
    [sent] = [event["identifier"] for event in usage.events_at_stripe() if anna in event["identifier"]]
    usage.drop_at_stripe(sent)
    suffix = "" if named_by == "identifier" else ".a1b2c3d4e5f6"
    error = MeterError(sent + suffix, "meter_event_customer_not_found", "No such customer")
    with usage.engine.begin() as connection:
        assert record_meter_error(connection, error, usage.clock.now(), livemode=False)
    usage.move(DAY)
    [entry] = usage.sync().planned
    assert (entry.quantity, entry.number) == (12, 2)
    assert usage.at_stripe() == usage.ledger() == usage.used()
