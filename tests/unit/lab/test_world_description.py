"""Scenes and what is true of them: relations, held-out compositions, judgement."""

import pytest

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention, Placed, check_facts
from syzygy.lab.world.scene import (
    COLOURS,
    MAX_OBJECTS,
    RELATION_MARGIN,
    SHAPES,
    STYLES,
    TEXTURES,
    UNSEEN_COLOURS,
    UNSEEN_RELATIONS,
    UNSEEN_TEXTURES,
    Background,
    Colour,
    Relation,
    Scene,
    Shape,
    Style,
    Texture,
    Thing,
    relation_between,
    relation_is_unseen,
    shows_unseen_composition,
)
from syzygy.lab.world.scene_sampling import NUMBER_OF_THINGS, RADIUS, sample_scene, scene_for


def thing(shape: Shape, colour: Colour = "red", x: float = 0.5, y: float = 0.5, texture: Texture = "plain") -> Thing:
    return Thing(shape, colour, texture, x, y, 0.15)


def scene(*things: Thing, style: Style = "flat") -> Scene:
    return Scene(things, style, Background(0.0, 0.0, 0.5, 0.0))


def held(description: Description, *things: Thing, exact_counts: bool = False) -> list[bool]:
    return [atom.holds for atom in check_facts(description, scene(*things), exact_counts=exact_counts)]


@pytest.mark.parametrize(
    ("dx", "dy", "relation"),
    [
        (0.3, 0.0, "left of"),
        (-0.3, 0.0, "right of"),
        (0.0, 0.3, "above"),
        (0.0, -0.3, "below"),
        (0.3, 0.29, "left of"),
        (0.29, -0.3, "below"),
        (0.09, -0.09, None),
        (-1.01 * RELATION_MARGIN, 0.0, "right of"),
    ],
)
def test_the_longer_way_names_the_relation(dx: float, dy: float, relation: Relation | None) -> None:
    assert relation_between(thing("circle"), thing("star", x=0.5 + dx, y=0.5 + dy)) == relation


def test_held_out_compositions_cover_the_world() -> None:
    assert sorted(s for s, _ in UNSEEN_COLOURS) == sorted(SHAPES)
    assert sorted(c for _, c in UNSEEN_COLOURS) == sorted(COLOURS)
    assert {t for _, t in UNSEEN_TEXTURES} == set(TEXTURES) - {"plain"}
    assert {s for first, _, second in UNSEEN_RELATIONS for s in (first, second)} == set(SHAPES)
    assert not any((b, r, a) in UNSEEN_RELATIONS for a, r, b in UNSEEN_RELATIONS)


def test_held_out_relations_count_from_both_sides() -> None:
    assert relation_is_unseen("circle", "left of", "star")
    assert relation_is_unseen("star", "right of", "circle")
    assert not relation_is_unseen("star", "left of", "circle")
    assert shows_unseen_composition(scene(thing("star", x=0.8), thing("circle", x=0.2)))
    assert not shows_unseen_composition(scene(thing("star", x=0.2), thing("circle", x=0.8)))


def test_a_scene_shows_what_a_description_may_leave_untold() -> None:
    purple = scene(thing("circle", "purple"))
    assert shows_unseen_composition(purple)
    assert shows_unseen_composition(scene(thing("square", texture="dotted")))
    assert not Description((Mention("circle"),)).unseen
    assert Description((Mention("circle", "purple"),)).unseen
    assert Description((Mention("square", None, "dotted"),)).unseen
    both = Mention("star"), Mention("circle")
    assert Description(both, (Placed(0, "right of", 1),)).unseen
    assert not Description(both, (Placed(0, "left of", 1),)).unseen


