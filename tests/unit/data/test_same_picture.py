"""Several rows of one picture are one picture with several captions, and never on both sides of a validation split."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_checking import verify
from syzygy.data.store_files import mapped, write_tensors
from syzygy.data.store_merging import merge
from syzygy.lab.evaluate.held_out import common, rest_of
from syzygy.prior.embedding_pairs import split


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """Four pictures with three rows each, not next to each other; 0.png and copy.png are the same file."""
    (tmp_path / "in").mkdir()
    names = ["0.png", "1.png", "2.png", "copy.png"]
    for name in names:
        (tmp_path / "in" / name).write_bytes(picture((0 if name == "copy.png" else 50 * int(name[0]), 9, 9)))
    rows = [{"file_name": name, "text": f"caption {i} of {name}", "n": i} for i in range(3) for name in names]
    (tmp_path / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in"


def sides(store: EmbeddingStore, number: int) -> tuple[set[str], set[str]]:
    """Keys of the pictures that are trained and validated on."""
    training, validation = split(store, number)
    assert len(training) + len(validation) == len(store)
    train, out = (set(store.keys(store.image_of(pairs.chosen))) for pairs in (training, validation))
    return train, out


def test_rows_of_a_picture_become_its_captions(folder: Path, encoder: Any, make_store: Callable) -> None:
    manifest = make_store(folder, folder.parent / "store", encoder)
    store = EmbeddingStore.open(folder.parent / "store")
    assert (manifest["pictures"], manifest["captions"], manifest["repeated"], manifest["duplicates"]) == (3, 12, 9, 0)
    assert store.keys(range(3)) == ["0.png", "1.png", "2.png"]
    assert store.image_of(range(12)).tolist() == [0] * 6 + [1] * 3 + [2] * 3
    assert store.texts([0, 1, 2, 6]) == [
        "caption 0 of 0.png", "caption 0 of copy.png", "caption 1 of 0.png", "caption 0 of 1.png"
    ]  # fmt: skip
    assert store.column("n").tolist() == [0, 0, 0]  # of the first row
    assert torch.equal(store.captions([6]).states, encoder.encode_text(["caption 0 of 1.png"]).states[0].half())
    assert store.images([1])[0, 0] == torch.tensor(50 / 255).half()
    assert verify(store.path) == []


@pytest.mark.parametrize("number", [1, 2])
def test_copies_in_different_parts_are_on_one_side(
    folder: Path, encoder: Any, make_store: Callable, number: int
) -> None:
    manifest = make_store(folder, folder.parent / "store", encoder, shard_size=1)  # a part has one caption
    store = EmbeddingStore.open(folder.parent / "store")
    assert (manifest["pictures"], manifest["repeated"], manifest["duplicates"]) == (12, 0, 9)
    assert store.same_picture.tolist() == [0, 1, 2, 0] * 3
    train, out = sides(store, number)
    assert not train & out
    assert ("0.png" in out) == ("copy.png" in out)
    training, _ = split(store, number)
    numbers = training.image_numbers(torch.arange(len(training)))
    assert len(numbers.unique()) == 3 - number
    with pytest.raises(UserError, match=r"validation_images=3 of the 3 different images in"):
        split(store, 3)


def test_copies_of_measured_pictures_are_measured_with_them(folder: Path, encoder: Any, make_store: Callable) -> None:
    make_store(folder, folder.parent / "store", encoder, shard_size=1)
    store = EmbeddingStore.open(folder.parent / "store")
    measured = common(store, [], 2, 0)
    mine, rest = (
        set(pairs.image_numbers(torch.arange(len(pairs))).tolist()) for pairs in (measured, rest_of(store, measured))
    )
    assert len(mine) == 2, "of the three different pictures"
    assert rest == {0, 1, 2} - mine, "controls are fitted on pictures that are not measured"
    with pytest.raises(UserError, match=r"[Tt]here are 3 (pictures|images)"):
        common(store, [], 4, 0)


def test_a_caption_of_a_repeated_picture_that_cannot_be_used_is_a_bad_sample(
    tmp_path: Path, encoder: Any, make_store: Callable, write_tar: Callable, picture: Callable
) -> None:
    data = picture()
    tar = write_tar(tmp_path / "a.tar", [(name, {"png": data, "txt": name.encode()}) for name in ("nan", "a", "b")])
    manifest = make_store(tar, tmp_path / "store", encoder, max_bad=0.5)
    assert (manifest["seen"], manifest["bad"], manifest["pictures"], manifest["captions"]) == (3, 1, 1, 2)
    assert EmbeddingStore.open(tmp_path / "store").texts([0, 1]) == ["a", "b"]


def test_copies_in_merged_stores_are_on_one_side(folder: Path, encoder: Any, make_store: Callable) -> None:
    for name in ("a", "b"):
        make_store(folder, folder.parent / name, encoder)
    merged = merge([folder.parent / "a", folder.parent / "b"], folder.parent / "c")
    assert merged["duplicates"] == 3
    assert EmbeddingStore.open(folder.parent / "c").same_picture.tolist() == [0, 1, 2] * 2


def without_hashes(store: Path) -> EmbeddingStore:
    """The store as schema 2 had it."""
    manifest = artifacts.read_json(store / "manifest.json") | {"schema_version": 2}
    for shard in manifest["shards"]:
        for part in shard["parts"]:
            path = store / "shards" / part["pairs"]["name"]
            tensors = {name: x.clone() for name, x in mapped(path).items() if name != "content"}
            part["pairs"] = write_tensors(path, tensors)
    for name in ("repeated", "duplicates", "captions_from", "text_left"):
        del manifest[name]
    artifacts.write_json(store / "manifest.json", manifest)
    return EmbeddingStore.open(store)


def test_an_older_store_of_a_folder_goes_by_names(folder: Path, encoder: Any, make_store: Callable) -> None:
    make_store(folder, folder.parent / "store", encoder, shard_size=1)
    store = without_hashes(folder.parent / "store")
    assert not store.has_contents
    assert store.same_picture.tolist() == [0, 1, 2, 3] * 3
    train, out = sides(store, 2)
    assert not train & out


def test_keys_of_other_sources_say_nothing(tmp_path: Path, tars: Path, encoder: Any, make_store: Callable) -> None:
    make_store(tars, tmp_path / "store", encoder)
    assert without_hashes(tmp_path / "store").same_picture.tolist() == list(range(10))
