"""What clients send as pictures and masks."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.generation.image_files import png_bytes
from syzygy.regions.canvas import recorded
from syzygy.server import uploads
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem
from syzygy.server.schema import RegionMask, size_of

LIMITS = Limits(upload_pixels=10_000)


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def mask(size: tuple[int, int] = (8, 8), box: tuple[int, int, int, int] = (0, 0, 4, 8)) -> str:
    image = Image.new("L", size)
    image.paste(255, box)
    return base64.b64encode(file_of(image)).decode()


def bomb(side: int) -> bytes:
    """A PNG that says it has side² pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"], ids=["plain", "data URL"])
def test_base64_becomes_bytes(head: str) -> None:
    assert uploads.unpacked(head + "aGk=", "style") == b"hi"


@pytest.mark.parametrize("text", ["hi!", "aGk", "ü", "http://a.b/c.png", "/etc/passwd", "data:image/png,aGk="])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="style must be a picture's file in base64"):
        uploads.unpacked(text, "style")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "format is not known"),
        (b"GIF89a" + b"\0" * 20, "format is not known"),
        (file_of(Image.new("RGB", (4, 4)), "BMP"), "format is not known; allowed are PNG, JPEG, WEBP"),
        (file_of(Image.new("RGB", (60, 60), "red"))[:60], "cannot be read as a picture"),
        (bomb(60_000), "too many pixels"),
        (bomb(101), "10,201 pixels; at most 10,000"),
    ],
    ids=["empty", "gif", "bmp", "cut", "bomb", "large"],
)
def test_odd_pictures_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        uploads.picture(data, "style", LIMITS)


def test_a_picture_of_the_largest_size_is_taken() -> None:
    assert uploads.picture(file_of(Image.new("RGB", (100, 100))), "style", LIMITS).size == (100, 100)


def test_a_mask_is_bright_and_opaque_whatever_its_depth() -> None:
    """White strokes on a transparent ground, and 16-bit greys, are the same mask as 8-bit greys."""
    levels = np.array([[255, 0, 51]], np.uint8)
    masks = {
        "grey": Image.fromarray(levels),
        "strokes": Image.merge("LA", (Image.new("L", (3, 1), 255), Image.fromarray(levels))),
        "deep": Image.fromarray(levels.astype(np.uint16) * 257),
    }
    for name, image in masks.items():
        given = RegionMask(phrase="star", mask=base64.b64encode(file_of(image)).decode())
        (region,) = uploads.regions("a red star", [given], 0.0, LIMITS)
        assert region.mask.tolist() == [[1, 0, pytest.approx(0.2)]], name


def test_a_deep_picture_is_scaled_and_an_edit_happens_where_its_mask_is_transparent() -> None:
    deep = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert np.array(uploads.picture(file_of(deep), "style", LIMITS))[..., 0].tolist() == [[0, 128, 255]]
    image = Image.new("RGBA", (3, 1), "white")
    image.putpixel((1, 0), (255, 255, 255, 0))
    assert uploads.transparent(image).tolist() == [[0, 1, 0]]
    with pytest.raises(UserError, match="no part of the mask is transparent"):
        uploads.transparent(Image.new("RGB", (3, 1)))


def test_regions_are_fitted_and_softened() -> None:
    (region,) = uploads.regions("a red star", [RegionMask(phrase="star", mask=mask(), weight=2)], 0.1, LIMITS)
    assert (region.phrase, region.weight, region.mask.shape) == ("star", 2, (8, 8))
    assert 0 < region.mask[0, 4] < 1
    assert uploads.drawn("star", torch.ones(100, 1024), 1.0, 0.0).mask.shape == (25, 256)


@given(side=st.integers(1, 300), blur=st.floats(0, 0.2), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_a_record_gives_back_a_region_bit_by_bit(side: int, blur: float, seed: int) -> None:
    grey = torch.rand(side, 7, generator=torch.Generator().manual_seed(seed))
    region = uploads.drawn("star", grey.clamp(min=0.1), 1.5, blur)
    again = RegionMask.model_validate(recorded(region))
    (found,) = uploads.regions("a star", [again], 0.0, LIMITS)
    assert torch.equal(found.mask, region.mask)
    assert (found.phrase, found.weight) == (region.phrase, region.weight)


@pytest.mark.parametrize(
    ("regions", "param", "message"),
    [
        ([{"phrase": "ring", "mask": mask()}], "regions[0].phrase", "does not contain the phrase 'ring'"),
        ([{"phrase": " ", "mask": mask()}], "regions[0].phrase", "needs a phrase"),
        ([{"phrase": "star", "mask": mask(box=(0, 0, 0, 0))}], "regions[0].mask", "mask of 'star' is empty"),
        (
            [{"phrase": "star", "mask": mask()}, {"phrase": "red", "mask": mask((9, 8))}],
            "regions",
            "one size, got 8 × 8 and 9 × 8",
        ),
        ([{"phrase": "star", "mask": mask()}, {"phrase": "red", "mask": "?"}], "regions[1].mask", "must be a picture"),
        ([{"phrase": "star", "mask": mask((101, 100))}], "regions[0].mask", "10,100 pixels; at most 10,000"),
    ],
    ids=["phrase", "blank", "empty", "sizes", "base64", "large"],
)
def test_wrong_regions_are_refused(regions: list[dict[str, str]], param: str, message: str) -> None:
    with pytest.raises(Problem, match=message) as refused:
        uploads.regions("a red star", [RegionMask.model_validate(one) for one in regions], 0.0, LIMITS)
    assert refused.value.body["error"]["param"] == param


def test_a_recipe_is_what_the_file_says() -> None:
    image = Image.new("RGB", (4, 4))
    assert uploads.recipe(png_bytes(image, {"prompt": "a", "seed": 1}), "it", LIMITS) == {"prompt": "a", "seed": 1}
    with pytest.raises(UserError, match="it holds no record"):
        uploads.recipe(file_of(image), "it", LIMITS)


@pytest.mark.parametrize(
    ("text", "own", "found"),
    [("auto", (64, 64), None), ("64x64", (64, 64), None), ("300x200", None, (200, 300)), ("auto", None, None)],
)
def test_sizes(text: str, own: tuple[int, int] | None, found: tuple[int, int] | None) -> None:
    assert size_of(text, own, 60_000) == found


@pytest.mark.parametrize(
    ("text", "own", "message"),
    [
        ("64x65", (64, 64), "64x64 only"),
        ("0x64", None, "must be auto"),
        ("64", None, "must be auto"),
        ("64x64\n", None, "must be auto"),
        ("301x200", None, "60,200 pixels; at most 60,000"),
    ],
)
def test_wrong_sizes(text: str, own: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        size_of(text, own, 60_000)
