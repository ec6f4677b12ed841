"""Send usage events to ApexMediation: each once, whatever the network or this program does meanwhile.

    with UsageClient("https://api.example.com", key, Path("usage-queue.ndjson")) as usage:
        usage.track("impressions", 3, {"platform": "ios"})

An event gets its id and its time in `track` and keeps both: the API counts an id once, so sending again what
may have arrived is always safe. Needs Python 3.11, and nothing else.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import sys
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

log = logging.getLogger("apex.usage")

MAX_BATCH_EVENTS = 1_000
MAX_BATCH_BYTES = 1_048_576
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_ASKED_SECONDS = 3_600.0

# Version 7 carries its time, which makes the API's own look-ups cheaper; any unique id will do.
new_event_id = getattr(uuid, "uuid7", uuid.uuid4)


class UsageClient:
    """A queue of events and a thread that sends them.

    Parameters
    ----------
    queue_file : Path, optional
        Keeps what is not sent yet over the end of this program. One client a file.
    max_queued : int
        With so many events waiting, `track` refuses further ones.
    flush_seconds : float
        How long an event waits for others to share its request.
    timeout_seconds : float
        How long the API may say nothing.
    first_pause_seconds : float
        The longest wait after a first failure; doubled with each further one.
    """

    def __init__(
        self, url: str, api_key: str, queue_file: Path | None = None,
        *, max_queued: int = 10_000, flush_seconds: float = 2.0,
        timeout_seconds: float = 15.0, first_pause_seconds: float = 0.5,
    ) -> None:  # fmt: skip
        self._address = urlsplit(url)
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/x-ndjson"}
        self._file = queue_file
        self._max_queued = max_queued
        self._flush_seconds = flush_seconds
        self._timeout_seconds = timeout_seconds
        self._first_pause_seconds = first_pause_seconds
        self._queue: deque[bytes] = deque(self._recall())
        self._changed = threading.Condition()
        self._batch_limit = MAX_BATCH_EVENTS
        self._failures = 0
        self._is_urgent = self._is_closed = False
        self.stopped: str | None = None  # why nothing is sent any more
        self._sender = threading.Thread(target=self._run, name="usage", daemon=True)
        self._sender.start()

    def track(
        self, metric: str, quantity: int | float | str, metadata: Mapping[str, object] | None = None
    ) -> str | None:
        """Queue an event and return its id; None when the queue is full, and the event is not counted.

        Raises
        ------
        ValueError
            If the quantity or the metadata is no JSON, such as NaN.
        RuntimeError
            If the client is closed.
        OSError
            If the file can't be written.
        """
        event_id = str(new_event_id())
        event = {
            "event_id": event_id,
            "metric_type": metric,
            "quantity": quantity,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "metadata": metadata or {},
        }
        line = json.dumps(event, allow_nan=False, separators=(",", ":")).encode()
        with self._changed:
            if self._is_closed:
                raise RuntimeError("this client is closed; the event is not counted")
            if len(self._queue) >= self._max_queued:
                log.error("queue full; an event of %s is lost", metric)
                return None
            if self._file is not None:
                self._append(self._file, line + b"\n")
            self._queue.append(line)
            self._changed.notify_all()
        return event_id

    def flush(self, timeout: float = 30.0) -> int:
        """Send what is queued without waiting for more; returns how many events are left after `timeout`."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue or self.stopped or self._is_closed, timeout)
            self._is_urgent = False
            return len(self._queue)

    def close(self, timeout: float = 30.0) -> int:
        """Flush and end; returns how many events are left, which only the file keeps."""
        left = self.flush(timeout)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        return left

    def __enter__(self) -> UsageClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while (batch := self._next_batch()) and self.stopped is None:
            pause = self._send(batch)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, pause)

    def _next_batch(self) -> list[bytes]:
        """The oldest events, as many as one request takes; waits for some. Empty once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closed)
            self._changed.wait_for(
                lambda: self._is_urgent or self._is_closed or len(self._queue) >= self._batch_limit,
                self._flush_seconds,
            )
            batch: list[bytes] = []
            size = 0
            for line in () if self._is_closed else self._queue:
                size += len(line) + 1
                if len(batch) == self._batch_limit or (batch and size > MAX_BATCH_BYTES):
                    break
                batch.append(line)
            return batch

    def _send(self, batch: list[bytes]) -> float:
        """Send one batch; returns the seconds to wait before the next."""
        try:
            # One event a line, not one array: then an event that is no JSON is rejected without the others.
            status, retry_after, answer = self._post(b"\n".join(batch))
            results = _results(answer, len(batch)) if status == 200 else []
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            if isinstance(error, TimeoutError):
                self._halve(batch)
            return self._back_off(f"no answer ({error!r})")
        if status == 200:
            for line, result in zip(batch, results, strict=True):
                if result.get("status") == "rejected":  # it would be again; accepted and duplicate are done
                    log.error("an event is rejected (%s): %.200r", result.get("reason"), line)
            self._done(len(batch))
            return 0.0
        if status in (408, 413):
            self._halve(batch)
        if status == 413 and len(batch) > 1:
            return 0.0
        if status == 413:
            log.error("an event is too large and dropped: %.200r", batch[0])
            self._done(1)
            return 0.0
        if status in (429, 503) and retry_after.isdecimal():
            # A little more than asked, so that all clients don't come back at the same moment.
            return min(max(float(retry_after), 1.0), LONGEST_ASKED_SECONDS) * random.uniform(1.0, 1.2)
        if status in (408, 429) or status >= 500:
            return self._back_off(f"status {status}")
        # 401 and 403: the key is no good. Others: address or client is wrong. Repeating mends nothing.
        self._stop(f"the API answered {status}: {answer[:300]!r}")
        return 0.0

    def _post(self, body: bytes) -> tuple[int, str, bytes]:
        is_secure = self._address.scheme == "https"
        connect = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        connection = connect(self._address.netloc, timeout=self._timeout_seconds)
        try:
            path = f"{self._address.path.rstrip('/')}/api/usage/batch"
            connection.request("POST", path, body, self._headers)
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Retry-After", ""), answer.read()
        finally:
            connection.close()

    def _halve(self, batch: list[bytes]) -> None:
        """What was too large, or too slow for this line, goes in smaller pieces."""
        self._batch_limit = max(1, len(batch) // 2)

    def _back_off(self, reason: str) -> float:
        """Full jitter: anything up to a limit that doubles with each failure in a row."""
        limit = min(LONGEST_PAUSE_SECONDS, self._first_pause_seconds * 2.0 ** min(self._failures, 30))
        self._failures += 1
        log.warning("%s; trying again within %.1f s", reason, limit)
        return random.uniform(0.0, limit)

    def _stop(self, reason: str) -> None:
        log.error("usage is not sent any more; %d events are kept: %s", len(self._queue), reason)
        with self._changed:
            self.stopped = reason
            self._changed.notify_all()

    def _done(self, count: int) -> None:
        """Forget the `count` oldest events."""
        with self._changed:
            if self._is_closed:  # the file may be the next client's; sent again, they count once
                return
            for _ in range(count):
                self._queue.popleft()
            if self._file is not None:
                temporary = self._file.with_name(f"{self._file.name}.writing")
                try:
                    temporary.write_bytes(b"".join(line + b"\n" for line in self._queue))
                    temporary.replace(self._file)
                except OSError as error:  # the next start sends them again, and they count once
                    log.error("the queue's file can't be written: %s", error)
            self._failures = 0
            if count == self._batch_limit:  # it went through full, so try an eighth more
                self._batch_limit = min(MAX_BATCH_EVENTS, count + max(1, count // 8))
            self._changed.notify_all()

    @staticmethod
    def _append(path: Path, line: bytes) -> None:
        with path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a write broke off, as on a full disk; it must not spoil this line
                    line = b"\n" + line
            file.write(line)

    def _recall(self) -> Iterable[bytes]:
        """The events that the file has; what was cut off at its end was never returned from `track`."""
        if self._file is None or not self._file.exists():
            return
        whole, _, torn = self._file.read_bytes().rpartition(b"\n")
        if torn:
            self._file.write_bytes(whole + b"\n" if whole else b"")
        yield from filter(bytes.strip, whole.split(b"\n"))  # a blank line would get no result


def _results(answer: bytes, wanted: int) -> list[dict[str, object]]:
    """The results in an answer of 200; ValueError for what the API never says."""
    found = json.loads(answer)
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or len(results) != wanted:
        raise ValueError("an answer that makes no sense")
    if not all(isinstance(result, dict) for result in results):
        raise ValueError("results that make no sense")
    return results


def main() -> int:
    """Track a line `metric quantity` of standard input each, print its id; 1 when some could not be sent."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    queue_file = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    # APEX_FLUSH_SECONDS and so on, when they are set.
    names = ("flush_seconds", "timeout_seconds", "first_pause_seconds")
    waits = {name: float(text) for name in names if (text := os.environ.get(f"APEX_{name.upper()}"))}
    usage = UsageClient(os.environ["APEX_API_URL"], os.environ["APEX_API_KEY"], queue_file, **waits)
    for line in sys.stdin:
        metric, quantity = line.split()
        # A decimal goes as text, exactly as it was written.
        print(usage.track(metric, int(quantity) if quantity.isdecimal() else quantity), flush=True)
    return 1 if usage.close() else 0


if __name__ == "__main__":
    sys.exit(main())
