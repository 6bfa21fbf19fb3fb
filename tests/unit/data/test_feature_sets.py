"""A further feature set in a finished store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.core.contracts import TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.data.feature_sets import add_features
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_checking import verify


class Llm:
    """States that count the letters of each word, 6 wide, with pooled embeddings or without."""

    def __init__(self, *, pooled: bool, fingerprint: str = "llm") -> None:
        self.pooled, self.fingerprint = pooled, fingerprint
        self.calls = 0

    def encode_text(self, texts: list[str]) -> TextFeatures | TextStates:
        self.calls += 1
        words = [text.split() for text in texts]
        states = torch.zeros(len(texts), max(map(len, words)), 6)
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        for i, found in enumerate(words):
            states[i, : len(found)] = torch.tensor([len(word) for word in found]).float()[:, None]
            mask[i, : len(found)] = True
        return TextFeatures(states, mask, torch.ones(len(texts), 6)) if self.pooled else TextStates(states, mask)

    @property
    def identity(self) -> dict[str, Any]:
        return {"source": "llm", "fingerprint": self.fingerprint, "versions": {}}


def add(path: Path, name: str, llm: Llm, **options: Any) -> dict[str, Any]:
    return add_features(path, name, llm.encode_text, llm.identity, **options)


@pytest.fixture
def path(tmp_path: Path, tars: Path, encoder: Any, make_store: Callable) -> Path:
    make_store(tars, tmp_path / "store", encoder, shard_size=3)
    return tmp_path / "store"


def test_states_without_images_beside_the_first_set(path: Path, encoder: Any, tars: Path, make_store: Callable) -> None:
    before = EmbeddingStore.open(path).captions(range(14))
    done: list[int] = []
    manifest = add(path, "llm", Llm(pooled=False), dtype="bf16", batch_size=3, watch=done.append)
    assert sum(done) == 14
    store = EmbeddingStore.open(path, features="llm")
    tokens = store.tokens([13, 0])
    assert tokens.states.dtype == torch.bfloat16
    words = [float(len(word)) for i in (13, 0) for word in store.texts([i])[0].split()]
    assert tokens.states[tokens.mask][:, 0].tolist() == words
    assert (tokens.states[~tokens.mask] == 0).all()
    with pytest.raises(UserError, match=r"'llm' has no pooled embeddings. Read its `tokens`"):
        store.captions([0])
    clip = EmbeddingStore.open(path)
    assert torch.equal(store.images_of([13, 0]), clip.images_of([13, 0]))
    assert torch.equal(clip.captions(range(14)).states, before.states)
    assert store.encoder["fingerprint"] == "llm"
    assert verify(path) == []
    # A rerun of `embed` writes the manifest anew: the set stays.
    assert make_store(tars, path, encoder, shard_size=3) == manifest


def test_pooled_embeddings_are_stored_too(path: Path) -> None:
    add(path, "llm", Llm(pooled=True))
    from syzygy.data.store_files import mapped

    tensors = mapped(path / "shards" / "00000-000.llm.safetensors")
    assert tensors["pooled"].shape == (3, 6)
    assert tensors["states"].shape[1] == 6


def test_an_interrupted_set_is_continued(path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(captions: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        add(path, "llm", Llm(pooled=False), watch=stop)
    assert "llm" not in json.loads((path / "manifest.json").read_text())["features"]
    with pytest.raises(UserError, match=r"'llm' of .* was begun with other settings"):
        add(path, "llm", Llm(pooled=False), dtype="bf16")
    with pytest.raises(UserError, match=r"'llm' of .* was begun with another encoder"):
        add(path, "llm", Llm(pooled=False, fingerprint="b"))
    llm = Llm(pooled=False)
    add(path, "llm", llm)
    assert llm.calls == 3  # parts of the two shards that were left
    assert verify(path) == []


@pytest.mark.parametrize("name", ["pairs", "A", "", "a.b", "../x"])
def test_names_of_sets(path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"a feature set cannot be called"):
        add(path, name, Llm(pooled=False))


def test_what_cannot_be_added(path: Path, encoder: Any) -> None:
    with pytest.raises(UserError, match=r"has a feature set 'clip' already"):
        add_features(path, "clip", encoder.encode_text, encoder.identity().to_config())
    llm = Llm(pooled=False)
    found = llm.encode_text
    llm.encode_text = lambda texts: TextStates(found(texts).states * 1e5, found(texts).mask)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"gives for 'picture 0' \(00000.tar\) does not fit into fp16"):
        add(path, "llm", llm)
    with pytest.raises(UserError, match=r"there is no embedding store"):
        add(path / "none", "llm", llm)
