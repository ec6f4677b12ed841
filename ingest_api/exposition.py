"""What a scrape of `/metrics` gets: Prometheus text of the workers' counters, the spool and its loader.

Belongs here: names that are not counted in a worker, help texts, the text format. Does not belong here:
counting (`metrics`, `loader_status`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from ingest_api import metrics
from ingest_api.loader_status import LoaderStatus
from ingest_api.metrics import Histogram, Series, SharedCounters, series
from ingest_api.spool.segments import SpoolUsage

Sample = tuple[Series, float]


class _Text:
    """Families of samples, each under its own heading."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> None:
        self._lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        self._lines += [f"{sample} {value:.17g}" for sample, value in samples]

    def counter(self, name: str, meaning: str, samples: Iterable[Sample]) -> None:
        self.family(name, "counter", meaning, samples)

    def gauge(self, name: str, meaning: str, value: float) -> None:
        self.family(name, "gauge", meaning, [(series(name), value)])

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def render(
    counters: SharedCounters,
    usage: SpoolUsage,
    backlog_seconds: float,
    damaged_pieces: int,
    loader: LoaderStatus | None,
    now: float,
) -> str:
    """The Prometheus exposition of all workers' counters, of the spool and of its loader.

    Parameters
    ----------
    loader : LoaderStatus or None
        Without one its series are left out, so that a loader that never ran shows as absent.
    now : float
        The machine's time in seconds since 1970-01-01 UTC.
    """
    text = _Text()
    _events(text, counters)
    _requests(text, counters)
    text.gauge("apex_ingest_spool_bytes", "Bytes in the spool that are not loaded yet.", usage.size)
    text.gauge("apex_ingest_spool_segments", "Segments in the spool that are not loaded yet.", usage.segments)
    text.gauge(
        "apex_ingest_backlog_seconds", "Age of the oldest segment that is not loaded yet.", backlog_seconds
    )
    text.gauge(
        "apex_ingest_damaged_pieces",
        "Damaged pieces of spool files that were kept aside and not removed yet.",
        damaged_pieces,
    )
    if loader is not None:
        _loader(text, loader, now)
    return str(text)


def _events(text: _Text, counters: SharedCounters) -> None:
    def counter(name: str, meaning: str, *counted: Series) -> None:
        text.counter(name, meaning, [(each, counters.total(each)) for each in counted])

    counter("apex_ingest_events_accepted_total", "Events acknowledged as durable.", metrics.ACCEPTED)
    counter(
        "apex_ingest_events_duplicate_total",
        "Repeats recognised while fresh; the marts find the rest.",
        metrics.DUPLICATE,
    )
    counter(
        "apex_ingest_events_rejected_total", "Events not accepted, by reason.", *metrics.REJECTED.values()
    )
    counter("apex_ingest_spooled_bytes_total", "Bytes of events made durable.", metrics.BYTES)
    counter("apex_ingest_spooled_frames_total", "Requests whose events were made durable.", metrics.FRAMES)
    text.family(
        "apex_ingest_fsync_seconds",
        "histogram",
        "Seconds that one group commit took to write and sync.",
        _histogram(counters, metrics.FSYNC),
    )


def _requests(text: _Text, counters: SharedCounters) -> None:
    text.counter(
        "apex_ingest_throttled_total",
        "Requests answered with 429, by what they were too much for.",
        [(each, counters.total(each)) for each in metrics.THROTTLED.values()],
    )
    text.counter(
        "apex_ingest_auth_failures_total",
        "Requests refused for their key, token or signature, by code.",
        [(each, counters.total(each)) for each in metrics.AUTH_FAILURES.values()],
    )
    answers = {histogram: list(_histogram(counters, histogram)) for histogram in counters.answers.values()}
    counts = {histogram: samples[-1][1] for histogram, samples in answers.items()}
    text.counter(
        "apex_ingest_responses_total",
        "Answers by route and class of HTTP status.",
        [(series("apex_ingest_responses_total", each.labels), count) for each, count in counts.items()],
    )
    text.family(
        metrics.REQUEST,
        "histogram",
        "Seconds from a request's head to its answer, by route and class of HTTP status, of those seen.",
        [sample for each, samples in answers.items() if counts[each] for sample in samples],
    )


def _histogram(counters: SharedCounters, histogram: Histogram) -> list[Sample]:
    """Cumulative buckets, sum, and count, which comes last."""
    counts = list(accumulate(counters.total(bucket) for bucket in histogram.buckets))
    return [
        *zip(histogram.buckets, counts, strict=True),
        (histogram.sum, counters.total(histogram.sum)),
        (series(f"{histogram.name}_count", histogram.labels), counts[-1]),
    ]


def _loader(text: _Text, loader: LoaderStatus, now: float) -> None:
    for name, meaning, value in (
        ("apex_loader_rows_total", "Rows found in raw.usage_events after loading.", loader.rows),
        ("apex_loader_segments_total", "Segments loaded and removed.", loader.segments),
        ("apex_loader_inserts_total", "Inserts that succeeded.", loader.inserts),
        (
            "apex_loader_seconds_total",
            "Seconds spent on loading, from decoding segments to removing them.",
            loader.seconds,
        ),
        (
            "apex_loader_dead_letters_total",
            "Rows or frames put aside because they can't be loaded.",
            loader.dead_letters,
        ),
        ("apex_loader_failures_total", "Loads that failed and were tried again.", loader.failures),
    ):
        text.counter(name, meaning, [(series(name), value)])
    text.gauge(
        "apex_loader_unreadable_segments",
        "Segments in the spool that the loader can't read; it tries again.",
        loader.unreadable,
    )
    if loader.last_success_at is not None:
        text.gauge(
            "apex_loader_last_success_age_seconds",
            "Since a load ended well or nothing was left to load.",
            max(0.0, now - loader.last_success_at),
        )
