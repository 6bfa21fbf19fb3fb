"""A further feature set in a finished store."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.data.captions import CaptionFeatures
from syzygy.data.checking import verify
from syzygy.data.features import add_features
from syzygy.data.store import EmbeddingStore


class Llm:
    """States that count the letters of each word, 6 wide; pooled embeddings 2 wide, or none."""

    def __init__(self, *, pooled: bool, fingerprint: str = "llm") -> None:
        self.pooled, self.fingerprint = pooled, fingerprint
        self.calls = 0

    def encode_text(self, texts: list[str]) -> CaptionFeatures:
        self.calls += 1
        words = [text.split() for text in texts]
        states = torch.zeros(len(texts), max(map(len, words)), 6)
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        for i, found in enumerate(words):
            states[i, : len(found)] = torch.tensor([len(word) for word in found]).float()[:, None]
            mask[i, : len(found)] = True
        return CaptionFeatures(states, mask, torch.ones(len(texts), 2) if self.pooled else None)

    def identity(self) -> Any:
        return SimpleNamespace(to_config=lambda: {"source": "llm", "fingerprint": self.fingerprint, "versions": {}})


@pytest.fixture
def path(tmp_path: Path, tars: Path, encoder: Any, make_store: Callable) -> Path:
    make_store(tars, tmp_path / "store", encoder, shard_size=3)
    return tmp_path / "store"


def test_states_without_images_beside_the_first_set(path: Path, encoder: Any, tars: Path, make_store: Callable) -> None:
    before = EmbeddingStore.open(path).captions(range(14))
    done: list[int] = []
    manifest = add_features(path, "llm", Llm(pooled=False), dtype="bf16", batch_size=3, watch=done.append)
    assert sum(done) == 14
    store = EmbeddingStore.open(path, features="llm")
    tokens = store.tokens([13, 0])
    assert tokens.states.dtype == torch.bfloat16
    assert tokens.states[:, 0].tolist() == [float(len(word)) for i in (13, 0) for word in store.texts([i])[0].split()]
    with pytest.raises(UserError, match=r"'llm' has no pooled embeddings. Read its `tokens`"):
        store.captions([0])
    clip = EmbeddingStore.open(path)
    assert torch.equal(store.images_of([13, 0]), clip.images_of([13, 0]))
    assert torch.equal(clip.captions(range(14)).states, before.states)
    assert store.encoder["fingerprint"] == "llm"
    assert verify(path) == []
    # A rerun of `embed` writes the manifest anew: the set stays.
    assert make_store(tars, path, encoder, shard_size=3) == manifest


def test_pooled_embeddings_may_have_a_width_of_their_own(path: Path) -> None:
    add_features(path, "llm", Llm(pooled=True))
    from syzygy.data.store_files import mapped

    tensors = mapped(path / "shards" / "00000-000.llm.safetensors")
    assert tensors["pooled"].shape == (3, 2)
    assert tensors["states"].shape[1] == 6


def test_an_interrupted_set_is_continued(path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(captions: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        add_features(path, "llm", Llm(pooled=False), watch=stop)
    assert "llm" not in json.loads((path / "manifest.json").read_text())["features"]
    with pytest.raises(UserError, match=r"'llm' of .* was begun with other settings"):
        add_features(path, "llm", Llm(pooled=False), dtype="bf16")
    with pytest.raises(UserError, match=r"'llm' of .* was begun with another encoder"):
        add_features(path, "llm", Llm(pooled=False, fingerprint="b"))
    llm = Llm(pooled=False)
    add_features(path, "llm", llm)
    assert llm.calls == 3  # parts of the two shards that were left
    assert verify(path) == []


@pytest.mark.parametrize("name", ["pairs", "A", "", "a.b", "../x"])
def test_names_of_sets(path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"a feature set cannot be called"):
        add_features(path, name, Llm(pooled=False))


def test_what_cannot_be_added(path: Path, encoder: Any) -> None:
    with pytest.raises(UserError, match=r"has a feature set 'clip' already"):
        add_features(path, "clip", encoder)
    llm = Llm(pooled=False)
    found = llm.encode_text
    llm.encode_text = lambda texts: CaptionFeatures(found(texts).states * 1e5, found(texts).mask, None)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"gives for 'picture 0' \(00000.tar\) does not fit into fp16"):
        add_features(path, "llm", llm)
    with pytest.raises(UserError, match=r"there is no embedding store"):
        add_features(path / "none", "llm", llm)
