"""What clients send as pictures and masks."""

import base64
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from syzygy.core.contracts import Region
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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(side: int, rows: bytes = b"", more: bytes = b"") -> bytes:
    """A grey PNG that says it has side² pixels, with `more` chunks before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def regions(given: list[RegionMask], blur: float = 0.0) -> tuple[Region, ...]:
    """As the server makes them of a request."""
    texts = {f"regions[{number}].mask": one.mask for number, one in enumerate(given)}
    return uploads.regions(given, [*uploads.files_of(texts, LIMITS).values()], blur)


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
    ],
    ids=["empty", "gif", "bmp", "cut"],
)
def test_odd_pictures_are_refused(data: bytes, message: str) -> None:
    uploads.check({"style": data}, LIMITS)  # not one of its parts is at fault
    with pytest.raises(UserError, match=message):
        uploads.picture(data, "style")


@pytest.mark.parametrize(
    ("sides", "param", "message"),
    [
        ([101], "0", "0 has 10,201 pixels; at most 10,000 are read"),
        ([80, 60, 1], "2", "2 has 10,001 pixels together with the pictures before it"),
        ([60_000], "0", "0 has too many pixels; at most 10,000 are read"),
    ],
    ids=["one", "together", "more than Pillow opens"],
)
def test_pixels_are_counted_over_all_pictures_and_before_any_is_decoded(
    sides: list[int], param: str, message: str
) -> None:
    """The pictures have no pixels at all: decoding one would fail otherwise."""
    files = {str(number): png_of(side) for number, side in enumerate(sides)}
    with pytest.raises(Problem, match=message) as refused:
        uploads.check(files, LIMITS)
    assert refused.value.body["error"]["param"] == param


def test_pictures_of_the_largest_size_are_taken() -> None:
    files = {"image": file_of(Image.new("RGB", (80, 80))), "mask": file_of(Image.new("L", (60, 60)))}
    uploads.check(files, LIMITS)
    assert uploads.picture(files["image"], "image").size == (80, 80)


def jpeg_of(head: bytes = b"", scans: int = 1) -> bytes:
    """A JPEG file with more segments at its start, and its only scan several times."""
    data = file_of(Image.new("L", (8, 8)), "JPEG")
    scan = data.index(b"\xff\xda")
    return data[:2] + head + data[2:scan] + data[scan:-2] * scans + data[-2:]


@pytest.mark.parametrize(
    ("few", "many"),
    [
        (png_of(8, more=chunk(b"tEXt", b"a\0a") * 100), png_of(8, more=chunk(b"tEXt", b"a\0a") * 101)),
        (png_of(8, more=chunk(b"IDAT", b"") * 9000), png_of(8, more=chunk(b"IDAT", b"") * 10_000)),
        (jpeg_of(b"\xff\xfe\0\x02" * 900), jpeg_of(b"\xff\xfe\0\x02" * 1001)),
        (jpeg_of(b"\xff" * 900), jpeg_of(b"\xff" * 1002)),
        (jpeg_of(b"\xff\xd0" * 900), jpeg_of(b"\xff\xd0" * 1001)),
        (jpeg_of(b"\0" * 900), jpeg_of(b"\0" * 1002)),
        (jpeg_of(scans=50), jpeg_of(scans=101)),
    ],
    ids=["texts", "chunks", "comments", "filling", "markers", "rubbish", "scans"],
)
def test_files_with_very_many_parts_are_refused_unread(few: bytes, many: bytes) -> None:
    uploads.check({"image": few}, LIMITS)
    with pytest.raises(Problem, match="image has too many parts") as refused:
        uploads.check({"image": many}, LIMITS)
    assert refused.value.body["error"]["param"] == "image"


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
        (region,) = regions([given])
        assert region.mask.tolist() == [[1, 0, pytest.approx(0.2)]], name


def test_a_deep_picture_is_scaled_and_an_edit_happens_where_its_mask_is_transparent() -> None:
    deep = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert np.array(uploads.picture(file_of(deep), "style"))[..., 0].tolist() == [[0, 128, 255]]
    image = Image.new("RGBA", (3, 1), "white")
    image.putpixel((1, 0), (255, 255, 255, 0))
    assert uploads.transparent(image).tolist() == [[0, 1, 0]]
    with pytest.raises(UserError, match="no part of the mask is transparent"):
        uploads.transparent(Image.new("RGB", (3, 1)))


def test_regions_are_fitted_and_softened() -> None:
    (region,) = regions([RegionMask(phrase="star", mask=mask(), weight=2)], 0.1)
    assert (region.phrase, region.weight, region.mask.shape) == ("star", 2, (8, 8))
    assert 0 < region.mask[0, 4] < 1
    assert uploads.drawn("star", torch.ones(100, 1024), 1.0, 0.0).mask.shape == (25, 256)


@given(side=st.integers(1, 300), blur=st.floats(0, 0.2), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_a_record_gives_back_a_region_bit_by_bit(side: int, blur: float, seed: int) -> None:
    grey = torch.rand(side, 7, generator=torch.Generator().manual_seed(seed))
    region = uploads.drawn("star", grey.clamp(min=0.1), 1.5, blur)
    again = RegionMask.model_validate(recorded(region))
    (found,) = regions([again])
    assert torch.equal(found.mask, region.mask)
    assert (found.phrase, found.weight) == (region.phrase, region.weight)


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ([{"phrase": "star", "mask": mask(box=(0, 0, 0, 0))}], "regions[0].mask", "mask of 'star' is empty"),
        (
            [{"phrase": "star", "mask": mask()}, {"phrase": "red", "mask": mask((9, 8))}],
            "regions",
            "one size, got 8 × 8 and 9 × 8",
        ),
        ([{"phrase": "star", "mask": mask()}, {"phrase": "red", "mask": "?"}], "regions[1].mask", "must be a picture"),
        ([{"phrase": "star", "mask": mask((101, 100))}], "regions[0].mask", "10,100 pixels; at most 10,000"),
    ],
    ids=["empty", "sizes", "base64", "large"],
)
def test_wrong_regions_are_refused(given: list[dict[str, str]], param: str, message: str) -> None:
    with pytest.raises(Problem, match=message) as refused:
        regions([RegionMask.model_validate(one) for one in given])
    assert refused.value.body["error"]["param"] == param


def test_a_recipe_is_what_the_file_says() -> None:
    image = Image.new("RGB", (4, 4))
    assert uploads.recipe(png_bytes(image, {"prompt": "a", "seed": 1}), "it", LIMITS) == {"prompt": "a", "seed": 1}
    with pytest.raises(UserError, match="it holds no record"):
        uploads.recipe(file_of(image), "it", LIMITS)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a" * 2**21}, "characters, which is too much"),
        ({"prompt": "a", "list": [0] * 110_000}, "characters, which is too much"),
        ({"prompt": "a", "regions": [{"phrase": "a"}] * 300}, "too many values or levels"),
        ({f"k{number}": {} for number in range(1000)}, "too many values or levels"),
        ({"prompt": [[[[[[[[[]]]]]]]]]}, "too many values or levels"),
    ],
    ids=["long", "crowded", "regions", "keys", "deep"],
)
def test_recipes_are_no_larger_than_ours(record: dict[str, Any], message: str) -> None:
    """Each costs nothing but its parsing, which is bounded by its length."""
    file = png_of(8, b"\0" * 72, chunk(b"tEXt", b"syzygy\0" + json.dumps(record).encode()))
    with pytest.raises(UserError, match=message):
        uploads.recipe(file, "it", LIMITS)


@pytest.mark.parametrize(
    ("text", "own", "found"),
    [("auto", (64, 64), None), ("64x64", (64, 64), None), ("300x200", None, (200, 300)), ("auto", None, None)],
)
def test_sizes(text: str, own: tuple[int, int] | None, found: tuple[int, int] | None) -> None:
    assert size_of(text, own, 60_000) == found


@pytest.mark.parametrize(
    ("text", "own", "message"),
    [
        ("64x65", (64, 64), "Supported values are: '64x64' and 'auto'"),
        ("0x64", None, "Supported values are: 'auto', and WIDTHxHEIGHT"),
        ("64", None, "Supported values are: 'auto', and WIDTHxHEIGHT"),
        ("64x64\n", None, "Supported values are: 'auto', and WIDTHxHEIGHT"),
        ("301x200", None, "60,200 pixels. At most 60,000"),
    ],
)
def test_wrong_sizes(text: str, own: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(Problem, match=message) as refused:
        size_of(text, own, 60_000)
    assert refused.value.body["error"]["param"] == "size"
