"""Folders that people have: each is read, or an error says what it is and what to do."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syzygy.core.errors import UserError
from syzygy.data import source_captions, source_folder
from syzygy.data.pair import Bad, RawPair, Unused
from syzygy.data.sources import Source, SourceOptions, open_source


def opened(path: Path | str, **options: Any) -> Source:
    return open_source(str(path), SourceOptions(**options))


def samples(path: Path, **options: Any) -> list[Any]:
    return [sample for shard in opened(path, **options).shards for sample in shard.read()]


def filled(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_pictures_with_caption_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_captions, "ROWS", 2)
    filled(
        tmp_path,
        {
            "10_cat/b.PNG": b"B",
            "10_cat/b.txt": "\ufeffa cat, sitting\n",
            "10_cat/a.5.jpg": b"A",
            "10_cat/a.5.caption": "a dog",
            "c.webp": b"C",
            "d.gif": b"D",
            "d.txt": "",
            "d.caption": "not taken",
            "E.JPG": b"E",
            "E.TXT": "a bird",
            "E.Caption": "not taken",
            "readme.txt": "hello",
            ".hidden/e.png": b"E",
            ".hidden/e.txt": "no",
            "notes.md": "",
        },
    )
    source = opened(tmp_path)
    assert source.kind == "caption files"
    assert [(shard.name, shard.samples) for shard in source.shards] == [
        ("caption files 00000", 2),
        ("caption files 00001", 2),
        ("caption files 00002", 1),
    ]
    found = [sample for shard in source.shards for sample in shard.read()]
    assert [(p.key, p.captions, p.picture, p.taken) for p in found[:2]] == [
        ("10_cat/a.5.jpg", ("a dog",), tmp_path / "10_cat" / "a.5.jpg", (".caption",)),
        ("10_cat/b.PNG", ("a cat, sitting",), tmp_path / "10_cat" / "b.PNG", (".txt",)),
    ]
    assert (found[2].key, found[2].captions, found[2].taken) == ("E.JPG", ("a bird",), (".txt",))
    assert found[3:5] == [
        Bad("c.webp", "there is no caption file of its name (.txt or .caption)"),
        Bad("d.gif", "the caption is empty"),
    ]
    reason = "no picture has the name of this caption file, or another caption file is used"
    assert found[5:] == [Unused("E.Caption", reason, 3)]
    for options in ({"caption_columns": ("a",)}, {"keep": ("a",)}):
        with pytest.raises(UserError, match=r"is for metadata, but here each picture has a caption file"):
            opened(tmp_path, **options)


def test_a_caption_file_in_utf16_is_bad_by_name(tmp_path: Path) -> None:
    filled(tmp_path, {"a.png": b"A", "a.txt": "a cat".encode("utf-16"), "b.png": b"B", "b.txt": "a dog"})
    first, second = samples(tmp_path)
    assert first == Bad("a.png", "its caption file is in UTF-16: save it as UTF-8")
    assert isinstance(second, RawPair)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_captions(tmp_path: Path, delimiter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_folder, "ROWS", 2)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows(
        [
            ["file_name", "Text", "score", "site"],
            ["a.png", "a cat,\non two lines; with\ttab", "0.5", "x"],
            ["sub/b.png", "ä", "", "y"],
            ["c.png", "5", "7", "8"],
            ["d.png", "cells"],
            ["e.png", "", "1", "z"],
        ]
    )
    filled(tmp_path, {"metadata.csv": "\ufeff" + text.getvalue()})
    source = opened(tmp_path, keep=("site",))
    assert [(shard.name, shard.samples) for shard in source.shards] == [
        ("metadata.csv 00000", 2),
        ("metadata.csv 00001", 2),
        ("metadata.csv 00002", 1),
    ]
    found = [sample for shard in source.shards for sample in shard.read()]
    assert [(p.key, p.captions, p.columns, p.taken) for p in found[:3]] == [
        ("a.png", ("a cat,\non two lines; with\ttab",), {"score": 0.5, "site": "x"}, ("Text",)),
        ("sub/b.png", ("ä",), {"site": "y"}, ("Text",)),
        ("c.png", ("5",), {"score": 7.0, "site": "8"}, ("Text",)),
    ]
    assert found[3] == Bad("line 5", "it has 2 cells, and the header 4")
    assert found[4].reason.startswith("the caption is missing")


CONVERSATIONS = [{"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "What is it?"}]}]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"metadata.jsonl": '{"file_name": "a", "text": "b"}'.encode("utf-16")},
            r"is in UTF-16\. Save it as UTF-8: iconv",
        ),
        ({"metadata.csv": "file_name,text\n".encode("utf-16")}, r"is in UTF-16\. Save it as UTF-8: iconv"),
        (
            {"metadata.jsonl": json.dumps([{"file_name": "a"}])},
            r"holds one JSON array\. Write one JSON object on each line: jq",
        ),
        ({"metadata.jsonl": json.dumps(CONVERSATIONS)}, r"one JSON array of conversations\. They are for .*LLaVA"),
        ({"metadata.jsonl": lines(*CONVERSATIONS)}, r"holds conversations\. They are for .*LLaVA"),
        ({"chat.json": json.dumps(CONVERSATIONS), "a.jpg": b""}, r"chat\.json holds conversations\. .*LLaVA"),
        (
            {"list.json": "[{}]"},
            r"list\.json is a JSON array\. Write one object on each line: jq -c '\.\[\]' list\.json > metadata",
        ),
        ({"captions.jsonl": "{}"}, r"captions\.jsonl is not read: .* is called metadata\.jsonl"),
        (
            {"metadata.jsonl": lines({"images": ["a", "b"], "text": "t"})},
            r"'images' is a list\. A pair has one picture",
        ),
        ({"metadata.jsonl": lines({"image": "a", "text": "t"})}, r"no column file_name\. It has: image, text\. Rename"),
        (
            {"metadata.csv": "image,text\na,b\n"},
            r"no column file_name in its first line\. It has: image, text\. Rename",
        ),
        ({"metadata.csv": "file_name,text\ra,b\r"}, r"end with carriage returns alone.* tr .* < metadata\.csv"),
        ({"metadata.csv": "file_name,te\rxt\na,b\n"}, r"the first line of .* cannot be read as CSV"),
        ({"metadata.csv": f"file_name,{'x' * 200_000}\n"}, r"the first line of .* cannot be read as CSV: field larger"),
        (
            {"metadata.csv": 'file_name,text\na,b\nc,"d\ne,f\n'},
            r"a quotation mark in row 3 opens a cell that is never closed",
        ),
        ({"metadata.csv": 'file_name,text\nc,a "d" "e\nf,"g""'}, r"a quotation mark in row 3 opens a cell"),
        (
            {"metadata.jsonl": lines({"file_name": "a", "url": "u", "alt": "b", "n": 1})},
            r"no column called caption or text\. Name .* with --caption-column\. Its columns with text: url, alt\.",
        ),
        (
            {"train/metadata.jsonl": "", "test/metadata.csv": "file_name"},
            r"but folders in it do: test, train\. Name one of",
        ),
        (
            {"train/a.png": b"", "train/a.txt": "a", "val/b.png": b"", "val/b.txt": "b"},
            r"in it do: train, val\. Name one",
        ),
        ({"data/train/metadata.jsonl": ""}, r"There are pairs in .*data.train: name that"),
        ({"a.png": b"", "b.png": b""}, r"It has pictures \(a\.png, b\.png\) without captions: give each a text file"),
        ({"0.tar.gz": b""}, r"Its tars are compressed: unpack them"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(filled(tmp_path, files))


def test_a_column_that_no_row_has(tmp_path: Path) -> None:
    filled(tmp_path, {"metadata.jsonl": lines({"file_name": "a", "text": "t"})})
    with pytest.raises(UserError, match=r"no column 'alt' \(--caption-column\)\. Its columns with text: text\."):
        opened(tmp_path, caption_columns=("alt",))


@pytest.mark.parametrize("text", ["https://x.org/a.tar", "s3://bucket/{0..3}.tar", "hf://datasets/a/b"])
def test_addresses_are_named_as_they_were_written(text: str) -> None:
    with pytest.raises(UserError) as error:
        opened(text)
    assert str(error.value).startswith(f"{text} is an address, and a source must be on this machine: download it first")


def test_compressed_tars_are_named(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    plain = write_tar(tmp_path / "in" / "UP.TAR", [("a", {"png": b"A", "txt": b"a"})])
    assert [sample.key for sample in samples(plain)] == ["a"]
    assert [shard.name for shard in opened(plain.parent).shards] == ["UP.TAR"]
    (tmp_path / "z.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(UserError, match=r"z\.tar is compressed with gzip.* gunzip < z\.tar > unpacked\.tar"):
        opened(tmp_path / "z.tar")
    (tmp_path / "z.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"z\.tar\.gz is a compressed tar"):
        opened(tmp_path / "z.tar.gz")
    with pytest.raises(UserError, match=r"lists the pictures of a folder\. Name the folder: "):
        opened(filled(tmp_path, {"metadata.jsonl": ""}) / "metadata.jsonl")


def test_parquet_with_lists_of_pictures(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"images": [[{"bytes": b"A", "path": "a"}] * 2], "text": ["a"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"column 'images' of .* holds a list of pictures\. A pair has one picture"):
        opened(tmp_path)


def test_damaged_parquet_is_named_with_one_full_stop(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1junk")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet: .*[^.]\.$"):
        opened(tmp_path / "a.parquet")


def test_what_captions_come_from_and_what_was_left(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    row = {"file_name": "a", "Captions": ["x", "y"], "text": "t", "url": "u", "tags": ["p"], "n": 1, "site": "s"}
    filled(tmp_path / "folder", {"metadata.jsonl": lines(row)})
    (pair,) = samples(tmp_path / "folder", keep=("site",))
    assert (pair.captions, pair.taken, pair.left) == (("x", "y"), ("Captions",), ("text", "url", "tags"))
    details = json.dumps({"caption": "c", "url": "u"}).encode()
    tar = write_tar(tmp_path / "a.tar", [("1", {"png": b"A", "txt": b"t", "json": details})])
    (pair,) = samples(tar)
    assert (pair.captions, pair.taken, pair.left) == (("t",), (".txt",), ("caption", "url"))
    (pair,) = samples(tar, caption_columns=("caption",))
    assert (pair.captions, pair.taken, pair.left) == (("c",), ("caption",), (".txt", "url"))
    tar = write_tar(tmp_path / "b.tar", [("1", {"png": b"A", "json": b'{"alt": "a", "url": "u"}'})])
    reason = "the caption is missing: name its column with --caption-column. Columns with text: alt, url"
    assert samples(tar) == [Bad("1", reason)]


def test_endings_of_caption_files_are_read_in_any_case(tmp_path: Path) -> None:
    for name, text in (("a.PNG", ""), ("a.TXT", "one"), ("b.png", ""), ("b.Caption", "two"), ("b.Txt", "three")):
        (tmp_path / name).write_text(text)
    (shard,) = source_captions.caption_files_shards(tmp_path)
    first, second, unused = shard.read()
    assert (first.captions, first.taken, second.captions) == (("one",), (".txt",), ("three",))
    assert (unused.key, unused.number) == ("b.Caption", 1)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("text", ["plain", 'a "d" e', 'a "d', '"a ""b"""', '"two\nlines"', '""', '"a"b'])
def test_a_table_that_ends_with_closed_cells(tmp_path: Path, text: str, end: str) -> None:
    filled(tmp_path, {"metadata.csv": f"file_name,text,url\nb.png,c,\na.png,u,{text}{end}"})
    assert [sample.captions for sample in samples(tmp_path)] == [("c",), ("u",)]


def test_a_member_that_another_of_its_name_replaces_is_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("0.jpg", b"A"), ("0.txt", b"a"), ("0.TXT", b"b"), ("0.jpg", b"B")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    pair, unused = samples(tmp_path / "a.tar")
    assert (pair.captions, pair.picture) == (("b",), b"B")
    assert unused == Unused("0.txt", "a later member has the same name, and is used instead", 2)


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text,text,,\na.png,one,two,,\n")
    with pytest.raises(UserError, match=r"metadata\.csv has several columns called 'text'\. Give each its own name"):
        opened(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text,,\na.png,one,,\n")
    assert opened(tmp_path).shards[0].samples == 1
