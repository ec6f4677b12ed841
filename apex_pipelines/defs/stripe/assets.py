"""What comes from Stripe: the asset at the root of its part of the graph."""

import dagster as dg

# Nothing here fetches it: it is a place that rows arrive at.
stripe_objects = dg.AssetSpec(
    key=["raw", "stripe_objects"],
    group_name="stripe",
    kinds={"clickhouse", "stripe"},
    description="Objects as Stripe sent them, all types in one table; the fetch that began last counts.",
)
