"""From a picture's record to the request that paints it again."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syzygy.server.problems import Json, Problem
from syzygy.server.recipes import again

OWN = {"fingerprints": {"clip": "1"}, "versions": {"torch": "2"}, "conditions": ["image"], "steps": 25}
RECORD = {**OWN, "prompt": "a star", "steps": 3, "guidance_scale": 2.0, "sampler": "euler", "seed": 8, "index": 1}
PICTURE = {"sha256": "ab", "data": "aGk="}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = [
    *RECORD,
    "regions",
    "style",
    "sources",
    "variation_of",
    "frame",
    "frames",
    "width",
    "height",
    "negative_prompt",
]


def test_a_prompt_is_asked_for_again() -> None:
    record = {**RECORD, "negative_prompt": "a ring", "painting": 0.5, "style": PICTURE, "style_guidance": 2}
    record["regions"] = [{"phrase": "star", "mask": "aGk=", "weight": 2.0}]
    found = again(record, OWN, (64, 64))
    kept = (
        "prompt",
        "steps",
        "guidance_scale",
        "sampler",
        "seed",
        "negative_prompt",
        "painting",
        "style_guidance",
        "regions",
    )
    body = {**{name: record[name] for name in kept}, "style": "aGk="}
    body["region_strength"] = body.pop("painting")  # the name in older records
    assert found == {"request": {"path": "/v1/images/generations", "body": body}, "missing": [], "notes": []}


def test_options_of_the_decoder_are_asked_for_again_where_requests_may_set_them() -> None:
    record = {**RECORD, "noise_level": 3}
    found = again(record, OWN, None, ["noise_level"])
    assert (found["request"]["body"]["noise_level"], found["notes"]) == (3, [])
    assert "noise_level" not in again(record, OWN, None)["request"]["body"]
    (note,) = again(RECORD, {**OWN, "noise_level": 5}, None, ["noise_level"])["notes"]
    assert note == "it was generated with noise level None; this server has 5."


def test_sources_are_asked_for_again() -> None:
    both = [{"text": "a star", "weight": 0.4}, {**PICTURE, "weight": 0.6}]
    record = {name: RECORD[name] for name in (*OWN, "seed")}
    found = again({**record, "sources": both}, OWN, None)
    assert found["request"]["path"] == "/v1/images/mixes"
    assert found["request"]["body"]["sources"] == [both[0], {"image": "aGk=", "weight": 0.6}]
    assert again({**record, "variation_of": PICTURE}, OWN, None)["request"]["body"]["sources"] == [{"image": "aGk="}]
    frame = {"sources": [{"text": "a"}, {"text": "b"}], "frames": 5, "frame": 1}
    sources = again({**record, **frame}, OWN, None)["request"]["body"]["sources"]
    assert [one["weight"] for one in sources] == [0.75, 0.25]


def test_what_is_missing_is_said() -> None:
    told = {"picture": "a.png", "sha256": "ab"}
    found = again({**RECORD, "style": told}, OWN, None)
    assert found["missing"] == ["style"]
    assert "style" not in found["request"]["body"]
    found = again({"seed": 1, "sources": [{"text": "a"}, told]}, OWN, None)
    assert found["missing"] == ["sources[1].image"]
    assert found["request"]["body"]["sources"] == [{"text": "a"}, {}]


@pytest.mark.parametrize(
    ("changes", "own", "note"),
    [
        ({"fingerprints": {"clip": "3"}, "model": "other"}, {}, "by another model, 'other'"),
        ({"versions": {"torch": "1"}}, {}, "other versions"),
        ({"conditions": ["text"]}, {}, "with conditions ['text']; this server has ['image']"),
        ({"noise_level": 3}, {}, "with noise level 3; this server has None"),
        ({"height": 32, "width": 64}, {}, "has another size than the 64x64"),
        ({}, {"negative_prompt": "a ring"}, "adds its own"),
    ],
)
def test_what_will_be_another_picture_is_said(changes: dict[str, Any], own: dict[str, Any], note: str) -> None:
    (found,) = again({**RECORD, **changes}, {**OWN, **own}, (64, 64))["notes"]
    assert note in found


def test_a_size_is_asked_for_where_there_is_a_choice() -> None:
    record = {**RECORD, "height": 32, "width": 64}
    assert again(record, OWN, None)["request"]["body"]["size"] == "64x32"
    assert "size" not in again(record, OWN, (32, 64))["request"]["body"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"pictures": []}, "it has no prompt and no pictures, like that of a contact sheet"),
        ({**RECORD, "seed": -1}, "Invalid 'seed': integer below minimum value"),
        ({**RECORD, "regions": [{"phrase": 3}]}, r"Invalid type for 'regions\[0\].phrase'"),
        ({"sources": 3}, "its sources are no list"),
        ({**RECORD, "steps": float("nan")}, "no plain JSON"),
        ({**RECORD, "more": json.loads("[" * 9 + "]" * 9)}, "no plain JSON"),
    ],
    ids=["sheet", "seed", "region", "sources", "number", "deep"],
)
def test_what_cannot_be_asked_for_is_said(record: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem, match=message) as refused:
        again(record, OWN, None)
    assert (refused.value.status, refused.value.body["error"]["param"]) == (400, "image")


@given(st.dictionaries(st.sampled_from(NAMES), ANY))
@settings(max_examples=60)
def test_a_record_of_anything_is_answered_or_refused(record: dict[str, Any]) -> None:
    with suppress(Problem):
        Json({"record": record, **again(record, OWN, (64, 64))})
