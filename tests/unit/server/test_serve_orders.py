"""What a picture's record keeps of its request, and which requests are of one shape."""

import base64
from dataclasses import replace
from typing import Any

import pytest
import torch

from syzygy.core.contracts import Region, Sampling
from syzygy.server.requests import KEPT_BYTES, Order, Source, Upload

HOW = Sampling(steps=3, guidance_scale=2.0, sampler="euler")


def upload(size: int = 3, letter: bytes = b"a") -> Upload:
    return Upload.of(torch.zeros(3, 4, 4), letter * size)


def order(**changes: Any) -> Order:
    return replace(Order("a star", (7, 8), True, HOW), **changes)


def test_a_record_tells_each_picture_of_its_request() -> None:
    region = Region("star", torch.ones(2, 2), 2.0)
    asked = order(style=upload(), regions=(region,), negative_prompt="a ring")
    record = asked.record({"steps": 25, "model": "tiny", "negative_prompt": "of the server"}, 1)
    assert (record["steps"], record["model"], record["prompt"], record["negative_prompt"]) == (
        3,
        "tiny",
        "a star",
        "a ring",
    )
    assert (record["seed"], record["number"], record["index"]) == (8, 2, 1)
    assert base64.b64decode(record["style"]["data"]) == b"aaa"
    assert (record["regions"][0]["phrase"], record["regions"][0]["weight"]) == ("star", 2.0)


def test_a_variation_and_a_mixture_are_told_apart() -> None:
    one = order(prompt=None, sources=(Source(upload(), 1.0),)).record({}, 0)
    assert base64.b64decode(one["variation_of"]["data"]) == b"aaa"
    assert not {"prompt", "sources"} & set(one)
    both = order(prompt=None, sources=(Source("a star", 0.4), Source(upload(), 0.6))).record({}, 0)
    assert both["sources"] == [{"text": "a star", "weight": 0.4}, {**one["variation_of"], "weight": 0.6}]
    assert order(prompt=None, sources=(Source("a star", 1.0),)).record({}, 0)["sources"][0]["text"] == "a star"


def test_pictures_are_kept_as_far_as_there_is_room() -> None:
    first, second, third = upload(KEPT_BYTES - 5), upload(6, b"b"), upload(5, b"c")
    asked = order(prompt=None, sources=tuple(Source(one, 1.0) for one in (first, second, third)))
    told = asked.record({}, 0)["sources"]
    assert ["data" in one for one in told] == [True, False, True]
    assert told[1]["sha256"] == second.digest
    assert upload(KEPT_BYTES).data is not None
    assert upload(KEPT_BYTES + 1).data is None


@pytest.mark.parametrize(
    "changes",
    [
        {"negative_prompt": "a square"},
        {"sampling": replace(HOW, guidance_scale=3.0)},
        {"sampling": replace(HOW, steps=4)},
        {"sampling": replace(HOW, sampler="heun")},
        {"sampling": replace(HOW, region_strength=0.5)},
        {"sampling": replace(HOW, style_guidance=0.5)},
        {"sampling": replace(HOW, size=(8, 8))},
        {"sampling": replace(HOW, options={"noise_level": 3})},
        {"style": upload(3, b"b")},
        {"style": None},
        {"regions": (Region("star", torch.ones(2, 2)),)},
        {"prompt": None, "sources": (Source("a star", 1.0),)},
    ],
    ids=str,
)
def test_another_setting_is_another_shape(changes: dict[str, Any]) -> None:
    asked = order(style=upload())
    assert asked.shape == order(style=upload(), prompt="another", seeds=(9,)).shape
    assert asked.shape != replace(asked, **changes).shape


@pytest.mark.parametrize("other", [Source("b", 1.0), Source("a", 0.9), Source(upload(), 1.0)], ids=str)
def test_another_source_is_another_shape(other: Source) -> None:
    asked, beside = (order(prompt=None, sources=(Source("a", 1.0), Source("a", 1.0))) for _ in range(2))
    assert asked.shape == beside.shape
    assert asked.shape != replace(asked, sources=(Source("a", 1.0), other)).shape


def test_a_text_is_not_taken_for_the_picture_of_this_digest() -> None:
    picture = upload()
    asked = order(prompt=None, sources=(Source(picture, 1.0),))
    assert asked.shape != replace(asked, sources=(Source(picture.digest, 1.0),)).shape
