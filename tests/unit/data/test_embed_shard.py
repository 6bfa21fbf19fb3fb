"""`embed_shard`: what becomes of good and of bad samples, and which bytes are written."""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.core.image_reading import quiet
from syzygy.data import embed_shard as embedding
from syzygy.data.embed_shard import embed_shard
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import SourceOptions, open_source
from syzygy.data.store import EmbeddingStore


def shard_of(path: Path, **options: Any) -> Any:
    return open_source(str(path), SourceOptions(**options)).shards[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_cannot_be_used_is_listed_with_key_and_reason(
    tmp_path: Path, encoder: Any, picture: Callable[..., bytes], write_tar: Callable[..., Path], monkeypatch: Any
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    good = picture()
    samples = {
        "good": {"png": good, "txt": b"a circle"},
        "cut": {"jpg": picture(kind="JPEG", size=(30, 30))[:-100], "txt": b"a circle"},
        "noise": {"jpg": b"no picture at all", "txt": b"a circle"},
        "bomb": {"png": picture(size=(40, 40)), "txt": b"a circle"},
        "large": {"png": picture(size=(20, 51)), "txt": b"a circle"},
        "long": {"png": picture(size=(404, 2)), "txt": b"a circle"},
        "silent": {"png": good, "txt": b" \n"},
        "latin": {"png": good, "txt": b"caf\xe9"},
        "mute": {"png": good},
        "blind": {"txt": b"a circle"},
        "json": {"png": good, "txt": b"a circle", "json": b"{"},
        "nan": {"png": picture((0, 0, 255)), "txt": b"a circle"},
        "nantext": {"png": good, "txt": b"a nan circle"},
        "huge": {"png": good, "txt": b"a huge circle"},
        "failed": {"json": json.dumps({"status": "failed_to_download"}).encode()},
    }
    tar = write_tar(tmp_path / "a.tar", list(samples.items()))
    record = embed_shard(shard_of(tar), 0, encoder, EmbedSettings(batch_size=4), tmp_path / "store")
    assert [(fault["key"], fault["reason"]) for fault in record["bad"]] == [
        ("cut", "the picture cannot be read as a picture: Truncated File Read"),
        (
            "noise",
            "the picture cannot be read: its format is not known; allowed are JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF",
        ),
        ("bomb", "the picture has too many pixels; at most 1,000 are read. Make it smaller"),
        ("large", "the picture has too many pixels; at most 1,000 are read. Make it smaller"),
        ("long", "the picture is too long"),
        ("silent", "the caption is empty"),
        ("latin", "the caption is not UTF-8"),
        ("mute", "the caption is missing"),
        ("blind", "the caption has no picture"),
        ("json", "its .json cannot be read"),
        ("nan", "the image embedding is not finite"),
        ("nantext", "the caption's embedding is not finite"),
        ("huge", "the caption's embedding does not fit into fp16 (beyond ±65504): store it as bf16"),
    ]
    assert (record["seen"], record["skipped"]) == (14, 1)
    assert [part["captions"] for part in record["parts"]] == [1]


def test_bf16_holds_what_fp16_cannot(
    tmp_path: Path, encoder: Any, picture: Callable[..., bytes], write_tar: Callable[..., Path], make_store: Callable
) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a", {"png": picture(), "txt": b"a huge circle"})])
    make_store(tar, tmp_path / "store", encoder, dtype="bf16")
    store = EmbeddingStore.open(tmp_path / "store")
    assert store.dtype == torch.bfloat16
    assert store.captions([0]).states[2].tolist() == [torch.tensor(1e5).bfloat16().item()] * 4


def test_a_bad_caption_of_several_is_left_out_alone(
    tmp_path: Path, encoder: Any, picture: Callable[..., bytes], write_tar: Callable[..., Path], make_store: Callable
) -> None:
    captions = ["one", "", "nan", None, 5, "\ud800", "two"]
    text = json.dumps({"caption": captions}).encode()
    tar = write_tar(tmp_path / "a.tar", [("a", {"png": picture(), "json": text})])
    manifest = make_store(tar, tmp_path / "store", encoder, max_bad=0.0)
    store = EmbeddingStore.open(tmp_path / "store")
    assert store.texts([0, 1]) == ["one", "two"]
    assert (manifest["seen"], manifest["bad"], manifest["captions"]) == (1, 0, 2)
    lines = [json.loads(line) for line in (tmp_path / "store" / "bad.jsonl").read_text().splitlines()]
    assert {line["lost"] for line in lines} == {"caption"}
    assert [line["reason"] for line in lines] == [
        "the caption is empty",
        "the caption is missing",
        "the caption is int, not text",
        "the caption is not UTF-8",
        "the caption's embedding is not finite",
    ]


def test_features_are_the_encoders_in_the_sources_order(
    tmp_path: Path, encoder: Any, tars: Path, make_store: Callable
) -> None:
    make_store(tars, tmp_path / "store", encoder, batch_size=3, threads=4, shard_size=4)
    store = EmbeddingStore.open(tmp_path / "store")
    assert store.keys(range(10)) == [f"{i:04}" for i in range(10)]
    texts = store.texts(range(len(store)))
    assert texts[:3] == ["picture 0", "the same words", "picture 1 is here"]
    expected = encoder.encode_text(texts)
    found = store.captions(range(len(store))).padded()
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.states[found.mask], expected.states[expected.mask].half())
    assert torch.equal(found.pooled, expected.pooled.half())
    colours = torch.tensor([[i * 20 / 255, 10 / 255, 0, 1] for i in range(10)])
    assert torch.equal(store.images(range(10)), colours.half())
    assert set(encoder.batches[:-1]) == {3}  # one shape for all batches


def test_where_parts_end_changes_no_bit_of_a_picture(
    tmp_path: Path, encoder: Any, tars: Path, make_store: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder may compute batches of different sizes in different ways; this one does so grossly."""
    encode = encoder.encode_pixels
    monkeypatch.setattr(encoder, "encode_pixels", lambda pixels: encode(pixels) + len(pixels))
    images = []
    for size in (1, 3, 100):
        make_store(tars, tmp_path / f"{size}", encoder, shard_size=size)
        images.append(EmbeddingStore.open(tmp_path / f"{size}").images(range(10)))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_parts_are_bounded_and_no_picture_is_split(tmp_path: Path, encoder: Any, tars: Path) -> None:
    settings = EmbedSettings(batch_size=2, shard_size=3)
    record = embed_shard(shard_of(tars), 0, encoder, settings, tmp_path / "store")
    assert [(part["pictures"], part["captions"]) for part in record["parts"]] == [(2, 3), (2, 3), (1, 1)]
    one = embed_shard(shard_of(tars), 0, encoder, EmbedSettings(shard_size=1), tmp_path / "store")
    assert [(part["pictures"], part["captions"]) for part in one["parts"]] == [(1, 2), (1, 1), (1, 1), (1, 2), (1, 1)]


def test_neither_decoding_threads_nor_the_hour_change_a_byte(tmp_path: Path, encoder: Any, tars: Path) -> None:
    for name, threads in (("one", 1), ("four", 4), ("again", 4)):
        embed_shard(shard_of(tars), 0, encoder, EmbedSettings(batch_size=2, threads=threads), tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "four") == contents(tmp_path / "again")


def test_captions_that_fill_all_positions_are_counted(
    tmp_path: Path, encoder: Any, picture: Callable[..., bytes], write_tar: Callable[..., Path]
) -> None:
    words = [b"a b c d e f", b"a b c d e f g h", b"a b"]
    tar = write_tar(tmp_path / "a.tar", [(f"{i}", {"png": picture(), "txt": text}) for i, text in enumerate(words)])
    assert embed_shard(shard_of(tar), 0, encoder, EmbedSettings(), tmp_path / "store")["full_captions"] == 2


def test_the_work_can_be_stopped_after_any_batch(tmp_path: Path, encoder: Any, tars: Path) -> None:
    seen = []

    def stop(progress: embedding.Progress) -> None:
        seen.append(progress.seen)
        if progress.seen == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_shard(shard_of(tars), 0, encoder, EmbedSettings(batch_size=2), tmp_path / "store", stop)
    assert seen == [2, 4]
    assert not (tmp_path / "store" / "shards" / "00000.json").exists()


@pytest.mark.parametrize("failing", ["pairs", "clip", "json"])
def test_a_full_disk_is_a_clear_error_and_leaves_no_record(
    tmp_path: Path, encoder: Any, tars: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if failing in Path(target).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"No space left on device\. Free some space or choose another place"):
        embed_shard(shard_of(tars), 0, encoder, EmbedSettings(), tmp_path / "store")
    left = [path.name for path in (tmp_path / "store" / "shards").iterdir()]
    assert "00000.json" not in left
    assert not [name for name in left if name.startswith(".")]


def test_oddities_of_pictures_are_not_shown(picture: Callable[..., bytes]) -> None:
    data = io.BytesIO()
    Image.new("P", (2, 2)).save(data, "PNG", transparency=b"\x00\x10")
    with quiet():
        Image.open(data).convert("RGB")
