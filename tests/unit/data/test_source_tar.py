"""img2dataset's tars, whole and damaged."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syzygy.core.errors import UserError
from syzygy.data import source_tar
from syzygy.data.pair import Bad, RawPair, Skipped, Unused
from syzygy.data.source_tar import TarShard


def samples(path: Path, **options: Any) -> list[Any]:
    return list(TarShard(path, path.name, path.stat().st_size, "", **options).read())


@pytest.fixture
def tar(tmp_path: Path, write_tar: Callable[..., Path]) -> Callable[..., Path]:
    return lambda *found: write_tar(tmp_path / "a.tar", list(found))


def test_members_of_a_key_are_a_pair(tar: Callable[..., Path]) -> None:
    path = tar(
        ("00/1", {"jpg": b"A", "txt": b" a cat\n", "json": json.dumps({"caption": "no", "score": 0.5}).encode()}),
        ("01/1", {"JPEG": b"B", "json": b'{"caption": "a dog"}'}),
        ("2", {"webp": b"C", "json": b'{"captions": ["x", "y"]}', "cls": b"7"}),
        ("3.old", {"png": b"D", "txt": b"seen"}),
        (".4", {"png": b"E", "txt": b"hidden"}),
        ("5", {"cls": b"7"}),
    )
    *found, unknown, hidden = samples(path)
    assert [(pair.key, pair.picture, pair.captions) for pair in found] == [
        ("00/1", b"A", ("a cat",)),
        ("01/1", b"B", ("a dog",)),
        ("2", b"C", ("x", "y")),
        ("3.old", b"D", ("seen",)),
    ]
    assert unknown == Unused("2.cls", "its ending .cls is neither a picture's nor a caption's", 2)
    assert hidden == Unused(".4.png", "its name has no ending, or begins with a dot", 2)
    assert found[0].columns == {"score": 0.5}


def test_metadata_become_columns(tar: Callable[..., Path]) -> None:
    metadata = {
        "caption": "c",
        "n": 3,
        "ok": True,
        "url": "u",
        "none": None,
        "list": [1],
        "huge": 10**400,
        "nan": float("nan"),
        "width": 9,
    }
    path = tar(("1", {"jpg": b"A", "json": json.dumps(metadata).encode()}))
    columns = samples(path, keep=("url", "n"))[0].columns
    assert {name: value for name, value in columns.items() if name != "nan"} == {
        "n": "3",
        "ok": True,
        "url": "u",
        "width": 9.0,
    }


def test_named_fields_hold_the_captions(tar: Callable[..., Path]) -> None:
    metadata = {"long": "a long one", "short": ["s", "t"], "caption": "no"}
    path = tar(("1", {"jpg": b"A", "txt": b"no", "json": json.dumps(metadata).encode()}))
    pair = samples(path, caption_fields=("long", "short"))[0]
    assert pair.captions == ("a long one", "s", "t")
    assert pair.columns == {}


def test_failed_downloads_are_no_faults(tar: Callable[..., Path]) -> None:
    failed = json.dumps({"status": "failed_to_download", "caption": "c"}).encode()
    success = json.dumps({"status": "success", "caption": "c"}).encode()
    path = tar(("1", {"json": failed}), ("2", {"json": success}), ("3", {"jpg": b"A", "json": success}))
    found = samples(path)
    assert [type(sample) for sample in found] == [Skipped, Bad, RawPair]


def test_members_that_are_strewn_about(tar: Callable[..., Path]) -> None:
    path = tar(("1", {"jpg": b"A"}), ("2", {"jpg": b"B"}), ("1", {"txt": b"a"}), ("2", {"txt": b"b"}))
    found = samples(path)
    assert [sample.key for sample in found] == ["1", "2", "1", "2"]
    assert "--sort=name" in found[2].reason


def test_large_members_are_not_read(tar: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_tar, "MAX_BYTES", 10)
    monkeypatch.setattr(source_tar, "MAX_TEXT_BYTES", 5)
    path = tar(
        ("1", {"jpg": b"A" * 11, "txt": b"a"}),
        ("2", {"jpg": b"A", "txt": b"abcdef"}),
        ("3", {"jpg": b"A", "txt": b"a"}),
    )
    found = samples(path)
    assert [type(sample) for sample in found] == [Bad, Bad, RawPair]
    assert "has 11 bytes" in found[0].reason
    assert "has 6 bytes" in found[1].reason


def test_only_ordinary_members_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        text = tarfile.TarInfo("1.txt")
        text.size = 1
        tar.addfile(text, io.BytesIO(b"a"))
    assert samples(tmp_path / "a.tar") == [
        Bad("1", "the caption has no picture"),
        Unused("1.jpg", "it is a symbolic link: write the tar with --dereference", 1),
    ]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for ending in ("jpg", "txt"):
            info = tarfile.TarInfo(b"\xff".decode(errors="surrogateescape") + "." + ending)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"a"))
    assert [sample.key for sample in samples(tmp_path / "a.tar")] == ["\\udcff"]


def test_wherever_a_tar_is_cut_the_pairs_before_survive(tmp_path: Path, tar: Callable[..., Path]) -> None:
    path = tar(*((f"{i}", {"jpg": bytes([i]) * 700, "txt": b"a" * (i + 1)}) for i in range(4)))
    whole = path.read_bytes()
    pairs = samples(path)
    assert len(pairs) == 4
    pair_bytes = (512 + 1024) + (512 + 512)
    for size in range(1, 4 * pair_bytes + 512, 100):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole[:size])
        *before, last = samples(cut)
        assert isinstance(last, Bad)
        assert "truncated or damaged" in last.reason
        assert before == pairs[: len(before)]
        assert len(before) >= size // pair_bytes, size


def test_a_tar_with_a_hole_says_so(tar: Callable[..., Path]) -> None:
    path = tar(*((f"{i}", {"jpg": b"A", "txt": b"a"}) for i in range(4)))
    data = bytearray(path.read_bytes())
    data[2 * 2048 : 2 * 2048 + 512] = b"\x17" * 512  # the header of the third pair
    path.write_bytes(data)
    *before, last = samples(path)
    assert [sample.key for sample in before] == ["0", "1"]
    assert last == Bad("(the file)", "the tar is truncated or damaged: it has no end mark")


@pytest.mark.parametrize("content", [b"", b"no tar", b"\x17" * 2000])
def test_what_is_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    (found,) = samples(tmp_path / "a.tar")
    assert found.key == "(the file)"


def test_a_tar_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.tar cannot be read: No such file"):
        list(TarShard(tmp_path / "gone.tar", "gone.tar", 1, "").read())


def test_dots_in_names(tar: Callable[..., Path]) -> None:
    """webdataset splits names at their first dot, open_clip at their last: a tar is read in the way that gives more pairs."""
    plain = [("a", {"jpg": b"A", "txt": b"a"})]
    versions = [(f"j.{i}", {"jpg": b"%d" % i, "txt": b"%d" % i}) for i in range(3)]
    path = tar(*plain, *versions)
    assert [(p.key, p.picture, p.captions) for p in samples(path)] == [
        ("a", b"A", ("a",)), *((f"j.{i}", b"%d" % i, (f"{i}",)) for i in range(3))
    ]  # fmt: skip
    assert [p.taken for p in samples(path)] == [(".txt",), *[(".txt (names split at their last dot)",)] * 3]
    path = tar(("s0", {"input.jpg": b"A", "output.txt": b"a"}), ("s1", {"input.jpg": b"B", "output.txt": b"b"}))
    assert [(p.key, p.picture, p.captions) for p in samples(path)] == [("s0", b"A", ("a",)), ("s1", b"B", ("b",))]
    assert samples(path)[0].taken == (".output.txt (names split at their first dot)",)


def test_further_members_of_a_sample_are_counted(tar: Callable[..., Path]) -> None:
    path = tar(*((f"{i}", {"jpg": b"A", "seg.png": b"B", "txt": b"a", "cls": b"1"}) for i in range(3)))
    *pairs, unknown, further = samples(path)
    assert [(p.key, p.picture) for p in pairs] == [(f"{i}", b"A") for i in range(3)]
    assert unknown == Unused("0.cls", "its ending .cls is neither a picture's nor a caption's", 3)
    assert further == Unused("0.seg.png", "another member of its sample is used instead of .seg.png", 3)


def test_many_pictures_of_one_name_do_not_lie_in_memory(tar: Callable[..., Path]) -> None:
    """Up to their first dot they are one sample."""
    path = tar(*((f"frame.{i:04}", {"jpg": b"A"}) for i in range(100)), ("s", {"input.jpg": b"A", "output.txt": b"a"}))
    found = samples(path)
    assert found[:100] == [Bad(f"frame.{i:04}", "the caption is missing") for i in range(100)]


def test_every_format_that_is_read_has_its_endings(tar: Callable[..., Path]) -> None:
    endings = ("gif", "bmp", "tif", "TIFF", "avif", "jfif", "jpe")
    found = samples(tar(*((f"{i}", {ending: b"A", "txt": b"a"}) for i, ending in enumerate(endings))))
    assert [type(sample) for sample in found] == [RawPair] * len(endings)


def test_hard_links_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("1.jpg", b"A"), ("1.txt", b"a"), ("2.txt", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "1.jpg"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    first, second, unused = samples(tmp_path / "a.tar")
    assert isinstance(first, RawPair)
    assert second == Bad("2", "the caption has no picture")
    assert unused == Unused("2.jpg", "it is a hard link to another member: write the tar with --hard-dereference", 1)


def test_members_of_a_sample_that_are_not_used_are_named_in_their_order(tar: Callable[..., Path]) -> None:
    others = [f"view{i}.jpg" for i in range(20)]
    path = tar(("1", {"jpg": b"A", "txt": b"a cat", **dict.fromkeys(others, b"B")}))
    _, *unused = samples(path)  # the order of a set of texts would differ from process to process
    assert [one.key for one in unused] == [f"1.{ending}" for ending in others]


def test_a_member_that_comes_twice_is_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, content in (("1.jpg", b"old"), ("1.JPG", b"new"), ("1.txt", b"a cat")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    pair, twice = samples(tmp_path / "a.tar")
    assert pair.picture == b"new"
    assert twice == Unused("1.jpg", "a later member has the same name, and is used instead", 1)
