"""Which named colour each pixel of a canvas has: soft edges, thin lines, compression, and colours that nobody named."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from syzygy.core.errors import UserError
from syzygy.regions.canvas_labels import _largest_area, labels

RED, BLUE = (0xE4, 0x57, 0x2E), (0x2E, 0x86, 0xDE)
PINK, GREEN = "#f1ab97", "#2a9d57"
"""Pink lies halfway between red and white, as the edge of a red shape does."""


def canvas(side: int, *, smooth: bool = True, ground: str = "white") -> Image.Image:
    """Two ellipses that touch, and a thin red line; anti-aliased unless not `smooth`."""
    big = 4 * side
    image = Image.new("RGB", (big, big), ground)
    draw = ImageDraw.Draw(image)
    draw.ellipse((big * 0.05, big * 0.2, big * 0.45, big * 0.6), RED)
    draw.ellipse((big * 0.4, big * 0.3, big * 0.95, big * 0.7), BLUE)
    draw.line((big * 0.1, big * 0.9, big * 0.9, big * 0.8), RED, width=8)
    return image.resize((side, side), Image.Resampling.BOX if smooth else Image.Resampling.NEAREST)


def found(image: Image.Image, named=(RED, BLUE)) -> np.ndarray:
    return labels(np.array(image), np.ones(image.size[::-1], bool), list(named), "it")


def compressed(image: Image.Image) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=75)
    return Image.open(data)


@pytest.mark.parametrize(
    "soften",
    [
        lambda image: image,
        compressed,
        lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
        lambda image: image.resize((512, 512), Image.Resampling.LANCZOS).resize((256, 256), Image.Resampling.BICUBIC),
        lambda image: image.quantize(48).convert("RGB"),
    ],
    ids=["anti-aliased", "JPEG", "blurred", "resampled", "palette"],
)
@pytest.mark.parametrize("ground", ["white", "black"])
def test_soft_edges_belong_to_the_nearer_colour(soften: Callable, ground: str) -> None:
    sharp, soft = found(canvas(256, smooth=False, ground=ground)), found(soften(canvas(256, ground=ground)))
    for number in range(2):
        both, either = ((sharp == number) & (soft == number)).sum(), ((sharp == number) | (soft == number)).sum()
        assert both / either > 0.95
    assert set(np.unique(soft)) <= {0, 1, 2, 3}


def test_an_edge_that_resembles_a_third_colour_is_no_edge_of_that() -> None:
    """Pink is named too, for a square of its own."""
    image = canvas(256)
    ImageDraw.Draw(image).rectangle((200, 10, 240, 40), PINK)
    pink = found(image, (RED, BLUE, (0xF1, 0xAB, 0x97))) == 2
    assert pink[10:41, 200:241].all()
    pink[10:41, 200:241] = False
    assert pink.sum() <= 4


def test_a_line_too_thin_for_its_colour_belongs_to_that_colour() -> None:
    """No pixel of it is quite red, and none around it."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).line((5, 10, 60, 30), tuple(round(0.75 * level + 0.25 * 255) for level in RED))
    line = np.array(image).min(2) < 255
    assert ((found(image) == 0) == line).all()


@pytest.mark.parametrize("colour", [PINK, GREEN])
def test_an_area_of_a_colour_that_nobody_named_is_refused(colour: str) -> None:
    image = canvas(256)
    ImageDraw.Draw(image).rectangle((200, 10, 207, 19), colour)
    with pytest.raises(
        UserError,
        match=rf"it has the colour {colour}, which no region names: 80 such pixels, from \(200, 10\) to \(207, 19\)\. Name its",
    ):
        found(image)


def test_a_thin_line_of_a_colour_that_nobody_named_is_refused() -> None:
    image = canvas(256)
    ImageDraw.Draw(image).line((20, 20, 230, 40), GREEN)
    with pytest.raises(UserError, match=f"has the colour {GREEN}, which no region names: 2.. such pixels"):
        found(image)


def test_many_scattered_pixels_are_refused_however_small_each_is() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(UserError, match="which no region names"):
        found(Image.fromarray(noise))


def test_small_strays_belong_to_what_surrounds_them() -> None:
    image = canvas(256)
    sharp = found(image)
    for x, y in ((60, 100), (180, 120), (20, 240)):  # in red, in blue, on the ground
        ImageDraw.Draw(image).rectangle((x, y, x + 1, y + 1), GREEN)
        assert (found(image) == sharp).all()


def test_a_dot_of_a_named_colour_is_seen() -> None:
    image = canvas(64)
    image.putpixel((60, 3), BLUE)
    assert found(image)[3, 60] == 1


def test_white_and_black_are_ground_unless_they_are_named() -> None:
    image = Image.new("RGB", (6, 2), "white")
    ImageDraw.Draw(image).rectangle((2, 0, 3, 1), "black")
    ImageDraw.Draw(image).rectangle((4, 0, 5, 1), RED)
    assert found(image, [RED])[0].tolist() == [1, 1, 2, 2, 0, 0]
    assert found(image, [(255, 255, 255), RED])[0].tolist() == [0, 0, 2, 2, 1, 1]


def test_transparent_pixels_belong_to_nobody() -> None:
    pixels = np.full((4, 4, 3), RED, np.uint8)
    opaque = np.zeros((4, 4), bool)
    opaque[1:3, 1:3] = True
    assert (labels(pixels, opaque, [RED], "it") == np.where(opaque, 0, -1)).all()


def test_areas_are_connected_along_their_sides() -> None:
    rows = ["1101", "0101", "2111", "2203"]  # a U of ones, two twos above two, and a three that touches nothing
    key = np.array([[int(one) for one in row] for row in rows])
    assert (_largest_area(key) == np.array([[one == "1" for one in row] for row in rows])).all()
    spiral = np.zeros((41, 41), int)
    for ring in range(0, 20, 4):
        spiral[ring, ring : -ring or None] = spiral[-1 - ring, ring : 41 - ring] = 1
        spiral[ring : 41 - ring, -1 - ring] = spiral[ring + 4 : 41 - ring, ring] = 1
        spiral[ring + 4, max(ring - 4, 0) : ring + 5] = 1
    assert (_largest_area(spiral)[spiral > 0]).mean() > 0.99
