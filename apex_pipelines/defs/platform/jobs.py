"""Jobs that go through several domains."""

import dagster as dg

CHURN_MODEL = dg.AssetSelection.keys(["ml", "churn_model"])

whole_chain = dg.define_asset_job(
    "whole_chain",
    selection=dg.AssetSelection.all(),
    description="Everything from raw telemetry to the mails sent, with a new churn model.",
)
daily_chain = dg.define_asset_job(
    "daily_chain",
    selection=dg.AssetSelection.all() - CHURN_MODEL,
    description="Everything from raw telemetry to the mails sent, with the churn model that is in use.",
)
churn_training = dg.define_asset_job(
    "churn_training",
    selection=CHURN_MODEL,
    description="Trains a challenger on the features that are there and promotes it when the gate holds.",
)
usage_limits = dg.define_asset_job(
    "usage_limits",
    # What Stripe says is read by jobs of its own: alerts on use must not wait for it.
    selection=dg.AssetSelection.keys(["lifecycle", "usage_alerts"]).upstream()
    - dg.AssetSelection.groups("stripe"),
    description="Counts what is new and raises alerts on included quantities.",
)
