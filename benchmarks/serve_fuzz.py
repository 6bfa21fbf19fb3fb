"""Generated requests against `syzygy serve`: none may make it fail (status 500 or more).

    python -m benchmarks.serve_fuzz --cases 10000 --minutes 30

Schemathesis makes them of the server's OpenAPI description, right ones and wrong ones, keyed by a seed. Pictures and words are mostly
such as a server meets: small files of several kinds, broken ones, and PNGs with any JSON in the place of a record; phrases that are in
their prompts. A request's pictures have two steps, as it is not the pictures that are tested. Prints how many of which route got which
status; exits with 1 if one failed, or if the time ended before the cases.
"""

import argparse
import base64
import io
import json
import sys
import time
from collections import Counter

ROUND = 25
"""Requests a route and a kind before the next has its turn."""
WORDS = ("a red star", "star", "a red star and a blue ring", "a", "ring")
FORMATS = {"mask": "picture", "style": "picture", "image": "picture", "image_url": "picture"} | dict.fromkeys(
    ("prompt", "negative_prompt", "phrase", "text", "region"), "words"
)
"""Names of fields → what our strategies make for them."""


def fuzz(
    app, cases: int, seed: int = 0, a_round: int = ROUND, end: float = float("inf"), told: bool = False
) -> Counter:
    """Send at least `cases` generated requests to an application, or until the clock says `end`; how many of (method, path) got (status).

    Raises:
        AssertionError: one failed; the command that sends it again.
    """
    import requests
    import schemathesis

    from syzygy.server.http_server import serving

    schemathesis.openapi.format("picture", _pictures().map(lambda data: base64.b64encode(data).decode("ascii")))
    schemathesis.openapi.format("binary", _pictures())
    schemathesis.openapi.format("words", _words())
    schema = schemathesis.openapi.from_dict(_described(app.openapi()))
    operations = [result.ok() for result in schema.get_all_operations()]
    right, wrong = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    kinds = [(one, kind) for one in operations for kind in ((right, wrong) if one.body else (right,))]
    statuses: Counter = Counter()
    with serving(app) as url, requests.Session() as session:
        while sum(statuses.values()) < cases and time.monotonic() < end:
            for operation, kind in kinds:
                number = a_round if operation.body else 1
                _send(operation.as_strategy(generation_mode=kind), url, session, seed, number, statuses)
            seed += 1
            if told:
                print(
                    f"{sum(statuses.values())} requests, {max(status for *_, status in statuses)} at most", flush=True
                )
    return statuses


def _described(schema: dict) -> dict:
    """The description, with our formats for fields that hold pictures and words."""
    schema = json.loads(json.dumps(schema))
    bodies = [
        body["schema"]
        for operations in schema["paths"].values()
        for operation in operations.values()
        for body in operation.get("requestBody", {}).get("content", {}).values()
    ]
    for one in [*schema["components"]["schemas"].values(), *bodies]:
        for name, field in one.get("properties", {}).items():
            for choice in field.get("anyOf", [field]):
                if name in FORMATS and choice.get("type") == "string" and "format" not in choice:
                    choice["format"] = FORMATS[name]
    return schema


def _words():
    from hypothesis import strategies as st

    return st.sampled_from(WORDS) | st.text(max_size=300)


def _pictures():
    """Files that a client might send as pictures."""
    from hypothesis import strategies as st
    from PIL import Image, PngImagePlugin

    from syzygy.generation.image_files import RECORD_KEY

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    names = st.sampled_from(
        ["prompt", "seed", "steps", "regions", "style", "sources", "variation_of", "frame", "frames", "width", "height"]
    )
    region = st.fixed_dictionaries({"phrase": st.sampled_from(WORDS), "mask": st.just("aGk="), "weight": st.floats()})
    likely = {
        "prompt": st.sampled_from(WORDS),
        "seed": st.integers(0, 9),
        "regions": st.lists(region, max_size=2),
        "sources": st.lists(st.fixed_dictionaries({"text": st.sampled_from(WORDS)}), max_size=2),
        "variation_of": st.just({"sha256": "ab"}),
    }
    records = st.fixed_dictionaries({}, optional=likely) | st.dictionaries(names, json_values)

    @st.composite
    def files(draw) -> bytes:
        mode = draw(st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"]))
        size = draw(st.sampled_from([(8, 8), (1, 1), (9, 8), (200, 1), (40, 30)]))
        kind = draw(st.sampled_from(["PNG", "PNG", "PNG", "JPEG", "WEBP", "GIF"]))
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(RECORD_KEY, json.dumps(draw(records)))
        image = Image.new(mode, size, draw(st.integers(0, 255)) if mode in ("L", "P", "1", "I;16") else 0)
        if draw(st.booleans()):
            image = image.convert("RGBA")
            image.paste((255, 255, 255, 255), (0, 0, image.width // 2 + 1, image.height))
        data = io.BytesIO()
        try:
            image.save(data, kind, pnginfo=chunks)
        except (OSError, ValueError):  # a mode that this kind has not
            image.convert("RGB").save(data, kind)
        cut = draw(st.none() | st.none() | st.integers(0, len(data.getvalue())))
        return data.getvalue()[:cut]

    return st.one_of(files(), files(), files(), st.binary(max_size=50))


def _send(strategy, url: str, session, seed: int, number: int, statuses: Counter) -> None:
    import hypothesis

    unhurried = list(hypothesis.HealthCheck)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=number, database=None, deadline=None, derandomize=False, suppress_health_check=unhurried
    )
    @hypothesis.given(case=strategy)
    def send(case) -> None:
        answer = case.call(base_url=url, session=session, timeout=120)
        statuses[case.operation.method.upper(), case.operation.path, answer.status_code] += 1
        assert answer.status_code < 500, case.as_curl_command()

    try:
        send()
    except (
        ValueError
    ) as error:  # Schemathesis cannot always judge a wrong form that holds a file: the next seed goes on
        if "Unsupported type" not in str(error):
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="starter")
    arguments = parser.parse_args()

    from benchmarks.serve_load import studio_of
    from syzygy.server.app import create_app
    from syzygy.server.limits import Limits

    app = create_app(studio_of(arguments.model, "--steps", "2"), Limits(steps=2, number=2, queue=8), hosts=None)
    began = time.monotonic()
    statuses = fuzz(app, arguments.cases, arguments.seed, end=began + 60 * arguments.minutes, told=True)
    sent = sum(statuses.values())
    print(f"{sent} requests in {time.monotonic() - began:.0f} s")
    for (method, path, status), number in sorted(statuses.items()):
        print(f"{method} {path} {status}  {number}")
    sys.exit(sent < arguments.cases or any(status >= 500 for *_, status in statuses))


if __name__ == "__main__":
    main()
