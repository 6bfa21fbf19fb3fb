"""What a decoder of the world is trained on: painted words, and which captions a step has."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.randomness import seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.training import DecoderBatch
from syzygy.lab.starter.decoder_training import Encoding
from syzygy.lab.world import scene_source

SHARES = {"short": 30, "medium": 20, "long": 20, "just told": 30}
"""Of 100 batches."""


class Mixture:
    medium_captions, long_captions, just_told = 0.2, 0.2, 0.3


@pytest.fixture(scope="module")
def parts(tiny_model: Path) -> tuple[Clip, Autoencoder]:
    return Clip.from_pretrained(tiny_model / "clip"), Autoencoder.from_pretrained(tiny_model / "autoencoder")


def test_words_are_painted_where_that_is_asked_for(parts: tuple[Clip, Autoencoder]) -> None:
    found = scene_source.pairs(0, 0, 6)
    batch = Encoding(*parts, painted=True)(found)
    painted = batch.conditioning.conditions["text"].region_maps
    assert painted is not None
    assert painted.shape[-2:] == batch.latents.shape[-2:]
    assert set(painted.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(painted, Encoding(*parts, painted=True)(found).conditioning.conditions["text"].region_maps)
    assert batch.conditioning.conditions["image"].region_maps is None
    plain = Encoding(*parts)(found)
    assert plain.conditioning.conditions["text"].region_maps is None
    assert torch.equal(plain.latents, batch.latents)


def test_batches_are_of_the_kinds_that_the_mixture_tells(
    parts: tuple[Clip, Autoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[scene_source.Pair]] = []
    some = Encoding(*parts)(scene_source.pairs(0, 0, 1))

    def encode(self: Encoding, found: list[scene_source.Pair]) -> DecoderBatch:
        seen.append(found)
        return some

    monkeypatch.setattr(Encoding, "__call__", encode)
    batches, key = Encoding(*parts).stream(2, Mixture(), 7), seed_of(7, "decoder")
    for step in range(100):
        batches(step)
    kinds: Counter[str] = Counter()
    for step, found in enumerate(seen):
        known = {length: scene_source.pairs(key, 2 * step, 2, length=length) for length in ("short", "medium", "long")}
        known["just told"] = [scene_source.fully_described(key, 2 * step + i) for i in range(2)]
        kinds[next(kind for kind, pairs in known.items() if pairs == found)] += 1
    assert kinds == {kind: pytest.approx(number, abs=12) for kind, number in SHARES.items()}
    batches(3)
    assert seen[-1] == seen[3]
