"""Pictures as files: what is written is read back; contact sheets hold every picture and its label."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from syzygy.core.errors import UserError
from syzygy.generation.image_files import contact_sheet, font_for, open_picture, place_for, read_record, save_png, slug

RED = Image.new("RGB", (8, 8), "red")
RECORD = {"prompt": "ein Kreis, 圆, ✨", "seed": 2**64 - 1, "guidance_scale": 2.5, "negative_prompt": None}


def test_the_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    save_png(RED, path, RECORD)
    assert read_record(path) == RECORD
    with Image.open(path) as image:
        assert image.info["prompt"] == RECORD["prompt"]
        assert json.loads(image.info["syzygy"]) == RECORD
        assert image.getpixel((3, 3)) == (255, 0, 0)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_what_is_no_picture_of_ours_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    RED.save(tmp_path / "foreign.png")
    for name, message in (("none.png", "No such file"), ("text.png", "cannot be read"), ("foreign.png", "no record")):
        with pytest.raises(UserError, match=message):
            read_record(tmp_path / name)


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_png(RED, tmp_path / "file" / "a.png", RECORD)


def test_only_the_same_picture_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a-1.png"
    for number, name in enumerate(("a-1", "a-1-2", "a-1-3")):
        place = place_for(path, RECORD | {"seed": number})
        assert place == tmp_path / f"{name}.png"
        save_png(RED, place, RECORD | {"seed": number})
    assert place_for(path, RECORD | {"seed": 1}) == tmp_path / "a-1-2.png"
    (tmp_path / "b.png").write_text("not ours")
    assert place_for(tmp_path / "b.png", RECORD) == tmp_path / "b-2.png"


@given(st.text())
def test_a_slug_is_a_short_file_name(text: str) -> None:
    name = slug(text)
    assert 0 < len(name) <= 40
    assert not set(name) & set('/\\:*?"<>|.\0 \n')


def test_slugs_are_cut_at_words() -> None:
    assert slug("A red circle, left of: a BLUE star!") == "a-red-circle-left-of-a-blue-star"
    assert slug("a red circle left of a blue star and a moon") == "a-red-circle-left-of-a-blue-star-and-a"
    assert slug("圆/../圈") == "圆-圈"
    assert slug("…") == "picture"


def test_a_contact_sheet_holds_every_picture_and_label() -> None:
    colours = ("red", "lime", "blue")
    images = [Image.new("RGB", (8, 8), colour) for colour in colours]
    rows, labels = [images[:2], images[2:]], [["one", "two"], ["three"]]
    sheet = contact_sheet(rows, labels, cell=64)
    seen = {sheet.getpixel(xy) for xy in itertools.product(range(sheet.width), range(sheet.height))}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= seen
    counts = {colour: count for count, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert counts[255, 0, 0] == counts[0, 255, 0] == counts[0, 0, 255] == 64 * 64
    without = contact_sheet(rows, [["one", ""], ["three"]], cell=64)
    changed = [
        (x, y)
        for x, y in itertools.product(range(sheet.width), range(sheet.height))
        if sheet.getpixel((x, y)) != without.getpixel((x, y))
    ]
    assert changed, "the label is written"
    assert all(x > sheet.width / 2 and 64 < y < sheet.height / 2 for x, y in changed), "below its own picture"


def test_labels_stay_in_their_cell() -> None:
    row = [Image.new("RGB", (8, 8), "white")] * 2
    for label in ("word " * 60, "w" * 200):
        sheet = contact_sheet([row], [[label, ""]], cell=64).convert("L").point(lambda value: 255 - value)
        left, top, right, bottom = sheet.getbbox()
        assert left >= 8
        assert top >= 8 + 64
        assert right <= 8 + 64
        assert bottom <= sheet.height


def test_pictures_of_any_shape_fit_their_cell() -> None:
    wide = Image.new("RGB", (30, 10), "red")
    sheet = contact_sheet([[wide]], [[""]], cell=60)
    counts = {colour: count for count, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert counts[255, 0, 0] == 60 * 20


@pytest.mark.parametrize("note", ["sideways", "unreadable", "none"])
def test_a_photograph_is_opened_upright(note: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned
    written = {"sideways": exif.tobytes(), "unreadable": b"Exif\0\0not a table", "none": b""}[note]
    image.save(tmp_path / "a.png", exif=written)
    assert open_picture(tmp_path / "a.png").size == ((2, 4) if note == "sideways" else (4, 2))


def test_labels_of_other_scripts_take_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, wide = ImageFont.load_default(14), ImageFont.load_default(30)
    boxes = bytes(plain.getmask("\U0010fffe"))
    assert bytes(font_for("a red star", 14).getmask("a")) == bytes(plain.getmask("a"))
    monkeypatch.setattr("syzygy.generation.image_files._font", lambda name, size: {"": plain, "wide": wide}.get(name))
    monkeypatch.setattr(
        "syzygy.generation.image_files._has", lambda name, size, character: character.isascii() or name == "wide"
    )
    for fonts, text, expected in (
        (("none", "wide"), "a ring", plain),
        (("none", "wide"), "жёлтое кольцо", wide),
        (("none",), "жёлтое кольцо", plain),
    ):
        monkeypatch.setattr("syzygy.generation.image_files.FONTS", fonts)
        assert font_for(text, 14) is expected
    assert bytes(plain.getmask("ж")) == boxes, "Pillow's own font has no Cyrillic: the reason for all this"


@pytest.mark.parametrize("text", ["ein Stern über einem Kreis", "жёлтое кольцо"])
def test_letters_are_no_boxes(text: str) -> None:
    font = font_for(text, 14)
    if "DejaVu" not in str(font.getname()):  # type: ignore[union-attr]
        pytest.skip("no DejaVu Sans here")
    for character in set(text) - {" "}:
        assert bytes(font.getmask(character)) != bytes(font.getmask("\U0010fffe"))
