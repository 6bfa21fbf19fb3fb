"""What `syzygy store show` tells of a store, and where it finds the pictures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_view import view

SETTINGS = ("--device", "cpu", "--batch-size", 4, "--threads", 1)


@pytest.fixture
def embedded(tmp_path: Path, tiny_model: Path, syzygy: Callable, write_tar: Callable) -> Callable[[str], Path]:
    """A source of six pictures, one of them twice, as a folder or as tars, and its store; the value is the store."""

    def make(kind: str) -> Path:
        source = tmp_path / "source"
        source.mkdir()
        for i in range(6):
            Image.new("RGB", (8 + i, 8), (40 * (i % 5), 9, 9)).resize((8, 8)).save(source / f"{i}.png")
        captions = [f"{'word ' * (i + 1)}same" if i < 4 else "two pictures have this" for i in range(6)]
        if kind == "folder":
            rows = [
                {"file_name": f"{i}.png", "text": captions[i], "n": i, "ok": i > 3, "site": f"s{i % 2}"}
                for i in range(6)
            ]
            (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            samples = [
                (f"{i}", {"png": (source / f"{i}.png").read_bytes(), "txt": captions[i].encode()}) for i in range(6)
            ]
            shutil.rmtree(source)
            write_tar(source / "0.tar", samples[:3])
            write_tar(source / "1.tar", samples[3:])
        keep = ("--keep", "site") if kind == "folder" else ()
        answer = syzygy("embed", source, "--encoder", tiny_model, "--out", tmp_path / "store", *SETTINGS, *keep)
        assert answer.code == 0, answer.err
        return tmp_path / "store"

    return make


def test_a_folders_store(embedded: Callable, syzygy: Callable, tmp_path: Path) -> None:
    store = embedded("folder")
    out = tmp_path / "sheet.png"
    answer = syzygy("store", "show", store, "--json", "--out", out)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert (found["pictures"], found["captions"]) == (5, 6)  # 0.png and 5.png are the same
    assert found["captions_per_picture"] == {"mean": 1.2, "most": 2}
    assert found["captions_from"] == {"text": 6}
    assert found["duplicates"] == {"pictures": 0, "captions": 1}
    assert found["columns"]["n"] == {"type": "number", "missing": 0, "lowest": 0.0, "mean": 2.0, "highest": 4.0}
    assert found["columns"]["ok"] == {"type": "boolean", "true": 1}
    assert found["columns"]["site"] == {"type": "text", "missing": 0, "different": 2, "examples": ["s0", "s1"]}
    assert sum(count for _, _, count in found["lengths"]["histogram"]) == 6
    assert found["lengths"]["shortest"] < found["lengths"]["median"] < found["lengths"]["longest"]
    assert [pair["key"] for pair in found["pairs"] if pair["found"]] == [f"{i}.png" for i in range(5)]
    assert found["pairs"][0]["captions"] == ["word same", "two pictures have this"]
    assert (found["missing"], found["contact_sheet"]) == (None, str(out))
    with Image.open(out) as sheet:
        assert sheet.width > 5 * 192
    text = syzygy("store", "show", store, "--out", out).out
    assert "5 pictures with 6 captions (1.2 per picture, 2 at most)" in text
    assert "captions come from: text" in text
    assert "duplicates: 0 pictures, 1 caption with the words of an earlier one" in text
    assert "0.png: word same (and 1 more)" in text
    assert f"sample pairs: {out}" in text


def test_pictures_are_found_in_tars_and_in_a_new_place(embedded: Callable, tmp_path: Path) -> None:
    store = EmbeddingStore.open(embedded("tars"))
    seen = view(store, 100, 0)
    assert [pair.image is not None for pair in seen.pairs] == [True] * 6
    assert seen.pairs[1].image is not None
    assert seen.pairs[1].image.getpixel((0, 0)) == (40, 9, 9)
    assert seen.duplicates["pictures"] == 1  # 0 and 5 are in two shards
    (tmp_path / "source").rename(tmp_path / "moved")
    gone = view(store, 100, 0)
    assert {pair.image for pair in gone.pairs} == {None}
    assert "there is no " in str(gone.missing)
    assert all(pair.image is not None for pair in view(store, 100, 0, str(tmp_path / "moved")).pairs)
    with pytest.raises(UserError, match="there is no "):
        view(store, 1, 0, str(tmp_path / "nowhere"))


def test_pictures_of_a_changed_source_are_not_shown(embedded: Callable, tmp_path: Path, syzygy: Callable) -> None:
    store = embedded("folder")
    metadata = tmp_path / "source" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("word", "term"))
    answer = syzygy("store", "show", store, "--out", tmp_path / "sheet.png")
    assert answer.code == 0
    assert "pictures are missing: the source has changed since it was embedded, or is another one." in answer.out
    assert not (tmp_path / "sheet.png").exists()


def test_samples_are_drawn_by_seed(embedded: Callable) -> None:
    store = EmbeddingStore.open(embedded("folder"))
    keys = [[pair.key for pair in view(store, 2, seed).pairs] for seed in (0, 0, 1, 2, 3)]
    assert keys[0] == keys[1]
    assert len({tuple(found) for found in keys}) > 1
    assert all(len(found) == 2 for found in keys)
    assert torch.equal(store.all_lengths(), store.captions(range(6)).lengths)
