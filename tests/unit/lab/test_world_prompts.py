"""Prompts: distinct, deterministic, true to their category, realisable, held out or not."""

from itertools import combinations

import pytest

from syzygy.core.errors import UserError
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, check_facts
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import CATEGORIES, Category, prompts
from syzygy.lab.world.scene_sampling import scene_for

KINDS = [(category, held_out) for category in CATEGORIES for held_out in (False, True)]


def has_form(category: Category, d: Description) -> bool:
    """Whether the description is of this category."""
    counts, colours = [m.count for m in d.mentions], [m.colour for m in d.mentions]
    textures, relations, n = [m.texture for m in d.mentions], len(d.relations), len(d.mentions)
    one_each, no_texture, no_colour = set(counts) == {1}, not any(textures), not any(colours)
    return {
        "single": n == 1 and one_each and all(colours) and not relations and not d.style,
        "colour": n == 2 and one_each and all(colours) and no_texture and not relations and not d.style,
        "shape": n == 2 and one_each and no_colour and no_texture and not relations and not d.style,
        "texture": n == 2 and one_each and no_colour and all(textures) and not relations and not d.style,
        "spatial": n == 2 and one_each and no_texture and relations == 1 and not d.style,
        "numeracy": n <= 2 and sorted(counts)[-1] >= 2 and sum(counts) <= 4 and no_texture and not relations,
        "complex": n in (2, 3) and one_each and all(colours) and all(textures) and bool(relations == 1 or d.style),
    }[category]


@pytest.mark.parametrize(("category", "held_out"), KINDS)
def test_prompts(category: Category, held_out: bool) -> None:
    found = prompts(category, 30, 0, held_out, fewer=True)
    assert len(found) == {("shape", True): 0, ("shape", False): 28}.get((category, held_out), 30)
    assert len({p.description.key for p in found}) == len(found)
    for p in found:
        assert (p.category, p.unseen, p.description.unseen) == (category, held_out, held_out)
        assert has_form(category, p.description)
        assert language("en").parse(p.text).description.key == p.description.key
        scene = scene_for(p.description, Draw(0, p.text))
        assert all(atom.holds for atom in check_facts(p.description, scene, exact_counts=True))


def test_a_swap_of_attributes_always_shows() -> None:
    for category in ("colour", "texture", "complex"):
        for p in prompts(category, 40, 1, False):
            for a, b in combinations(p.description.mentions, 2):
                assert a.shape != b.shape
                assert a.colour != b.colour or a.texture != b.texture


def test_the_same_seed_gives_the_same_and_a_smaller_number_the_first() -> None:
    for category in ("single", "spatial", "complex"):
        found = prompts(category, 20, 3, False)
        assert found[:7] == prompts(category, 7, 3, False)
        assert found != prompts(category, 20, 4, False)


def test_both_forms_of_a_category_are_common() -> None:
    single, spatial = prompts("single", 20, 0, False), prompts("spatial", 20, 0, False)
    assert sum(p.description.mentions[0].texture is None for p in single) in range(6, 15)
    assert sum(p.description.mentions[0].colour is None for p in spatial) in range(6, 15)
    numeracy, complex_ = prompts("numeracy", 20, 0, False), prompts("complex", 40, 0, False)
    assert sum(len(p.description.mentions) == 1 for p in numeracy) in range(6, 15)
    assert {len(p.description.mentions) for p in complex_} == {2, 3}
    assert {(bool(p.description.relations), bool(p.description.style)) for p in complex_} == {
        (True, False),
        (False, True),
        (True, True),
    }


@pytest.mark.parametrize(
    ("category", "held_out", "number"),
    [("single", True, 60), ("shape", True, 0), ("texture", True, 52)],
)
def test_more_than_there_are(category: Category, held_out: bool, number: int) -> None:
    kind = "unseen" if held_out else "seen"
    with pytest.raises(UserError, match=f"only {number} {kind} prompts of category '{category}' exist, not 1000"):
        prompts(category, 1000, 0, held_out)
    found = prompts(category, 1000, 0, held_out, fewer=True)
    assert {p.description.key for p in found} == {
        p.description.key for p in prompts(category, 1000, 1, held_out, fewer=True)
    }


def test_unknown_category() -> None:
    with pytest.raises(UserError, match=r"unknown category of prompts 'color'\. Did you mean 'colour'\?"):
        prompts("color", 1, 0, False)
