"""Counts for Prometheus, in its text format 0.0.4."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper ends in seconds."""


class Metrics:
    """What the server has done since it started. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._counts: Counter[str] = Counter()
        self._latencies = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def request(self, path: str, status: int) -> None:
        """A request was answered."""
        with self._lock:
            self._requests[path, status] += 1

    def count(self, name: str, number: int = 1) -> None:
        """`pictures`, `batches`, `cancelled`."""
        with self._lock:
            self._counts[name] += number

    def served(self, seconds: float) -> None:
        """A request for images was served in this time."""
        with self._lock:
            self._latencies[bisect_left(BUCKETS, seconds)] += 1
            self._seconds += seconds

    def text(self, gauges: Mapping[str, int]) -> str:
        """All of it, and `gauges` by name."""
        with self._lock:
            lines = ["# HELP syzygy_requests_total Requests answered.", "# TYPE syzygy_requests_total counter"]
            lines += [
                f'syzygy_requests_total{{path="{path}",status="{status}"}} {number}'
                for (path, status), number in sorted(self._requests.items())
            ]
            for name, about in _COUNTERS.items():
                lines += [*_head(name, "counter", about), f"syzygy_{name}_total {self._counts[name]}"]
            for name, value in gauges.items():
                lines += [f"# TYPE syzygy_{name} gauge", f"syzygy_{name} {value}"]
            name = "syzygy_latency_seconds"
            lines += [f"# HELP {name} Time from a request to its images.", f"# TYPE {name} histogram"]
            ends = [*(f"{end:g}" for end in BUCKETS), "+Inf"]
            sums = list(accumulate(self._latencies))
            lines += [f'{name}_bucket{{le="{end}"}} {number}' for end, number in zip(ends, sums, strict=True)]
            lines += [f"{name}_sum {self._seconds:.6f}", f"{name}_count {sums[-1]}"]
        return "\n".join(lines) + "\n"


_COUNTERS = {
    "pictures": "Images generated for clients that stayed connected.",
    "batches": "Batches sampled to their end.",
    "cancelled": "Requests whose client left before its images were finished.",
}


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP syzygy_{name}_total {about}", f"# TYPE syzygy_{name}_total {kind}"]