def test_attributes_count_only_where_they_are_bound() -> None:
    told = Description((Mention("circle", "red"), Mention("star", "blue")))
    assert held(told, thing("star", "blue"), thing("circle", "red")) == [True] * 4
    assert held(told, thing("star", "red"), thing("circle", "blue")) == [True, False, True, False]
    assert held(told, thing("circle", "red"), thing("moon", "blue")) == [True, True, False, False]
    textures = Description((Mention("circle", None, "dotted"), Mention("star", None, "plain")))
    swapped = thing("star", texture="dotted"), thing("circle", texture="plain")
    assert held(textures, *swapped) == [True, False, True, False]


def test_two_mentions_never_share_a_thing() -> None:
    told = Description((Mention("circle"), Mention("circle", "red")))
    assert held(told, thing("circle", "red")) == [False, True, True]
    assert held(told, thing("circle", "red"), thing("circle", "blue")) == [True] * 3


def test_counts() -> None:
    three = Description((Mention("circle", "red", None, 3),))
    circles = [thing("circle", x=x) for x in (0.2, 0.4, 0.6, 0.8)]
    assert held(three, *circles[:2]) == [True] * 4 + [False] * 2
    assert held(three, *circles[:3], exact_counts=True) == [True] * 7
    assert held(three, *circles) == [True] * 6
    assert held(three, *circles, exact_counts=True) == [True] * 6 + [False]


def test_a_relation_of_several_holds_of_each() -> None:
    told = Description((Mention("circle", count=2), Mention("star")), (Placed(0, "left of", 1),))
    star, left, right = thing("star", x=0.5), thing("circle", x=0.1), thing("circle", x=0.9)
    assert held(told, star, left, thing("circle", x=0.2)) == [True] * 4
    assert held(told, star, left, right) == [True] * 3 + [False]


def test_relation_and_style_are_judged() -> None:
    told = Description((Mention("circle"), Mention("star")), (Placed(0, "above", 1),), "night")
    high, low = thing("circle", y=0.2), thing("star", y=0.8)
    assert [a.holds for a in check_facts(told, scene(high, low, style="night"))] == [True] * 4
    upside_down = scene(thing("circle", y=0.8), thing("star", y=0.2), style="flat")
    assert {a.kind: a.holds for a in check_facts(told, upside_down)} == {
        "shape": True,
        "relation": False,
        "style": False,
    }


def test_the_key_ignores_order_and_side() -> None:
    circle, star, two = Mention("circle", "red"), Mention("star"), Mention("moon", count=2)
    told = Description((circle, star, two), (Placed(0, "left of", 1),))
    assert told.key == Description((two, star, circle), (Placed(1, "right of", 2),)).key
    others = [
        Description((circle, star, two)),
        Description((circle, star, two), (Placed(1, "left of", 0),)),
        Description((circle, star, two), (Placed(0, "left of", 1),), "flat"),
        Description((Mention("circle"), star, two), (Placed(0, "left of", 1),)),
    ]
    assert len({told.key, *(d.key for d in others)}) == 5


def test_samples_use_the_whole_world_as_often_as_they_say() -> None:
    scenes = [sample_scene(Draw(4, i)) for i in range(3000)]
    things = [t for s in scenes for t in s.things]
    assert {t.appearance for t in things} == {(s, c, t) for s in SHAPES for c in COLOURS for t in TEXTURES}
    assert {s.style for s in scenes} == set(STYLES)
    for number, share in enumerate(NUMBER_OF_THINGS, 1):
        found = [s for s in scenes if len(s.things) == number]
        assert len(found) / len(scenes) == pytest.approx(share, abs=0.03)
        low, high = RADIUS[number]
        assert all(low <= t.radius <= high for s in found for t in s.things)


def test_descriptions_without_a_scene() -> None:
    with pytest.raises(UserError, match=f"1 to {MAX_OBJECTS} objects; this text names 5"):
        scene_for(Description((Mention("circle", count=5),)), Draw(0))
    with pytest.raises(UserError, match="names 0"):
        scene_for(Description(()), Draw(0))
    circular = Placed(0, "left of", 1), Placed(1, "left of", 0)
    with pytest.raises(UserError, match="contradict each other"):
        scene_for(Description((Mention("circle"), Mention("star")), circular), Draw(0), tries=50)
