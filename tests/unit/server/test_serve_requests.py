"""What an image's record keeps of its request, and which requests are of one shape."""

import base64
from dataclasses import replace
from typing import Any

import pytest
import torch

from syzygy.core.contracts import Region, Sampling
from syzygy.generation.request import GenerationRequest
from syzygy.server.requests import KEPT_BYTES, ImageRequest, Upload

HOW = Sampling(steps=3, guidance_scale=2.0, sampler="euler")
PICTURE = torch.zeros(3, 4, 4)
STAR = [[Region("star", torch.ones(2, 2))]]


def upload(size: int = 3, letter: bytes = b"a") -> Upload:
    return Upload.of(torch.zeros(3, 4, 4), letter * size)


def asked(style: Upload | None = None, seeds: tuple[int, ...] = (7, 8), **changes: Any) -> ImageRequest:
    pixels = None if style is None else style.pixels
    found = GenerationRequest(**{"prompts": ["a star"], "sampling": HOW, "style": pixels, **changes})
    return ImageRequest(found, seeds, True, () if style is None else (style,))


def mixed(*sources: tuple[str | Upload, float]) -> ImageRequest:
    mixture = [(one.pixels if isinstance(one, Upload) else one, weight) for one, weight in sources]
    uploads = tuple(one for one, _ in sources if isinstance(one, Upload))
    return ImageRequest(GenerationRequest(mixtures=[mixture], sampling=HOW), (7, 8), True, uploads)


def test_a_record_describes_each_image_of_its_request() -> None:
    region = Region("star", torch.ones(2, 2), 2.0)
    request = asked(upload(), regions=[[region]], negative_prompt="a ring")
    record = request.record({"steps": 25, "model": "tiny", "negative_prompt": "of the server"}, 1)
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
    one = mixed((upload(), 1.0)).record({}, 0)
    assert base64.b64decode(one["variation_of"]["data"]) == b"aaa"
    assert not {"prompt", "sources"} & set(one)
    both = mixed(("a star", 0.4), (upload(), 0.6)).record({}, 0)
    assert both["sources"] == [{"text": "a star", "weight": 0.4}, {**one["variation_of"], "weight": 0.6}]
    assert mixed(("a star", 1.0)).record({}, 0)["sources"][0]["text"] == "a star"


def test_pictures_are_kept_as_far_as_there_is_room() -> None:
    first, second, third = upload(KEPT_BYTES - 5), upload(6, b"b"), upload(5, b"c")
    found = mixed((first, 1.0), (second, 1.0), (third, 1.0)).record({}, 0)["sources"]
    assert ["data" in one for one in found] == [True, False, True]
    assert found[1]["sha256"] == second.digest
    assert upload(KEPT_BYTES).data is not None
    assert upload(KEPT_BYTES + 1).data is None


@pytest.mark.parametrize(
    "changes",
    [
        {"negative_prompt": "a square"},
        {"sampling": replace(HOW, guidance_scale=3.0)},
        {"sampling": replace(HOW, steps=4)},
        {"sampling": replace(HOW, sampler="heun")},
        {"sampling": replace(HOW, region_strength=0.5), "regions": STAR},
        {"sampling": replace(HOW, style_guidance=0.5)},
        {"sampling": replace(HOW, size=(8, 8))},
        {"sampling": replace(HOW, options={"noise_level": 3})},
        {"style": upload(3, b"b")},
        {"style_content": "a ring"},
        {"style": None},
        {"regions": STAR},
        {"image": PICTURE},
        {"depth": PICTURE},
    ],
    ids=str,
)
def test_another_setting_is_another_shape(changes: dict[str, Any]) -> None:
    first = asked(upload())
    assert first.shape == asked(upload(), prompts=["another"], seeds=(9,)).shape
    assert first.shape != asked(**{"style": upload(), **changes}).shape
    assert first.shape != mixed(("a star", 1.0)).shape


def test_another_region_strength_is_another_shape() -> None:
    weak, strong = (replace(HOW, region_strength=strength) for strength in (0.5, 1.0))
    first = asked(regions=STAR, sampling=weak)
    assert first.shape == asked(regions=STAR, sampling=weak).shape != asked(regions=STAR, sampling=strong).shape
    wide = [[Region("star", torch.ones(2, 3))]]
    assert first.shape != asked(regions=wide, sampling=weak).shape


def test_another_strength_or_mask_is_another_shape() -> None:
    weak, strong = (replace(HOW, strength=strength) for strength in (0.5, 1.0))
    first = asked(image=PICTURE, sampling=weak)
    assert first.shape == asked(image=PICTURE, sampling=weak).shape != asked(image=PICTURE, sampling=strong).shape
    assert first.shape != asked(image=PICTURE, mask=torch.ones(4, 4), sampling=weak).shape


@pytest.mark.parametrize("other", [("b", 1.0), ("a", 0.9), (upload(), 1.0)], ids=str)
def test_another_source_is_another_shape(other: tuple[str | Upload, float]) -> None:
    first, second = (mixed(("a", 1.0), ("a", 1.0)) for _ in range(2))
    assert first.shape == second.shape
    assert first.shape != mixed(("a", 1.0), other).shape


def test_a_text_is_not_taken_for_the_picture_of_this_digest() -> None:
    picture = upload()
    assert mixed((picture, 1.0)).shape != mixed((picture.digest, 1.0)).shape
    assert mixed((picture, 1.0)).shape != asked(picture).shape
