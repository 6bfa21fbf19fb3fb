"""Features of the empty text: once a store and feature set, whoever embeds; and stores of before that have none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.data.feature_sets import add_features
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_checking import verify
from syzygy.data.store_merging import merge

FILE = "00000-empty.clip.safetensors"


@pytest.fixture
def path(tmp_path: Path, tars: Path, encoder: Any, make_store: Callable) -> Path:
    make_store(tars, tmp_path / "store", encoder, shard_size=3)
    return tmp_path / "store"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def aged(store: Path) -> Path:
    """The store as schema 1 had it."""
    for path in store.rglob("*.json"):
        values = artifacts.read_json(path) | {"schema_version": 1}
        values.pop("empty", None)
        for features in values.get("features", {}).values():
            features.pop("empty", None)
        artifacts.write_json(path, values)
    for path in store.glob("shards/*-empty.*"):
        path.unlink()
    return store


def test_they_are_what_the_encoder_gives(path: Path, encoder: Any) -> None:
    assert [file.name for file in path.glob("shards/*empty*")] == [FILE]
    expected = encoder.encode_text([""])
    found = EmbeddingStore.open(path).empty_text()
    assert torch.equal(found.states, expected.states[0].half())
    assert torch.equal(found.pooled, expected.pooled.half())
    assert found.offsets.tolist() == [0, 2]
    assert verify(path) == []


def test_they_are_encoded_in_the_shape_of_any_captions(path: Path, tars: Path, make_encoder: Callable) -> None:
    from syzygy.data.store_part import write_empty

    encoder = make_encoder()
    write_empty(encoder.encode_text, "fp16", 5, path.parent / "s")
    assert encoder.batches == [5]


def test_ready_made_embeddings_have_them_too(tmp_path: Path, encoder: Any, make_store: Callable) -> None:
    """Their captions go through the encoder's text tower, so there is one."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for inner in ("img_emb", "metadata"):
        (tmp_path / "in" / inner).mkdir(parents=True)
    np.save(tmp_path / "in/img_emb/img_emb_0.npy", np.ones((2, 4), np.float32) * 9)
    parquet.write_table(arrow.table({"caption": ["a", "b"]}), tmp_path / "in/metadata/metadata_0.parquet")
    make_store(tmp_path / "in", tmp_path / "store", encoder)
    found = EmbeddingStore.open(tmp_path / "store").empty_text()
    assert torch.equal(found.states, encoder.encode_text([""]).states[0].half())


def test_the_first_shard_is_unfinished_without_them(path: Path, tars: Path, encoder: Any, make_store: Callable) -> None:
    before = contents(path)
    (path / "shards" / FILE).unlink()
    with pytest.raises(UserError, match=rf"{FILE} is missing\. Copy it again; or delete .*/00000\.json and repeat"):
        EmbeddingStore.open(path)
    encoder.batches.clear()
    make_store(tars, path, encoder, shard_size=3)
    assert contents(path) == before
    assert 0 < len(encoder.batches) < 10  # one shard of three


def test_an_encoder_that_cannot_read_it_is_refused_before_the_work(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder.encode_text
    monkeypatch.setattr(
        encoder, "encode_text", lambda texts: encode(["huge" if text == "" else text for text in texts])
    )
    with pytest.raises(UserError, match=r"gives for the empty text does not fit into fp16 .*: store it as bf16\."):
        make_store(tars, tmp_path / "s", encoder)
    assert not list((tmp_path / "s").glob("shards/*"))
    make_store(tars, tmp_path / "s2", encoder, dtype="bf16")
    assert EmbeddingStore.open(tmp_path / "s2").empty_text().pooled.dtype == torch.bfloat16


def test_an_older_store_is_read_but_not_continued(
    path: Path, tars: Path, encoder: Any, make_store: Callable, syzygy: Callable
) -> None:
    digest = EmbeddingStore.open(path).digest
    store = EmbeddingStore.open(aged(path))
    assert store.captions(range(14)).states.shape[1] == 4
    assert store.digest != digest
    assert verify(path) == []
    says = r"because an older version wrote it\. Embed its source again: syzygy embed SOURCE --out STORE"
    with pytest.raises(UserError, match=says):
        store.empty_text()
    answer = syzygy("store", "info", path)
    assert "    no features of the empty text, which a diffusion prior needs: an older version wrote it\n" in answer.out
    before = contents(path)
    with pytest.raises(UserError, match=r"begun by an older version, .* not continued. Choose another --out"):
        make_store(tars, path, encoder, shard_size=3)
    assert contents(path) == before
    assert json.loads(syzygy("store", "info", path, "--json").out)["features"]["clip"]["empty_text"] is False


def test_merged_stores_have_those_of_the_first_that_has_them(
    tmp_path: Path, path: Path, tars: Path, encoder: Any, make_store: Callable
) -> None:
    other = tmp_path / "other"
    make_store(tars, other, encoder)
    add_features(path, "second", encoder.encode_text, encoder.identity().to_config())
    add_features(other, "second", encoder.encode_text, encoder.identity().to_config())
    expected = EmbeddingStore.open(path).empty_text()
    for oldest, first in ((None, 0), (path, 3), (other, None)):  # `path` has three shards
        if oldest is not None:
            aged(oldest)
        out = tmp_path / f"merged-{first}"
        merge([path, other], out)
        assert verify(out) == []
        files = sorted(file.name for file in out.glob("shards/*empty*"))
        if first is not None:
            assert files == [f"{first:05}-empty.{name}.safetensors" for name in ("clip", "second")]
            assert torch.equal(EmbeddingStore.open(out).empty_text().states, expected.states)
            assert torch.equal(EmbeddingStore.open(out, features="second").empty_text().states, expected.states)
    assert files == []
    says = r"each store that it was merged from into a new store, then merge them: syzygy store merge .* --out STORE"
    with pytest.raises(UserError, match=says):
        EmbeddingStore.open(out).empty_text()


def test_a_set_that_was_added_has_its_own(path: Path, make_encoder: Callable, tars: Path) -> None:
    encoder = make_encoder("second")
    add_features(path, "second", encoder.encode_text, encoder.identity().to_config(), batch_size=4)
    assert set(encoder.batches) == {4}
    assert (path / "shards" / "00000-empty.second.safetensors").is_file()
    store = EmbeddingStore.open(path, features="second")
    assert torch.equal(store.empty_text().states, EmbeddingStore.open(path).empty_text().states)
    aged(path)
    with pytest.raises(UserError, match=r"Add the feature set again, under another name"):
        EmbeddingStore.open(path, features="second").empty_text()
