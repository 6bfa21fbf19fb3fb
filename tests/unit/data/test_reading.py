"""The one reader: every mode, depth, orientation and transparency of a picture becomes the same upright RGB."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from syzygy.core import image_reading
from syzygy.core.errors import UserError
from syzygy.core.image_reading import FORMATS, SUFFIXES, as_layers, as_mask, as_rgb, loaded, open_file
from syzygy.generation.image_files import open_picture, to_tensor

SMALL = np.array([[0, 60, 120], [180, 240, 255]], np.uint8)
"""Grey levels from black to white, different in every corner."""


def saved(image: Image.Image, kind: str, **more: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **more)
    return data.getvalue()


def reds(image: Image.Image) -> list[list[int]]:
    assert image.mode == "RGB"
    return np.array(image)[..., 0].tolist()


def oriented(image: Image.Image, number: int) -> Image.Image:
    """As a camera saves it that writes this orientation for the upright `image`."""
    undone = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")
    return image if number == 1 else image.transpose(Image.Transpose[undone[number - 2]])


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_is_read(mode: str) -> None:
    """White on the left, black on the right."""
    image = Image.new("RGB", (4, 2), "white")
    image.paste("black", (2, 0, 4, 2))
    middle = image.convert("RGBA" if mode == "RGBa" else "LA" if mode == "La" else image.mode)
    found = as_rgb(middle if mode == middle.mode else middle.convert(mode))
    assert reds(found) == [[255, 255, 0, 0]] * 2


def test_lab_is_read() -> None:
    red = Image.new("RGB", (2, 2), "red")
    lab = ImageCms.applyTransform(
        red, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    )
    assert lab is not None
    assert np.abs(np.array(as_rgb(lab), int) - np.array(red, int)).max() < 8


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_sixteen_bits_are_scaled(mode: str) -> None:
    image = Image.new(mode, (3, 1))
    for x, value in enumerate((0, 32896, 65535)):
        image.putpixel((x, 0), value)
    assert reds(as_rgb(image)) == [[0, 128, 255]]
    assert as_mask(image).tolist() == [[0, pytest.approx(128 / 255), 1]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_a_file_are_scaled(kind: str, tmp_path: Path) -> None:
    Image.fromarray(SMALL.astype(np.uint16) * 257).save(tmp_path / "deep", kind)
    assert reds(open_picture(tmp_path / "deep")) == SMALL.tolist()


@pytest.mark.parametrize(("tag", "was", "now", "expected"), [(258, 16, 12, 255), (262, 1, 0, 239)])
def test_twelve_bits_and_inverted_ones(tag: int, was: int, now: int, expected: int) -> None:
    """TIFFs of 12 bits are white at 4,095; photometric interpretation 0 is white at 0. Pillow writes neither: the tag is changed."""
    image = loaded(saved(Image.fromarray(np.full((1, 1), 4095, np.uint16)), "TIFF"), "a")
    assert image.tag_v2[tag] in (was, (was,))  # type: ignore[attr-defined]
    image.tag_v2[tag] = (now,) if tag == 258 else now  # type: ignore[attr-defined]
    assert reds(as_rgb(image)) == [[expected]]


def test_a_grey_level_of_sixteen_bits_may_be_transparent() -> None:
    image = loaded(saved(Image.fromarray(np.array([[700, 20000]], np.uint16)), "PNG", transparency=700), "a")
    assert reds(as_rgb(image)) == [[255, 78]]
    assert as_mask(image)[0, 0] == 0


@pytest.mark.parametrize("size", [(600, 520), (37, 5), (512, 512)])
def test_a_mask_can_be_read_smaller(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 80).convert("RGBA")
    image.putalpha(Image.effect_noise(size, 80))
    whole, small = as_mask(image), as_mask(image, block=8)
    assert small.shape == (-(-size[1] // 8), -(-size[0] // 8))
    for row, column in ((0, 0), (small.shape[0] - 1, small.shape[1] - 1)):
        block = whole[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert small[row, column].item() == pytest.approx(block.mean().item(), abs=1e-6)


def test_a_colour_of_sixteen_bits_may_be_transparent() -> None:
    """Pillow keeps the key of a 16-bit RGB PNG with 16 bits, and its pixels with 8."""
    image = Image.new("RGB", (2, 1), (0x12, 0x34, 0x56))
    image.putpixel((1, 0), (1, 2, 3))
    image.info["transparency"] = (0x12AB, 0x34CD, 0x56EF)
    assert reds(as_rgb(image)) == [[255, 1]]
    assert image.info["transparency"] == (0x12AB, 0x34CD, 0x56EF)


def test_floating_point_runs_from_0_to_1() -> None:
    assert reds(as_rgb(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))) == [[0, 128, 255]]
    for values, says in (([0, 255], "0 to 255"), ([-0.1, 1], "-0.1 to 1"), ([float("nan"), 1], "nan")):
        with pytest.raises(UserError, match=rf"floating-point numbers from .*{says}.*; allowed are 0 \(black\) to 1"):
            as_rgb(Image.fromarray(np.array([values], np.float32)))


def test_integers_without_a_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"it holds 32-bit integers.*Save it with 8 or 16 bits"):
        as_rgb(Image.new("I", (2, 2), 300), "it")


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "Pillow"])
def test_every_orientation_is_applied_once(kind: str, number: int) -> None:
    upright = Image.fromarray(SMALL).resize((24, 16), Image.Resampling.NEAREST).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = number
    turned = oriented(upright, number)
    if kind == "Pillow":
        turned.info["exif"] = exif.tobytes()
        image = turned
    else:
        best = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
        image = loaded(saved(turned, kind, exif=exif, **best.get(kind, {})), "a")
    found = as_rgb(image)
    assert found.size == (24, 16)
    assert np.abs(np.array(found, int) - np.array(upright, int)).max() < 12
    assert as_rgb(found) is found, "nothing turns it again"
    assert as_mask(image).shape == (16, 24)


def test_orientation_that_cannot_be_read_is_ignored() -> None:
    image = Image.new("RGB", (4, 2), "red")
    image.info["exif"] = b"Exif\0\0not a table"
    assert as_rgb(image).size == (4, 2)


def test_transparency_is_white_in_pictures_and_elsewhere_in_masks() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, colour in enumerate([(255, 255, 255, 255), (255, 255, 255, 0), (0, 0, 0, 255)]):
        image.putpixel((x, 0), colour)
    assert reds(as_rgb(image)) == [[255, 255, 0]]
    assert as_mask(image).tolist() == [[1, 0, 0]]
    colours, opacity = as_layers(image)
    assert (reds(colours), opacity.tolist()) == ([[255, 255, 0]], [[1, 0, 1]])
    assert as_layers(colours)[1].tolist() == [[1, 1, 1]]


def test_a_palette_may_be_transparent() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 10, 10, 200, 200, 200])
    image.putpixel((1, 0), 1)
    read = loaded(saved(image, "PNG", transparency=b"\x00\xff"), "a")
    assert reds(as_rgb(read)) == [[255, 200]]
    assert as_mask(read).tolist() == [[0, pytest.approx(200 / 255)]]


def test_the_given_image_stays_as_it_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = loaded(saved(Image.new("RGBA", (4, 2), (9, 9, 9, 9)), "PNG", exif=exif), "a")
    before = image.tobytes(), dict(image.info), image.size
    as_rgb(image), as_mask(image), as_layers(image)
    assert (image.tobytes(), dict(image.info), image.size) == before


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_from_a_file(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), "red").save(tmp_path / "a", kind)
    assert to_tensor(open_picture(tmp_path / "a")).mean((1, 2)).tolist() == pytest.approx([1, 0, 0], abs=0.02)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (2, 2), level) for level in (10, 200)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:])
        assert abs(reds(open_picture(tmp_path / "a"))[0][0] - 10) < 4


@pytest.mark.parametrize("kind", ["PPM", "EPS", "JPEG2000", "ICO"])
def test_other_formats_are_refused_with_the_way_to_convert(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.heic", kind)
    with pytest.raises(
        UserError, match=r"x\.heic cannot be read.*allowed are JPEG.*Convert it first.*magick .*x\.heic .*x\.png"
    ):
        open_picture(tmp_path / "x.heic")


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.png", "there is no file"), (".", "is a folder, not a picture"), ("text.png", "may be damaged, or not a picture"),
     ("a\0b.png", "cannot be read as a picture"), ("n" * 300, "cannot be read as a picture")],
)  # fmt: skip
def test_what_is_no_picture_file_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UserError, match=message):
        open_file(tmp_path / name)


def test_files_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (16, 8)).save(tmp_path / "a.bmp")
    monkeypatch.setattr(image_reading, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="bytes; at most 100 are read"):
        open_file(tmp_path / "a.bmp")


def test_a_broken_pillow_image_is_refused(tmp_path: Path) -> None:
    """One that is opened lazily, so that its file is decoded here."""
    (tmp_path / "a.png").write_bytes(saved(Image.effect_noise((64, 64), 90), "PNG")[:500])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(UserError, match="the style cannot be read"):
        as_rgb(image, "the style")


def test_names_of_readable_files_are_not_those_of_others() -> None:
    assert not set(SUFFIXES) & set(image_reading.FOREIGN_SUFFIXES)
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in SUFFIXES if suffix in Image.EXTENSION} == set(FORMATS)
    assert {suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS} <= set(SUFFIXES)


def test_masks_keep_grey_levels_bit_by_bit() -> None:
    assert torch.equal(as_mask(Image.fromarray(SMALL)), torch.from_numpy(SMALL) / 255)
