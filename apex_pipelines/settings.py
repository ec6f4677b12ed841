"""Every setting of the platform, typed, with its default. Nothing else reads the environment."""

from __future__ import annotations

import os
import re
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# Lower case and without a path, as browsers send it; `*` is none on purpose.
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?")

Port = Annotated[int, Field(ge=1, le=65_535)]
Positive = Annotated[int, Field(ge=1)]
# What a timer or the kernel is given: no infinity, and no number that it can't hold.
Seconds = Annotated[float, Field(gt=0, le=86_400)]

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Settings read from ``APEX_*`` variables and ``.env``; durations in the unit their name ends with.

    Money thresholds, plans and metrics are business data and live in ``dbt_project/seeds``, not here.
    """

    # A line without a value means the default, not an empty password or address.
    model_config = SettingsConfigDict(
        env_prefix="APEX_",
        env_file=os.environ.get("APEX_ENV_FILE", ".env"),
        env_ignore_empty=True,
        extra="ignore",
    )

    home: Path = Field(Path(".apex"), description="Data folder; everything the platform writes is below it.")
    clock: str = Field(
        "system",
        description="`system`, or an ISO instant such as 1998-07-01T00:00:00Z at which time stands still.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["console", "json"] = "console"
    otlp_endpoint: str | None = Field(
        None,
        repr=False,
        pattern=r"^https?://",
        validation_alias=AliasChoices("apex_otlp_endpoint", "otel_exporter_otlp_endpoint"),
        description="Collector that traces go to by OTLP/HTTP; unset: nothing is traced.",
    )

    # Stores. Unset means embedded.
    database_url: str | None = None
    clickhouse_url: str | None = None
    clickhouse_password: str | None = None
    clickhouse_reader_password: str | None = None
    warehouse_host: str = "127.0.0.1"
    warehouse_port: int = 8123
    warehouse_max_memory_bytes: int = Field(
        0, description="Memory for all queries and caches together; 0: a share of the machine's."
    )
    warehouse_memory_share: float = 0.25
    warehouse_query_memory_share: float = Field(0.8, description="Of the warehouse's memory, for one query.")
    warehouse_query_seconds: int = Field(3600, description="A query's time limit unless it asks for another.")
    warehouse_reader_seconds: int = Field(60, description="Time limit of the read-only user's queries.")
    warehouse_stop_seconds: int = Field(15, description="What running queries get to end at a stop.")
    warehouse_max_body_bytes: int = 4_000_000_000
    warehouse_min_free_bytes: int = Field(
        200_000_000, description="With less free disk than this, inserts are refused."
    )

    # Ingest API.
    api_host: str = "127.0.0.1"
    api_port: Port = 8080
    api_workers: Positive = 1
    api_max_body_bytes: Positive = 1_048_576
    api_max_connections: int = Field(
        16_384, ge=64, description="Open connections of a worker; further ones wait until one ends."
    )
    api_idle_seconds: Seconds = Field(
        15.0, description="How long a connection may take to bring the headers of its next request."
    )
    api_body_seconds: Seconds = Field(30.0, description="How long a request's body may take to arrive.")
    api_unread_seconds: Seconds = Field(
        30.0, description="How long a client may leave an answer unread before it is cut off (Linux)."
    )
    api_max_uploading_bytes: Positive = Field(
        268_435_456, description="Bodies under way in a worker, of those that are larger than 16 KiB."
    )
    api_max_batch_events: Positive = 1_000
    api_key_cache_seconds: float = Field(
        5.0, ge=0, le=3_600, description="How long an answer about a key is used, a revoked one's too."
    )
    api_public_url: str | None = Field(
        None, description="Address that customers reach the API by, for its documentation."
    )
    api_cors_origins: str = Field(
        "",
        description="Origins, apart by commas, whose pages may read people-facing answers: "
        "https://console.apexmediation.com",
    )
    # The names that the providers' own users expect; unset: the endpoint answers 503 and providers retry.
    stripe_webhook_secret: str | None = Field(
        None,
        repr=False,
        validation_alias=AliasChoices("apex_stripe_webhook_secret", "stripe_webhook_secret"),
    )
    resend_webhook_secret: str | None = Field(
        None,
        repr=False,
        validation_alias=AliasChoices("apex_resend_webhook_secret", "resend_webhook_secret"),
    )
    api_key_outage_hours: float = Field(
        24.0,
        ge=0,
        le=87_600,
        description="How long known keys go on working while PostgreSQL can't be asked.",
    )
    api_key_file_seconds: Seconds = Field(
        5.0, description="Known keys are written to APEX_HOME at most this often."
    )
    api_key_events_per_second: float = Field(
        5_000.0,
        ge=0,
        allow_inf_nan=False,
        description="Events a key may send, over all workers together; 0: no limit.",
    )
    api_key_burst_events: float = Field(
        20_000.0, ge=1, allow_inf_nan=False, description="Events a key may send at once."
    )
    api_reads_per_window: Positive = Field(100, description="Requests of a customer to the read endpoints.")
    api_reads_window_seconds: Seconds = 900.0
    jwt_secret: str | None = Field(
        None,
        repr=False,
        description="Signs customers' tokens, at least 32 bytes; unset: a random one kept in the home.",
    )
    spool_segment_max_bytes: Positive = 4_194_304
    spool_segment_max_age_ms: Positive = 500
    spool_soft_limit_bytes: Positive = Field(
        8_000_000_000, description="From here on clients are asked to slow down (429)."
    )
    spool_hard_limit_bytes: Positive = Field(10_000_000_000, description="Nothing more is taken (503).")
    loader_max_rows_per_insert: Positive = 100_000
    loader_poll_ms: Positive = 100
    event_max_late_days: int = Field(35, ge=0, le=3_650)
    event_max_early_seconds: int = Field(300, ge=0, le=86_400)

    # Stripe.
    stripe_secret_key: str | None = Field(
        None,
        repr=False,
        validation_alias=AliasChoices("apex_stripe_secret_key", "stripe_secret_key"),
        description="Key of Stripe's test mode; unset: nothing talks to Stripe.",
    )
    stripe_allow_live: bool = Field(
        False, description="Whether a key of the live mode is accepted: real cards are charged with it."
    )
    stripe_api_base: str = Field(
        "https://api.stripe.com", pattern=r"^https?://", description="Address of Stripe, or of a stand-in."
    )
    stripe_requests_per_second: float = Field(
        20.0, gt=0, le=1_000, description="Requests that we make at most; Stripe's test mode takes 25."
    )
    stripe_timeout_seconds: Seconds = 30.0
    stripe_concurrency: Positive = Field(8, description="Calls to Stripe under way at once.")
    stripe_sandbox_port: Port = 8090

    # Checks of what comes from outside.
    quality_rows: Positive = Field(10_000, description="Newest rows of each source that its suite looks at.")
    quality_max_amount_cents: Positive = Field(
        100_000_000, description="A price or payment above this is taken for a mistake."
    )

    # Orchestration.
    dagster_host: str = "127.0.0.1"
    dagster_port: int = 3000

    # Goals.
    launch_date: date | None = Field(
        None,
        description="Day from which the company's goals count (UTC); by default that of the first sign-up.",
    )

    # Churn.
    churn_label: Literal["subscription_end", "inactivity"] = "subscription_end"
    churn_horizon_days: int = 30
    churn_feature_step_days: int = 14
    churn_min_events: int = 40
    churn_holdout_share: float = 0.10

    # Mail.
    email_provider: Literal["outbox"] = "outbox"
    email_sender: str = "ApexMediation <noreply@apexmediation.com>"
    email_operator: str = "operator@apexmediation.com"
    email_max_attempts: int = 5
    email_batch_size: int = 100
    email_daily_quota: int = 0  # 0: no quota (the outbox provider has none)
    site_url: str = "https://apexmediation.com"

    @field_validator("api_cors_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in _listed(value):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write scheme and host, such as https://console.example.com"
                )
        return value

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        soft, hard = self.spool_soft_limit_bytes, self.spool_hard_limit_bytes
        # A hard limit that is set alone may be below the soft one's default: nobody is slowed down then.
        if soft > hard and "spool_soft_limit_bytes" in self.model_fields_set:
            raise ValueError(
                f"APEX_SPOOL_SOFT_LIMIT_BYTES={soft} is above APEX_SPOOL_HARD_LIMIT_BYTES={hard}, so clients "
                "would be refused before they are asked to slow down; lower the one or raise the other"
            )
        if self.api_max_uploading_bytes < self.api_max_body_bytes:
            raise ValueError(
                f"APEX_API_MAX_UPLOADING_BYTES={self.api_max_uploading_bytes} has no room for one body of "
                f"APEX_API_MAX_BODY_BYTES={self.api_max_body_bytes}; raise the one or lower the other"
            )
        return self

    @cached_property
    def home_path(self) -> Path:
        """Absolute data folder. Not created here."""
        return self.home.expanduser().resolve()

    @property
    def run_dir(self) -> Path:
        """Process records of the running stack (pid, port, log file)."""
        return self.home_path / "run"

    @property
    def log_dir(self) -> Path:
        return self.home_path / "logs"

    @property
    def backup_dir(self) -> Path:
        """Below it are the folders that `BACKUP ... TO File('name')` writes."""
        return self.home_path / "backups"

    @property
    def known_keys_dir(self) -> Path:
        """What API workers remember of keys (digests only), for a start while PostgreSQL is away."""
        return self.home_path / "known-keys"

    @property
    def spool_dir(self) -> Path:
        """Write-ahead spool of the ingest API; what is here has been acknowledged and not yet loaded."""
        return self.home_path / "spool"

    @property
    def warehouse_dir(self) -> Path:
        return self.home_path / "warehouse"

    @property
    def postgres_dir(self) -> Path:
        return self.home_path / "postgres"

    @property
    def outbox_dir(self) -> Path:
        """Mails that the `outbox` provider wrote, with an index.html."""
        return self.home_path / "outbox"

    @property
    def model_dir(self) -> Path:
        return self.home_path / "models"

    @property
    def dagster_home(self) -> Path:
        return self.home_path / "dagster"

    @property
    def dbt_project_dir(self) -> Path:
        return PROJECT_ROOT / "dbt_project"

    @property
    def event_max_late(self) -> timedelta:
        return timedelta(days=self.event_max_late_days)

    @property
    def stripe_livemode(self) -> bool:
        """Whether the key is one of Stripe's live mode; False without a key."""
        return (self.stripe_secret_key or "").startswith(("sk_live_", "rk_live_"))

    @property
    def api_url(self) -> str:
        return f"http://{self.api_host}:{self.api_port}"

    @property
    def cors_origins(self) -> frozenset[str]:
        """Origins whose pages may read people-facing answers."""
        return frozenset(_listed(self.api_cors_origins))

    @property
    def dagster_url(self) -> str:
        return f"http://{self.dagster_host}:{self.dagster_port}"


def settings_problems(error: ValidationError) -> str:
    """What is wrong with which setting, in one line."""
    return "; ".join(
        f"APEX_{str(problem['loc'][0]).upper().removeprefix('APEX_')}={problem['input']}: {problem['msg']}"
        if problem["loc"]
        else problem["msg"].removeprefix("Value error, ")
        for problem in error.errors()
    )


def _listed(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


def child_environment(settings: Settings, **extra: str) -> dict[str, str]:
    """Environment for a child process that must see the same settings as this one.

    What was set in code travels as `APEX_*`; paths are made absolute, because a child may run elsewhere.
    """
    env = dict(os.environ)
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is not None:
            env[f"APEX_{name.upper()}"] = str(value)
    env["APEX_HOME"] = str(settings.home_path)
    env.update(extra)
    return env
