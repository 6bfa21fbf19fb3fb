"""Prompts by category, after T2I-CompBench (Huang et al. 2023): which parts of a text does an image get right?

All objects of a prompt differ in shape, and those with given colours (or, in "texture", textures) differ in these too,
so that an attribute bound to the wrong object always shows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations, permutations, product, zip_longest
from typing import Literal, get_args

from syzygy.core.errors import UserError, unknown
from syzygy.core.randomness import Draw
from syzygy.lab.world.description import Description, Mention, Placed
from syzygy.lab.world.language import language
from syzygy.lab.world.language.base import Span
from syzygy.lab.world.scene import COLOURS, INVERSE, MAX_OBJECTS, RELATIONS, SHAPES, STYLES, TEXTURES, Colour, Texture

Category = Literal["single", "colour", "shape", "texture", "spatial", "numeracy", "complex"]
CATEGORIES: tuple[Category, ...] = get_args(Category)


@dataclass(frozen=True)
class Prompt:
    """A text to generate an image from, its description, and whether it names an unseen composition."""

    category: Category
    text: str
    description: Description
    unseen: bool
    spans: tuple[Span, ...] = ()
    """Where the words of each mention are."""


def prompts(
    category: str, number: int, seed: int, unseen: bool, *, fewer: bool = False, lang: str = "en"
) -> list[Prompt]:
    """Different prompts of a category that a scene can show; a smaller `number` gives the first of them.

    With `unseen` each names an unseen composition (shape × colour, shape × texture or relation), without it none.
    ("shape" has 28 prompts and none that is unseen, as shapes alone make no composition.)

    Args:
        fewer: take as many as there are, if `number` is more.

    Raises:
        UserError: unknown category, or fewer than `number` such prompts exist.
    """
    if category not in _DESCRIPTIONS:
        raise unknown("category of prompts", category, _DESCRIPTIONS)
    draw = Draw(seed, "prompts", category)
    found: dict[object, Prompt] = {}
    for described in _DESCRIPTIONS[category](draw):
        if len(found) == number:
            break
        if described.unseen == unseen and described.key not in found:
            said = language(lang).caption(_turned(described, draw), draw)
            found[described.key] = Prompt(category, said.text, said.description, unseen, said.spans)
    if len(found) < number and not fewer:
        kind = "unseen" if unseen else "seen"
        raise UserError(
            f"only {len(found)} {kind} prompts of category {category!r} exist, not {number}. Ask for fewer."
        )
    return list(found.values())


def _turned(described: Description, draw: Draw) -> Description:
    """The same description, from its last object to its first, half of the time."""
    if draw.chance(0.5):
        return described
    last = len(described.mentions) - 1
    relations = tuple(Placed(last - p.target, INVERSE[p.relation], last - p.subject) for p in described.relations)
    return replace(described, mentions=described.mentions[::-1], relations=relations)


def _alternating(draw: Draw, *kinds: list[Description]) -> Iterator[Description]:
    """All descriptions once, in random order, each kind in turn: a rare kind is not drowned by a common one."""
    turns = zip_longest(*(draw.order(kind) for kind in kinds))
    return (described for described in chain.from_iterable(turns) if described is not None)


def _single(draw: Draw) -> Iterator[Description]:
    def alone(*textures: Texture | None) -> list[Description]:
        return [Description((Mention(*appearance),)) for appearance in product(SHAPES, COLOURS, textures)]

    return _alternating(draw, alone(None), alone(*TEXTURES))


def _colour(draw: Draw) -> Iterator[Description]:
    pairs = product(combinations(SHAPES, 2), permutations(COLOURS, 2))
    return _alternating(draw, [Description((Mention(s, c), Mention(t, d))) for (s, t), (c, d) in pairs])


def _shape(draw: Draw) -> Iterator[Description]:
    return _alternating(draw, [Description((Mention(s), Mention(t))) for s, t in combinations(SHAPES, 2)])


def _texture(draw: Draw) -> Iterator[Description]:
    pairs = product(combinations(SHAPES, 2), permutations(TEXTURES, 2))
    described = [Description((Mention(s, None, a), Mention(t, None, b))) for (s, t), (a, b) in pairs]
    return _alternating(draw, described)


def _spatial(draw: Draw) -> Iterator[Description]:
    def related(*colours: tuple[Colour | None, Colour | None]) -> list[Description]:
        sides = product(permutations(SHAPES, 2), ("left of", "above"), colours)
        return [Description((Mention(s, c), Mention(t, d)), (Placed(0, r, 1),)) for (s, t), r, (c, d) in sides]

    return _alternating(draw, related((None, None)), related(*permutations(COLOURS, 2)))


def _numeracy(draw: Draw) -> Iterator[Description]:
    def alike(most: int) -> Iterator[Mention]:
        for shape, colour, count in product(SHAPES, (None, *COLOURS), range(2, most + 1)):
            yield Mention(shape, colour, None, count)

    alone = [Description((several,)) for several in alike(MAX_OBJECTS)]
    with_other = [
        Description((several, Mention(shape, colour)))
        for several, shape, colour in product(alike(MAX_OBJECTS - 1), SHAPES, (None, *COLOURS))
        if shape != several.shape
        and (colour is None) == (several.colour is None)
        and (colour != several.colour or not colour)
    ]
    return _alternating(draw, alone, with_other)


def _complex(draw: Draw) -> Iterator[Description]:
    """Without end, as there are about 10⁸: two or three objects, a relation of the first two, a style, or both."""
    while True:
        number = draw.pick((2, 3))
        appearances = zip(draw.order(SHAPES)[:number], draw.order(COLOURS), strict=False)
        mentions = tuple(Mention(shape, colour, draw.pick(TEXTURES)) for shape, colour in appearances)
        kind = draw.pick(("relation", "style", "both"))
        relations = (Placed(0, draw.pick(RELATIONS), 1),) if kind != "style" else ()
        yield Description(mentions, relations, draw.pick(STYLES) if kind != "relation" else None)


_DESCRIPTIONS: dict[Category, Callable[[Draw], Iterator[Description]]] = {
    "single": _single,
    "colour": _colour,
    "shape": _shape,
    "texture": _texture,
    "spatial": _spatial,
    "numeracy": _numeracy,
    "complex": _complex,
}
