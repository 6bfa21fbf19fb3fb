"""Subjects of a source: how they are written, what is wrong with some, and how they are cut out."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.data.pair import RawSubject
from syzygy.data.source_subjects import LIST, cut_out, subjects_in


def one(**values: Any) -> RawSubject:
    (found,) = subjects_in([values], Path("folder"))
    return found


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[", f"the subjects are text that is not JSON of {LIST}"),
        ({"phrase": "dog"}, f"the subjects are not {LIST}"),
        (7, f"the subjects are not {LIST}"),
        ([7], 'it is not an object such as {"phrase": "dog", "box": [12, 30, 96, 120]}'),
        ([{"box": [0, 0, 5, 5]}], "its phrase is missing"),
        ([{"phrase": "  ", "box": [0, 0, 5, 5]}], "its phrase is empty"),
        ([{"phrase": ["dog"], "box": [0, 0, 5, 5]}], "its phrase is not text"),
        ([{"phrase": "dog"}], "it needs one of box, relative_box and mask; it has phrase"),
        (
            [{"phrase": "dog", "bbox": [1]}],
            "it needs one of box, relative_box and mask; it has phrase, bbox; "
            "COCO's bbox is [x, y, width, height], and box is [left, top, right, bottom]",
        ),
        (
            [{"phrase": "dog", "box": [0, 0, 5, 5], "mask": "a.png"}],
            "it needs one of box, relative_box and mask; it has box and mask",
        ),
        ([{"phrase": "dog", "box": [0, 0, 5]}], "its box is not four finite numbers [left, top, right, bottom]"),
        ([{"phrase": "dog", "box": [0, 0, "5", 5]}], "its box is not four finite numbers [left, top, right, bottom]"),
        (
            [{"phrase": "dog", "box": [0, 0, float("nan"), 5]}],
            "its box is not four finite numbers [left, top, right, bottom]",
        ),
        (
            [{"phrase": "dog", "box": [0, 0, 10**400, 5]}],
            "its box is not four finite numbers [left, top, right, bottom]",
        ),
        (
            [{"phrase": "dog", "box": [10.2, 10.2, 10.4, 10.4]}],
            "its box [10.2, 10.2, 10.4, 10.4] lies within one pixel: box is in pixels, and fractions are called relative_box",
        ),
        ([{"phrase": "dog", "box": [0, 0, True, 5]}], "its box is not four finite numbers [left, top, right, bottom]"),
        (
            [{"phrase": "dog", "box": [9, 0, 5, 5]}],
            "its box [9, 0, 5, 5] has no area: it is [left, top, right, bottom], not width and height",
        ),
        (
            [{"phrase": "dog", "box": [5, 3, 5, 9]}],
            "its box [5, 3, 5, 9] has no area: it is [left, top, right, bottom], not width and height",
        ),
        (
            [{"phrase": "dog", "box": [0.1, 0.2, 0.5, 1]}],
            "its box [0.1, 0.2, 0.5, 1] lies within one pixel: box is in pixels, and fractions are called relative_box",
        ),
        (
            [{"phrase": "dog", "relative_box": [10, 20, 50, 60]}],
            "its relative_box [10, 20, 50, 60] is not in fractions from 0 to 1: pixels are called box",
        ),
        ([{"phrase": "dog", "mask": "../a.png"}], "its mask leads out of the folder"),
        ([{"phrase": "dog", "mask": 5}], "its mask is neither the name of a file nor an encoded image"),
    ],
)
def test_what_is_malformed_says_why(value: Any, reason: str) -> None:
    (found,) = subjects_in(value, Path("folder"))
    assert found.reason == reason
    assert found.box is None
    assert found.mask is None


def test_a_mask_that_is_a_file_needs_a_folder() -> None:
    (found,) = subjects_in([{"phrase": "dog", "mask": "a.png"}])
    assert found.reason is not None
    assert "only a folder with metadata.jsonl or metadata.csv has files: give a box" in found.reason


def test_no_subjects_are_no_fault() -> None:
    assert subjects_in(None) == subjects_in([]) == subjects_in("") == subjects_in(b"[]") == ()


def test_json_text_and_objects_mean_the_same() -> None:
    text = '[{"phrase": " a dog ", "box": [1, 2, 3, 4], "mask": null, "score": 0.5}]'
    expected = (RawSubject("a dog", box=(1.0, 2.0, 3.0, 4.0)),)
    assert subjects_in(text) == subjects_in(text.encode()) == expected
    assert subjects_in([{"phrase": "a dog", "box": (1, 2, 3, 4)}]) == expected
    assert one(phrase="dog", mask="masks/a.png").mask == Path("folder/masks/a.png")
    assert one(phrase="dog", mask={"bytes": b"x", "path": None}).mask == b"x"


def gradient(width: int, height: int) -> Image.Image:
    """An image in which every pixel differs, and none is white."""
    levels = np.arange(width * height, dtype=np.uint32).reshape(height, width)
    return Image.fromarray(np.stack([levels % 251, levels // 251, levels * 0], -1).astype(np.uint8))


boxes = st.tuples(*[st.floats(0, 1, width=32)] * 4).filter(lambda b: b[2] - b[0] > 1e-3 and b[3] - b[1] > 1e-3)


@given(width=st.integers(2, 40), height=st.integers(2, 40), box=boxes)
def test_a_box_holds_every_pixel_that_it_touches_in_the_middle_of_a_white_square(
    width: int, height: int, box: tuple[float, float, float, float]
) -> None:
    image = gradient(width, height)
    found = cut_out(RawSubject("x", box=box, relative=True), image)
    left, top = int(np.floor(box[0] * width)), int(np.floor(box[1] * height))
    right, bottom = int(np.ceil(box[2] * width)), int(np.ceil(box[3] * height))
    side = max(right - left, bottom - top)
    assert found.size == (side, side)
    x, y = (side - (right - left)) // 2, (side - (bottom - top)) // 2
    inside = (x, y, x + right - left, y + bottom - top)
    assert np.array_equal(np.asarray(found.crop(inside)), np.asarray(image.crop((left, top, right, bottom))))
    outside = np.asarray(found).copy()
    outside[inside[1] : inside[3], inside[0] : inside[2]] = 255
    assert (outside == 255).all()
    pixels = tuple(a * b for a, b in zip(box, (width, height) * 2, strict=True))
    if max(pixels) > 1:
        assert cut_out(RawSubject("x", box=pixels), image).tobytes() == found.tobytes()


def test_a_box_may_reach_one_pixel_beyond_the_image() -> None:
    image = gradient(10, 8)
    assert cut_out(RawSubject("x", box=(-1.0, 2.0, 11.0, 9.0)), image).size == (10, 10)
    for box in ((-1.5, 2.0, 5.0, 5.0), (0.0, 0.0, 10.0, 9.5), (10.0, 2.0, 11.0, 5.0), (2.0, 8.0, 5.0, 8.5)):
        with pytest.raises(UserError, match=r"reaches beyond the image of 10 × 8 pixels"):
            cut_out(RawSubject("x", box=box), image)


def encoded(mask: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(mask).save(data, "PNG")
    return data.getvalue()


def test_a_mask_turns_the_rest_white_and_keeps_a_margin() -> None:
    image, mask = gradient(60, 50), np.zeros((50, 60), np.uint8)
    mask[10:50, 20:40] = 255
    mask[30, 30] = 0
    found = np.asarray(cut_out(RawSubject("x", mask=encoded(mask)), image))
    assert found.shape == (42, 42, 3)  # 40 rows and a margin of 2 above; the image ends below
    x, y = (42 - 24) // 2, 0
    expected = np.full((42, 24, 3), 255, np.uint8)
    expected[2:, 2:22] = np.asarray(image)[10:50, 20:40]
    expected[2 + 20, 2 + 10] = 255
    assert np.array_equal(found[y : y + 42, x : x + 24], expected)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (encoded(np.zeros((8, 10), np.uint8)), "its mask is empty: it is white where the subject is"),
        (encoded(np.full((8, 10), 100, np.uint8)), "its mask is empty: it is white where the subject is"),
        (encoded(np.full((10, 8), 255, np.uint8)), "its mask has 8 × 10 pixels, and the image 10 × 8"),
        (b"no image", "its mask cannot be used: the mask cannot be read: its format is not known"),
        (Path("nowhere/a.png"), r"its mask cannot be used: there is no file a\.png"),
    ],
)
def test_a_mask_that_cannot_be_used_says_why(mask: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        cut_out(RawSubject("x", mask=mask), gradient(10, 8))
