"""Names of this domain's assets that others of it stand on."""

import dagster as dg

NO_KEY = {"skipped": "STRIPE_SECRET_KEY is not set, so nothing talks to Stripe"}
BILLING_PERIODS = dg.AssetKey(["billing", "billing_periods"])
ACCOUNTS = dg.AssetKey(["stripe", "accounts"])
USAGE_SYNC = dg.AssetKey(["stripe", "usage_sync"])
INVOICE_ITEMS = dg.AssetKey(["stripe", "invoice_items"])
