"""Counts in Prometheus' text format."""

from syzygy.server.metrics import Metrics


def test_counts_and_latencies() -> None:
    metrics = Metrics()
    metrics.request("/healthz", 200)
    metrics.request("/healthz", 200)
    metrics.request("other", 404)
    metrics.count("pictures", 3)
    for seconds in (0.05, 0.2, 1000.0):
        metrics.served(seconds)
    lines = metrics.text({"queue_length": 2}).splitlines()
    for line in (
        'syzygy_requests_total{path="/healthz",status="200"} 2',
        'syzygy_requests_total{path="other",status="404"} 1',
        "syzygy_pictures_total 3",
        "syzygy_cancelled_total 0",
        "syzygy_queue_length 2",
        'syzygy_latency_seconds_bucket{le="0.05"} 1',
        'syzygy_latency_seconds_bucket{le="0.25"} 2',
        'syzygy_latency_seconds_bucket{le="300"} 2',
        'syzygy_latency_seconds_bucket{le="+Inf"} 3',
        "syzygy_latency_seconds_sum 1000.250000",
        "syzygy_latency_seconds_count 3",
    ):
        assert line in lines
