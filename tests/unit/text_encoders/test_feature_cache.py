"""Features that are computed once: the encoder's own within their precision, continued where they stopped, apart for each recipe."""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.core import artifacts
from syzygy.core.contracts import TextFeatures, TextStates
from syzygy.core.errors import UserError
from syzygy.text_encoders import feature_cache
from syzygy.text_encoders.feature_cache import CachedEncoder, CacheFolder, FeatureSet, cached
from syzygy.text_encoders.llm import Llm, LlmRecipe
from syzygy.training.estimate import dry_run
from syzygy.training.parallel import Ranks
from tests.closeness import assert_close
from tests.tiny_llm import TEXTS, save_tiny_llm

ALONE = Ranks(torch.device("cpu"))
MANY = ["", *TEXTS, *(f"{text} {i}" for i in range(8) for text in TEXTS)]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    return Llm.from_pretrained(save_tiny_llm("qwen3", tmp_path_factory.mktemp("llm")))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "PART", 10)
    monkeypatch.setattr(feature_cache, "BATCH", 4)
    monkeypatch.setattr(feature_cache, "SAMPLE", 4)


class Watched:
    """A language model that knows which texts it has encoded, and can fail after some."""

    def __init__(self, llm: Llm, most: float = float("inf")) -> None:
        self.llm, self.left, self.seen = llm, most, Counter[str]()

    def __call__(self, texts: list[str]) -> TextStates:
        self.left -= len(texts)
        if self.left < 0:
            raise KeyboardInterrupt
        self.seen.update(set(texts))
        return self.llm.encode_states(texts)


def encoder(llm: Llm, encode: Callable[..., Any] | None = None, texts: list[str] = MANY) -> CachedEncoder:
    return CachedEncoder("llm", llm.identity().to_config(), encode or llm.encode_states, "fp16", lambda: texts)


def filled(folder: Path, one: CachedEncoder, said: list[str] | None = None) -> FeatureSet:
    (found,) = cached(CacheFolder(folder), [one], ALONE, (said if said is not None else []).append)
    return found


def test_what_is_read_is_what_the_encoder_gives(llm: Llm, tmp_path: Path) -> None:
    found = filled(tmp_path, encoder(llm, texts=MANY * 2))
    assert len(found) == len(MANY)
    wanted, read = llm.encode_states(MANY), found.encode_states(MANY)
    assert torch.equal(read.mask, wanted.mask)
    assert read.states.dtype == torch.float32
    assert_close(read.states, wanted.states, dtype=torch.float16)
    some = [MANY[7], MANY[2], MANY[7]]
    assert_close(found.encode_states(some).states, llm.encode_states(some).states, dtype=torch.float16)
    with pytest.raises(AssertionError, match="no features of 'another text'"):
        found.encode_states(["another text"])
    longest = int(wanted.mask.sum(1).max())
    assert found.at_least(longest) == int((wanted.mask.sum(1) == longest).sum())


def test_pooled_embeddings_are_kept_too(tmp_path: Path) -> None:
    def encode(texts: list[str]) -> TextFeatures:
        numbers = torch.tensor([float(len(text)) for text in texts])
        mask = torch.arange(3) < numbers.clamp(1, 3)[:, None]
        return TextFeatures(
            numbers[:, None, None] * mask[..., None] * torch.ones(2), mask, numbers[:, None] + torch.arange(2)
        )

    one = CachedEncoder("clip", {"fingerprint": "0"}, encode, "fp16", lambda: MANY)
    read, wanted = filled(tmp_path, one).encode_text(MANY), encode(MANY)
    assert torch.equal(read.states, wanted.states)
    assert torch.equal(read.pooled, wanted.pooled)
    assert torch.equal(read.mask, wanted.mask)


def test_nothing_is_computed_twice(llm: Llm, tmp_path: Path) -> None:
    first = encoder(llm)
    filled(tmp_path, first)
    files = {path: path.read_bytes() for path in first.folder(tmp_path).iterdir()}
    said: list[str] = []
    filled(tmp_path, encoder(llm, Watched(llm, most=0)), said)
    assert said == [f"All features of {len(MANY)} texts are in {tmp_path}."]
    watched, more = Watched(llm), ["a new one", "and another"]
    found = filled(tmp_path, encoder(llm, watched, [*MANY, *more]), said)
    assert set(watched.seen) == set(more)
    assert said[-1].startswith("The features of 2 texts (llm) are computed first: about ")
    assert f"those of {len(MANY)} are there" in said[-1]
    assert len(found) == len(MANY) + 2
    assert all(path.read_bytes() == data for path, data in files.items())


