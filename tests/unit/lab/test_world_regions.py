from collections import Counter

import torch

from syzygy.core.randomness import Draw
from syzygy.lab.world.scene_regions import regions
from syzygy.lab.world.scene_source import pair, pairs
from syzygy.regions.phrases import places

SIDE = 16


def test_a_region_holds_the_centre_of_what_its_words_name() -> None:
    for index, found in enumerate(pairs(0, 0, 200)):
        for region in regions(found, Draw(1, "regions", index), SIDE):
            start, stop = places(found.caption.text, region.phrase)[0]
            (span,) = [span for span in found.caption.spans if (span.start, span.stop) == (start, stop)]
            mention = found.caption.description.mentions[span.mention]
            things = [thing for thing in found.scene.things if mention.fits(thing)]
            assert things
            assert all(region.mask[int(thing.y * SIDE), int(thing.x * SIDE)] == 1 for thing in things)


def test_regions_are_of_all_sizes_and_seldom_the_whole_picture() -> None:
    parts = [
        float(r.mask.mean()) for i, p in enumerate(pairs(0, 0, 300)) for r in regions(p, Draw(1, "regions", i), SIDE)
    ]
    assert min(parts) < 0.1
    assert sum(part == 1 for part in parts) < 0.05 * len(parts)
    assert sum(0.4 < part < 0.6 for part in parts) > 0.08 * len(parts)


def test_most_mentions_are_painted_and_words_that_stand_twice_never() -> None:
    named = painted = 0
    for index, found in enumerate(pairs(0, 0, 300)):
        phrases = Counter(found.caption.text[span.start : span.stop].casefold() for span in found.caption.spans)
        regions_ = regions(found, Draw(1, "regions", index), SIDE)
        assert all(phrases[region.phrase.casefold()] == 1 for region in regions_)
        named += len(phrases)
        painted += len(regions_)
    assert 0.75 * named < painted < 0.9 * named


def test_equal_draws_give_equal_regions() -> None:
    found = pair(0, 3)
    first, second = (regions(found, Draw(5, "x"), SIDE) for _ in range(2))
    assert [r.phrase for r in first] == [r.phrase for r in second]
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(first, second, strict=True))
