"""An image folder with metadata.jsonl."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syzygy.core.errors import UserError
from syzygy.data import source_folder
from syzygy.data.pair import Bad, RawPair, Unused
from syzygy.data.sources import SourceOptions, open_source
from syzygy.data.store import EmbeddingStore


def read(folder: Path, **options: Any) -> list[list[Any]]:
    return [list(shard.read()) for shard in open_source(str(folder), SourceOptions(**options)).shards]


def write(folder: Path, *lines: Any) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def test_rows_are_pairs_in_shards_of_bounded_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_folder, "ROWS", 3)
    write(tmp_path, *({"file_name": f"sub/{i}.png", "text": f"ä {i}", "n": i} for i in range(7)))
    source = open_source(str(tmp_path), SourceOptions())
    assert [shard.name for shard in source.shards] == [f"metadata.jsonl 0000{i}" for i in range(3)]
    assert sum(shard.size for shard in source.shards) == (tmp_path / "metadata.jsonl").stat().st_size
    found = [list(shard.read()) for shard in source.shards]
    assert [len(shard) for shard in found] == [3, 3, 1]
    pairs = [pair for shard in found for pair in shard]
    assert [(pair.key, pair.captions, pair.columns) for pair in pairs] == [
        (f"sub/{i}.png", (f"ä {i}",), {"n": float(i)}) for i in range(7)
    ]
    assert pairs[5].picture == tmp_path / "sub" / "5.png"


def test_captions_of_several_kinds(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"file_name": "a", "text": ["x", "y"]},
        {"file_name": "b", "captions": ["z"]},
        "",
        {"file_name": "c", "caption": "k", "long": "l"},
    )
    assert [pair.captions for pair in read(tmp_path)[0]] == [("x", "y"), ("z",), ("k",)]
    assert read(tmp_path, caption_columns=("long",))[0][2].captions == ("l",)


@pytest.mark.parametrize(
    ("line", "key", "reason"),
    [
        ("{", "line 2", "it is not JSON in UTF-8"),
        ("[1]", "line 2", "it is not a JSON object"),
        ("{}", "line 2", "it is an empty JSON object"),
        ({"text": "a"}, "line 2", "it has no file_name"),
        ({"file_name": 3, "text": "a"}, "line 2", "it has no file_name"),
        ({"file_name": "../a.png", "text": "a"}, "../a.png", "its file_name leads out of the folder"),
        ({"file_name": "x/../../a.png", "text": "a"}, "x/../../a.png", "its file_name leads out of the folder"),
        ({"file_name": "/etc/passwd", "text": "a"}, "/etc/passwd", "its file_name leads out of the folder"),
        ({"file_name": "b.png"}, "b.png", "the caption is missing"),
    ],
)
def test_wrong_lines_are_bad_and_the_others_survive(tmp_path: Path, line: Any, key: str, reason: str) -> None:
    write(tmp_path, {"file_name": "a.png", "text": "a"}, line, {"file_name": "c.png", "text": "c"})
    first, bad, last = read(tmp_path)[0]
    assert isinstance(first, RawPair)
    assert isinstance(last, RawPair)
    assert bad == Bad(key, reason)


def test_pictures_are_opened_while_embedding(
    tmp_path: Path, encoder: Any, picture: Callable[..., bytes], make_store: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syzygy.core.image_reading.MAX_BYTES", 200)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.png").write_bytes(picture())
    (tmp_path / "in" / "large.png").write_bytes(b"x" * 201)
    (tmp_path / "in" / "folder.png").mkdir()
    write(tmp_path / "in", *({"file_name": f"{name}.png", "text": "a"} for name in ("good", "large", "folder", "gone")))
    manifest = make_store(tmp_path / "in", tmp_path / "store", encoder, max_bad=1.0)
    assert EmbeddingStore.open(tmp_path / "store").keys([0]) == ["good.png"]
    lines = (tmp_path / "store" / "bad.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [
        "the picture's file has 201 bytes; at most 200 are read",
        "folder.png is a folder, not a picture. Name the files in it",
        "there is no file gone.png",
    ]
    assert manifest["kind_of_source"] == "folder"


def test_what_no_row_names_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_folder, "ROWS", 2)
    write(tmp_path, *({"file_name": name, "text": "a"} for name in ("b.png", "./sub/c.JPG", "gone.png")))
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,a\n")
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/c.JPG", "sub/d.PNG", "sub/e.webp", "sub/.hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    first, last = read(tmp_path)
    assert [pair.key for pair in (*first, *last[:1])] == ["b.png", "./sub/c.JPG", "gone.png"]
    assert last[1:] == [
        Unused(str(Path("sub/d.PNG")), "no row of metadata.jsonl names this picture", 2),
        Unused("metadata.csv", "metadata.jsonl is read instead", 1),
    ]


def test_a_column_to_keep_that_no_row_has_is_found_before_the_work(tmp_path: Path) -> None:
    write(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "text": "b", "license": "cc0"})
    assert len(read(tmp_path, keep=("license",))[0]) == 2
    with pytest.raises(UserError, match=r"no column 'licence' \(--keep\)\. It has: file_name, text, license\."):
        read(tmp_path, keep=("licence",))
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text,license\na.png,a,\n")
    assert len(read(tmp_path, keep=("license",))[0]) == 1  # the column is there, though empty
    with pytest.raises(UserError, match=r"no column 'licence' \(--keep\)"):
        read(tmp_path, keep=("licence",))
