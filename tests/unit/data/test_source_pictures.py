"""Folders of pictures without captions: what is read, what is skipped and why, what is refused."""

from pathlib import Path

import pytest
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.data.pair import RawPair
from syzygy.data.prefetch import Prepared, prepared
from syzygy.data.source_pictures import picture_folder


def turned(path: Path) -> None:
    """A picture of 30 × 20 pixels that stands upright as 20 × 30."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), "red").save(path, exif=exif)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    turned(tmp_path / "b.jpg")
    Image.new("RGBA", (8, 9)).save(tmp_path / "a.PNG")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.PNG").read_bytes()[:40])
    (tmp_path / "phone.heic").write_bytes(b"0000ftypheic")
    (tmp_path / "a.txt").write_text("a caption, which is not read")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "masks").mkdir()
    Image.new("L", (8, 9)).save(tmp_path / "masks" / "a.png")
    return tmp_path


def test_pictures_are_read_by_name_with_their_upright_sizes(folder: Path) -> None:
    found = picture_folder(folder)
    assert found.sizes == {"a.PNG": (8, 9), "b.jpg": (20, 30)}
    samples = list(found.shard.read())
    assert samples == [RawPair(name, ("",), picture=folder / name) for name in ("a.PNG", "b.jpg")]
    assert (found.shard.samples, found.shard.size) == (2, sum((folder / n).stat().st_size for n in ("a.PNG", "b.jpg")))
    read = list(prepared(found.shard.read(), lambda image: image.size, 1, 1))
    assert [one.image for one in read if isinstance(one, Prepared)] == [(8, 9), (20, 30)]


def test_skipped_pictures_are_named_with_the_reason(folder: Path) -> None:
    (note,) = picture_folder(folder).notes()
    assert note.startswith("2 of 4 pictures skipped: broken.png: ")
    assert "phone.heic: the picture cannot be read: its format is not known" in note
    (folder / "broken.png").unlink()
    (folder / "phone.heic").unlink()
    assert list(picture_folder(folder).notes()) == []


def test_the_fingerprint_follows_names_and_contents(folder: Path) -> None:
    before = picture_folder(folder).shard.fingerprint
    (folder / "a.txt").unlink()
    assert picture_folder(folder).shard.fingerprint == before
    Image.new("RGBA", (8, 9), "blue").save(folder / "a.PNG")
    changed = picture_folder(folder).shard.fingerprint
    (folder / "a.PNG").rename(folder / "c.PNG")
    assert len({before, changed, picture_folder(folder).shard.fingerprint}) == 3


def test_wrong_folders(folder: Path) -> None:
    empty = folder / "empty"
    empty.mkdir()
    nested = folder / "nested"
    nested.mkdir()
    (folder / "masks").rename(nested / "masks")
    bad = folder / "bad"
    bad.mkdir()
    for number in range(7):
        (bad / f"{number}.png").write_bytes(b"no picture")
    for place, message in (
        (folder / "none", r"there is no folder .*none: name the folder that holds the pictures\."),
        (folder / "b.jpg", r"b\.jpg is a file: name the folder"),
        (empty, r"empty holds no pictures \(\.jpg, .*\)\.$"),
        (nested, r"Pictures lie in folders inside: masks\. Name one of them\."),
        (bad, r"no picture in .*bad can be read; 7 skipped: 0\.png: .*format is not known.*; 1\.png: .* and 2 more\."),
    ):
        with pytest.raises(UserError, match=message) as error:
            picture_folder(place)
        assert "\n" not in str(error.value)
