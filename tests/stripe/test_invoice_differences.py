"""Which items are missing on Stripe's invoices: the rule alone, by hand and for anything."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from apex_pipelines.stripe.invoice_items import DueLine, LineKey, NativeCharge, differences

MAY, JUNE, JULY = (datetime(2026, month, 3, 12, tzinfo=UTC) for month in (5, 6, 7))
SUBSCRIPTION = "sub_1"


def line(
    line_type: str, amount: int, *, start: datetime = MAY, end: datetime = JUNE, metric: str = "impressions"
) -> DueLine:
    by_use = line_type != "subscription"
    key = LineKey("cus_1", line_type, metric if by_use else "", start)
    subscription = "" if line_type == "platform_fee" else SUBSCRIPTION
    return DueLine(key, subscription, end, end if by_use else start, 5 if by_use else None, amount, "usd")


def missing(
    *lines: DueLine,
    native: list[NativeCharge] | None = None,
    posted: dict[LineKey, int] | None = None,
    billed_from: datetime | None = MAY,
) -> list[tuple[str, int]]:
    found = differences(
        lines,
        {SUBSCRIPTION: native or []},
        posted or {},
        {} if billed_from is None else {SUBSCRIPTION: billed_from},
        {} if billed_from is None else {"cus_1": billed_from},
    )
    return [(each.line.key.line_type, each.amount_cents) for each in found]


def test_overage_and_fee_are_posted_as_a_whole_and_then_no_more() -> None:
    overage, fee = line("overage", 1_980), line("platform_fee", 125_000, metric="mediated_revenue")
    assert missing(overage, fee, line("subscription", 9_900)) == [
        ("overage", 1_980),
        ("platform_fee", 125_000),
    ]
    assert missing(overage, fee, posted={overage.key: 1_980, fee.key: 125_000}) == []


def test_a_late_event_posts_what_it_adds_and_a_correction_is_a_credit() -> None:
    key = line("overage", 0).key
    assert missing(line("overage", 2_000), posted={key: 1_980}) == [("overage", 20)]
    assert missing(line("overage", 1_500), posted={key: 1_980}) == [("overage", -480)]
    assert missing(line("overage", 0), posted={key: 1_980}) == [("overage", -1_980)]


def test_a_plan_changed_inside_the_period_posts_the_difference_to_the_price_that_was_charged() -> None:
    charged = [NativeCharge(MAY, 9_900)]
    assert missing(line("subscription", 29_900), native=charged) == [("subscription", 20_000)]
    prorated_at_stripe = [*charged, NativeCharge(MAY + timedelta(days=15), 20_000)]
    assert missing(line("subscription", 29_900), native=prorated_at_stripe) == []
    assert missing(line("subscription", 9_900), native=[NativeCharge(JUNE, 9_900)]) == []


def test_a_month_that_stripe_has_not_charged_yet_is_not_charged_twice() -> None:
    assert missing(line("subscription", 9_900)) == []


def test_what_was_due_before_the_subscription_was_at_stripe_is_left_alone() -> None:
    lines = [line("overage", 1), line("platform_fee", 1), line("subscription", 1)]
    assert missing(*lines, billed_from=None) == []
    assert missing(*lines, billed_from=JULY) == []
    # A fee is the month's, and falls due when the month ends: nobody else has billed it by then.
    assert missing(*lines, billed_from=MAY + timedelta(days=1)) == [("platform_fee", 1)]


amounts = st.integers(-(10**9), 10**9)


@given(
    st.lists(amounts, min_size=1, max_size=8),
    st.sampled_from(["overage", "platform_fee", "subscription"]),
    amounts,
)
def test_whatever_a_line_becomes_the_items_add_up_to_it(due: list[int], line_type: str, charged: int) -> None:
    first = line(line_type, 0)
    native = [NativeCharge(MAY, charged)]
    own = charged if line_type == "subscription" else 0
    posted = 0
    for amount in due:
        for each in differences(
            [replace(first, amount_cents=amount)],
            {SUBSCRIPTION: native},
            {first.key: posted},
            {SUBSCRIPTION: MAY},
            {"cus_1": MAY},
        ):
            posted += each.amount_cents
        assert own + posted == amount