def test_an_interrupted_call_is_continued(llm: Llm, tmp_path: Path) -> None:
    before = 8 + 3 * 12  # the estimate's, then three parts of ten in whole batches
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path / "stopped", encoder(llm, Watched(llm, most=before)))
    done = len(list(encoder(llm).folder(tmp_path / "stopped").glob("*.safetensors")))
    assert done == 3
    watched = Watched(llm)
    found = filled(tmp_path / "stopped", encoder(llm, watched))
    assert len(watched.seen) == len(MANY) - 10 * done
    whole = filled(tmp_path / "whole", encoder(llm))
    assert torch.equal(found.encode_states(MANY).states, whole.encode_states(MANY).states)


def test_other_recipes_have_other_folders(llm: Llm, tmp_path: Path) -> None:
    others = [
        Llm(llm.model, llm.tokenizer, llm.source, recipe)
        for recipe in (
            LlmRecipe(layers="last"), LlmRecipe(normalise=False), LlmRecipe(template="{text}!"), LlmRecipe(max_tokens=9)
        )
    ]  # fmt: skip
    coarse = Llm.from_pretrained(llm.source, dtype=torch.bfloat16)
    folders = {encoder(one).folder(tmp_path) for one in (llm, *others, coarse)}
    folders.add(replace(encoder(llm), dtype="bf16").folder(tmp_path))
    assert len(folders) == 7
    moved = {**llm.identity().to_config(), "source": "elsewhere", "deviations": [9.0]}
    assert replace(encoder(llm), identity=moved).folder(tmp_path) in folders


def test_features_that_have_changed_since_are_refused(llm: Llm, tmp_path: Path) -> None:
    filled(tmp_path, encoder(llm))
    changed = llm.identity().to_config()
    changed["deviations"] = [1.1 * x for x in changed["deviations"]]
    with pytest.raises(UserError, match=r"an encoder whose deviations is .*Delete the folder"):
        filled(tmp_path, replace(encoder(llm), identity=changed))


def test_a_damaged_file_is_named(llm: Llm, tmp_path: Path) -> None:
    filled(tmp_path, encoder(llm))
    path = min(encoder(llm).folder(tmp_path).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=rf"{path.name} is truncated or not safetensors\. Delete the file, and its"):
        filled(tmp_path, encoder(llm))
    path.unlink()
    assert len(filled(tmp_path, encoder(llm))) == len(MANY)


def test_a_disk_that_is_too_small(llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "free_disk", lambda place: 1000)
    with pytest.raises(UserError, match=r"take about \d+ kB, and .* has 1 kB free"):
        filled(tmp_path / "cache", encoder(llm))
    assert not (tmp_path / "cache").exists()


def test_the_size_is_said_beforehand(llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "SAMPLE", 20)
    said: list[str] = []
    filled(tmp_path, encoder(llm), said)
    number = int(said[0].partition("about ")[2].partition(" kB")[0])
    true = sum(path.stat().st_size for path in encoder(llm).folder(tmp_path).glob("*.safetensors")) / 1000
    assert 0.7 * true < number < 1.3 * true


def test_what_is_not_finite_is_not_kept(llm: Llm, tmp_path: Path) -> None:
    def broken(texts: list[str]) -> TextStates:
        found = llm.encode_states(texts)
        found.states[0, 0, 0] = float("nan")
        return found

    with pytest.raises(UserError, match=r"what the encoder \(llm\) gives for .* is not finite"):
        filled(tmp_path, encoder(llm, broken))


def test_ranks_share_the_work(llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "wait", lambda self: None)
    shares = []
    works = [feature_cache._Work.of(encoder(llm, Watched(llm)), tmp_path / "llm") for _ in range(2)]
    works[0].begin()
    for rank, work in enumerate(works):
        work.fill(replace(ALONE, rank=rank, size=2), feature_cache.no_bar)
        assert isinstance(work.encoder.encode, Watched)
        shares.append(set(work.encoder.encode.seen))
    assert shares[0].isdisjoint(shares[1])
    assert shares[0] | shares[1] == set(MANY)
    assert artifacts.read_json(tmp_path / "llm/encoder.json")["width"] == llm.width


def test_what_a_killed_process_left_is_deleted_later(llm: Llm, tmp_path: Path) -> None:
    """Not at once, as another training may be writing it."""
    folder = encoder(llm).folder(tmp_path)
    folder.mkdir()
    old, new = folder / f"{artifacts.TEMPORARY}old", folder / f"{artifacts.TEMPORARY}new"
    for path, age in ((old, 2 * feature_cache.ABANDONED), (new, 0)):
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    filled(tmp_path, encoder(llm))
    assert (old.exists(), new.exists()) == (False, True)


def test_a_dry_run_writes_nothing(llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syzygy.training.estimate.REHEARSED", 12)
    watched = Watched(llm)
    with dry_run(tmp_path):
        found = filled(tmp_path / "cache", encoder(llm, watched))
    assert not (tmp_path / "cache").exists()
    assert len(watched.seen) == len(found) == 12
    assert len(found.encode_states(MANY)) == len(MANY)  # others stand in
