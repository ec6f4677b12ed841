"""Who the simulated customers are: what of them is decided before their first day.

Belongs here: the simulation's parameters and the traits of each customer, all a function of (seed, customer).
Does not belong here: what happens to them day by day (`life.py`) and what they send (`telemetry.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

import numpy as np

from apex_pipelines.platform import catalogue


class SimulationError(ValueError):
    """The simulation can't be run as asked; the message says what was given and what to do."""


class Archetype(StrEnum):
    """What kind of story a customer lives."""

    GROWING = "growing"
    STEADY = "steady"
    SEASONAL = "seasonal"
    STALLING = "stalling"
    PAYS_LATE = "pays_late"
    NEVER_INTEGRATES = "never_integrates"
    ENTERPRISE = "enterprise"
    TRIAL_ONLY = "trial_only"


# Shares of the population, in percent.
_SHARES = {
    Archetype.GROWING: 15,
    Archetype.STEADY: 36,
    Archetype.SEASONAL: 10,
    Archetype.STALLING: 14,
    Archetype.PAYS_LATE: 9,
    Archetype.NEVER_INTEGRATES: 6,
    Archetype.ENTERPRISE: 5,
    Archetype.TRIAL_ONLY: 5,
}
_FIRST = (
    "Amber", "Birch", "Cobalt", "Dune", "Ember", "Fjord", "Granite", "Harbor",
    "Iris", "Juniper", "Kelp", "Lumen", "Maple", "Nimbus", "Onyx", "Pixel",
    "Quartz", "Raven", "Sable", "Tundra", "Umber", "Violet",
)  # fmt: skip
_SECOND = ("Arcade", "Games", "Interactive", "Labs", "Mobile", "Play", "Studio", "Works")
_COUNTRIES = (("US", "America/New_York"), ("DE", "Europe/Berlin"), ("GB", "Europe/London"),
              ("JP", "Asia/Tokyo"), ("BR", "America/Sao_Paulo"), ("IN", "Asia/Kolkata"))  # fmt: skip
_PLATFORMS = ("ios", "android", "unity", "flutter")
FEATURES = ("bidding", "waterfall", "ab_test", "reports", "placements", "consent")
# Typical impressions a day of a plan's customers; the spread around it is lognormal.
_MEDIAN_IMPRESSIONS = {"starter": 9_000, "indie": 22_000, "studio": 210_000, "enterprise": 2_400_000}


@dataclass(frozen=True, slots=True)
class Simulation:
    """What to simulate.

    Attributes
    ----------
    seed : int
        Everything follows from it.
    days : int
        Days of telemetry, the last being the day before `end_date`.
    end_date : date
        First day (UTC) that is not simulated: today, seen from its start.
    """

    seed: int = 42
    customers: int = 500
    days: int = 180
    end_date: date = date(2026, 6, 1)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SimulationError(f"seed must not be negative, got {self.seed}")
        if not 1 <= self.customers <= 100_000:
            raise SimulationError(f"customers must be 1 to 100,000, got {self.customers}")
        if not 1 <= self.days <= 3_650:
            raise SimulationError(f"days must be 1 to 3,650, got {self.days}")

    @property
    def start_date(self) -> date:
        """First day with telemetry."""
        return self.end_date - timedelta(days=self.days)


@dataclass(frozen=True, slots=True)
class SimulatedCustomer:
    """Traits of one customer. Rates are per day; money in cents.

    Attributes
    ----------
    daily_growth : float
        Of impressions; 0.004 is about 13 % a month.
    seasonal_swing, seasonal_phase : float
        Size of the swing around the mean, and where in its 90 days it stands at the start of the simulation.
    api_calls_per_impression, bytes_per_call, revenue_per_thousand : float
        How impressions turn into the other metrics; revenue in USD.
    integrates_after_days : int or None
        From signing up to the first request; None: never.
    """

    index: int
    external_ref: str
    archetype: Archetype
    name: str
    email: str
    company_size: int
    country: str
    time_zone: str
    created_at: datetime
    plan_type: str
    base_price_cents: int
    included_impressions: int
    trial: bool
    platforms: tuple[str, ...]
    platform_shares: tuple[float, ...]
    features: tuple[str, ...]
    impressions: float
    daily_growth: float
    weekend_factor: float
    seasonal_swing: float
    seasonal_phase: float
    noise: float
    api_calls_per_impression: float
    bytes_per_call: float
    revenue_per_thousand: float
    error_rate: float
    logins: float
    doc_views: float
    integrates_after_days: int | None


def population(simulation: Simulation) -> list[SimulatedCustomer]:
    """All customers, by index; a customer is the same in every population that is large enough to have them.

    The first who never integrates signed up a week before the end, so that this rule always has someone.
    """
    return [_customer(simulation, index) for index in range(simulation.customers)]


