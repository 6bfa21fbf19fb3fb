"""JSON bodies: what is refused before work that grows with it."""

import gc
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syzygy.server.bodies import SEPARATORS, json_of, plain
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem
from syzygy.server.schema import Generation, Mix

LIMITS = Limits()
REGION = {"phrase": "a", "mask": "aGk=", "weight": 1.0}


def refused(body: bytes | dict[str, Any], message: str) -> float:
    """Processor seconds until it was refused, without those of collecting the garbage of other tests."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    gc.disable()
    try:
        began = time.process_time()
        with pytest.raises(Problem, match=message) as problem:
            json_of(content, Generation, LIMITS)
        seconds = time.process_time() - began
    finally:
        gc.enable()
    assert problem.value.status == 400
    return seconds


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", **{f"k{number}": 0 for number in range(400_000)}},
        {"prompt": "a", "regions": [REGION] * 100_000},
        {"prompt": "a", "regions": [{**REGION, **{f"k{number}": 0 for number in range(200_000)}}]},
        {"prompt": "a", "regions": [[]] * 90_000},
        {"prompt": "a", "regions": [[[[[[[[[[]]]]]]]]]]},
    ],
    ids=["keys", "regions", "keys of a region", "below the first limit", "levels"],
)
def test_very_many_values_are_refused_in_no_time(body: dict[str, Any]) -> None:
    """Checking such bodies field by field took seconds, in which the server answered nobody."""
    assert refused(body, "the body has too many values or levels") < 0.5


def test_a_body_with_too_many_separators_is_not_parsed() -> None:
    """It is no JSON, and only parsing could find that."""
    refused(b"{" + b"," * (SEPARATORS + 1), "the body has too many values or levels")


def test_the_largest_request_that_limits_allow_passes() -> None:
    texts = {"prompt": "," * LIMITS.prompt, "negative_prompt": ":" * LIMITS.prompt}
    settings = {"seed": 1, "steps": 3, "n": 2, "stream": True, "progress": True, "partial_images": 3, "style": "aGk="}
    body = {**texts, **settings, "regions": [{**REGION, "mask": "a" * 100_000}] * LIMITS.regions}
    assert len(json_of(json.dumps(body).encode(), Generation, LIMITS).regions) == LIMITS.regions
    sources = [{"text": "," * LIMITS.prompt, "weight": 0.5}] * LIMITS.sources
    assert len(json_of(json.dumps({"sources": sources}).encode(), Mix, LIMITS).sources) == LIMITS.sources


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"prompt": "a",}', r"could not parse the JSON body of your request. .+ at character 1\d\.$"),
        (b"", "could not parse the JSON body of your request. .+ at character 0"),
        (b"\xff\xfe\xff", "could not parse the JSON body of your request. It is not encoded in UTF-8"),
        (b"[" * 100_000, "the body has too many values or levels"),
        (b'{"n": ' + b"1" * 5000 + b"}", "could not parse the JSON body of your request. A number in it has too many"),
        (b"[]", "Invalid type for the body: expected an object, but got an array instead"),
        (b'{"prompt": "a", "promt": 1}', "Unknown parameter: 'promt'"),
    ],
    ids=["comma", "empty", "bytes", "levels", "digits", "list", "unknown"],
)
def test_wrong_bodies(body: bytes, message: str) -> None:
    refused(body, message)


JSON = st.recursive(
    st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
)


def counted(value: Any) -> tuple[int, int]:
    """Values and levels of JSON, one by one."""
    inner = [*(value.values() if isinstance(value, dict) else value)] if isinstance(value, (dict, list)) else []
    found = [counted(one) for one in inner]
    return 1 + sum(number for number, _ in found), 1 + max((depth for _, depth in found), default=-1)


@given(value=JSON, levels=st.integers(0, 5), most=st.integers(1, 30))
def test_values_and_levels_are_counted(value: Any, levels: int, most: int) -> None:
    number, depth = counted(value)
    assert plain(value, levels, most) == (number <= most and depth <= levels)


@pytest.mark.parametrize(
    ("field", "holds"),
    [
        ({"regions": [REGION]}, True),
        ({"style": "aGk="}, True),
        ({"subjects": [{"word": "a", "image": "aGk="}]}, True),
        ({"layout": "aGk="}, True),
        ({}, False),
    ],
    ids=str,
)
def test_bodies_that_hold_pictures_are_not_understood_on_the_event_loop(field: dict[str, Any], holds: bool) -> None:
    assert json_of(json.dumps({"prompt": "a", **field}).encode(), Generation, LIMITS).pictures == holds
