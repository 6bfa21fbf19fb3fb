"""Parquet with pictures, as Hugging Face and img2dataset write it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syzygy.core.errors import UserError
from syzygy.data.pair import Bad, Skipped
from syzygy.data.sources import SourceOptions, open_source

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, Any], **settings: Any) -> Path:
    parquet.write_table(arrow.table(columns), path, **settings)
    return path


def read(text: str | Path, **options: Any) -> list[Any]:
    return [sample for shard in open_source(str(text), SourceOptions(**options)).shards for sample in shard.read()]


def pictures(*contents: bytes | None) -> Any:
    return arrow.array([None if x is None else {"bytes": x, "path": "a.png"} for x in contents])


def test_hugging_faces_layout(tmp_path: Path) -> None:
    for i in range(2):
        columns = {"image": pictures(b"A", b"B"), "caption": ["a", "b"], "score": [1.5, None], "site": ["x", "y"]}
        write(tmp_path / f"train-0000{i}-of-00002.parquet", columns)
    (tmp_path / "README.md").write_text("")
    found = read(tmp_path, keep=("site",))
    assert [(p.key, p.picture, p.captions, p.columns) for p in found[:2]] == [
        ("00000000", b"A", ("a",), {"score": 1.5, "site": "x"}),
        ("00000001", b"B", ("b",), {"site": "y"}),
    ]
    assert found[2:] == found[:2]
    assert read(tmp_path / "train-0000{0..1}-of-00002.parquet") == read(tmp_path)


def test_columns_of_other_names_and_types(tmp_path: Path) -> None:
    columns = {
        "jpg": arrow.array([b"A", b"B"], arrow.large_binary()),
        "TEXT": arrow.array(["a", "b"], arrow.large_string()),
        "list": [["c", "d"], ["e"]],
        "category": arrow.array(["f", "g"]).dictionary_encode(),
        "ok": [True, False],
        "when": arrow.array([1, 2], arrow.timestamp("s")),
    }
    path = write(tmp_path / "a.parquet", columns)
    assert [(p.picture, p.captions, p.columns) for p in read(path)] == [
        (b"A", ("a",), {"ok": True}),
        (b"B", ("b",), {"ok": False}),
    ]
    found = read(path, caption_columns=("list", "category"), image_column="jpg")
    assert [p.captions for p in found] == [("c", "d", "f"), ("e", "g")]


def test_pictures_are_known_by_their_type_and_captions_by_their_name(tmp_path: Path) -> None:
    """A lone column of text may hold addresses, names of files or anything else."""
    path = write(tmp_path / "a.parquet", {"photo": pictures(b"A"), "alt": ["a"], "n": [1]})
    with pytest.raises(UserError, match=r"name it with --caption-column\. It has: photo .*alt \(string\), n \(int64\)"):
        read(path)
    assert read(path, caption_columns=("alt",))[0].captions == ("a",)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"a": ["x"], "b": ["y"], "image": [b""]},
            {},
            r"clearly the right one: name it with --caption-column. It has: a \(str",
        ),
        (
            {"text": ["x"], "caption": ["y"], "image": [b""]},
            {},
            r"to choose from, 'text' and 'caption': name one with --caption",
        ),
        (
            {"text": ["x"], "image": [b""], "jpg": [b""]},
            {},
            r"to choose from, 'image' and 'jpg': name one with --image-column",
        ),
        ({"text": ["x"], "n": [1]}, {}, r"name it with --image-column. It has: text \(string\), n \(int64\)"),
        (
            {"text": ["x"], "image": [b""]},
            {"caption_columns": ("alt",)},
            r"no column 'alt' \(--caption-column\). It has: text",
        ),
        (
            {"text": ["x"], "image": [b""]},
            {"caption_columns": ("image",)},
            r"column 'image' of .* is binary, which --caption",
        ),
        (
            {"text": ["x"], "image": [b""]},
            {"image_column": "text"},
            r"column 'text' of .* is string, which --image-column",
        ),
        ({"text": ["x"], "image": [b""]}, {"keep": ("site",)}, r"no column 'site'. It has: text"),
    ],
)
def test_columns_that_are_not_clear(tmp_path: Path, columns: Any, options: Any, message: str) -> None:
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=message):
        read(path, **options)


def test_bad_rows(tmp_path: Path) -> None:
    not_utf8 = arrow.StringArray.from_buffers(
        5,
        arrow.py_buffer(bytes([0, 0, 0, 0, *(x for i in range(1, 6) for x in (i, 0, 0, 0))])),
        arrow.py_buffer(b"a\xffcde"),
    )
    columns = {
        "image": arrow.array([b"A", b"B", None, None, b""]),
        "caption": not_utf8,
        "status": ["success", "success", "success", "failed_to_download", "success"],
    }
    found = read(write(tmp_path / "a.parquet", columns))
    assert found[0].captions == ("a",)
    assert found[0].columns == {}
    assert found[1:] == [
        Bad("00000001", "the caption is not UTF-8"),
        Bad("00000002", "there is no picture"),
        Skipped("00000003"),
        Bad("00000004", "there is no picture"),
    ]
    path = write(tmp_path / "b.parquet", {"image": pictures(None, b"A"), "caption": ["a", "b"]})
    assert read(path)[0].reason == "there is no picture"
    path = write(
        tmp_path / "c.parquet",
        {"image": [{"bytes": None, "path": "x.png"}, {"bytes": b"A", "path": ""}], "caption": ["a", "b"]},
    )
    assert read(path)[0].reason == "it has a picture's path, not its bytes"


def test_damaged_files_are_bad_and_the_others_survive(tmp_path: Path) -> None:
    columns = {"image": [bytes([i]) * 5000 for i in range(200)], "caption": [f"c{i}" for i in range(200)]}
    for i in range(3):
        write(tmp_path / f"{i}.parquet", columns, row_group_size=50, compression="none", use_dictionary=False)
    (tmp_path / "0.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-100])
    data = bytearray((tmp_path / "1.parquet").read_bytes())
    middle = len(data) // 2
    data[middle - 130_000 : middle + 130_000] = b"\xff" * 260_000
    (tmp_path / "1.parquet").write_bytes(data)
    found = [list(shard.read()) for shard in open_source(str(tmp_path), SourceOptions()).shards]
    assert [sample.key for sample in found[0]] == ["(the file)"]
    lost = [sample for sample in found[1] if isinstance(sample, Bad)]
    assert [sample.reason[:51] for sample in lost] == [
        "the file is damaged; rows 50 to 99 cannot be read: ",
        "the file is damaged; rows 100 to 149 cannot be read",
    ]
    assert len(found[2]) == 200
    assert [sample for sample in found[1] if sample not in lost] == found[2][:50] + found[2][150:]


def test_no_file_is_parquet(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"0\.parquet cannot be read as parquet"):
        read(tmp_path)


def test_a_later_file_lacks_a_column(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", {"image": [b"A"], "caption": ["a"]})
    write(tmp_path / "1.parquet", {"image": [b"A"], "text": ["a"]})
    with pytest.raises(UserError, match=r"1\.parquet has no column 'caption'\. It has: image \(binary\), text"):
        read(tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "0.parquet", {"image": [b"A"], "caption": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"reading parquet needs pyarrow: run pip install -e '\.\[parquet\]'"):
        read(path)


def test_a_file_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row comes before the last one is read."""
    columns = {"image": [bytes([i]) * 5000 for i in range(200)], "caption": [f"c{i}" for i in range(200)]}
    path = write(tmp_path / "0.parquet", columns, row_group_size=50)
    rows = open_source(str(path), SourceOptions()).shards[0].read()
    asked: list[int] = []
    opened: Callable[..., Any] = parquet.ParquetFile.iter_batches

    def spying(self: Any, *args: Any, **settings: Any) -> Any:
        for batch in opened(self, *args, **settings):
            asked.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spying)
    assert next(rows).key == "00000000"
    assert sum(asked) < 100
