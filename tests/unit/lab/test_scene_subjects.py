"""Subjects of the embedded world: a word for an object, and the object's cut-out on white."""

import torch

from syzygy.core.randomness import Draw
from syzygy.lab.world.render import PALETTE
from syzygy.lab.world.scene import SHAPES, Thing, shows_unseen_composition
from syzygy.lab.world.scene_source import pairs
from syzygy.lab.world.scene_subjects import SUBJECT_RATE, WORD, cut_outs, described_pairs, subject_pair


def test_the_word_stands_for_one_thing_of_the_scene_and_nothing_else_changes() -> None:
    number = 300
    found = [subject_pair(one, Draw(0, "subject", i)) for i, one in enumerate(pairs(0, 0, number))]
    with_one = 0
    for plain, one in zip(pairs(0, 0, number), found, strict=True):
        if one.thing is None:
            assert one.text == plain.caption.text
            continue
        with_one += 1
        assert one.thing in one.scene.things
        assert one.text.split().count(WORD) + one.text.count(f"{WORD},") + one.text.count(f"{WORD}.") >= 1
        spans = {plain.caption.text[span.start : span.stop] for span in plain.caption.spans}
        assert any(
            one.text in (plain.caption.text.replace(words, f"a {WORD}"), plain.caption.text.replace(words, WORD))
            for words in spans
        )
        assert "an thing" not in one.text
    assert 0.5 < with_one / number < SUBJECT_RATE


def test_cut_outs_show_the_thing_on_white() -> None:
    things = [
        (Thing(shape, "blue", "plain", 0.2, 0.8, 0.13), "night" if i % 2 else "flat") for i, shape in enumerate(SHAPES)
    ]
    images = cut_outs(things, 64)
    assert images.shape == (len(SHAPES), 3, 64, 64)
    corners = images[:, :, ::63, ::63]
    assert torch.equal(corners, torch.ones_like(corners))
    blue = torch.tensor(PALETTE["blue"]) / 255
    flat = images[::2]
    near = ((flat - blue[:, None, None]).abs().amax(1) < 0.02).float().mean((1, 2))
    assert (near > 0.08).all(), "the thing fills a good part of its cut-out, in its own colour"
    again = cut_outs(
        [
            (Thing("star", "red", "dotted", 0.7, 0.3, 0.3), "flat"),
            (Thing("star", "red", "dotted", 0.2, 0.2, 0.14), "flat"),
        ]
    )
    assert torch.equal(again[0], again[1]), "a cut-out does not depend on the thing's place and size"
    assert cut_outs([]).shape == (0, 3, 64, 64)


def test_training_pairs_are_fully_described_in_turn_and_show_no_unseen_composition() -> None:
    found = described_pairs(0, 10, 80)
    assert not any(shows_unseen_composition(one.scene) for one in found)
    assert [one.caption.text for one in found[20:]] == [one.caption.text for one in described_pairs(0, 30, 60)]
    for one in found[::2]:
        assert sum(mention.count for mention in one.caption.description.mentions) == len(one.scene.things)
        assert all(mention.colour for mention in one.caption.description.mentions)
    named = [sum(mention.count for mention in one.caption.description.mentions) for one in found[1::2]]
    assert any(number < len(one.scene.things) for number, one in zip(named, found[1::2], strict=True))
    assert any(shows_unseen_composition(one.scene) for one in described_pairs(0, 10, 80, unseen=True)[::2])
