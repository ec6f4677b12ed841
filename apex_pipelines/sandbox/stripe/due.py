"""The passing of time: what has become due is done in the order of its times, each at its own.

Belongs here: the order, moving the account's clock and test clocks. Does not belong here: what is done.
"""

from __future__ import annotations

from collections.abc import Callable

from apex_pipelines.sandbox.stripe import invoices, meters, renewals, subscription_changes
from apex_pipelines.sandbox.stripe.account import Account

HANDLERS: dict[str, Callable[[Account, str], None]] = {
    "cancel_at": renewals.cancel_at,
    "finalize": invoices.finalize_due,
    "incomplete_expire": renewals.expire_incomplete,
    "meter_event": meters.process,
    "period": renewals.end_period,
    "resume_collection": subscription_changes.resume_collection,
    "retry": invoices.retry,
    "trial_will_end": renewals.warn_of_trial_end,
}


def catch_up(account: Account) -> None:
    """Do what is due by the account's own clock, and by the test clock of what was just done."""
    test_clock = account.test_clock
    _until(account, None, account.account_time())
    if test_clock is not None:
        _until(account, test_clock, account.now)


def advance(account: Account, test_clock: str, to: int) -> None:
    """Do what becomes due by a test clock up to that time."""
    _until(account, test_clock, to)


def _until(account: Account, test_clock: str | None, to: int) -> None:
    """Do what is due up to `to`; what is late because the process was down happens at its own time too."""
    while True:
        row = account.store.connection.execute(
            "select kind, object_id, at from due where test_clock is ? and at <= ? "
            "order by at, kind, object_id limit 1",
            (test_clock, to),
        ).fetchone()
        if row is None:
            return
        account.schedule(row["kind"], row["object_id"], None)
        with account.at(row["at"], test_clock):
            HANDLERS[row["kind"]](account, row["object_id"])
