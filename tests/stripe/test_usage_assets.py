"""The asset of the usage sync: what it reports, and that it does nothing without a key."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest

from apex_pipelines.defs.platform.resources import Stores
from apex_pipelines.defs.stripe.usage.assets import EVERYTHING_IS_SETTLED, usage_sync
from apex_pipelines.settings import child_environment
from tests.stripe.usage_world import UsageWorld


def _materialize(
    usage: UsageWorld, patch: pytest.MonkeyPatch
) -> tuple[dict[str, dg.MetadataValue[object]], bool]:
    """Metadata of a run of the asset, and whether its check passed."""
    usage.settings.clock = usage.clock.now().isoformat()
    for name, value in child_environment(usage.settings).items():
        patch.setenv(name, value)
    done = dg.materialize([usage_sync], resources={"stores": Stores()})
    assert done.success
    [check] = done.get_asset_check_evaluations()
    assert check.check_name == EVERYTHING_IS_SETTLED
    [materialization] = done.asset_materializations_for_node("stripe__usage_sync")
    return dict(materialization.metadata), check.passed


def test_the_asset_tells_what_went_to_stripe(usage: UsageWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    anna, ben = usage.prepare(customers=2)
    usage.count({(anna, "impressions", usage.yesterday): 12, (ben, "impressions", usage.yesterday): 3})
    usage.sandbox.fault("/v1/billing/meter_events$", when="before", status=400, times=1)
    metadata, passed = _materialize(usage, monkeypatch)
    assert (metadata["events_sent"].value, metadata["events_rejected"].value, passed) == (1, 1, True)

    usage.move(timedelta(days=1))
    usage.settings.stripe_timeout_seconds = 0.1
    usage.sandbox.fault("/v1/billing/meter_events$", when="after", seconds=0.2)
    monkeypatch.setattr("apex_pipelines.stripe.meter_sending._WAITS", (0.01,))
    metadata, passed = _materialize(usage, monkeypatch)
    assert (metadata["left_pending"].value, passed) == (1, False)


def test_without_a_key_nothing_is_done_and_the_reason_said(
    usage: UsageWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    [anna] = usage.prepare(customers=1)
    usage.count({(anna, "impressions", usage.yesterday): 12})
    usage.settings.stripe_secret_key = None
    monkeypatch.delenv("STRIPE_SECRET_KEY", raising=False)
    metadata, passed = _materialize(usage, monkeypatch)
    assert "STRIPE_SECRET_KEY is not set" in str(metadata["skipped"].value)
    assert passed
    assert usage.ledger() == usage.at_stripe() == {}
