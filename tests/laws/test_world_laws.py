"""Laws of the embedded world: what is said can be read back and is true, and a seed says all."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from syzygy.core.randomness import Draw
from syzygy.lab.world import scene_source
from syzygy.lab.world.description import ALL_FACTS, Description, FactRates, Mention, Placed, check_facts, describe
from syzygy.lab.world.language import language
from syzygy.lab.world.language.base import Length
from syzygy.lab.world.render import masks, render
from syzygy.lab.world.scene import (
    COLOURS,
    INVERSE,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    STYLES,
    TEXTURES,
    Scene,
    Style,
    Thing,
    relation_between,
    shows_unseen_composition,
)
from syzygy.lab.world.scene_sampling import sample_scene, scene_for
from tests.closeness import assert_close

LENGTHS: tuple[Length, ...] = ("short", "medium", "long")
SEEDS = st.integers(0, 2**32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Pictures of 64 px gain nothing from more, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


mentions = st.builds(
    Mention,
    st.sampled_from(SHAPES),
    st.none() | st.sampled_from(COLOURS),
    st.none() | st.sampled_from(TEXTURES),
    st.integers(1, MAX_OBJECTS),
)
things = st.builds(
    Thing,
    st.sampled_from(SHAPES),
    st.sampled_from(COLOURS),
    st.sampled_from(TEXTURES),
    st.floats(0.1, 0.9),
    st.floats(0.1, 0.9),
    st.just(0.1),
)


Parts = tuple[tuple[Mention, ...], tuple[Placed, ...], Style | None]


@st.composite
def parts(draw: st.DrawFn) -> Parts:
    """Of any description that a sentence can say: the mentions, in any order, stand in chains of relations or in none.

    Not a `Description`: beartype looks into its tuples at random, and strategies must not touch `random`.
    """
    told: list[Mention] = []
    for mention in draw(st.lists(mentions, min_size=1, max_size=MAX_OBJECTS)):
        if sum(m.count for m in told) + mention.count <= MAX_OBJECTS or not told:
            told.append(mention)
    order = draw(st.permutations(range(len(told))))
    between = [draw(st.none() | st.sampled_from(RELATIONS)) for _ in order[1:]]
    links = tuple(Placed(a, r, b) for (a, b), r in zip(pairwise(order), between, strict=True) if r)
    return tuple(told), links, draw(st.none() | st.sampled_from(STYLES))


@settings(max_examples=600)
@given(parts(), SEEDS, st.sampled_from(LENGTHS))
def test_whatever_is_said_is_read_back(told: Parts, seed: int, length: Length) -> None:
    description = Description(*told)
    said = language("en").caption(description, Draw(seed), length)
    parsed = language("en").parse(said.text)
    assert parsed.description.key == description.key
    assert (parsed.unknown, parsed.unused) == ({}, ())
    assert said.description is description
    assert [s.mention for s in sorted(said.spans, key=lambda s: s.mention)] == list(range(len(description.mentions)))
    for span in said.spans:
        words = said.text[span.start : span.stop]
        assert language("en").parse(words).description.mentions == (description.mentions[span.mention],)


@pytest.mark.parametrize(("length", "number"), [("short", 1500), ("medium", 250), ("long", 250)])
def test_thousands_of_captions_are_true_and_read_back(length: Length, number: int) -> None:
    for pair in scene_source.pairs(3, 0, number, length=length):
        said = pair.caption.description
        assert language("en").parse(pair.caption.text).description.key == said.key
        assert all(atom.holds for atom in check_facts(said, pair.scene))
        assert all(sum(map(m.fits, pair.scene.things)) == m.count for m in said.mentions if m.count > 1)
        assert shows_unseen_composition(pair.scene) or not said.unseen


@settings(max_examples=300)
@given(SEEDS, st.builds(FactRates, *[st.floats(0, 1)] * 5))
def test_descriptions_are_true_however_much_they_tell(seed: int, told: FactRates) -> None:
    scene = sample_scene(Draw(seed))
    description = describe(scene, Draw(seed, "told"), told)
    assert description.mentions
    assert all(atom.holds for atom in check_facts(description, scene))


@settings(max_examples=60)
@given(SEEDS)
def test_a_full_description_determines_what_can_be_told(seed: int) -> None:
    scene = sample_scene(Draw(seed))
    full = describe(scene, Draw(seed, "told"), ALL_FACTS)
    assert all(atom.holds for atom in check_facts(full, scene, exact_counts=True))
    again = scene_for(full, Draw(seed, "again"))
    assert sorted(t.appearance for t in again.things) == sorted(t.appearance for t in scene.things)
    assert again.style == scene.style


@settings(max_examples=60)
@given(parts(), SEEDS)
@example(((Mention("circle", count=2), Mention("star", count=2)), (Placed(0, "above", 1),), None), 0)
def test_scenes_made_for_a_description_bear_it_out(told: Parts, seed: int) -> None:
    description = Description(*told)
    assume(len(description.relations) <= 2)  # four in a row are seldom found
    scene = scene_for(description, Draw(seed))
    assert all(atom.holds for atom in check_facts(description, scene))
    assert len(scene.things) == sum(m.count for m in description.mentions)


@given(things, things)
def test_relations_have_inverses(a: Thing, b: Thing) -> None:
    relation = relation_between(a, b)
    assert relation_between(b, a) == (INVERSE[relation] if relation else None)


def test_swapped_captions_are_false() -> None:
    wrong = [(pair, scene_source.swapped(pair, Draw(5, i))) for i, pair in enumerate(scene_source.pairs(5, 0, 500))]
    told = [(pair, text) for pair, text in wrong if text]
    assert len(told) > 0.9 * len(wrong)
    for pair, text in told:
        assert not all(atom.holds for atom in check_facts(language("en").parse(text).description, pair.scene))


def test_without_held_out_none_is_shown() -> None:
    free = [sample_scene(Draw(7, i)) for i in range(400)]
    assert 0.2 < sum(map(shows_unseen_composition, free)) / len(free) < 0.8
    assert not any(shows_unseen_composition(sample_scene(Draw(7, i), unseen=False)) for i in range(400))


def test_a_seed_says_all() -> None:
    first, again = scene_source.pairs(9, 100, 40), [scene_source.pair(9, index) for index in range(100, 140)]
    assert first == again
    assert first != scene_source.pairs(10, 100, 40)
    pictures = scene_source.pictures(first)
    assert torch.equal(pictures, scene_source.pictures(again))
    singly = torch.cat([render([p.scene]) for p in first])
    assert_close(pictures, singly)
    assert_close(pictures, scene_source.pictures(first, chunk=7))


@settings(max_examples=25)
@given(SEEDS, st.integers(16, 100))
def test_pictures_and_masks_at_any_resolution(seed: int, size: int) -> None:
    scene = sample_scene(Draw(seed))
    picture, regions, whole = render([scene], size), masks(scene, size), masks(scene, size, hidden=True)
    assert picture.shape == (1, 3, size, size)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert regions.shape == whole.shape == (len(scene.things), size, size)
    assert regions.min() >= 0
    assert (regions <= whole).all()
    assert regions.sum(0).max() <= 1 + 1e-6


def test_alike_scenes_at_two_resolutions_agree() -> None:
    scenes: list[Scene] = [sample_scene(Draw(2, i)) for i in range(8)]
    small, large = render(scenes, 64), torch.nn.functional.avg_pool2d(render(scenes, 256), 4)
    # Outlines are at least 1.3 px wide, so those are left out.
    same = [i for i, scene in enumerate(scenes) if scene.style != "outline"]
    assert len(same) >= 4
    assert (small - large)[same].abs().mean() < 0.01
