"""What an embedding is expected to take."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from syzygy.cli.embed import _expected
from syzygy.clip.clip_model import Clip
from syzygy.data.embedding_preview import Preview, preview
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import SourceOptions, open_source


@pytest.fixture(scope="module")
def clip(tiny_model: Path) -> Clip:
    return Clip.from_pretrained(tiny_model / "clip")


def picture(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (9, 9), colour).save(data, "PNG")
    return data.getvalue()


def expected(source: Path, clip: Clip, workers: int = 1, **settings: int) -> Preview | None:
    chosen = EmbedSettings(**{"batch_size": 4, "shard_size": 100, **settings})
    return preview(open_source(str(source), SourceOptions()).shards, clip, chosen, workers)


def test_a_folders_samples_are_counted_and_a_tars_are_judged(tmp_path: Path, clip: Clip, write_tar: Callable) -> None:
    pairs = {f"{i}": picture((i % 250, i // 250, 9)) for i in range(300)}
    (tmp_path / "in").mkdir()
    for name, data in pairs.items():
        (tmp_path / "in" / f"{name}.png").write_bytes(data)
    rows = "".join(json.dumps({"file_name": f"{name}.png", "text": f"picture {name}"}) + "\n" for name in pairs)
    (tmp_path / "in" / "metadata.jsonl").write_text(rows + "\n\n")
    folder = expected(tmp_path / "in", clip)
    assert folder is not None
    assert (folder.samples, folder.counted, folder.captions_from) == (300, True, ("text",))
    assert folder.captions[0] == "picture 0"
    tar = write_tar(tmp_path / "a.tar", [(k, {"png": v, "txt": f"picture {k}".encode()}) for k, v in pairs.items()])
    judged = expected(tar, clip)
    assert judged is not None
    assert not judged.counted
    assert judged.samples is not None
    assert 200 < judged.samples < 700
    shared = expected(tmp_path / "in", clip, workers=3)
    assert shared is not None
    assert shared.memory == 3 * folder.memory
    assert folder.bytes == shared.bytes


def test_samples_that_cannot_be_used_are_among_the_first_and_say_why(tmp_path: Path, clip: Clip) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(picture((i, 0, 9)))
    for i in (1, 3):
        (tmp_path / f"{i}.txt").write_text("a picture")
    found = expected(tmp_path, clip)
    assert found is not None
    assert found.looked_at == 5
    assert [line.split(":")[0] for line in found.unusable] == ["0.png", "2.png", "4.png"]
    assert "caption file" in found.unusable[0]
    assert "warning: 3 of the first 5 samples cannot be used, such as 0.png: " in "\n".join(_expected(found))


def test_the_size_of_a_tars_first_pictures_says_little_of_their_number(
    tmp_path: Path, clip: Clip, write_tar: Callable
) -> None:
    padded = [picture((i, 0, 9)) + bytes(40_000 if i < 8 else 0) for i in range(60)]
    tar = write_tar(tmp_path / "a.tar", [(f"{i:03}.x", {"png": data, "txt": b"a"}) for i, data in enumerate(padded)])
    found = expected(tar, clip)
    assert found is not None
    assert (found.samples, found.counted) == (60, False)


def test_a_slow_beginning_is_not_taken_for_the_speed(tmp_path: Path, clip: Clip, monkeypatch) -> None:
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(picture((i, 0, 9)))
        (tmp_path / f"{i}.txt").write_text("a picture")
    encode, batches = Clip.encode_pixels, []

    def slow_at_first(self: Clip, pixels: torch.Tensor) -> torch.Tensor:
        batches.append(len(pixels))
        if batches.count(len(pixels)) == 1:
            time.sleep(0.5)
        return encode(self, pixels)

    monkeypatch.setattr(Clip, "encode_pixels", slow_at_first)
    found = expected(tmp_path, clip)
    assert found is not None
    assert found.seconds is not None
    assert batches.count(8) > 1
    assert found.seconds < 0.5


def test_a_column_to_keep_that_the_first_pairs_lack_is_a_warning(
    tmp_path: Path, clip: Clip, write_tar: Callable
) -> None:
    details = json.dumps({"caption": "a", "url": "x", "similarity": 0.3, "license": "cc0"}).encode()
    tar = write_tar(tmp_path / "a.tar", [("a", {"png": picture((1, 2, 3)), "json": details})])
    keep = ("licence", "url")
    shards = open_source(str(tar), SourceOptions(keep=keep)).shards
    found = preview(shards, clip, EmbedSettings(batch_size=4), 1, keep)
    assert found is not None
    assert found.not_found == ("licence",)
    text = "\n".join(_expected(found))
    assert "warning: none of the first pairs has 'licence' of --keep." in text
    assert "Their columns: url, similarity, license." in text
    assert "--keep" not in "\n".join(_expected(preview(shards, clip, EmbedSettings(batch_size=4), 1, ("url",))))


def test_nothing_usable_gives_no_estimate(tmp_path: Path, clip: Clip, write_tar: Callable) -> None:
    assert expected(write_tar(tmp_path / "a.tar", [("a", {"png": b"broken", "txt": b"a"})]), clip) is None


@pytest.mark.parametrize(
    ("captions", "like"),
    [
        (("https://x.org/1.jpg", "www.x.org/a b"), False),
        (("https://x.org/1.jpg", "/data/2.png", "photos/3.jpg"), True),
        (("C:\\a.png", "./b", "a cat"), False),
        (("C:\\a.png", "~/b.txt", "s3://c/d", "a cat"), True),
        (("a cat.", "and/or", "1.5 m"), False),
    ],
)
def test_captions_that_look_like_addresses(captions: tuple[str, ...], like: bool) -> None:
    found = Preview(None, False, None, 0, None, ("url",), captions, 1, ())
    assert found.like_addresses == like
