"""How the arguments of `syzygy mix` are read."""

from pathlib import Path

import pytest
from PIL import Image

from syzygy.cli.source_arguments import source, weights
from syzygy.core.errors import UserError


@pytest.mark.parametrize(
    ("argument", "text", "weight"),
    [
        ("a red circle", "a red circle", None),
        ("a red circle@0.6", "a red circle", 0.6),
        ("a red circle@.5", "a red circle", 0.5),
        ("a red circle@1", "a red circle", 1.0),
        ("a circle @ noon", "a circle @ noon", None),
        ("a@circle.org", "a@circle.org", None),
        ("a circle @5@1", "a circle @5", 1.0),
        ("a circle@", "a circle@", None),
        ("a circle @nan", "a circle ", float("nan")),
        ("a circle @nanny", "a circle @nanny", None),
    ],
)
def test_an_at_sign_may_be_part_of_a_text(argument: str, text: str, weight: float | None) -> None:
    found = source(argument)
    assert (found.text, found.file, found.image) == (text, None, None)
    assert found.weight == pytest.approx(weight, nan_ok=True)
    assert found.about == {"text": text}
    assert found.source == text


@pytest.mark.parametrize("name", ["a.png", "b@2.png", "c@0.5", "no suffix"])
@pytest.mark.parametrize(("end", "weight"), [("", None), ("@0.25", 0.25)])
def test_what_names_a_file_is_a_picture(name: str, end: str, weight: float | None, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.new("RGB", (3, 2), "red").save(path, "PNG")
    found = source(f"{path}{end}")
    assert (found.text, found.file, found.weight) == (None, path, weight)
    assert found.image is not None
    assert found.image.size == (3, 2)
    assert found.source is found.image
    digest = found.about["sha256"]
    Image.new("RGB", (3, 2), "blue").save(path, "PNG")
    assert source(str(path)).about == {"picture": str(path), "sha256": source(str(path)).about["sha256"]}
    assert source(str(path)).about["sha256"] != digest


def test_weights_are_all_given_or_none() -> None:
    assert weights([source("a"), source("b")]) == [1.0, 1.0]
    assert weights([source("a@0.2"), source("b@0")]) == [0.2, 0.0]
    with pytest.raises(UserError, match="'b' has no weight, others have"):
        weights([source("a@0.2"), source("b")])
    with pytest.raises(UserError, match=r"'60%' after 'a' is not a weight.*add the weight after it: a@60%@1"):
        source("a@60%")


def test_a_contact_sheet_shows_texts_as_cards(tmp_path: Path) -> None:
    image, label = source("a red circle@0.6").cell("60 %")
    assert label == "60 %"
    assert len(set(image.convert("L").tobytes())) > 10  # words stand on it
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    assert source(str(tmp_path / "a.png")).cell("40 %")[1] == "a.png · 40 %"


@pytest.mark.parametrize("argument", ["photo.heic", "photo.heic@0.4", "photos/cat.xyz", "a b.svg@0.4"])
def test_an_absent_picture_is_no_text(argument: str) -> None:
    with pytest.raises(UserError, match=r"there is no file (photo\.heic|photos/cat\.xyz|a b\.svg)\. Check the path"):
        source(argument)


def test_a_picture_of_another_format_says_how_to_convert_it(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.psd", "PPM")
    with pytest.raises(
        UserError, match=r"allowed are JPEG.*AVIF\. Convert it first, for example.*magick .*a\.psd .*a\.png"
    ):
        source(f"{tmp_path / 'a.psd'}@0.4")
