"""Several stores as one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.core.image_reading import READING
from syzygy.data.sources import SourceOptions
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_checking import verify
from syzygy.data.store_merging import merge
from tests.closeness import assert_close


@pytest.fixture
def stores(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable, write_tar: Callable, picture: Callable
) -> list[Path]:
    make_store(tars, tmp_path / "a", encoder, shard_size=3)
    metadata = json.dumps({"score": 7, "fine": 1.0, "caption": "the same words"}).encode()
    samples = [("x", {"png": picture((1, 2, 3)), "json": metadata}), ("y", {"png": b"?", "txt": b"y"})]
    write_tar(tmp_path / "other.tar", samples)
    make_store(tmp_path / "other.tar", tmp_path / "b", encoder, max_bad=0.5)
    return [tmp_path / "a", tmp_path / "b"]


def test_a_merged_store_is_the_stores_in_their_order(tmp_path: Path, stores: list[Path]) -> None:
    manifest = merge([stores[1], stores[0]], tmp_path / "merged")
    assert verify(tmp_path / "merged") == []
    merged = EmbeddingStore.open(tmp_path / "merged")
    parts = [EmbeddingStore.open(store) for store in (stores[1], stores[0])]
    assert (len(merged), merged.number_of_images) == (15, 11)
    assert merged.texts(range(15)) == [text for part in parts for text in part.texts(range(len(part)))]
    assert torch.equal(merged.images(range(11)), torch.cat([p.images(range(p.number_of_images)) for p in parts]))
    states = torch.cat([part.captions(range(len(part))).states for part in parts])
    assert torch.equal(merged.captions(range(15)).states, states)
    assert merged.ids([0, 2]).unique().numel() == 1  # "the same words" here and there
    assert merged.column("score").tolist() == [7, *(i / 2 for i in range(10))]
    assert merged.columns["fine"] == "number"
    images = merged.images(range(11)).double()
    assert_close(merged.statistics.mean, images.mean(0))
    assert (manifest["bad"], manifest["seen"]) == (1, 12)
    assert json.loads((tmp_path / "merged" / "bad.jsonl").read_text())["key"] == "y"


def test_files_are_shared(tmp_path: Path, stores: list[Path]) -> None:
    merge(stores, tmp_path / "merged")
    files = sorted((tmp_path / "merged" / "shards").glob("*.safetensors"))
    assert {file.stat().st_nlink for file in files} == {2}
    assert (tmp_path / "merged" / "shards" / "00003-000.clip.safetensors").samefile(
        stores[1] / "shards" / "00000-000.clip.safetensors"
    )


def test_files_are_copied_where_they_cannot_be_shared(
    tmp_path: Path, stores: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    merge(stores, tmp_path / "merged")
    assert verify(tmp_path / "merged") == []
    assert {file.stat().st_nlink for file in (tmp_path / "merged" / "shards").iterdir()} == {1}


def test_merged_stores_can_be_merged_and_have_further_sets(tmp_path: Path, stores: list[Path], encoder: Any) -> None:
    from syzygy.data.feature_sets import add_features

    for store in stores:
        add_features(store, "second", encoder.encode_text, encoder.identity().to_config())
    merge(stores, tmp_path / "one")
    extra = tmp_path / "c"
    merge([stores[1], tmp_path / "one"], extra)
    assert verify(extra) == []
    found = EmbeddingStore.open(extra, features="second")
    assert torch.equal(found.captions(range(16)).states, EmbeddingStore.open(extra).captions(range(16)).states)


def test_what_cannot_be_merged(
    tmp_path: Path, stores: list[Path], tars: Path, make_store: Callable, make_encoder: Callable, encoder: Any
) -> None:
    out = tmp_path / "merged"
    make_store(tars, tmp_path / "c", make_encoder("other"))
    make_store(tars, tmp_path / "d", encoder, dtype="bf16")
    make_store(tars, tmp_path / "e", encoder, options=SourceOptions(keep=("site",)))
    for chosen, message in (
        ([stores[0]], "merging takes at least two stores"),
        ([stores[0], stores[0]], "a store is named twice"),
        ([stores[0], tmp_path / "c"], "different encoders (clip): fingerprint is 'fake' and 'other'"),
        ([stores[0], tmp_path / "d"], "stores clip as fp16, "),
        ([stores[0], tmp_path / "e"], "have different columns: site. Embed them with the same --keep"),
        ([stores[0], tmp_path / "none"], "there is no embedding store"),
    ):
        with pytest.raises(UserError) as error:
            merge(chosen, out)
        assert message in str(error.value)
        assert not out.exists()
    with pytest.raises(UserError, match=r"exists already. Choose a new folder"):
        merge(stores, tars)
    (stores[1] / "shards" / "00000-000.clip.safetensors").unlink()
    with pytest.raises(UserError, match=r"is missing: .* is damaged. Run `syzygy store verify"):
        merge(stores, out)
    assert not out.exists()


def test_stores_whose_pictures_were_read_differently_are_not_merged(tmp_path: Path, stores: list[Path]) -> None:
    manifest = merge(stores, tmp_path / "new")
    assert manifest["picture_reading"] == READING
    path = stores[1] / "manifest.json"
    values = json.loads(path.read_text())
    del values["picture_reading"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="read pictures differently"):
        merge(stores, tmp_path / "mixed")
    path.write_text(json.dumps({**values, "picture_reading": None}))
    assert merge(stores, tmp_path / "ready-made")["picture_reading"] == READING
