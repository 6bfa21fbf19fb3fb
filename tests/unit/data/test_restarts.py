"""An interruption loses the work on one part, in any kind of source; and a changed source is not taken for the old one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syzygy.core.errors import UserError
from syzygy.data import pair, store_building
from syzygy.data.embed_shard import embed_shard
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import SourceOptions, open_source

NUMBER = 11


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def tar(tmp_path: Path, write_tar: Callable, picture: Callable) -> Path:
    """Eleven pairs, the fourth one bad, the sixth without a picture, the eighth a copy of the seventh, and a stray file."""
    samples = [
        (f"{i:02}", {"png": picture((20 * i, 9, 9)), "txt": b"number %d" % i, "cls": b"1"}) for i in range(NUMBER)
    ]
    samples[3][1]["png"] = b"broken"
    samples[5] = ("05", {"json": b'{"status": "failed"}'})
    samples[7][1]["png"] = samples[6][1]["png"]
    return write_tar(tmp_path / "a.tar", samples)


def embed(source: Path, out: Path, encoder: Any, stop: int | None = None, size: int = 3) -> list[str]:
    """Embed it; the value is which captions went through the encoder. `stop` raises after so many samples."""
    options, settings = SourceOptions(), EmbedSettings(batch_size=2, shard_size=size)
    found = open_source(str(source), options)
    plan = store_building.begin(out, found, options, settings, encoder.identity().to_config(), "syzygy embed SOURCE")
    encoded: list[str] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(encoder, name)

        def encode_text(self, texts: list[str]) -> Any:
            encoded.extend(texts)
            return encoder.encode_text(texts)

    def watch(progress: Any) -> None:
        if stop is not None and progress.seen >= stop:
            raise KeyboardInterrupt

    try:
        done = {record["number"] for record in store_building.finished(out, plan)}
        for number, shard in enumerate(found.shards):
            if number not in done:
                embed_shard(shard, number, Spy(), settings, out, watch)
        store_building.finish(out, plan, 0.5)
    except KeyboardInterrupt:
        pass
    return encoded


@pytest.mark.parametrize("stop", range(1, NUMBER))
def test_wherever_it_stops_finished_parts_are_kept_and_the_bytes_are_the_same(
    tmp_path: Path, tar: Path, encoder: Any, stop: int
) -> None:
    embed(tar, tmp_path / "whole", encoder)
    before = set(embed(tar, tmp_path / "cut", encoder, stop)) - {""}
    again = set(embed(tar, tmp_path / "cut", encoder)) - {""}
    assert not before & again
    assert before | again == {f"number {i}" for i in range(NUMBER) if i not in (3, 5)}
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_folder_and_parquet_go_on_too(tmp_path: Path, encoder: Any, picture: Callable) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures = [picture((20 * i, 9, 9)) for i in range(7)]
    (tmp_path / "folder").mkdir()
    for i, data in enumerate(pictures):
        (tmp_path / "folder" / f"{i}.png").write_bytes(data)
    rows = "".join(json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}) + "\n" for i in range(7))
    (tmp_path / "folder" / "metadata.jsonl").write_text(rows)
    table = arrow.table({"image": pictures, "text": [f"number {i}" for i in range(7)]})
    parquet.write_table(table, tmp_path / "a.parquet")
    for source in (tmp_path / "folder", tmp_path / "a.parquet"):
        out = tmp_path / f"{source.name}-store"
        before = set(embed(source, out, encoder, 6)) - {""}
        again = set(embed(source, out, encoder)) - {""}
        assert len(before) >= 3
        assert not before & again
        assert before | again == {f"number {i}" for i in range(7)}


def test_a_part_that_was_damaged_in_between_is_made_again(tmp_path: Path, tar: Path, encoder: Any) -> None:
    embed(tar, tmp_path / "whole", encoder)
    embed(tar, tmp_path / "cut", encoder, 8)
    path = tmp_path / "cut" / "shards" / "00000-000.pairs.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    embed(tar, tmp_path / "cut", encoder)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_row_groups_of_parquet_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("syzygy.data.source_parquet.SHARD", 5)
    table = arrow.table({"image": [b"%d" % i for i in range(11)], "text": [f"{i}" for i in range(11)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    shards = open_source(str(tmp_path / "a.parquet"), SourceOptions()).shards
    assert [(shard.name, shard.samples) for shard in shards] == [("a.parquet 00000", 6), ("a.parquet 00001", 5)]
    found = [sample for shard in shards for sample in shard.read()]
    assert [(p.key, p.picture) for p in found] == [(f"{i:08}", b"%d" % i) for i in range(11)]


@pytest.fixture
def folder(tmp_path: Path, picture: Callable) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture())
    (tmp_path / "in" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    return tmp_path / "in"


def test_a_caption_or_picture_that_was_changed_is_another_source(
    tmp_path: Path, folder: Path, encoder: Any, make_store: Callable
) -> None:
    make_store(folder, tmp_path / "store", encoder)
    make_store(folder, tmp_path / "store", encoder)
    before, metadata, data = contents(tmp_path / "store"), folder / "metadata.jsonl", (folder / "a.png").read_bytes()
    says = r"begun with another metadata\.jsonl 00000: its size is as before, but its content, or the pictures that"
    metadata.write_text('{"file_name": "a.png", "text": "a dog"}\n')
    with pytest.raises(UserError, match=says):
        make_store(folder, tmp_path / "store", encoder)
    metadata.write_text('{"file_name": "a.png", "text": "a cat"}\n')
    (folder / "a.png").write_bytes(data + b"\0")
    with pytest.raises(UserError, match=says):
        make_store(folder, tmp_path / "store", encoder)
    (folder / "a.png").write_bytes(data)
    make_store(folder, tmp_path / "store", encoder)
    assert contents(tmp_path / "store") == before


def test_a_caption_file_that_was_changed_is_another_source(tmp_path: Path, picture: Callable) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    found = []
    for text in ("a cat", "a dog", "a cat"):
        (tmp_path / "a.txt").write_text(text)
        found.append(open_source(str(tmp_path), SourceOptions()).shards[0].fingerprint)
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("size", [1000, 5000])
def test_files_are_recognised_by_content_and_not_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A large file by a sample of blocks, its ends among them."""
    monkeypatch.setattr(pair, "WHOLE", 2000)
    monkeypatch.setattr(pair, "BLOCK", 10)
    path, data = tmp_path / "a", bytearray(range(250)) * (size // 250)
    path.write_bytes(data)
    before = pair.file_fingerprint(path)
    path.write_bytes(data)
    assert pair.file_fingerprint(path) == before
    for place in (0, size - 1):
        changed = data.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert pair.file_fingerprint(path) != before
    path.write_bytes(data + b"\0")
    assert pair.file_fingerprint(path) != before


def test_an_edited_tar_of_the_same_size_is_another_source(
    tmp_path: Path, encoder: Any, make_store: Callable, write_tar: Callable, picture: Callable
) -> None:
    """Tars fill their members up to 512 bytes, so that another caption seldom changes the size."""
    for text in (b"a cat", b"a dog"):
        write_tar(tmp_path / "a.tar", [("a", {"png": picture(), "txt": text})])
        if text == b"a cat":
            make_store(tmp_path / "a.tar", tmp_path / "store", encoder)
    with pytest.raises(UserError, match=r"begun with another a\.tar: its size is as before"):
        make_store(tmp_path / "a.tar", tmp_path / "store", encoder)
