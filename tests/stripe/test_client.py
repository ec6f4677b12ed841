"""With which keys anything talks to Stripe at all, and how fast."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import apex_pipelines.stripe.models  # noqa: F401 - imported for its tables
from apex_pipelines.platform.limiter import Limiter
from apex_pipelines.platform.postgres import Base
from apex_pipelines.settings import Settings
from apex_pipelines.stripe.client import StripeSettingsError, connect, is_live

LIVE = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"
TEST = "sk_test_" + "4eC39HqLyjWDarjtT1zdp7dc"


@pytest.mark.parametrize("key", [LIVE, LIVE.replace("sk", "rk")])
def test_a_live_key_is_refused_unless_the_setting_allows_it(key: str) -> None:
    with pytest.raises(StripeSettingsError, match="APEX_STRIPE_ALLOW_LIVE=true") as refused:
        connect(Settings(stripe_secret_key=key))
    assert key not in str(refused.value)
    assert is_live(Settings(stripe_secret_key=key, stripe_allow_live=True))


def test_a_key_of_the_test_mode_is_taken() -> None:
    assert not is_live(Settings(stripe_secret_key=TEST))
    assert connect(Settings(stripe_secret_key=TEST)) is not None


@pytest.mark.parametrize("key", [None, "pk_test_1234", "whsec_1234", f" {LIVE}", f"{LIVE}\n", "sk_LIVE_1"])
def test_what_is_no_secret_key_is_refused_and_not_quoted(key: str | None) -> None:
    with pytest.raises(StripeSettingsError) as refused:
        connect(Settings(stripe_secret_key=key, stripe_allow_live=True))
    assert key is None or key.strip() not in str(refused.value)


def test_a_key_is_not_shown_where_settings_are() -> None:
    assert TEST not in repr(Settings(stripe_secret_key=TEST))


def test_calls_keep_their_pace_and_a_rest_earns_a_burst() -> None:
    now, slept = [0.0], [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        slept[0] += seconds

    limiter = Limiter(10, burst=3, monotonic=lambda: now[0], sleep=sleep)
    for _ in range(23):
        limiter.wait()
    assert slept[0] == pytest.approx(2.0)  # three at once, then ten a second
    now[0] += 60
    for _ in range(3):
        limiter.wait()
    assert slept[0] == pytest.approx(2.0)
    limiter.wait()
    assert slept[0] == pytest.approx(2.1)


def test_the_tables_are_those_that_the_migrations_make(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert [change for change in found if "stripe" in str(change)] == []
