"""What a decoder of the world is trained on: conditions, regions and targets of a batch, and which scenes a step has."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.core.randomness import Draw, seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.supervision import BACKGROUND, UNKNOWN
from syzygy.decoder.training import DecoderBatch
from syzygy.lab.starter import decoder_data
from syzygy.lab.starter.decoder_data import CaptionMixture, Encoding, Rows
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import Description, Mention
from syzygy.lab.world.language import language
from syzygy.lab.world.scene import COLOURS, SHAPES, Background, Scene, Thing
from syzygy.lab.world.scene_regions import regions
from syzygy.lab.world.scene_source import Pair
from syzygy.regions.phrases import region_maps


@pytest.fixture(scope="module")
def parts(tiny_model: Path) -> tuple[Clip, Autoencoder]:
    return Clip.from_pretrained(tiny_model / "clip"), Autoencoder.from_pretrained(tiny_model / "autoencoder")


def test_words_have_the_regions_of_their_objects(parts: tuple[Clip, Autoencoder]) -> None:
    found = scene_source.pairs(0, 0, 6)
    batch = Encoding(*parts, painted=True)(found)
    painted = batch.conditioning.conditions["text"].region_maps
    assert painted is not None
    spans = parts[0].encode_text([pair.caption.text for pair in found]).spans
    assert spans is not None
    draws = [Draw(0, "regions", pair.caption.text, repr(pair.scene.things)) for pair in found]
    own = [regions(pair, draw, batch.latents.shape[-1]) for pair, draw in zip(found, draws, strict=True)]
    assert torch.equal(painted, region_maps([pair.caption.text for pair in found], spans, own, 1.0))
    assert batch.conditioning.conditions["image"].region_maps is None
    plain = Encoding(*parts)(found)
    assert plain.conditioning.conditions["text"].region_maps is None
    assert torch.equal(plain.latents, batch.latents)


def test_targets_say_what_is_where(parts: tuple[Clip, Autoencoder]) -> None:
    left, right = Thing("square", "red", "plain", 0.25, 0.5, 0.2), Thing("circle", "blue", "dotted", 0.75, 0.5, 0.2)
    said = Description((Mention("circle", "blue"),))
    scene = Scene((left, right), "flat", Background(0.1, 0.2, 0.5, 0.0))
    pair = Pair(scene, language("en").caption(said, Draw(0, "words")))
    targets = Encoding(*parts, patch=1)([pair]).targets
    assert targets is not None
    side = parts[1].latent_shape[1]
    mentions = targets.mentions.view(side, side)
    row = side // 2
    assert mentions[row, side // 4] == UNKNOWN  # the caption omits the square
    assert mentions[row, 3 * side // 4] == 0
    assert mentions[0, 0] == BACKGROUND
    attributes = targets.attributes.view(side, side, 3)
    assert attributes[row, 3 * side // 4].tolist() == [SHAPES.index("circle") + 1, COLOURS.index("blue") + 1, 3]
    assert attributes[0, 0].tolist() == [0, 0, 0]
    words = [pair.caption.text[span.start : span.stop] for span in pair.caption.spans]
    named = targets.words["text"][0] == 0
    assert 0 < named.sum() < len(named), f"some tokens name {words}, others do not"


def test_the_most_specific_mention_is_that_of_an_object(parts: tuple[Clip, Autoencoder]) -> None:
    things = Thing("circle", "red", "plain", 0.25, 0.5, 0.2), Thing("circle", "blue", "plain", 0.75, 0.5, 0.2)
    said = Description((Mention("circle"), Mention("circle", "blue")))
    pair = Pair(Scene(things, "flat", Background(0.1, 0.2, 0.5, 0.0)), language("en").caption(said, Draw(0, "words")))
    targets = Encoding(*parts, patch=1)([pair]).targets
    assert targets is not None
    side = parts[1].latent_shape[1]
    mentions = targets.mentions.view(side, side)
    assert (mentions[side // 2, side // 4], mentions[side // 2, 3 * side // 4]) == (0, 1)


def test_steps_have_captions_of_the_mixtures_lengths() -> None:
    mixture = CaptionMixture(fully_described=0.3, medium_captions=0.2, long_captions=0.1)
    lengths = Counter(mixture.length(7, step) for step in range(1000))
    assert lengths["medium"] / 1000 == pytest.approx(0.2, abs=0.04)
    assert lengths["long"] / 1000 == pytest.approx(0.1, abs=0.04)
    full = [mixture.pair(5, i, "short") == scene_source.fully_described(5, i) for i in range(500)]
    assert sum(full) / 500 == pytest.approx(0.3, abs=0.07)
    assert mixture.pair(5, 3, "long") == scene_source.pair(5, 3, length="long", facts=decoder_data.FACTS)


def test_a_stream_is_of_the_mixture_and_of_the_step(
    parts: tuple[Clip, Autoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Pair]] = []
    some = Encoding(*parts)(scene_source.pairs(0, 0, 1))

    def encode(self: Encoding, found: list[Pair]) -> DecoderBatch:
        seen.append(found)
        return some

    monkeypatch.setattr(Encoding, "__call__", encode)
    mixture = CaptionMixture(fully_described=0.3, medium_captions=0.3, long_captions=0.3)
    batches, key = Encoding(*parts).stream(2, mixture, 7), seed_of(7, "decoder")
    for step in range(20):
        batches(step)
        assert seen[-1] == [mixture.pair(key, 2 * step + i, mixture.length(7, step)) for i in range(2)]


def test_stored_scenes_are_those_that_are_encoded_anew(
    parts: tuple[Clip, Autoencoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_data, "WIDTHS", {"short": {"text": 77}, "medium": {"text": 77}, "long": {"text": 77}})
    encode = Encoding(*parts, painted=True)
    mixture = CaptionMixture(medium_captions=0.0, long_captions=0.0)
    batches = encode.stored(tmp_path, 6, 6, mixture, 3)
    stored = batches(0)
    anew = encode([mixture.pair(seed_of(3, "decoder", "short"), i, "short") for i in range(6)])
    rows = [int((anew.latents - one).abs().flatten(1).sum(1).argmin()) for one in stored.latents]
    assert sorted(rows) == list(range(6))
    for name in ("text", "image"):
        one, other = stored.conditioning.conditions[name], anew.conditioning.conditions[name][torch.tensor(rows)]
        for part in ("states", "mask", "pooled", "region_maps"):
            a, b = getattr(one, part), getattr(other, part)
            assert (a is None and b is None) or torch.equal(a, b), (name, part)
    assert stored.targets is not None
    assert anew.targets is not None
    assert torch.equal(stored.targets.mentions, anew.targets.mentions[rows])
    assert torch.equal(stored.targets.words["text"], anew.targets.words["text"][rows])
    assert torch.equal(encode.stored(tmp_path, 6, 6, mixture, 3)(0).latents, stored.latents)


def test_rows_come_once_in_an_epoch_in_batches_of_like_length() -> None:
    lengths = torch.randint(5, 40, (96,), generator=torch.Generator().manual_seed(0))
    rows = Rows(lengths, 4, seed=1)
    steps = [rows.of(step) for step in range(48)]
    for epoch in (steps[:24], steps[24:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(96))
    assert not torch.equal(steps[0], steps[24])
    spread = sum(int(lengths[own].max() - lengths[own].min()) for own in steps) / len(steps)
    random = torch.randperm(96, generator=torch.Generator().manual_seed(1)).view(24, 4)
    apart = sum(int(lengths[own].max() - lengths[own].min()) for own in random) / 24
    assert spread < apart / 2
    assert torch.equal(Rows(lengths, 4, seed=1).of(30), steps[30]), "a step's rows do not depend on those before"
