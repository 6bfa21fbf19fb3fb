"""Generated requests against `syzygy serve`: none may make it fail (status 500 or more).

    python -m benchmarks.serve_fuzz --cases 10000

Schemathesis makes them of the server's OpenAPI description, right ones and wrong ones, keyed by a seed. A request's pictures have two
steps at most, as it is not the pictures that are tested. Prints how many got which status.
"""

import argparse
import sys
import time
from collections import Counter

ROUND = 25
"""Requests a route and a kind before the next has its turn."""


def fuzz(app, cases: int, seed: int = 0) -> Counter:
    """Send at least `cases` generated requests to an application; how many got which status."""
    import requests
    import schemathesis

    from syzygy.serve.running import serving

    schema = schemathesis.openapi.from_dict(app.openapi())
    operations = [result.ok() for result in schema.get_all_operations()]
    right, wrong = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    kinds = [(one, kind) for one in operations for kind in ((right, wrong) if one.body else (right,))]
    statuses: Counter = Counter()
    with serving(app) as url, requests.Session() as session:
        while sum(statuses.values()) < cases:
            for operation, kind in kinds:
                _send(operation.as_strategy(generation_mode=kind), url, session, seed, statuses)
            seed += 1
    return statuses


def _send(strategy, url: str, session, seed: int, statuses: Counter) -> None:
    import hypothesis

    unhurried = list(hypothesis.HealthCheck)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=ROUND, database=None, deadline=None, derandomize=False, suppress_health_check=unhurried
    )
    @hypothesis.given(case=strategy)
    def send(case) -> None:
        answer = case.call(base_url=url, session=session, timeout=120)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, case.as_curl_command()

    send()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="starter")
    arguments = parser.parse_args()

    from benchmarks.serve_load import studio_of
    from syzygy.serve.app import create_app
    from syzygy.serve.limits import Limits

    app = create_app(studio_of(arguments.model), Limits(steps=2, number=2, queue=8), hosts=None)
    began = time.monotonic()
    statuses = fuzz(app, arguments.cases, arguments.seed)
    print(f"{sum(statuses.values())} requests in {time.monotonic() - began:.0f} s")
    for status, number in sorted(statuses.items()):
        print(f"{status}  {number}")
    sys.exit(any(status >= 500 for status in statuses))


if __name__ == "__main__":
    main()