def _customer(simulation: Simulation, index: int) -> SimulatedCustomer:
    rng = np.random.default_rng([simulation.seed, 1, index])
    archetype = _archetype(index, rng)
    plan_type = _plan(archetype, rng)
    plan = catalogue.plans()[plan_type]
    price, included = plan.base_price_cents, plan.included("impressions")
    if plan_type == "enterprise":
        price = int(rng.choice([99_900, 149_900, 249_900]))
        included = int(rng.choice([50, 100, 200])) * 1_000_000
    country, zone = _COUNTRIES[int(rng.integers(len(_COUNTRIES)))]
    name = f"{_FIRST[int(rng.integers(len(_FIRST)))]} {_SECOND[int(rng.integers(len(_SECOND)))]} {index + 1}"
    platform_count = 2 if rng.random() < 0.2 else 1
    platforms = tuple(str(p) for p in rng.choice(_PLATFORMS, size=platform_count, replace=False))
    first_share = float(rng.uniform(0.5, 0.85)) if platform_count == 2 else 1.0
    features = tuple(str(f) for f in rng.choice(FEATURES, size=int(rng.integers(1, 6)), replace=False))
    never = archetype is Archetype.NEVER_INTEGRATES
    return SimulatedCustomer(
        index=index,
        external_ref=f"{simulation.seed}-{index:05d}",
        archetype=archetype,
        name=name,
        email=f"team@{name.lower().replace(' ', '-')}.example",
        company_size=max(1, int(rng.lognormal(2.2 + plan.rank * 0.5, 0.8))),
        country=country,
        time_zone=zone,
        created_at=_signed_up(simulation, archetype, index, rng),
        plan_type=plan_type,
        base_price_cents=price,
        included_impressions=included,
        trial=plan.base_price_cents > 0 and archetype is not Archetype.ENTERPRISE,
        platforms=platforms,
        platform_shares=(first_share, 1 - first_share)[:platform_count],
        features=features,
        impressions=_MEDIAN_IMPRESSIONS[plan_type] * float(rng.lognormal(0, 0.6)),
        daily_growth=_growth(archetype, rng),
        weekend_factor=float(rng.uniform(0.75, 1.35)),
        seasonal_swing=float(rng.uniform(0.35, 0.6)) if archetype is Archetype.SEASONAL else 0.05,
        seasonal_phase=float(rng.uniform(0, 2 * np.pi)),
        noise=float(rng.uniform(0.08, 0.25)),
        api_calls_per_impression=float(rng.uniform(1.1, 1.6)),
        bytes_per_call=float(rng.uniform(2_000, 9_000)),
        revenue_per_thousand=float(rng.lognormal(0.6, 0.5)),
        error_rate=float(rng.lognormal(-5.6, 0.6)),
        logins=float(rng.uniform(0.1, 0.5)) * (1.5 if plan_type == "enterprise" else 1),
        doc_views=float(rng.uniform(0.05, 0.3)),
        integrates_after_days=None if never else min(int(rng.exponential(1.5)), 9),
    )


def _archetype(index: int, rng: np.random.Generator) -> Archetype:
    # The first of each kind come in turn, so that even a small population has all of them.
    kinds = list(_SHARES)
    if index < len(kinds):
        rng.random()
        return kinds[index]
    return kinds[int(np.searchsorted(np.cumsum(list(_SHARES.values())), rng.random() * 100, side="right"))]


def _plan(archetype: Archetype, rng: np.random.Generator) -> str:
    draw = rng.random()
    if archetype is Archetype.ENTERPRISE:
        return "enterprise"
    if archetype in (Archetype.PAYS_LATE, Archetype.TRIAL_ONLY):
        return "indie" if draw < 0.65 else "studio"
    return "starter" if draw < 0.38 else "indie" if draw < 0.76 else "studio"


def _growth(archetype: Archetype, rng: np.random.Generator) -> float:
    if archetype is Archetype.GROWING:
        return float(rng.uniform(0.004, 0.011))
    return float(rng.normal(0, 0.0012))


def _signed_up(
    simulation: Simulation, archetype: Archetype, index: int, rng: np.random.Generator
) -> datetime:
    newcomer = rng.random() < 0.33 or archetype in (Archetype.TRIAL_ONLY, Archetype.NEVER_INTEGRATES)
    inside, before, second = rng.random(), rng.exponential(240), int(rng.integers(86_400))
    if index == list(_SHARES).index(Archetype.NEVER_INTEGRATES):
        offset = simulation.days - 7
    elif newcomer:
        offset = int(inside * simulation.days)
    else:
        offset = -1 - int(min(before, 900))
    day = simulation.start_date + timedelta(days=offset)
    return datetime.combine(day, time(), UTC) + timedelta(seconds=second)
