"""Painted canvases and masks become regions."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.generation.image_files import to_tensor
from syzygy.regions.canvas import COLOURS, Spec, drawn, parse, recorded, regions_of
from syzygy.server import uploads
from syzygy.server.limits import Limits
from syzygy.server.schema import RegionMask
from tests.closeness import assert_close

RED, BLUE = "#ff0000=a red star", "#0000ff=a blue ring@2"


@pytest.fixture
def canvas(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (40, 20), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 9, 19), "red")
    draw.rectangle((30, 5, 39, 14), "blue")
    picture.save(tmp_path / "canvas.png")
    return tmp_path / "canvas.png"


def test_colours_stand_for_phrases(canvas: Path) -> None:
    star, ring = regions_of([RED, BLUE], canvas)
    assert (star.phrase, star.weight, ring.phrase, ring.weight) == ("a red star", 1.0, "a blue ring", 2.0)
    assert star.mask.shape == ring.mask.shape == (20, 40)
    assert star.mask[:, :10].min() == 1
    assert star.mask[:, 10:].max() == 0
    assert ring.mask.sum() == 100


def test_soft_edges_of_a_brush_are_no_new_colours(tmp_path: Path, canvas: Path) -> None:
    Image.open(canvas).filter(ImageFilter.GaussianBlur(0.4)).save(tmp_path / "soft.png")
    star, _ = regions_of([RED, BLUE], tmp_path / "soft.png")
    assert star.mask[:, :9].min() == 1


def test_a_stray_dot_of_another_colour_belongs_to_nobody(tmp_path: Path, canvas: Path) -> None:
    picture = Image.open(canvas)
    picture.putpixel((20, 10), (0, 255, 0))
    picture.save(tmp_path / "dotted.png")
    for region in regions_of([RED, BLUE], tmp_path / "dotted.png"):
        assert region.mask[10, 20] == 0


def test_transparency_is_ground_and_black_may_be_named(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((0, 0, 3, 7), (0, 0, 0, 255))
    picture.save(tmp_path / "canvas.png")
    (region,) = regions_of(["#000000=a black ring"], tmp_path / "canvas.png")
    assert region.mask[:, :4].min() == 1
    assert region.mask[:, 4:].max() == 0


def test_masks_are_files_beside_a_canvas_or_without_one(canvas: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 20), 128).save(tmp_path / "mask.png")
    for specs, where in (
        ([f"{tmp_path / 'mask.png'}=a ring"], None),
        ([RED, BLUE, f"{tmp_path / 'mask.png'}=x"], canvas),
    ):
        mask = regions_of(specs, where)[-1].mask
        assert_close(mask, torch.full((20, 40), 128 / 255))


@pytest.mark.parametrize("kind", ["grey", "strokes", "deep", "turned"])
def test_a_mask_is_the_same_in_every_depth_and_on_the_server(kind: str, tmp_path: Path) -> None:
    """Greys of 8 and of 16 bits, white strokes on a transparent ground, and a photograph of it taken sideways."""
    levels = np.zeros((20, 40), np.uint8)
    levels[:, :10], levels[:5, 10:20] = 255, 51
    grey, exif = Image.fromarray(levels), Image.Exif()
    exif[0x0112] = 6
    image = {
        "grey": grey,
        "strokes": Image.merge("LA", (Image.new("L", grey.size, 255), grey)),
        "deep": Image.fromarray(levels.astype(np.uint16) * 257),
        "turned": grey.transpose(Image.Transpose.ROTATE_90),
    }[kind]
    image.save(tmp_path / "mask.png", **({"exif": exif} if kind == "turned" else {}))
    (region,) = regions_of([f"{tmp_path / 'mask.png'}=a star"], None)
    torch.testing.assert_close(region.mask, torch.from_numpy(levels) / 255, rtol=0, atol=1e-6)
    sent = RegionMask(phrase="a star", mask=base64.b64encode((tmp_path / "mask.png").read_bytes()).decode())
    (served,) = uploads.regions([sent], [*uploads.files_of({"mask": sent.mask}, Limits()).values()], 0.0)
    torch.testing.assert_close(served.mask, region.mask)


def test_an_empty_mask_names_its_file(tmp_path: Path) -> None:
    Image.new("LA", (4, 4), (255, 0)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png is empty: mark where 'a star' should be, in white"):
        regions_of([f"{tmp_path / 'mask.png'}=a star"], None)


def test_a_transparent_ground_is_nobodys_though_white_is_named(tmp_path: Path) -> None:
    """Edges on it are half transparent, not mixed with a colour."""
    big = Image.new("RGBA", (160, 160), (255, 255, 255, 0))
    ImageDraw.Draw(big).ellipse((20, 20, 140, 140), "red")
    ImageDraw.Draw(big).rectangle((0, 0, 30, 30), "white")
    big.resize((40, 40), Image.Resampling.BOX).save(tmp_path / "canvas.png")
    disc, snow = regions_of(["#ff0000=a red star", "#ffffff=snow"], tmp_path / "canvas.png")
    assert disc.mask.sum() == pytest.approx(3.14 * 15**2, rel=0.03)
    assert snow.mask.sum() == pytest.approx(64, abs=16)
    assert snow.mask[8:].sum() == 0


def test_a_canvas_is_read_upright(canvas: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(canvas).rotate(180).save(tmp_path / "turned.png", exif=exif)
    for one, other in zip(
        regions_of([RED, BLUE], canvas), regions_of([RED, BLUE], tmp_path / "turned.png"), strict=True
    ):
        assert torch.equal(one.mask, other.mask)


def test_borders_may_be_soft(canvas: Path) -> None:
    hard, soft = (regions_of([RED, BLUE], canvas, blur=blur)[0].mask for blur in (0.0, 0.05))
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert 0 < soft[10, 11] < soft[10, 8] < 1


def test_a_weight_is_what_follows_the_last_at() -> None:
    assert parse("#ff0000=a @ sign@0.5") == Spec("#ff0000", "a @ sign", 0.5)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["#ff0000"], "must be COLOUR=PHRASE"),
        (["#ff0000= "], "must be COLOUR=PHRASE"),
        (["=a red star"], "must be COLOUR=PHRASE"),
        (["#ff00=a red star"], "must be #rrggbb"),
        (["#ff0000=a red star@much"], "the weight 'much' after @ is not a number"),
        ([RED], "has the colour #0000ff, which no region names"),
        ([RED, BLUE, "#00ff00=a tree"], "#00ff00 of 'a tree' is nowhere"),
        ([RED, BLUE, "nowhere.png=a tree"], "nowhere.png"),
    ],
)
def test_wrong_regions(canvas: Path, specs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        regions_of(specs, canvas)


def test_colours_and_canvas_come_together(canvas: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no canvas"):
        regions_of([RED], None)
    Image.new("L", (10, 20), 128).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="no region names a colour"):
        regions_of([f"{tmp_path / 'mask.png'}=a ring"], canvas)
    with pytest.raises(UserError, match="one size, got 10 × 20 and 40 × 20"):
        regions_of([RED, BLUE, f"{tmp_path / 'mask.png'}=a ring"], canvas)


def test_a_record_keeps_the_mask() -> None:
    mask = torch.zeros(6, 9)
    mask[2:4, 3:7] = 1
    record = recorded(Region("a star", mask, 0.5))
    picture = Image.open(io.BytesIO(base64.b64decode(record.pop("mask"))))
    assert record == {"phrase": "a star", "weight": 0.5}
    assert [[picture.getpixel((x, y)) // 255 for x in range(9)] for y in range(6)] == mask.long().tolist()


def test_regions_are_drawn_where_they_are_with_their_words() -> None:
    left = torch.zeros(20, 20)
    left[:, :10] = 1
    long = "a small green spotted moon above"
    found = drawn([Region("a red star", left), Region(long, left.flip(1))])
    pixels = to_tensor(found)
    assert found.size == (192, 192)
    for half, colour in ((pixels[..., :96], COLOURS[0]), (pixels[..., 96:], COLOURS[1])):
        paint = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])[:, None, None]
        words = (half - 1).abs().amax(0) < 0.05
        assert words.any()
        near = (half - paint).abs().amax(0) < 0.05
        assert near[:, 8:-8].float().mean() > 0.5
        edges = (words[:4], words[-4:], words[:, :1], words[:, -1:])
        assert not any(edge.any() for edge in edges), "words stay inside"
    assert drawn([]).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"phrase": None}, "needs the phrase"),
        ({"phrase": 1}, "needs the phrase"),
        ({"mask": None}, r"must be a tensor \[height, width\], got NoneType"),
        ({"mask": np.ones((4, 4))}, r"must be a tensor \[height, width\], got ndarray"),
        ({"mask": torch.ones(3, 4, 4)}, r"must be a tensor \[height, width\], got \[3, 4, 4\]"),
        ({"mask": torch.ones(0, 4)}, r"must be a tensor \[height, width\], got \[0, 4\]"),
        ({"mask": torch.tensor(1.0)}, r"must be a tensor \[height, width\], got \[\]"),
        ({"weight": None}, "must be a finite number of at least 0, got None"),
        ({"weight": "1"}, "must be a finite number of at least 0, got '1'"),
        ({"weight": float("nan")}, "must be a finite number of at least 0, got nan"),
    ],
    ids=str,
)
def test_a_region_of_other_types_is_refused(values: dict[str, Any], message: str) -> None:
    region = object.__new__(Region)  # in tests, `Region(…)` checks types before it does so itself
    for name, value in ({"phrase": "a star", "mask": torch.ones(4, 4), "weight": 1.0} | values).items():
        object.__setattr__(region, name, value)
    with pytest.raises(UserError, match=message):
        region.__post_init__()
